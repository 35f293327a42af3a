"""Held-out clips of the generator, ready for a pipeline: no file is written or decoded."""

# n frames at 25 fps, V frames at 8 fps, S samples

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.quality.onsets import merged
from foley.configs import SYNC_SEGMENT_STRIDE, Preset
from foley.types import VideoFrames
from training import clips, labels
from training.features import visual_frames
from training.scene import FPS, PLAIN, Style

HELD_OUT_SEED = 909


@dataclass(frozen=True, kw_only=True)
class DrawnClip:
    """A clip whose events are known.

    Attributes:
        frames: as the encoders of a preset see it.
        prompt: its own.
        events: seconds at which things touch, those closer than 50 ms once.
        unscored: seconds at which things begin to rub: an onset there counts neither way.
        sound: the exact sound [S] at 48 kHz.
    """

    frames: VideoFrames
    prompt: str
    events: list[float]
    unscored: list[float]
    sound: Tensor


def drawn_clips(
    preset: Preset,
    count: int,
    seconds: float,
    *,
    first: int = 0,
    style: Style = PLAIN,
    **options: object,
) -> Iterator[DrawnClip]:
    """Clips number `first` .. `first + count` of the seed that no training uses.

    Args:
        preset: whose encoders' sizes the frames get.
        count: of clips.
        seconds: of each.
        first: number of the first one.
        style: how they are drawn.
        options: of `training.scene.draw_scene`: action, quiet.
    """
    for index in range(first, first + count):
        batch = clips.make_batch(HELD_OUT_SEED, index, 1, seconds, style, **options)
        yield DrawnClip(
            frames=frames_of(batch.pictures()[0], preset),
            prompt=batch.prompts[0],
            events=merged(batch.hits["seconds"].tolist()),
            unscored=labels.shoves(batch)[0],
            sound=batch.waveform()[0],
        )


def frames_of(pictures: Tensor, preset: Preset) -> VideoFrames:
    """What decoding a clip of these pictures, uint8 [n, 3, H, W] at 25 fps, gives a preset."""
    num_picked = len(pictures)
    if preset.whole_segments:
        missing = -num_picked % SYNC_SEGMENT_STRIDE
        pictures = torch.cat((pictures, pictures[-1:].expand(missing, -1, -1, -1)))
    shown = {
        "sync": (pictures, preset.synchformer.image_size),
        "visual": (
            pictures[visual_frames(len(pictures), pictures.device)],
            preset.vision.image_size,
        ),
    }
    sized = {
        name: F.interpolate(part.float(), (size, size), mode="area")
        .round()
        .to(torch.uint8)
        .permute(0, 2, 3, 1)
        .contiguous()
        for name, (part, size) in shown.items()
    }
    return VideoFrames(**sized, num_picked=num_picked, source_seconds=num_picked / FPS)
