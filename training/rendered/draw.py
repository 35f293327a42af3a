"""Draw the frames of a simulated clip, as a camera of some quality would take them."""

# n frames, S pixels a side, X exposures a frame, q positions of the model

import mujoco
import numpy as np

from training.rendered.camera import Camera
from training.rendered.simulate import Motion

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
    model, data = motion.model, motion.data
    pixels = camera.scale * size / 2  # a metre at the action's distance
    frames = np.empty((len(camera.views), size, size, 3), np.uint8)
    with mujoco.Renderer(model, size, size) as renderer:
        for index, view in enumerate(camera.views):
            data.mocap_pos[0], data.mocap_quat[0] = view.place, view.quaternion()
            states = _choose_exposures(motion, exposures[index], pixels)
            image = np.zeros((size, size, 3), np.float32)
            for state in states:
                data.qpos[:] = state
                mujoco.mj_kinematics(model, data)
                mujoco.mj_comPos(model, data)
                mujoco.mj_camlight(model, data)
                mujoco.mj_flex(model, data)
                renderer.update_scene(data, "camera")
                image += table[renderer.render()] / len(states)
            image *= shade
            if noise > 0.002:
                image += rng.standard_normal((size, size, 1), np.float32) * (255 * noise)
            frames[index] = np.clip(image, 0, 255).astype(np.uint8)
    return frames


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
