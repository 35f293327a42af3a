"""What the loudspeakers got, compared with the sound that was to be heard."""

from typing import NamedTuple

import numpy as np

FADE_SAMPLES = 240  # the player's fade of 5 ms, a straight line
ATOL = 1e-6  # a crossfade of a sound with itself is rounded; measured: 6e-8
FADE_RTOL = 0.002  # a gain that is one sample early differs by 0.004


class Stretch(NamedTuple):
    """What was heard between two waits.

    Attributes:
        silence: samples of silence before it.
        start: its first sample in the sound.
        stop: after its last one.
    """

    silence: int
    start: int
    stop: int


def split_stretches(recorded: np.ndarray, sound: np.ndarray) -> list[Stretch]:
    """Return the stretches in which a sound was heard, from its start to its end.

    A player that has come to the end of what is made waits there, and goes on from the same sample
    with a fade in. All other samples are equal.

    Args:
        recorded: [R], silent before the first sample of the sound.
        sound: [S].

    Raises:
        AssertionError: samples are lost, repeated or wrong.
    """
    stretches: list[Stretch] = []
    at, position = 0, 0
    while position < len(sound):
        following = _find_start(recorded, sound, at, position)
        assert following is not None, (
            f"the recording does not go on with the sound at sample {position} of {len(sound)}, "
            f"after {stretches}"
        )
        length = _count_equal(recorded[following:], sound[position:])
        stretches.append(Stretch(following - at, position, position + length))
        at, position = following + length, position + length
    return stretches


def _find_start(recorded: np.ndarray, sound: np.ndarray, at: int, position: int) -> int | None:
    """Return where a recording goes on with a sound, from a sample of each; None for nowhere."""
    rest = sound[position:]
    audible = np.flatnonzero(np.abs(recorded[at:]) > ATOL)
    for passed in range(FADE_SAMPLES + 1):
        # A fade may have begun before, in silence, or together with the end of what was heard.
        begun = sound[max(0, position - passed) : position]
        is_silent = np.abs(begun).max(initial=0) <= ATOL
        gains = np.clip((passed + np.arange(len(rest))) / FADE_SAMPLES, 0, 1)
        heard = np.flatnonzero(np.abs(gains * rest) > ATOL)
        if not len(heard):
            start = at  # nothing but silence is left
        elif len(audible):
            start = at + int(audible[0] - heard[0])
        else:
            return None
        if start == at or (start > at and is_silent):
            expected, found = (gains * rest)[:FADE_SAMPLES], recorded[start:][:FADE_SAMPLES]
            tolerance = ATOL + FADE_RTOL * np.abs(rest[:FADE_SAMPLES])
            if len(found) == len(expected) and (np.abs(found - expected) <= tolerance).all():
                return start
    return None


def _count_equal(recorded: np.ndarray, sound: np.ndarray) -> int:
    """Return how many samples are equal from the start, where a fade is."""
    length = min(len(recorded), len(sound))
    differs = np.abs(recorded[:length] - sound[:length]) > ATOL
    differs[:FADE_SAMPLES] = False
    return int(differs.argmax()) if differs.any() else length
