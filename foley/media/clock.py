"""When each frame is shown, and which frame an encoder gets. The only module that converts time.

source   0     1     2        3     4              frames, at their own timestamps
target   0  .  1  .  2  .  3  .  4  .              every 1 / fps seconds
picked   0     1     2        3  3  4              the first frame at or after each target;
                                                   a late frame fills every target it passed
"""

from fractions import Fraction

from foley.configs import LATENT_RATE, SYNC_FPS


def seconds_of(ticks: int, time_base: Fraction) -> float:
    """The time of a timestamp in seconds.

    Source: specification, section 9: multiply first, then divide, in float64.
    """
    return ticks * time_base.numerator / time_base.denominator


def num_latents(num_sync_frames: int) -> int:
    """Latent frames of the sound for a clip of that many frames at 25 fps.

    Source: specification, section 9. It is twice the number of frames, or one less where float64
    rounds down (29, 57, 58 and others): the order of the operations is part of the contract.
    """
    return int(num_sync_frames / SYNC_FPS * LATENT_RATE)


# Less than any clock's tick: a frame at its target is not late.
_ROUNDING_SECONDS = 1e-6


class FramePicker:
    """Says how many times each frame is picked at a constant rate.

    Source: specification, section 9. The target is a running float64 sum: computing it as
    index / fps, or exactly, picks other frames than the weights' published scores were made with.

    Args:
        fps: the constant rate.
        exact: each target at index / fps instead. Where the source has the same rate, rounding of
            the sum leaves out the frame at 0.72 s, and all later ones come 40 ms early.
    """

    def __init__(self, fps: int, *, exact: bool = False) -> None:
        self._fps = fps
        self._exact = exact
        self._picked = 0
        self._target_seconds = 0.0

    def count(self, seconds: float) -> int:
        """How many times the frame shown at `seconds` is picked; call in order of time."""
        before = self._picked
        while seconds >= self._target_seconds:
            self._picked += 1
            if self._exact:
                self._target_seconds = self._picked / self._fps - _ROUNDING_SECONDS
            else:
                self._target_seconds += 1 / self._fps
        return self._picked - before


class FrameTimes:
    """Gives each decoded frame its time, also where the file holds none.

    A frame without a timestamp follows the one before it by its own duration or, where that is
    unknown too, by the stream's frame interval. The first one is at zero.
    """

    def __init__(self, time_base: Fraction, rate: Fraction | None) -> None:
        self._time_base = time_base
        self._step_seconds = 1 / float(rate or SYNC_FPS)
        self._next_seconds = 0.0

    def seconds(self, pts: int | None, duration: int | None) -> float:
        """The time of the next frame in presentation order; `duration` in ticks."""
        seconds = self._next_seconds if pts is None else seconds_of(pts, self._time_base)
        step = seconds_of(duration, self._time_base) if duration else self._step_seconds
        self._next_seconds = seconds + step
        return seconds

    @property
    def stop_seconds(self) -> float:
        """Where the latest frame ends."""
        return self._next_seconds
