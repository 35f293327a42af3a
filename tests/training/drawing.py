"""Drawing by MuJoCo on a CPU; imported before anything that imports MuJoCo."""

import ctypes.util
import os

import pytest

# MuJoCo reads it when it is imported.
os.environ["MUJOCO_GL"] = "osmesa" if ctypes.util.find_library("OSMesa") else "disable"


def require_drawing() -> None:
    """Skip the test where nothing can be drawn; in CI it fails."""
    if os.environ["MUJOCO_GL"] == "disable":
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse("drawing without a GPU needs Debian's libosmesa6")
