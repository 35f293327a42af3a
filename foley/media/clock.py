"""Conversion of timestamps to seconds, and selection of frames at a constant rate.

No other module converts time.

source   0     1     2        3     4              frames, at their own timestamps
target   .   .   .   .   .   .   .                 every 1 / fps seconds
picked   0   1   2   2   3   3   4                 the first frame at or after each target; a frame
                                                   is picked once for every target that it passes
exact    0   1   1   2   2   3   3                 the frame nearest to each target
"""

from fractions import Fraction

from foley.configs import LATENT_RATE, SYNC_FPS


def seconds_of(ticks: int, time_base: Fraction) -> float:
    """The timestamp in seconds.

    Args:
        ticks: the timestamp.
        time_base: seconds per tick.

    Source: specification, section 9: multiply first, then divide, in float64.
    """
    return ticks * time_base.numerator / time_base.denominator


def num_latents(num_sync_frames: int) -> int:
    """The number of latent frames (50 Hz) that a clip's sound has.

    Args:
        num_sync_frames: frames of the clip at 25 fps.

    Source: specification, section 9. The result is twice the number of frames, or one less where
    float64 rounds down (29, 57, 58 and others), so the order of the operations matters.
    """
    return int(num_sync_frames / SYNC_FPS * LATENT_RATE)


# Smaller than the tick of any time base, so that a frame exactly at its target is not late.
_ROUNDING_SECONDS = 1e-6
# How far ahead of its target a frame may be. Frames that are held for long, as in a recording of a
# screen, are shown until then, and not only for half of their time.
_MOST_AHEAD_SECONDS = 0.05


class FramePicker:
    """Counts how many times each frame is picked at a constant rate.

    Source: specification, section 9. The target time is a running float64 sum. Computing it as
    index / fps selects other frames than those with which the weights' published scores were
    measured.

    Args:
        fps: the constant rate, in frames per second.
        exact: compute each target as index / fps, and pick the frame nearest to it. For a source at
            exactly 25 fps, the rounding of the sum skips the frame at 0.72 s and all later frames
            are 40 ms early. Of a source at 12 fps, the first frame at or after a target shows what
            comes up to 83 ms later.
    """

    def __init__(self, fps: int, *, exact: bool = False) -> None:
        self._fps = fps
        self._exact = exact
        self._picked = 0
        self._target_seconds = 0.0

    def count_shown(self, seconds: float, next_seconds: float) -> int:
        """The number of times that a frame is picked.

        Args:
            seconds: when it is shown, at least 0, and not less than in the previous call.
            next_seconds: when the next one is shown; `seconds` where there is none.
        """
        if not self._exact:
            return self.count(seconds)
        return self.count(max((seconds + next_seconds) / 2, next_seconds - _MOST_AHEAD_SECONDS))

    def count(self, seconds: float) -> int:
        """The number of targets up to `seconds` that no earlier call counted.

        Args:
            seconds: at least 0, and not less than in the previous call.
        """
        before = self._picked
        while seconds >= self._target_seconds:
            self._picked += 1
            if self._exact:
                self._target_seconds = self._picked / self._fps - _ROUNDING_SECONDS
            else:
                self._target_seconds += 1 / self._fps
        return self._picked - before

    def count_until(self, stop_seconds: float) -> int:
        """The number of times that the last frame is picked again, if it is shown until the stop.

        Args:
            stop_seconds: the end of the last frame. A target at the stop is not picked.
        """
        return self.count(stop_seconds - 2 * _ROUNDING_SECONDS)


class FrameTimes:
    """Computes the time of each decoded frame, including frames without a timestamp.

    A frame without a timestamp follows the previous one after that frame's duration or, if that is
    unknown, after the stream's frame interval. If the first frame has none, it is at zero.

    Args:
        time_base: seconds per tick of the stream.
        rate: frames per second of the stream; 25 when None.
    """

    def __init__(self, time_base: Fraction, rate: Fraction | None) -> None:
        self._time_base = time_base
        self._step_seconds = 1 / float(rate or SYNC_FPS)
        self._next_seconds = 0.0
        self._last_seconds = 0.0

    def seconds(self, pts: int | None, duration: int | None) -> float:
        """The time of the next frame in presentation order.

        Args:
            pts: presentation timestamp in ticks, None if the file has none.
            duration: of the frame in ticks, None if unknown.
        """
        seconds = self._next_seconds if pts is None else seconds_of(pts, self._time_base)
        step = seconds_of(duration, self._time_base) if duration else self._step_seconds
        self._next_seconds = seconds + step
        self._last_seconds = seconds
        return seconds

    @property
    def stop_seconds(self) -> float:
        """The end of the latest frame, in seconds."""
        return self._next_seconds

    @property
    def held_seconds(self) -> float:
        """The duration of the latest frame, in seconds."""
        return self._next_seconds - self._last_seconds
