"""Tensors handed from one process to another."""

from pathlib import Path

import torch

from foley.types import VideoFrames
from runners.handoff import load_frames, save_frames


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
