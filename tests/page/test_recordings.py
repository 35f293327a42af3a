"""The comparison of a recording with the sound that was to be heard tells faults from waits."""

import numpy as np
import pytest

from tests.page.recordings import FADE_SAMPLES, Stretch, split_stretches

RNG = np.random.default_rng(7)
SOUND = (0.1 * RNG.standard_normal(48_000)).astype(np.float32)
SOUND[:100] = SOUND[20_000:21_000] = 0
RAMP = np.arange(FADE_SAMPLES, dtype=np.float32) / FADE_SAMPLES


def hear(*parts: np.ndarray | int) -> np.ndarray:
    """Return a recording: numbers are samples of silence, and each part after one is faded in."""
    blocks = []
    for part in parts:
        block = np.zeros(part, np.float32) if isinstance(part, int) else part.copy()
        if not isinstance(part, int):
            block[:FADE_SAMPLES] *= RAMP[: len(block)]
        blocks.append(block)
    return np.concatenate(blocks)


def test_waits_are_found() -> None:
    recorded = hear(500, SOUND[:9_000], 3_000, SOUND[9_000:20_500], 70, SOUND[20_500:], 40)
    assert split_stretches(recorded, SOUND) == [
        Stretch(500, 0, 9_000),
        # Where a wait lies in a silence of the sound, its place is not heard.
        Stretch(3_000, 9_000, 21_000),
        Stretch(70, 21_000, 48_000),
    ]


def test_a_fade_that_has_begun_when_the_end_is_reached_is_no_fault() -> None:
    gains = np.clip((np.arange(39_000) + 100) / FADE_SAMPLES, 0, 1, dtype=np.float32)
    recorded = np.concatenate([hear(500, SOUND[:9_000]), gains * SOUND[9_000:]])
    assert [stretch.stop for stretch in split_stretches(recorded, SOUND)] == [9_000, 48_000]


@pytest.mark.parametrize(
    "heard",
    [
        [500, SOUND[:9_000], 3_000, SOUND[9_001:]],  # one is lost
        [500, SOUND[:9_000], 3_000, SOUND[9_000:18_000], SOUND[18_300:]],
        [500, SOUND[:9_000], 3_000, SOUND[8_999:]],  # one is repeated
        [500, SOUND[:9_000], 3_000, SOUND[6_000:]],
        [500, SOUND[:9_000], 3_000, SOUND[9_000:40_000]],  # the end is missing
        [500, SOUND[:9_000], SOUND[300:]],
        [500, 0.99 * SOUND],
        [500, np.where(np.arange(48_000) == 30_000, np.float32(0.5), SOUND)],
        [500, np.where(np.arange(48_000) // 9 == 3_000, np.float32(0), SOUND)],  # nine are silent
        [48_500],
    ],
)
def test_faults_are_found(heard: list[np.ndarray | int]) -> None:
    with pytest.raises(AssertionError, match="does not go on"):
        split_stretches(hear(*heard), SOUND)
