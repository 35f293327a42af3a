"""Clips in and out: containers, frames by presentation time, scaling, sound files, muxing.

Nothing here knows the model.
"""
