"""Tensors handed from one process to another."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from foley.types import ClipFacts, VideoFrames
from runners.handoff import (
    MAX_FRAMES_BYTES,
    PIECE,
    FrameCounts,
    FrameFile,
    HandedFrames,
    load_frames,
    save_frames,
)

ROOT = Path(__file__).parents[2]


def test_frames_are_read_as_they_were_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sent = VideoFrames(
        visual=torch.randint(256, (8, 4, 4, 3), dtype=torch.uint8),
        sync=torch.randint(256, (25, 6, 6, 3), dtype=torch.uint8),
        num_picked=24,
        source_seconds=0.96,
        trimmed=True,
        notices=("one", 'a "second"'),
    )
    save_frames(sent, tmp_path)
    received = load_frames(tmp_path)
    for name in ("visual", "sync"):
        assert torch.equal(getattr(received, name), getattr(sent, name))
    for name in ("num_picked", "source_seconds", "trimmed", "notices"):
        assert getattr(received, name) == getattr(sent, name)


def test_a_file_that_was_written_frame_by_frame_is_read_as_one_that_was_not(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    visual = torch.randint(256, (8, 4, 4, 3), dtype=torch.uint8)
    sync = torch.randint(256, (25, 6, 6, 3), dtype=torch.uint8)
    facts = ClipFacts(num_picked=24, source_seconds=0.96, trimmed=True, notices=('a "second"',))
    for most in (FrameCounts(8, 25), FrameCounts(11, 40)):
        file = FrameFile(tmp_path, (4, 6), most)
        for place, frames in zip(file.places, (visual, sync), strict=True):
            os.pwrite(place.descriptor, frames.numpy().tobytes(), place.start)
            assert place.capacity >= len(frames)
        file.seal(FrameCounts(8, 25), facts)
        received = load_frames(tmp_path)
        assert torch.equal(received.visual, visual)
        assert torch.equal(received.sync, sync)
        assert {name: getattr(received, name) for name in vars(facts)} == vars(facts)


PROGRAM = """
import sys
from pathlib import Path
import torch
from foley.types import ClipFacts, FramePiece
from runners.handoff import PIECE, HandedFrames, hand_on_piece

folder = Path(sys.argv[1])
facts = ClipFacts(num_picked=24, source_seconds=0.96, trimmed=True, notices=("a notice",))
visual, sync = torch.ones(8, 64, 64, 3).byte(), torch.ones(25, 64, 64, 3).byte()
hand_on_piece(FramePiece(visual=visual, sync=sync, facts=facts), folder, 0)
kept = (folder / PIECE.format(0)).open("r+b")
piece = HandedFrames(folder).read()
kept.truncate(0)
print(int(piece.visual.sum()), int(piece.sync.sum()), piece.facts == facts)
"""


@pytest.mark.slow
def test_a_piece_that_its_writer_cuts_short_hurts_nobody_who_has_read_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{8 * 64 * 64 * 3} {25 * 64 * 64 * 3} True\n")


def test_a_piece_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / PIECE.format(0)).open("wb") as file:
        file.truncate(MAX_FRAMES_BYTES + 1)  # without content, so it takes no room on the disk
    with pytest.raises(ValueError, match="has 536870913 bytes, over 536870912"):
        HandedFrames(tmp_path).read()


def test_a_piece_that_is_none_is_an_error(tmp_path: Path) -> None:
    for content in (b"", b"\x10", b"\xff" * 1000, b"\x02" + bytes(7) + b"{}"):
        (tmp_path / PIECE.format(0)).write_bytes(content)
        with pytest.raises((SafetensorError, KeyError)):
            HandedFrames(tmp_path).read()
