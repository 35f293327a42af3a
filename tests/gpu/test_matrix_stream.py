"""A step computes the same with blocks whose matrices are copied for their turn."""

from itertools import combinations

import pytest
import torch
from torch import nn

from foley.gpu.compilation import select_plain
from foley.gpu.fused_step import FusedDiT
from foley.gpu.matrix import Matrix, Precision
from foley.gpu.matrix_stream import HostedBlock, MatrixStream, choose_streamed_blocks
from foley.models.dit import FoleyDiT
from tests.gpu.fp8_rows import skip_without_fp8_rows
from tests.gpu.test_fused_step import LENGTHS, fused_velocity
from tests.toys import toy_components

CPU = torch.device("cpu")


def list_blocks(dit: FoleyDiT) -> list[nn.Module]:
    return [*dit.joint_blocks, *dit.audio_blocks]


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@torch.inference_mode()
def test_a_step_is_the_same_whichever_blocks_are_streamed(precision: Precision) -> None:
    if precision == "fp8":
        skip_without_fp8_rows()
    whole = toy_components().dit
    expected = fused_velocity(whole, FusedDiT(whole, precision), LENGTHS)
    others = [i for i, b in enumerate(list_blocks(whole)) if b is not whole.audio_blocks[0]]
    for count in range(1, len(others) + 1):
        for chosen in combinations(others, count):
            dit = toy_components().dit
            blocks = list_blocks(dit)
            step = FusedDiT(dit, precision, streamed=[blocks[i] for i in chosen])
            for place in step._stream._places:
                place.fill_(255)  # NaN, in each format
            for _ in range(2):
                assert torch.equal(fused_velocity(dit, step, LENGTHS), expected)


def test_streamed_matrices_are_not_kept_twice() -> None:
    dit = toy_components().dit
    FusedDiT(dit, streamed=[dit.joint_blocks[0]])
    assert dit.joint_blocks[0].audio.qkv.weight.numel() == 0
    assert dit.audio_blocks[0].qkv.weight.numel() > 0


def test_two_places_serve_all_blocks_and_none_is_taken_without_them() -> None:
    weights = [torch.randn(6, 4), torch.randn(3, 4), torch.randn(5, 4)]
    matrices = [Matrix(w, None, "bf16", select_plain("bf16").quantise) for w in weights]
    blocks = [HostedBlock([matrix], pinned=False) for matrix in matrices]
    stream = MatrixStream(blocks, CPU)
    assert [place.nbytes for place in stream._places] == [256, 256]
    stream.begin_step()
    x = torch.randn(2, 4)
    for index, (matrix, weight) in enumerate(zip(matrices, weights, strict=True)):
        with stream.turn(index):
            assert torch.equal(matrix(x), x @ weight.t())
    assert MatrixStream([], CPU)._places == []


@pytest.mark.parametrize("bytes_per_weight", [1, 2])
def test_the_blocks_that_stay_fit_beside_the_places_and_are_spread(bytes_per_weight: int) -> None:
    dit = toy_components().dit
    sizes = {
        block: bytes_per_weight * sum(p.numel() for p in block.parameters())
        for block in list_blocks(dit)
    }
    total = sum(sizes.values())
    assert choose_streamed_blocks(dit, bytes_per_weight, total) == []
    everything = [block for block in list_blocks(dit) if block is not dit.audio_blocks[0]]
    assert choose_streamed_blocks(dit, bytes_per_weight, 0) == everything
    for share in (0.5, 0.7, 0.9, 0.99):
        streamed = choose_streamed_blocks(dit, bytes_per_weight, int(share * total))
        assert streamed
        assert dit.audio_blocks[0] not in streamed
        if len(streamed) < len(everything):
            kept = total - sum(sizes[block] for block in streamed)
            assert kept + 2 * max(sizes[block] for block in everything) <= share * total
