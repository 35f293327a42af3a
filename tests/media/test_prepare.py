"""From what a caller names to the clip that is sounded."""

import os
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest

from foley.errors import FoleyError, OutputError, ParameterError, VideoDecodeError
from foley.media.decode import decode_frames
from foley.media.numbering import is_pattern
from foley.media.prepare import prepare_clip, to_fraction
from tests.media.clips import numbers, write_clip
from tests.media.test_images import draw_picture, number_files, write_zip
from tests.server import ROOT


def decode(clip: Path) -> list[int]:
    frames = decode_frames(clip, visual_size=80, sync_size=80, exact_clock=True)
    return numbers(frames.sync[: frames.num_picked])


def write_pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).write_bytes(draw_picture(number))


def test_a_video_is_used_as_it_is(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    assert prepare_clip(clip, tmp_path / "new") == clip
    assert not (tmp_path / "new").exists()


def test_a_pattern_names_numbered_pictures(tmp_path: Path) -> None:
    # Those of another form are not meant, as FFmpeg has it.
    write_pictures(tmp_path, *(f"f_{n:03}.png" for n in range(8, 30)), "f_7.png", "f_010.jpg")
    pattern = tmp_path / "f_%03d.png"
    assert is_pattern(pattern)
    assert not is_pattern(tmp_path / "f_010.png")
    made = prepare_clip(pattern, tmp_path / "new", frame_rate=25)
    assert made == tmp_path / "new"
    assert decode(made) == list(range(22))


def test_a_pattern_without_padding_takes_any_number(tmp_path: Path) -> None:
    write_pictures(tmp_path, *(f"{n}.png" for n in range(1, 21)))
    made = prepare_clip(tmp_path / "%d.png", tmp_path / "new", frame_rate=25)
    assert decode(made) == list(range(20))


def test_a_file_may_have_a_percent_sign(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "100%d.mp4")
    assert not is_pattern(clip)


def test_a_rate_is_set_on_a_copy_of_a_zip(tmp_path: Path) -> None:
    clip = write_zip(tmp_path / "clip.zip", number_files(20), rate=None)
    before = clip.read_bytes()
    made = prepare_clip(clip, tmp_path / "new", frame_rate=25)
    assert decode(made) == list(range(20))
    assert clip.read_bytes() == before


def test_a_part_is_a_new_file(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=50)
    made = prepare_clip(clip, tmp_path / "new", start_seconds=1.2)
    assert decode(made) == list(range(30, 50))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("%04d.png", {}, ParameterError, "frame_rate: missing"),
        ("%04d.jpg", {"frame_rate": 25}, VideoDecodeError, "no file is named"),
        ("none/%d.png", {"frame_rate": 25}, VideoDecodeError, "no file is named"),
        ("%d.png", {"frame_rate": 25}, VideoDecodeError, "4.png follows number 2"),
        ("0001.png", {"frame_rate": 25}, ParameterError, "only for a zip"),
        ("none.zip", {"frame_rate": 25}, VideoDecodeError, "there is no file"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, name: str, options: dict[str, float], error: type[FoleyError], message: str
) -> None:
    write_pictures(tmp_path, "0001.png", "0002.png", "4.png")
    with pytest.raises(error, match=message):
        prepare_clip(tmp_path / name, tmp_path / "new", **options)


@pytest.mark.parametrize(
    ("rate", "exact"),
    [
        (24, Fraction(24)),
        (23.976, Fraction(24_000, 1001)),
        (23.98, Fraction(24_000, 1001)),
        (29.97, Fraction(30_000, 1001)),
        (59.94, Fraction(60_000, 1001)),
        (12.5, Fraction(25, 2)),
        (1, Fraction(1)),
    ],
)
def test_a_rate_of_television_is_exact(rate: float, exact: Fraction) -> None:
    assert to_fraction(rate) == exact


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system")
def test_a_full_disk_is_not_blamed_on_the_clip(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        clip = ROOT / "examples/bigbuckbunny.mp4"
        with pytest.raises(OutputError, match=r"cannot be stored .* set TMPDIR to another folder"):
            prepare_clip(clip, disk / "part", start_seconds=1)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
