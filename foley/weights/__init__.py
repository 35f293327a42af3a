"""Download, verify, convert and load weights.

`tiny/` is the data of the embedded model. The networks themselves are in `foley.models`.
"""
