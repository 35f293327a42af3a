"""Pictures of clips with their sounds: what is marked stands where it happens."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality.drawing import FOUND, TRUE, Sound, draw
from tests.media.clips import write_clip

RATE = 48_000


def columns_of(picture: np.ndarray, colour: str) -> np.ndarray:
    """Of the whole picture: the columns in which a colour stands alone for much of the height."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    near = np.abs(picture[..., :3].astype(int) - wanted).max(-1) < 60
    return np.flatnonzero(near.sum(0) > 40)


@pytest.mark.parametrize("seconds", [2.0, 4.0])
def test_events_and_onsets_stand_at_their_times(tmp_path: Path, seconds: float) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=int(25 * seconds))
    silence = np.zeros(int(seconds * RATE), np.float32)
    at, found = 0.25 * seconds, 0.75 * seconds
    sound = Sound(name="generated", samples=silence, rate=RATE, found=[found])
    draw(clip, [sound, sound], tmp_path / "a.png", events=[at], title="clip")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    known, marked = columns_of(picture, TRUE), columns_of(picture, FOUND)
    # Silence is drawn black, so the spectrograms tell where the time line begins and ends.
    dark = np.flatnonzero((picture[..., :3].max(-1) < 30).mean(0) > 0.5)
    first, last = dark.min(), dark.max()  # of the spectrograms
    assert np.median(known) == pytest.approx(first + 0.25 * (last - first), abs=3)
    assert np.median(marked) == pytest.approx(first + 0.75 * (last - first), abs=3)
