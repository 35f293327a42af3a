"""Files through which the API and the runner pass frames and waveforms.

A body of 100 MB takes half a second through the socket between two processes, and a fifth of that
through a file in shared memory. So the processes send each other paths.

    <folder of the request>/
        clip                    by the API: what the caller sent
        frames.safetensors      by the process that decodes the clip; absent without a clip
        frames.json             by the API: the frames are complete, and this many
        waveforms.safetensors   by the runner
"""

# V frames at 8 fps, n25 frames at 25 fps, N variations, L layers, C channels

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from foley.atomic import atomic_path

if TYPE_CHECKING:  # torch takes seconds to import, and building a bento must not need it
    from torch import Tensor

    from foley.types import VideoFrames

CLIP = "clip"
FRAMES = "frames.safetensors"
FRAME_COUNTS = "frames.json"
WAVEFORMS = "waveforms.safetensors"
MAX_FRAMES_BYTES = 512 * 1024 * 1024  # 15 s at 512 and 224 pixels a side take 150 MB


class FrameCounts(NamedTuple):
    """The number of frames of a clip: all that the scheduler needs to know of it."""

    num_visual: int  # at 8 fps
    num_sync: int  # at 25 fps


def save_frames(frames: "VideoFrames", folder: Path) -> FrameCounts:
    """Write the frames of a clip for the runner, and return how many they are.

    Args:
        frames: of one clip.
        folder: of the request.

    Raises:
        SafetensorError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    facts = {
        "num_picked": frames.num_picked,
        "source_seconds": frames.source_seconds,
        "trimmed": frames.trimmed,
        "notices": frames.notices,
    }
    tensors = {"visual": frames.visual.contiguous(), "sync": frames.sync.contiguous()}
    save_file(tensors, folder / FRAMES, metadata={"facts": json.dumps(facts)})
    return FrameCounts(len(frames.visual), len(frames.sync))


def announce_frames(counts: FrameCounts, folder: Path) -> None:
    """Mark the frames in a folder as complete, in one step.

    Args:
        counts: of `save_frames`.
        folder: of the request.

    Raises:
        OSError: the folder cannot be written.
    """
    with atomic_path(folder / FRAME_COUNTS) as partial:
        partial.write_text(json.dumps(counts._asdict()))


def read_announcement(folder: Path) -> FrameCounts | None:
    """Return the number of frames in a folder; None until they are complete.

    Args:
        folder: of the request, in any state; it may be gone.
    """
    try:
        return FrameCounts(**json.loads((folder / FRAME_COUNTS).read_text()))
    except FileNotFoundError:
        return None


def load_frames(folder: Path) -> "VideoFrames":
    """Return the frames that `save_frames` wrote.

    Args:
        folder: of the request.

    Raises:
        OSError: they are not there.
    """
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


def save_waveforms(waveforms: "Tensor", folder: Path, stems: "Tensor | None" = None) -> None:
    """Write the sounds of a clip for the API.

    Args:
        waveforms: float32 [N, C, samples].
        folder: of the request.
        stems: float32 [L, C, samples], of layers; None without them.

    Raises:
        SafetensorError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {"waveforms": waveforms.contiguous()}
    if stems is not None:
        tensors["stems"] = stems.contiguous()
    save_file(tensors, folder / WAVEFORMS)


def load_waveforms(folder: Path) -> "Tensor":
    """Return the sounds that `save_waveforms` wrote, float32 [N, C, samples].

    Args:
        folder: of the request.

    Raises:
        OSError: they are not there.
    """
    from safetensors.torch import load_file

    return load_file(folder / WAVEFORMS)["waveforms"]


def load_stems(folder: Path) -> "Tensor | None":
    """Return the layers that `save_waveforms` wrote, float32 [L, C, samples]; None without layers.

    Args:
        folder: of the request.

    Raises:
        OSError: there are no sounds.
    """
    from safetensors.torch import load_file

    return load_file(folder / WAVEFORMS).get("stems")
