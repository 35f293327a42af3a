"""Frames of long clips, in pieces while they are decoded."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from foley.errors import VideoTooCostlyError, VideoTooLongError
from foley.media.decode import OpenPlaces, decode_frames, decode_pieces
from foley.media.source import MediaLimits
from foley.types import FramePlace, plan_pieces
from tests.media.clips import write_clip

SIZES = {"visual_size": 16, "sync_size": 16}


@pytest.mark.slow
@pytest.mark.parametrize("whole_segments", [False, True])
@pytest.mark.parametrize("num_frames", [375, 376, 377, 472, 480])
def test_the_pieces_of_a_clip_are_its_frames(
    tmp_path: Path, num_frames: int, whole_segments: bool
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=num_frames)
    options = {**SIZES, "exact_clock": whole_segments, "whole_segments": whole_segments}
    whole = decode_frames(clip, **options)  # type: ignore[arg-type]
    pieces = list(decode_pieces(clip, **options))  # type: ignore[arg-type]
    assert torch.equal(torch.cat([piece.visual for piece in pieces]), whole.visual)
    assert torch.equal(torch.cat([piece.sync for piece in pieces]), whole.sync)
    *firsts, last = pieces
    assert [len(piece.sync) for piece in firsts] == [376, 96][: len(firsts)]
    assert [piece.facts for piece in firsts] == [None] * len(firsts)
    assert last.facts is not None
    assert last.facts.num_picked == whole.num_picked
    visual = torch.tensor([len(piece.visual) for piece in firsts]).cumsum(0).tolist()
    stops = plan_pieces(whole.num_visual, whole.num_picked)
    assert visual == [stop for stop, _ in stops[:-1]]


@contextmanager
def open_places(path: Path, most: int | None = None) -> Iterator[OpenPlaces]:
    """Yield what gives places in a file, for `most` frames at 25 fps or those that are expected."""
    with path.open("w+b") as file:

        def open_two(num_visual: int, num_sync: int) -> tuple[FramePlace, FramePlace]:
            start = 3 * 16**2 * num_visual
            return (
                FramePlace(file.fileno(), 0, num_visual),
                FramePlace(file.fileno(), start, most or num_sync),
            )

        yield open_two


@pytest.mark.parametrize("num_frames", [3, 50, 376])
@pytest.mark.parametrize("whole_segments", [False, True])
@pytest.mark.parametrize("most", [None, 20])
def test_frames_are_the_same_in_a_file_and_where_it_has_too_little_room(
    tmp_path: Path, num_frames: int, whole_segments: bool, most: int | None
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=num_frames, size=(160, 120))
    options = {**SIZES, "exact_clock": whole_segments, "whole_segments": whole_segments}
    whole = decode_frames(clip, **options)  # type: ignore[arg-type]
    with open_places(tmp_path / "frames", most) as places:
        (piece,) = decode_pieces(clip, **options, open_places=places)  # type: ignore[arg-type]
        assert piece.is_placed == (most is None or num_frames == 3)
        assert torch.equal(piece.visual, whole.visual)
        assert torch.equal(piece.sync, whole.sync)


def test_a_clip_that_is_longer_than_it_states_leaves_its_places(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", num_frames=400)
    content = clip.read_bytes()
    at = content.index(b"\x44\x89\x88")  # the duration, in 64 bits: milliseconds
    clip.write_bytes(content[: at + 3] + struct.pack(">d", 2000.0) + content[at + 11 :])
    whole = decode_frames(clip, **SIZES)
    with open_places(tmp_path / "frames") as places:
        pieces = list(decode_pieces(clip, **SIZES, open_places=places))
    assert [len(piece.sync) for piece in pieces] == [376, 24]
    assert torch.equal(torch.cat([piece.sync for piece in pieces]), whole.sync)
    assert torch.equal(torch.cat([piece.visual for piece in pieces]), whole.visual)


def test_a_long_clip_asks_for_no_places(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=377)
    pieces = decode_pieces(clip, **SIZES, open_places=None)
    refused = decode_pieces(clip, **SIZES, open_places=lambda *most: pytest.fail(str(most)))
    assert [len(piece.sync) for piece in refused] == [len(piece.sync) for piece in pieces]


def test_a_frame_that_is_shown_for_a_minute_is_cut_into_pieces(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", times_ms=[0, 40, 60_000])
    pieces = list(decode_pieces(clip, **SIZES))
    assert {len(piece.sync) for piece in pieces[1:-1]} == {96}
    whole = decode_frames(clip, **SIZES)
    assert torch.equal(torch.cat([piece.sync for piece in pieces]), whole.sync)
    assert torch.equal(torch.cat([piece.visual for piece in pieces]), whole.visual)


def test_a_clip_that_states_to_be_too_long_is_refused_before_its_first_piece(
    tmp_path: Path,
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=25 * 18)
    limits = MediaLimits(max_seconds=16)
    with pytest.raises(VideoTooLongError, match=r"lasts 18.00 s, the limit is 16.00 s"):
        next(decode_pieces(clip, **SIZES, limits=limits))
    *_, last = decode_pieces(clip, **SIZES, limits=limits, trim=True)
    assert last.facts is not None
    assert last.facts.trimmed


def test_a_clip_that_takes_too_much_cpu_time_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    with pytest.raises(VideoTooCostlyError, match="CPU time"):
        next(decode_pieces(clip, **SIZES, limits=MediaLimits(max_cpu_seconds=1e-3)))
