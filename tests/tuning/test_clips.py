"""What is found about clips before they are learnt from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.adapter_clips import write_clip
from foley.errors import ParameterError
from foley.tuning.clips import check_sync, find_clips, mark_duplicates, read_clip
from foley.tuning.music import has_music
from tests.media.clips import add_sound
from tests.server import draw_clip
from tests.speech import babble

RATE = 48_000


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "clip.mp4"
    draw_clip(path, num_frames=38)
    return path


def test_prompts_stand_beside_clips_or_in_a_table(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MOV", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text("glass \n rattles\n")
    assert [(path.name, prompt) for path, prompt in find_clips(tmp_path)] == [
        ("a.MOV", ""),
        ("b.mp4", "glass rattles"),
    ]
    table = tmp_path / "prompts.csv"
    table.write_text("clip,prompt\nb.mp4,taps\n")
    assert [prompt for _, prompt in find_clips(tmp_path, table)] == ["taps"]
    table.write_bytes("\ufeffClip; Prompt\r\nb.mp4; taps, then rain\r\n".encode())
    assert [prompt for _, prompt in find_clips(tmp_path, table)] == ["taps, then rain"]
    table.write_bytes(b"")
    with pytest.raises(ParameterError, match="needs the columns"):
        find_clips(tmp_path, table)
    table.write_text("clip,prompt\nc.mp4,taps\n")
    with pytest.raises(ParameterError, match=r"line 2: there is no .*c\.mp4"):
        find_clips(tmp_path, table)
    table.write_text("name,prompt\nb.mp4,taps\n")
    with pytest.raises(ParameterError, match=r"needs the columns .* names name, prompt"):
        find_clips(tmp_path, table)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ParameterError, match="no UTF-8"):
        find_clips(tmp_path)
    with pytest.raises(ParameterError, match="is no folder"):
        find_clips(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ParameterError, match="holds no clip"):
        find_clips(tmp_path / "empty")


def test_faults_of_a_clip_are_named(picture: Path, tmp_path: Path) -> None:
    silent = read_clip(picture, "taps")
    assert not silent.is_usable
    assert "has no sound" in silent.findings[0].text
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    clip = read_clip(broken, "")
    assert not clip.is_usable
    assert "no prompt" in clip.findings[0].text
    assert "cannot be read" in clip.findings[1].text


def test_speech_that_the_prompt_does_not_name_is_found(picture: Path, tmp_path: Path) -> None:
    path = add_sound(picture, tmp_path / "talk.mov", babble(1.5, 3)[None], layout="mono")
    (finding,) = [f for f in read_clip(path, "taps").findings if "speech" in f.text]
    assert not finding.excludes
    assert 0.8 < float(finding.text.split()[3]) <= 1.6  # measured: 1.4 s
    assert not [f for f in read_clip(path, "a voice").findings if "speech" in f.text]


def play(tones: Sequence[Sequence[float]], seconds: float = 0.5) -> np.ndarray:
    """Return tones one after another, each of partials in Hz that decay together, [1, S]."""
    time = np.arange(round(seconds * RATE)) / RATE
    heard = [sum(np.sin(2 * np.pi * hz * time) for hz in partials) for partials in tones]
    sound = np.concatenate([np.exp(-3 * time) * tone for tone in heard])
    return (0.2 * sound / np.abs(sound).max())[None]


def test_music_that_the_prompt_does_not_name_is_found(picture: Path, tmp_path: Path) -> None:
    notes = [227 * 2 ** (step / 12) for step in (0, 4, 7, 12, 5, 9, 12)]  # in no common tuning
    melody = play([[hz * partial for partial in (1, 2, 3, 4)] for hz in notes])
    path = add_sound(picture, tmp_path / "melody.mov", melody, layout="mono")
    (finding,) = [f for f in read_clip(path, "taps").findings if "music" in f.text]
    assert not finding.excludes
    assert not [f for f in read_clip(path, "taps, music").findings if "music" in f.text]


def test_tones_noise_and_glides_are_no_music() -> None:
    random = np.random.default_rng(1)
    struck = play(random.uniform(150, 3000, (8, 4)))
    time = np.arange(4 * RATE) / RATE
    engine = sum(np.sin(2 * np.pi * n * (80 * time + 5 * time**2)) / n for n in range(1, 12))
    hum = np.sin(2 * np.pi * 100 * time) + np.sin(2 * np.pi * 300 * time)
    rain = random.standard_normal(4 * RATE)
    for sound in (struck[0], engine, hum, rain, np.zeros(RATE), rain[:100]):
        assert not has_music(np.asarray(sound, np.float32))


def test_twins_are_found_by_their_sound(picture: Path, tmp_path: Path) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal((1, 70_000))
    path = add_sound(picture, tmp_path / "one.mov", samples, layout="mono")
    clips = [read_clip(path, "taps"), read_clip(path, "knocks")]
    assert clips[0].digest != clips[1].digest
    mark_duplicates(clips)
    assert [clip.is_usable for clip in clips] == [True, False]
    assert "has the sound of one.mov" in clips[1].findings[-1].text


@pytest.mark.parametrize("lag_frames", [0, 6, -6])
def test_a_sound_that_is_late_or_early_is_found(lag_frames: int) -> None:
    num_frames = 100
    rng = np.random.default_rng(0)
    hits = np.sort(rng.choice(np.arange(10, 90), 9, replace=False))
    frames = torch.zeros(num_frames, 32, 32, 3, dtype=torch.uint8)
    sound = 1e-4 * rng.standard_normal(num_frames * RATE // 25)
    for hit in hits:  # the picture flashes, the sound bursts
        frames[hit] = 200
        first = (hit + lag_frames) * RATE // 25
        sound[first : first + 1500] += rng.standard_normal(1500)
    finding = check_sync(sound.astype(np.float32), frames)
    if lag_frames == 0:
        assert finding is None
    else:
        assert finding is not None
        assert ("after" if lag_frames > 0 else "before") in finding.text
        milliseconds = int(finding.text.split(" ms")[0].split()[-1])
        assert milliseconds == pytest.approx(40 * abs(lag_frames), abs=40)


def test_the_check_of_a_file_looks_at_its_sync_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hits = [10, 17, 31, 42, 50, 66, 71, 85]
    pictures = torch.zeros(100, 3, 64, 64, dtype=torch.uint8)
    sound = 1e-4 * rng.standard_normal(100 * RATE // 25)
    for hit in hits:
        pictures[hit] = 200
        first = (hit + 6) * RATE // 25
        sound[first : first + 1500] += 0.2 * rng.standard_normal(1500)
    write_clip(tmp_path / "late.mov", pictures, torch.from_numpy(sound))
    found = read_clip(tmp_path / "late.mov", "taps").findings
    assert any("240 ms after the motion" in finding.text for finding in found)
    assert not any(finding.excludes for finding in found)


def test_nothing_is_said_of_a_still_picture_or_a_steady_sound() -> None:
    still = torch.zeros(60, 32, 32, 3, dtype=torch.uint8)
    noise = np.random.default_rng(0).standard_normal(60 * RATE // 25).astype(np.float32)
    assert check_sync(noise, still) is None
    assert check_sync(noise[:1000], still) is None
