"""Windows of long sounds: where they lie, how they blend, and what each of them is told.

Up to 15 s, the most that the published program samples and that `tiny` was trained on, a sound is
one window. A longer sound stays one path of latents. Each of its evaluations is one of every window
of about 8 s, and the velocities are blended where windows overlap.

    latents   0 ─────────────────────────────────────────► A
    windows   [──────────]
                      [──────────]
                               [──────────]
"""

# N variations, L latent channels, A latent frames, V visual tokens, S sync tokens

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from foley.configs import (
    LATENT_RATE,
    SYNC_FPS,
    SYNC_SEGMENT_STRIDE,
    VISUAL_FPS,
    WHOLE_CLIP_FRAMES,
)
from foley.types import Conditions, Region, TextConditions

# Windows begin where segments of the sync encoder do. Then the tokens of a window are a slice of
# the clip's: a window that begins between segments loses the sound's alignment.
_GRID = SYNC_SEGMENT_STRIDE * LATENT_RATE // SYNC_FPS  # 16 latent frames, 0.32 s
_WINDOW = 24  # about 8 s, in steps of the grid
_OVERLAP = 2  # at least 0.64 s, in steps of the grid
# Up to this length a sound is one window. Windows of rain or wind without a picture can differ in
# level by several dB, so that a shorter bound costs more than it gains.
MAX_WINDOW = WHOLE_CLIP_FRAMES * LATENT_RATE // SYNC_FPS
# Up to this length a sound is decoded at once.
_MAX_DECODED = MAX_WINDOW
_DECODED = 8 * LATENT_RATE
# With 12 latent frames on each side a piece of sound equals the whole but for float noise.
_DECODED_MARGIN = 16


class Window(NamedTuple):
    """Latent frames from `start` to `stop`."""

    start: int
    stop: int


class DecodedPiece(NamedTuple):
    """A piece of sound: the latent frames that are decoded, and those whose sound is kept.

    Attributes:
        decoded: the frames that the decoder sees.
        kept: the frames whose sound is used; they lie in `decoded`.
    """

    decoded: Window
    kept: Window


def plan_windows(num_latents: int) -> tuple[Window, ...]:
    """Return the windows of a sound, in order: about 8 s each, 6.7 to 9.9 s.

    Neighbours overlap by 0.64 to 0.96 s. No point lies in more than two windows.

    Args:
        num_latents: A, at least 1.
    """
    if num_latents <= MAX_WINDOW:
        return (Window(0, num_latents),)
    # A clip of whole segments may have one latent frame less than twice its frames.
    steps = (num_latents + 1) // _GRID
    count = max(2, round((steps - _OVERLAP) / (_WINDOW - _OVERLAP)))
    length = -(-(steps + (count - 1) * _OVERLAP) // count)
    starts = [i * (steps - length) // (count - 1) for i in range(count)]
    windows = [Window(_GRID * start, _GRID * (start + length)) for start in starts]
    # Frames after the last whole segment belong to the last window.
    return (*windows[:-1], windows[-1]._replace(stop=num_latents))


def make_weights(windows: tuple[Window, ...]) -> list[Tensor]:
    """Return the weight of each latent frame of each window, float32 [frames of the window].

    The weights of one frame have the sum 1. They rise and fall in straight lines over an overlap:
    all windows share one noise, so their velocities are alike and no power is lost.

    Args:
        windows: of `plan_windows`.
    """
    weights = [torch.ones(window.stop - window.start) for window in windows]
    for (left, right), (before, after) in zip(pairwise(windows), pairwise(weights), strict=True):
        count = left.stop - right.start
        ramp = (torch.arange(count) + 0.5) / count
        before[-count:] = 1 - ramp
        after[:count] = ramp
    return weights


def cut_conditions(
    conditions: Conditions | TextConditions, window: Window
) -> Conditions | TextConditions:
    """Return the conditions of a window of a sound.

    Args:
        conditions: of the whole sound.
        window: of `plan_windows`.
    """
    if window == (0, conditions.num_latents):
        return conditions
    visual, sync = _find_tokens(conditions, window)
    num_latents = window.stop - window.start
    regions = _cut_regions(conditions.regions, window, visual)
    if isinstance(conditions, TextConditions):
        return replace(
            conditions,
            num_visual=visual.stop - visual.start,
            num_sync=sync.stop - sync.start,
            num_latents=num_latents,
            regions=regions,
        )
    return replace(
        conditions,
        visual_tokens=conditions.visual_tokens[visual],
        sync_tokens=conditions.sync_tokens[sync],
        num_latents=num_latents,
        regions=regions,
    )


def plan_decoding(num_latents: int) -> tuple[DecodedPiece, ...]:
    """Return the pieces in which the sound of latents is decoded, in order.

    Sounds of up to 15 s are one piece. The memory of the decoder does not grow past that.

    Args:
        num_latents: A, at least 1.
    """
    if num_latents <= _MAX_DECODED:
        whole = Window(0, num_latents)
        return (DecodedPiece(whole, whole),)
    return tuple(
        DecodedPiece(
            Window(
                max(0, start - _DECODED_MARGIN),
                min(start + _DECODED + _DECODED_MARGIN, num_latents),
            ),
            Window(start, min(start + _DECODED, num_latents)),
        )
        for start in range(0, num_latents, _DECODED)
    )


def _find_tokens(conditions: Conditions | TextConditions, window: Window) -> tuple[slice, slice]:
    """Return which visual tokens and which sync tokens belong to a window."""
    if isinstance(conditions, TextConditions):
        num_visual, num_sync = conditions.num_visual, conditions.num_sync
    else:
        num_visual, num_sync = len(conditions.visual_tokens), len(conditions.sync_tokens)
    # A token a frame at 25 fps; the last segment of a window ends with it, and two segments
    # overlap by 8 frames.
    sync = slice(
        window.start * SYNC_FPS // LATENT_RATE,
        window.stop * SYNC_FPS // LATENT_RATE - SYNC_SEGMENT_STRIDE,
    )
    # The nearest visual token is at most 62 ms away.
    visual = slice(
        round(window.start * VISUAL_FPS / LATENT_RATE),
        round(window.stop * VISUAL_FPS / LATENT_RATE),
    )
    if window.stop == conditions.num_latents:
        return slice(visual.start, num_visual), slice(sync.start, num_sync)
    return visual, sync


def _cut_regions(regions: tuple[Region, ...], window: Window, visual: slice) -> tuple[Region, ...]:
    """Return the regions that have latent frames in a window, with all its visual tokens."""
    cut: list[Region] = []
    latents_end = visual_end = given = 0
    for region in regions:
        latents_start = latents_end
        latents_end += region.num_latents
        visual_end += region.num_visual
        count = min(latents_end, window.stop) - max(latents_start, window.start)
        if count < 1:
            continue
        is_last = latents_end >= window.stop
        end = visual.stop if is_last else min(max(visual_end, visual.start), visual.stop)
        cut.append(region._replace(num_latents=count, num_visual=end - visual.start - given))
        given = end - visual.start
    return tuple(cut)
