"""Rendered clips: rigid bodies simulated and drawn by MuJoCo, with exact contact times.

`clip.make_clip` is the entry: it builds a world, simulates it, finds the impacts, places a camera,
draws the frames and returns a `training.scene.Scene`, so that drawn and rendered clips train alike.
MuJoCo is needed here only; neither the service nor the package imports this folder.
"""
