"""Collected frames, in memory and in files."""

import tracemalloc
from pathlib import Path

import torch

from foley.media.frame_stack import FrameStack, claim_together
from foley.types import FramePlace


def draw_frame(value: int, size: int = 2) -> torch.Tensor:
    return torch.full((size, size, 3), value, dtype=torch.uint8)


def test_a_frame_that_is_repeated_no_times_is_not_copied() -> None:
    stack = FrameStack(512, capacity=1)
    stack.append(torch.zeros(512, 512, 3, dtype=torch.uint8), times=1)
    tracemalloc.start()
    stack.repeat_last(0)
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_bytes < 512 * 512


def test_a_stack_keeps_every_frame_while_it_grows() -> None:
    stack = FrameStack(2, capacity=4)
    for value in range(40):
        stack.append(torch.full((2, 2, 3), value, dtype=torch.uint8), times=1 + value % 3)
    stack.repeat_last(5)
    frames = stack.finish()
    expected = [value for value in range(40) for _ in range(1 + value % 3)] + [39] * 5
    assert frames[:, 0, 0, 0].tolist() == expected
    assert frames.untyped_storage().nbytes() == frames.numel()  # nothing beyond the frames is kept
    assert len(stack) == 0


def test_frames_in_a_file_are_those_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "frames").open("w+b") as file:
        stack = FrameStack(2, 9, FramePlace(file.fileno(), 5000, 9))
        first, second = stack.claim(2), stack.claim(3)
        stack.put(second, draw_frame(7), 3)  # by a thread that was quicker
        stack.put(first, draw_frame(6), 2)
        for times in (2, 3):
            stack.count_put(times)
        stack.repeat_last(4)
        assert stack.num_free == 0
        assert stack.is_placed
        frames = stack.finish()
        assert frames[:, 0, 0, 0].tolist() == [6, 6, 7, 7, 7, 7, 7, 7, 7]
        frames.zero_()  # which is not written to the file
        file.seek(5000)
        assert file.read() == bytes([6] * 2 * 12 + [7] * 7 * 12)


def test_frames_that_have_no_room_in_a_file_go_to_memory_with_all_others(tmp_path: Path) -> None:
    with (tmp_path / "frames").open("w+b") as file:
        short = FrameStack(2, 2, FramePlace(file.fileno(), 0, 2))
        wide = FrameStack(2, 9, FramePlace(file.fileno(), 4096, 9))
        assert claim_together((short, 2), (wide, 1)) == (0, 0)
        for stack, times in ((short, 2), (wide, 1)):
            stack.put(0, draw_frame(1), times)
            stack.count_put(times)
        assert claim_together((short, 1), (wide, 1)) == (None, None)
        assert claim_together((short, 0), (wide, 1)) == (None, None)  # nor does any later one
        wide.append(draw_frame(2), 1)
        short.append(draw_frame(2), 1)
        assert not short.is_placed
        assert short.take(2, capacity=1)[:, 0, 0, 0].tolist() == [1, 1]
        assert short.finish()[:, 0, 0, 0].tolist() == [2]
        assert wide.finish()[:, 0, 0, 0].tolist() == [1, 2]
