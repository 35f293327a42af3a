"""Held-out clips of the training generator, as frames for a pipeline, without files."""

# n frames at 25 fps, V frames at 8 fps, S samples

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foley.configs import SYNC_SEGMENT_STRIDE, Preset
from foley.types import VideoFrames
from training import clips, labels
from training.features import visual_frame_indices
from training.judge import merge_close_events
from training.scene import FPS, PLAIN, Style

HELD_OUT_SEED = 909
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class HeldOutClip:
    """A clip with known events.

    Attributes:
        frames: at the sizes of a preset's encoders.
        prompt: of the generator.
        events: seconds of the contacts; contacts closer than 50 ms are merged.
        unscored: seconds at which things begin to rub, where an onset is not counted.
        sound: the exact sound [S] at 48 kHz.
    """

    frames: VideoFrames
    prompt: str
    events: list[float]
    unscored: list[float]
    sound: Tensor


def generate_clips(
    preset: Preset,
    count: int,
    seconds: float,
    *,
    first: int = 0,
    style: Style = PLAIN,
    device: torch.device = _CPU,
    **options: Any,
) -> Iterator[HeldOutClip]:
    """Yield clips of the seed that no training uses.

    Args:
        preset: whose encoders determine the frames' sizes.
        count: number of clips.
        seconds: length of each.
        first: number of the first one.
        style: of drawing.
        device: where they are drawn.
        options: of `training.scene.draw_scene`: action, quiet.
    """
    for index in range(first, first + count):
        yield join_clips(preset, 1, seconds, first=index, style=style, device=device, **options)


def join_clips(
    preset: Preset,
    count: int,
    seconds: float,
    *,
    first: int = 0,
    style: Style = PLAIN,
    device: torch.device = _CPU,
    **options: Any,
) -> HeldOutClip:
    """Return a clip of several scenes, which follow one another with cuts.

    Args:
        preset: whose encoders determine the frames' sizes.
        count: number of scenes.
        seconds: length of each.
        first: number of the first one.
        style: of drawing.
        device: where they are drawn.
        options: of `training.scene.draw_scene`: action, quiet.
    """
    batches = [
        clips.make_batch(HELD_OUT_SEED, index, 1, seconds, style, **options)
        for index in range(first, first + count)
    ]
    moved = [batch.to(device) for batch in batches]

    def place(times: list[list[float]]) -> list[float]:
        return [index * seconds + t for index, own in enumerate(times) for t in own]

    return HeldOutClip(
        frames=make_frames(torch.cat([b.pictures()[0].cpu() for b in moved]), preset),
        prompt=batches[0].prompts[0],
        events=merge_close_events(place([b.hits["seconds"].tolist() for b in batches])),
        unscored=place([labels.find_shoves(b)[0] for b in batches]),
        sound=torch.cat([b.waveform()[0].cpu() for b in moved]),
    )


def make_frames(pictures: Tensor, preset: Preset) -> VideoFrames:
    """The frames that decoding a clip of these pictures would give.

    Args:
        pictures: uint8 [n, 3, H, W] at 25 fps.
        preset: whose encoders determine the frames' sizes.
    """
    num_picked = len(pictures)
    if preset.whole_segments:
        missing = -num_picked % SYNC_SEGMENT_STRIDE
        pictures = torch.cat((pictures, pictures[-1:].expand(missing, -1, -1, -1)))
    visual = pictures[visual_frame_indices(len(pictures), pictures.device)]
    return VideoFrames(
        visual=_resize(visual, preset.vision.image_size),
        sync=_resize(pictures, preset.synchformer.image_size),
        num_picked=num_picked,
        source_seconds=num_picked / FPS,
    )


def _resize(pictures: Tensor, size: int) -> Tensor:
    """uint8 [n, size, size, 3] of uint8 pictures [n, 3, H, W]."""
    scaled = F.interpolate(pictures.float(), (size, size), mode="area")
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
