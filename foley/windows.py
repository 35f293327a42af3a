"""Windows of long sounds: where they lie, how they blend, and what each of them is told.

Up to 15 s, the most that the published program samples and that `tiny` was trained on, a sound is
one window. A longer sound is sampled in windows of about 8 s that overlap. Each evaluation of a
group of windows is one of every window of it, and the velocities are blended where they overlap.
A group is sampled to its end before the next one begins, which continues it: the first 0.64 s of a
group are the last ones of the group before it, and stay as they are.

    latents   0 ──────────────────────────────────────────────────────► A
    groups    [──────────]
                        [──────────]
                                  [──────────]
                                            [──────────]
                                                      [────────── ...

So the first seconds are final while the clip is still being read, and memory does not grow with the
length. Where shots begin is known too: a window ends 0.32 s after a cut, and the next one begins
0.32 s before it, on the grid.
"""

# N variations, L latent channels, A latent frames, V visual tokens, S sync tokens

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
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
_OVERLAP = 2  # 0.64 s, in steps of the grid
OVERLAP = _OVERLAP * _GRID  # in latent frames
# With more than this before the next cut or the end, the next window is one of `_WINDOW`. The rest
# is then at least another one. With less, the windows are of one length.
_FAR = 45
# A shot of less than 1.28 s shares a window with its neighbour: it is too short to be heard alone.
_MIN_SHOT = 4
# The first group is one window, so that its sound is there soon. The others are joined in threes.
_WINDOWS_OF_GROUP = 3
# Up to this length a sound is one window. Windows of rain or wind without a picture can differ in
# level by several dB, so that a shorter bound costs more than it gains.
MAX_WINDOW = WHOLE_CLIP_FRAMES * LATENT_RATE // SYNC_FPS
# A piece of sound is decoded with so many latent frames on each side. With 12 it equals the whole
# but for float noise.
_MARGIN = OVERLAP // 2
# So much of a sound of one window can be decoded ahead of the whole, 2.56 s: it takes about a fifth
# of the time, and the whole is there before its end is heard.
_BEGINNING = 8 * _GRID


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


class Group(NamedTuple):
    """Windows that are sampled together.

    Attributes:
        windows: in order; neighbours overlap.
        is_last: whether the sound ends with it.
    """

    windows: tuple[Window, ...]
    is_last: bool

    @property
    def span(self) -> Window:
        """All its latent frames."""
        return Window(self.windows[0].start, self.windows[-1].stop)

    @property
    def following(self) -> int:
        """Where the next group begins."""
        return self.span.stop - OVERLAP


def plan_group(
    start: int, num_latents: int, cuts: Sequence[int] = (), *, is_end: bool = True
) -> Group | None:
    """Return the group of windows that begins at a latent frame.

    It does not depend on how much of the sound is known; None where that is too little to tell.

    Args:
        start: 0, or `following` of the group before it.
        num_latents: latent frames that are known, A at the end; at least 1.
        cuts: latent frames at which shots begin, rising; all those before `num_latents`.
        is_end: whether the sound ends there; else it is longer than `MAX_WINDOW`.
    """
    if is_end and start == 0 and num_latents <= MAX_WINDOW:
        return Group((Window(0, num_latents),), is_last=True)
    count = 1 if start == 0 else _WINDOWS_OF_GROUP
    windows: list[Window] = []
    while len(windows) < count:
        window = _plan_window(start, num_latents, cuts, is_end=is_end)
        if window is None:
            return None
        windows.append(window)
        start = window.stop - OVERLAP
        if is_end and window.stop == num_latents:
            return Group(tuple(windows), is_last=True)
    return Group(tuple(windows), is_last=False)


def plan_groups(num_latents: int, cuts: Sequence[int] = ()) -> Iterator[Group]:
    """Yield the groups of a sound, in order.

    Args:
        num_latents: A, at least 1.
        cuts: latent frames at which shots begin, rising.
    """
    start, is_last = 0, False
    while not is_last:
        group = plan_group(start, num_latents, cuts)
        assert group is not None
        yield group
        start, is_last = group.following, group.is_last


def plan_windows(num_latents: int, cuts: Sequence[int] = ()) -> tuple[Window, ...]:
    """Return all windows of a sound, in order: about 8 s each, 6 to 11 s, or a shot if it is less.

    Neighbours overlap by 0.64 s. No point lies in more than two windows.

    Args:
        num_latents: A, at least 1.
        cuts: latent frames at which shots begin, rising.
    """
    return tuple(window for group in plan_groups(num_latents, cuts) for window in group.windows)


def _plan_window(
    start: int, num_latents: int, cuts: Sequence[int], *, is_end: bool
) -> Window | None:
    """Return the window that begins at a latent frame of a long sound; None as `plan_group`."""
    # A clip of whole segments may have one latent frame less than twice its frames.
    known = (num_latents + 1) // _GRID - start // _GRID  # steps of the grid, from the start
    span = known
    cut = _find_cut(start, cuts)
    if cut is not None and cut <= known - _MIN_SHOT:
        span = cut + _OVERLAP // 2
    elif not is_end and (known if cut is None else cut) <= _FAR:
        return None  # the next shot, or the end, may come before the next window would end
    if span > _FAR:
        length = _WINDOW
    else:
        count = max(1, round((span - _OVERLAP) / (_WINDOW - _OVERLAP)))
        length = -(-(span + (count - 1) * _OVERLAP) // count)
    # Frames after the last whole segment belong to the last window.
    is_last = is_end and length == known
    return Window(start, num_latents if is_last else start + _GRID * length)


def _find_cut(start: int, cuts: Sequence[int]) -> int | None:
    """Return how many steps of the grid the next shot begins after a window's start."""
    # The window's own shot began in the middle of its overlap with the window before it.
    first = _MIN_SHOT + (_OVERLAP // 2 if start else 0)
    for cut in islice(cuts, bisect_left(cuts, start), None):
        steps = round((cut - start) / _GRID)
        if steps >= first:
            return steps
    return None


def make_weights(windows: tuple[Window, ...]) -> list[Tensor]:
    """Return the weight of each latent frame of each window, float32 [frames of the window].

    The weights of one frame have the sum 1. They rise and fall in straight lines over an overlap:
    all windows share one noise, so their velocities are alike and no power is lost.

    Args:
        windows: of a group.
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


def plan_decoding(group: Group) -> tuple[DecodedPiece, ...]:
    """Return the pieces in which the sound of a group is decoded, one for each of its windows.

    The sound of the last 0.32 s of a group is decoded with the group after it, whose latents it
    depends on.

    Args:
        group: of which all latents are final.
    """
    first, end = group.span
    start = first + _MARGIN if first else 0
    pieces: list[DecodedPiece] = []
    for window in group.windows:
        stop = end if group.is_last and window.stop == end else window.stop - _MARGIN
        decoded = Window(max(first, start - _MARGIN), min(stop + _MARGIN, end))
        pieces.append(DecodedPiece(decoded, Window(start, stop)))
        start = stop
    return tuple(pieces)


def plan_beginning(group: Group) -> DecodedPiece | None:
    """Return the beginning of a short sound that can be decoded ahead of the whole.

    Args:
        group: of which all latents are final.

    Returns:
        None for a part of a long sound, and for a sound of less than twice as much.
    """
    first, end = group.span
    if first or not group.is_last or len(group.windows) > 1 or end < 2 * _BEGINNING:
        return None
    return DecodedPiece(Window(0, _BEGINNING + _MARGIN), Window(0, _BEGINNING))


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
