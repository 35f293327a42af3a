"""Sync tokens of clips with cuts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foley.conditioning import encode_clip, encode_sync
from foley.gpu.encoder_batches import Encoders
from foley.types import VideoFrames, split_frames
from tests.toys import toy_components, toy_frames

CPU = torch.device("cpu")
PARTS = toy_components()
ENCODERS = Encoders(PARTS.synchformer, PARTS.vision, PARTS.text, CPU)
CUT = 100  # in the segments that begin at frames 88 and 96


@pytest.fixture(autouse=True)
def _without_gradients() -> object:
    with torch.inference_mode():
        yield


def finish(encoding: object) -> object:
    """Run an encoding to its end, and return its result."""
    try:
        while True:
            next(encoding)  # type: ignore[call-overload]
    except StopIteration as stop:
        return stop.value


def encode(frames: Tensor, cuts: list[int]) -> Tensor:
    tokens = finish(encode_sync(ENCODERS, frames, cuts))
    assert isinstance(tokens, Tensor)
    return tokens.unflatten(0, (-1, 8))  # [segments, 8, D]


def test_a_segment_with_a_cut_sees_the_shot_of_which_it_has_the_most_frames() -> None:
    frames = toy_frames(168, seed=1).sync
    tokens, without = encode(frames, [CUT]), encode(frames, [])
    changed = (tokens != without).flatten(1).any(1).nonzero().ravel().tolist()
    assert changed == [11, 12]
    before, after = frames[88:104].clone(), frames[96:112].clone()
    before[12:], after[:4] = frames[CUT - 1], frames[CUT]
    torch.testing.assert_close(tokens[11], encode(before, [])[0])
    torch.testing.assert_close(tokens[12], encode(after, [])[0])


def test_no_token_depends_on_frames_of_another_shot() -> None:
    frames, others = toy_frames(168, seed=1).sync, toy_frames(168, seed=2).sync
    tokens = encode(frames, [CUT])
    other_end = encode(torch.cat([frames[:CUT], others[CUT:]]), [CUT])
    other_start = encode(torch.cat([others[:CUT], frames[CUT:]]), [CUT])
    torch.testing.assert_close(tokens[:12], other_end[:12])
    torch.testing.assert_close(tokens[12:], other_start[12:])


def draw_shots(num_sync: int) -> VideoFrames:
    """Return frames of two shots, black and white, with a cut at `CUT`."""
    frames = toy_frames(num_sync, seed=3)
    sync = torch.zeros_like(frames.sync)
    sync[CUT:] = 255
    return replace(frames, sync=sync)


@pytest.mark.parametrize(("num_sync", "cuts"), [(368, ()), (400, (CUT,))])
def test_shots_are_kept_apart_in_clips_of_several_windows(
    num_sync: int, cuts: tuple[int, ...]
) -> None:
    frames = draw_shots(num_sync)
    words = torch.zeros(2, 3, 4)
    tokens = finish(encode_clip(ENCODERS, split_frames(frames), lambda: [lambda: words]))
    assert tokens.cuts == cuts
    torch.testing.assert_close(tokens.sync.unflatten(0, (-1, 8)), encode(frames.sync, list(cuts)))
