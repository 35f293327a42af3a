"""Weights: where they come from, under which licence, and how files become loaded networks.

Key maps translate published layouts into ours; `tiny/` is the embedded model's data.
The networks themselves are in `foley.models`.
"""
