"""Find where the shots of a clip begin, in frames as they come.

A cut changes the picture by much more than the frames around it do. The rule is that of
PySceneDetect's adaptive detector, on plain differences of colours: it needs no OpenCV, and sees the
frames that the sync encoder gets anyway. Fades and dissolves are not cuts.
"""

# n frames at 25 fps

from collections.abc import Sequence

import torch
from torch import Tensor

# Frames after a change that must be known before it is judged, and before it that are looked at.
REACH = 2
# A cut changes a colour by at least this much of 255 in the mean, and by three times as much as the
# changes around it do.
_MIN_CHANGE = 12.0
_MIN_RATIO = 3.0
_PIXELS = 56  # a side of what is compared, at least


class CutDetector:
    """Finds cuts in frames that come in pieces; the cuts do not depend on the pieces.

    Attributes:
        cuts: frames at which shots begin, among those that were judged.
        num_judged: frames of which it is known whether a shot begins at them.
    """

    def __init__(self) -> None:
        self.cuts: list[int] = []
        self.num_judged = 0
        self._last: Tensor | None = None  # int16 [1, h, w, 3]
        self._changes: list[float] = [0.0]  # into each frame

    def add(self, frames: Tensor, *, is_end: bool) -> None:
        """Judge further frames.

        Args:
            frames: uint8 [n, H, W, 3], those after the last ones.
            is_end: whether no more will come.
        """
        step = max(1, frames.shape[1] // _PIXELS)
        small = frames[:, ::step, ::step].to(torch.int16)  # [n, h, w, 3]
        if self._last is not None:
            small = torch.cat([self._last, small])
        self._changes += small.diff(dim=0).abs().float().mean((1, 2, 3)).tolist()
        self._last = small[-1:].clone()
        stop = len(self._changes) - (0 if is_end else REACH)
        for index in range(max(1, self.num_judged), stop):
            if _is_cut(self._changes, index):
                self.cuts.append(index)
        self.num_judged = max(self.num_judged, stop)


def _is_cut(changes: Sequence[float], index: int) -> bool:
    around = [
        *changes[max(1, index - REACH) : index],
        *changes[index + 1 : index + 1 + REACH],
    ]
    usual = sum(around) / max(1, len(around))
    return changes[index] >= max(_MIN_CHANGE, _MIN_RATIO * usual)
