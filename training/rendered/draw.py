"""Draw the frames of a simulated clip, as a camera of some quality would take them."""

# n frames, S pixels a side, X exposures a frame, q positions of the model

import atexit
import math
from collections.abc import Iterator
from functools import cache

import mujoco
import numpy as np

from training.rendered.camera import Camera
from training.rendered.simulate import Motion

_SHEET_SIDE = 896  # pixels: 16 pictures of 224
_MAX_GEOMS = 10_000
_SHARP = 0.75  # pixels that things move during an exposure that is not blurred


def draw_frames(
    motion: Motion, camera: Camera, rng: np.random.Generator, size: int, exposures: np.ndarray
) -> np.ndarray:
    """Return the frames of a clip, uint8 RGB [n, S, S, 3].

    MuJoCo draws by EGL on a GPU; MUJOCO_GL=osmesa draws on a CPU.

    Args:
        motion: of the clip.
        camera: one view a frame.
        rng: source of the camera's gain, gamma, noise and vignette.
        size: pixels a side.
        exposures: the states whose mean a frame is where things move fast, [n, X, q]; the middle
            one is the state of `motion`.
    """
    gain, gamma = rng.uniform(0.85, 1.2), rng.uniform(0.8, 1.15)
    noise, vignette = abs(rng.normal(0, 0.008)), rng.uniform(0, 0.35)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    shade = ((1 - vignette * (x * x + y * y) / 2) * gain)[..., None].astype(np.float32)
    table = ((np.arange(256) / 255) ** gamma * 255).astype(np.float32)
    frames = np.empty((len(camera.views), size, size, 3), np.uint8)
    for index, pictures in enumerate(_draw_exposures(motion, camera, size, exposures)):
        image = np.zeros((size, size, 3), np.float32)
        for picture in pictures:
            image += table[picture] / len(pictures)
        image *= shade
        if noise > 0.002:
            image += rng.standard_normal((size, size, 1), np.float32) * (255 * noise)
        frames[index] = np.clip(image, 0, 255).astype(np.uint8)
    return frames


def _draw_exposures(
    motion: Motion, camera: Camera, size: int, exposures: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the pictures of each frame, uint8 RGB [1 or X, S, S, 3]."""
    model, data = motion.model, motion.data
    pixels = camera.scale * size / 2  # a metre at the action's distance
    with _Sheet(model, size, exposures.shape[1]) as sheet:
        counts: list[int] = []  # pictures on the sheet, of each frame
        for view, moments in zip(camera.views, exposures, strict=True):
            states = _choose_exposures(motion, moments, pixels)
            if len(states) > sheet.room:
                yield from np.split(sheet.read(), np.cumsum(counts)[:-1])
                counts.clear()
            counts.append(len(states))
            data.mocap_pos[0], data.mocap_quat[0] = view.place, view.quaternion()
            for state in states:
                data.qpos[:] = state
                mujoco.mj_kinematics(model, data)
                mujoco.mj_comPos(model, data)
                mujoco.mj_camlight(model, data)
                mujoco.mj_flex(model, data)
                sheet.draw(data)
        yield from np.split(sheet.read(), np.cumsum(counts)[:-1])


class _Sheet:
    """Pictures of the camera, drawn side by side and read at once.

    A process that reads waits for the GPU. Where several processes draw on one GPU, each such wait
    hands it to another process, which takes longer than to draw a picture of this size.

    Args:
        model: of the scene.
        size: pixels a side of a picture.
        least: pictures that it must have room for.
    """

    def __init__(self, model: mujoco.MjModel, size: int, least: int) -> None:
        self._model, self._size = model, size
        self._per_side = max(math.ceil(math.sqrt(least)), _SHEET_SIDE // size)
        self._count = 0
        side = self._per_side * size
        model.vis.global_.offwidth = model.vis.global_.offheight = side
        _open_display().make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._option, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.camera("camera").id

    def __enter__(self) -> "_Sheet":
        return self

    def __exit__(self, *_: object) -> None:
        self._context.free()

    @property
    def room(self) -> int:
        """Pictures that may be drawn before the next `read`."""
        return self._per_side**2 - self._count

    def draw(self, data: mujoco.MjData) -> None:
        """Draw one picture."""
        row, column = divmod(self._count, self._per_side)
        place = mujoco.MjrRect(column * self._size, row * self._size, self._size, self._size)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, everything, self._scene
        )
        mujoco.mjr_render(place, self._scene, self._context)
        self._count += 1

    def read(self) -> np.ndarray:
        """Return the pictures that were drawn since the last call, uint8 RGB [.., S, S, 3]."""
        size, wide = self._size, self._per_side
        rows = -(-self._count // wide)
        pixels = np.empty((rows * size, wide * size, 3), np.uint8)
        whole = mujoco.MjrRect(0, 0, wide * size, rows * size)
        mujoco.mjr_readPixels(pixels, None, whole, self._context)
        pictures = (
            pixels.reshape(rows, size, wide, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
        )
        pictures = pictures[: self._count, ::-1]  # OpenGL counts lines from below
        self._count = 0
        return pictures


@cache
def _open_display() -> mujoco.GLContext:
    """Return what OpenGL needs, once for a process, whose one thread draws."""
    display = mujoco.GLContext(1, 1)  # pictures are in buffers of their own
    atexit.register(display.free)  # before the interpreter takes the library apart
    return display


def _choose_exposures(motion: Motion, states: np.ndarray, pixels: float) -> np.ndarray:
    """Return the states [.., q] that a frame is the mean of: one where nothing moves fast."""
    middle = states[len(states) // 2 :][:1]
    if len(states) == 1:
        return middle
    places = []
    for state in (states[0], states[-1]):
        motion.data.qpos[:] = state
        mujoco.mj_kinematics(motion.model, motion.data)
        places.append(motion.data.geom_xpos.copy())
    moved = np.linalg.norm(places[1] - places[0], axis=1)
    moved = moved[moved < 3]  # what appears or leaves does not move
    return states if moved.max(initial=0) * pixels > _SHARP else middle
