"""Files through which the API and the runner hand each other frames and waveforms.

A body of 100 MB takes about half a second through the socket between two processes and a fifth of
that through a file in shared memory, so paths are sent, not arrays.
"""

# V frames at 8 fps, n25 frames at 25 fps, N variations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import, and building a bento must not need it
    from torch import Tensor

    from foley.types import VideoFrames

FRAMES = "frames.safetensors"
WAVEFORMS = "waveforms.safetensors"
MAX_FRAMES_BYTES = 512 * 1024 * 1024  # 15 s at 512 and 224 pixels a side take 150 MB


def save_frames(frames: "VideoFrames", folder: Path) -> None:
    """Write the frames of a clip for the runner."""
    from safetensors.torch import save_file

    facts = {
        "num_picked": frames.num_picked,
        "source_seconds": frames.source_seconds,
        "trimmed": frames.trimmed,
        "notices": frames.notices,
    }
    tensors = {"visual": frames.visual.contiguous(), "sync": frames.sync.contiguous()}
    save_file(tensors, folder / FRAMES, metadata={"facts": json.dumps(facts)})


def load_frames(folder: Path) -> "VideoFrames":
    """The frames that `save_frames` wrote."""
    from safetensors import safe_open

    from foley.types import VideoFrames

    with safe_open(folder / FRAMES, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        facts["notices"] = tuple(facts["notices"])
        return VideoFrames(
            visual=file.get_tensor("visual"),  # [V, H, W, 3]
            sync=file.get_tensor("sync"),  # [n25, H, W, 3]
            **facts,
        )


def count_frames(folder: Path) -> tuple[int, int]:
    """How many frames at 8 and at 25 fps `save_frames` wrote."""
    from safetensors import safe_open

    with safe_open(folder / FRAMES, framework="pt") as file:
        visual, sync = (file.get_slice(name).get_shape()[0] for name in ("visual", "sync"))
    return visual, sync


def save_waveforms(waveforms: "Tensor", folder: Path) -> None:
    """Write the sounds of a clip, [N, 1, samples], for the API."""
    from safetensors.torch import save_file

    save_file({"waveforms": waveforms.contiguous()}, folder / WAVEFORMS)


def load_waveforms(folder: Path) -> "Tensor":
    """The sounds that `save_waveforms` wrote, [N, 1, samples]."""
    from safetensors.torch import load_file

    return load_file(folder / WAVEFORMS)["waveforms"]
