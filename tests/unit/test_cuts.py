"""Where shots begin."""

import pytest
import torch

from foley.cuts import CutDetector

SIZE = 64


def draw_shots(lengths: list[int], seed: int = 0) -> torch.Tensor:
    """Return shots of these lengths: noise on a background that moves, of another colour each."""
    generator = torch.Generator().manual_seed(seed)
    shots = []
    for index, length in enumerate(lengths):
        width = SIZE // 16 + 3 * length // 16 + 1
        blocks = torch.randint(0, 80, (SIZE // 16, width, 3), generator=generator)
        scene = blocks.repeat_interleave(16, 0).repeat_interleave(16, 1) + 40.0 * (index % 3)
        frames = torch.stack([scene[:, 3 * i :][:, :SIZE] for i in range(length)])
        shots.append(frames + torch.randn(frames.shape, generator=generator) * 3)
    return torch.cat(shots).clamp(0, 255).to(torch.uint8)


def find(frames: torch.Tensor, sizes: list[int]) -> list[int]:
    detector = CutDetector()
    pieces = frames.split(sizes)
    for index, piece in enumerate(pieces):
        detector.add(piece, is_end=index == len(pieces) - 1)
    assert detector.num_judged == len(frames)
    return detector.cuts


def test_a_cut_is_found_at_its_frame() -> None:
    lengths = [50, 40, 3, 60]
    assert find(draw_shots(lengths), [sum(lengths)]) == [50, 90, 93]


@pytest.mark.parametrize("sizes", [[50, 70], [51, 69], [49, 1, 1, 1, 68], [48, 72], [119, 1]])
def test_cuts_do_not_depend_on_the_pieces(sizes: list[int]) -> None:
    assert find(draw_shots([50, 70]), sizes) == [50]


def test_a_frame_is_judged_when_two_more_are_known() -> None:
    detector, frames = CutDetector(), draw_shots([50, 70])
    detector.add(frames[:52], is_end=False)
    assert (detector.cuts, detector.num_judged) == ([], 50)
    detector.add(frames[52:53], is_end=False)
    assert (detector.cuts, detector.num_judged) == ([50], 51)


def test_motion_noise_and_a_fade_are_not_cuts() -> None:
    moving = draw_shots([100])
    assert find(moving, [100]) == []
    noise = torch.randint(0, 256, (50, SIZE, SIZE, 3), dtype=torch.uint8)
    assert find(noise, [50]) == []
    fade = (moving * torch.linspace(1, 0, 100)[:, None, None, None]).to(torch.uint8)
    assert find(fade, [100]) == []
