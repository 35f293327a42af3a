"""Encoders run from graphs of a few sizes give what their modules give, after any other clip."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from foley.conditioning import count_pieces, encode_sync, encode_text, encode_visual, tokenize
from foley.gpu.cuda_graphs import Capture, Replay
from foley.gpu.encoder_batches import FROM_GRAPHS, ON_CPU, ON_GPU, Encoders, Pieces
from foley.gpu.fused_encoders import fuse_text_encoder
from foley.models.synchformer import count_segment_frames
from foley.pipeline import FoleyPipeline
from tests.gpu.test_step_graphs import Recorder
from tests.toys import toy_components, toy_frames

CPU = torch.device("cpu")
PARTS = toy_components()


def encoders(capture: Callable[[int], Capture] | None = None) -> Encoders:
    parts = PARTS.synchformer, PARTS.vision, PARTS.text
    return Encoders(*parts, CPU, capture, FROM_GRAPHS)


@pytest.fixture(autouse=True)
def _without_gradients() -> object:
    with torch.inference_mode():
        yield


def finish(encoding: object) -> Tensor:
    """Run an encoding to its end, and return its result."""
    try:
        while True:
            next(encoding)  # type: ignore[call-overload]
    except StopIteration as stop:
        return stop.value


def tokens(encoders: Encoders, num_sync: int, prompts: tuple[str, str]) -> list[Tensor]:
    frames = toy_frames(num_sync, seed=num_sync)
    words = tokenize(PARTS.tokenizer, PARTS.text, *prompts)
    return [
        finish(encode_visual(encoders, frames.visual)),
        finish(encode_sync(encoders, frames.sync)),
        encode_text(encoders, words)(),
    ]


# Clips and prompts, longer ones before shorter ones, so that places hold values of earlier calls.
TURNS = [
    (375, ("noisy, harsh", "x" * 77)),  # 79 tokens, cut to 77 afterwards
    (16, ("", "")),
    (103, ("", "rain on a roof, then thunder")),
    (200, ("x" * 30, "tap")),
    (17, ("", "x" * 200)),  # longer than any graph
    (16, ("noisy, harsh", "tap")),
]


def test_padded_pieces_give_what_the_modules_give() -> None:
    recorder = Recorder()
    plain, fast = encoders(), encoders(lambda _: recorder)
    fast.prepare()
    num_graphs = recorder.captures
    assert num_graphs == 4 + 6 + 5
    for num_sync, prompts in TURNS:
        for actual, expected in zip(
            tokens(fast, num_sync, prompts), tokens(plain, num_sync, prompts), strict=True
        ):
            assert actual.shape == expected.shape
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)  # measured: 4e-7
    assert recorder.captures == num_graphs  # all were captured before
    # Frames of 15, 0.64, 4.1, 8, 0.68 and 0.64 s, their segments, and all prompts but one.
    assert recorder.replays == (4 + 1 + 1 + 2 + 1 + 1) + (2 + 1 + 1 + 1 + 1 + 1) + 5


def test_padding_does_not_change_the_fused_text_encoder() -> None:
    fused, recorder = toy_components().text, Recorder()
    fuse_text_encoder(fused)
    parts = PARTS.synchformer, PARTS.vision, fused
    fast = Encoders(*parts, CPU, lambda _: recorder)
    with torch.compiler.set_stance("force_eager"):
        fast.prepare()
        for prompts in (("", "x" * 60), ("noisy", ""), ("", "")):
            words = tokenize(PARTS.tokenizer, PARTS.text, *prompts)
            actual, expected = (encode_text(e, words)() for e in (fast, encoders()))
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert recorder.replays == 3


def test_the_result_of_a_graph_is_not_overwritten_by_the_next_call() -> None:
    fast = encoders(lambda _: Recorder())
    fast.prepare()
    first = tokens(fast, 40, ("a", "b"))
    kept = [encoded.clone() for encoded in first]
    tokens(fast, 48, ("c", "d"))
    assert all(torch.equal(*pair) for pair in zip(first, kept, strict=True))


def test_the_text_shares_no_graph_memory_with_the_frames() -> None:
    recorders: list[Recorder] = []

    def capture(priority: int) -> Recorder:
        recorders.append(Recorder())
        return recorders[-1]

    fast = encoders(capture)
    fast.prepare()
    fast.prepare()  # once is enough
    assert [recorder.captures for recorder in recorders] == [4 + 6, 5]
    tokens(fast, 40, ("a", "b"))
    assert [recorder.replays for recorder in recorders] == [2, 1]


@pytest.mark.parametrize("fails_at", [1, 7, 13])
def test_without_memory_for_all_graphs_there_are_none(
    fails_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()

    def capture(run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        if recorder.captures + 1 == fails_at:
            raise torch.OutOfMemoryError
        return recorder(run)

    tight = encoders(lambda _: capture)
    tight.prepare()
    assert [record.message for record in caplog.records] == [
        "too little memory for the encoders' graphs; they run without"
    ]
    for actual, expected in zip(
        tokens(tight, 40, ("", "tap")), tokens(encoders(), 40, ("", "tap")), strict=True
    ):
        assert torch.equal(actual, expected)
    assert recorder.replays == 0


def test_released_graphs_are_captured_again_by_the_next_warm_up() -> None:
    recorder = Recorder()
    pipeline = FoleyPipeline(toy_components(), CPU)
    pipeline._encoders = encoders(lambda _: recorder)
    ask = partial(pipeline.condition, toy_frames(), "tap", "")
    for num_graphs in (15, 30):
        pipeline.warm_up()
        pipeline.warm_up()
        assert recorder.captures == num_graphs
        replays = recorder.replays
        ask()
        assert recorder.replays == replays + 3
        pipeline.make_room()
        ask()
        assert recorder.replays == replays + 3


@pytest.mark.parametrize("pieces", {*ON_CPU, *ON_GPU, *FROM_GRAPHS})
def test_pieces_are_few_and_even_and_multiples_of_the_step_but_for_the_last(
    pieces: Pieces,
) -> None:
    assert pieces.at_once in pieces.sizes
    for total in range(1, 130):
        parts = pieces.split(total)
        assert sum(parts) == total
        assert len(parts) == pieces.count(total) == -(-total // pieces.at_once)
        assert max(parts) <= pieces.at_once
        assert all(part % pieces.step == 0 for part in parts[:-1])
        assert max(parts) - min(parts) <= pieces.step
        assert min(parts) > 1 or total == 1
    assert count_segment_frames(24) == 200


def test_the_cut_of_clips_suits_the_device_and_the_graphs() -> None:
    parts = PARTS.synchformer, PARTS.vision, PARTS.text
    gpu, recorder = torch.device("cuda", 0), Recorder()
    for device, capture, cut in (
        (CPU, None, ON_CPU),
        (gpu, None, ON_GPU),
        (gpu, lambda _: recorder, FROM_GRAPHS),
    ):
        chosen = Encoders(*parts, device, capture)
        assert chosen.cut == cut
        # A clip of 8 s: 64 frames, 24 segments, and the text.
        assert (
            count_pieces(chosen.cut, 64, 200) == {ON_CPU: 4 + 6, ON_GPU: 2 + 2}.get(cut, 2 + 1) + 1
        )
        chosen.release()  # requests that have begun count on the same pieces
        assert chosen.cut == cut
