"""Rendered clips: rigid bodies simulated and drawn by MuJoCo, with exact contact times.

`clip.make_clip` is the entry: it builds a world, simulates it, finds the impacts, places a camera,
draws the frames and returns a `training.scene.Scene`, so that drawn and rendered clips train alike.
MuJoCo is needed here only; neither the service nor the package imports this folder.
"""

import ctypes.util
import os

# MuJoCo chooses how it draws when it is imported: EGL on a GPU, OSMesa on a CPU. Without either,
# scenes are simulated and not drawn.
_BACKENDS = {"egl": "EGL", "osmesa": "OSMesa"}
_FOUND = [name for name, library in _BACKENDS.items() if ctypes.util.find_library(library)]
os.environ.setdefault("MUJOCO_GL", next(iter(_FOUND), "disable"))
