"""The step for a GPU computes what the modules' forward computes."""

from typing import get_args

import pytest
import torch

from foley.gpu import pointwise
from foley.gpu.compilation import compile_pointwise, select_plain
from foley.gpu.fused_context import FusedContext
from foley.gpu.fused_step import FusedDiT
from foley.gpu.matrix import Precision
from foley.gpu.pointwise import join_neighbours
from foley.models.context import DiTContext
from foley.models.dit import FoleyDiT
from foley.models.packing import Lengths, Regions
from tests.gpu.fp8_rows import skip_without_fp8_rows
from tests.toys import toy_components

LENGTHS = [(37, 6, 2, 5), (12, 20, 1, 3), (1, 1, 1, 1), (37, 6, 2, 5)]  # A, V, segments, T


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(dit: FoleyDiT, lengths: list[tuple[int, int, int, int]]) -> DiTContext:
    """Both halves of guidance of each clip, packed."""
    contexts = []
    for seed, (audio, visual, segments, text) in enumerate(lengths):
        words = draw(2, text, 16, seed=seed)
        sync = draw(1, 8 * segments, 16, seed=seed)
        contexts += [
            dit.make_empty_context(visual, 8 * segments, words[:1], audio),
            dit.make_context(draw(1, visual, 24, seed=seed), sync, words[1:], audio),
        ]
    return DiTContext.concatenate(contexts, packed=True)


def case(
    dit: FoleyDiT, lengths: list[tuple[int, int, int, int]]
) -> tuple[torch.Tensor, torch.Tensor, DiTContext]:
    """Latents [N, L], noise levels of the clips, and their context."""
    context = batch(dit, lengths)
    num_latents = sum(clip.audio for clip in context.lengths)
    return draw(num_latents, 8), torch.linspace(1, 0.1, len(context.lengths)), context


def velocity(dit: FoleyDiT, lengths: list[tuple[int, int, int, int]]) -> torch.Tensor:
    latents, sigmas, context = case(dit, lengths)
    return dit(latents.t()[None], dit.make_time_modulation(sigmas), context)[0].t()


def fused_velocity(
    dit: FoleyDiT, step: FusedDiT, lengths: list[tuple[int, int, int, int]]
) -> torch.Tensor:
    latents, sigmas, context = case(dit, lengths)
    return step(latents, dit.make_time_modulation(sigmas), FusedContext.of(context))


@pytest.mark.parametrize("count", [1, 4])
@torch.no_grad()
def test_the_step_computes_what_the_forward_computes(count: int) -> None:
    dit = toy_components().dit
    expected = velocity(dit, LENGTHS[:count])
    result = fused_velocity(dit, FusedDiT(dit), LENGTHS[:count])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)  # measured: 5e-7


@pytest.mark.parametrize("are_apart", [False, True])
@torch.no_grad()
def test_the_step_hears_the_cues_of_the_forward(are_apart: bool) -> None:
    dit = toy_components().dit
    first, second = batch(dit, LENGTHS[:1]), batch(dit, LENGTHS[1:2])
    regions = Regions((Lengths(10, 1, 4), Lengths(1, 0, 4), Lengths(26, 5, 4)), are_apart)
    keys, values = dit.project_prompts(draw(3, 4, 16, seed=9))
    visual, sync = draw(1, 6, 24), draw(1, 16, 16)
    whole = dit.make_context(visual, sync, draw(1, 5, 16), 37)
    context = DiTContext.concatenate([first, whole.split(regions, keys, values), second])
    latents = draw(sum(clip.audio for clip in context.lengths), 8)
    time = dit.make_time_modulation(torch.linspace(1, 0.1, len(context.lengths)))
    expected = dit(latents.t()[None], time, context)[0].t()
    result = FusedDiT(dit)(latents, time, FusedContext.of(context))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)  # measured: 5e-7
    plain = DiTContext.concatenate([first, whole, second])
    assert (dit(latents.t()[None], time, plain)[0].t() - expected).abs().max() > 1e-3


@torch.no_grad()
def test_weights_laid_out_anew_keep_their_names_shapes_values_and_memory() -> None:
    dit = toy_components().dit
    before = {name: weight.clone() for name, weight in dit.state_dict().items()}
    expected = velocity(dit, LENGTHS)
    step = FusedDiT(dit)
    after = dit.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    torch.testing.assert_close(velocity(dit, LENGTHS), expected, rtol=0, atol=1e-5)
    # The products read the parameters themselves.
    dit.audio_blocks[1].mlp.up.weight.zero_()
    assert fused_velocity(dit, step, LENGTHS).sub(expected).abs().max() > 1e-3


@torch.no_grad()
def test_half_precision_stays_close() -> None:
    exact = velocity(toy_components().dit, LENGTHS)
    half = torch.nn.Module.to(toy_components().dit, dtype=torch.bfloat16)
    rough = fused_velocity(half, FusedDiT(half), LENGTHS)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.015  # measured: 0.0036


@torch.no_grad()
def test_fp8_stays_close_and_frees_the_weights() -> None:
    skip_without_fp8_rows()
    exact = velocity(toy_components().dit, LENGTHS)
    dit = torch.nn.Module.to(toy_components().dit, dtype=torch.bfloat16)
    rough = fused_velocity(dit, FusedDiT(dit, "fp8"), LENGTHS)
    assert (rough - exact).norm() / exact.norm() < 0.015  # measured: 0.0054
    assert dit.audio_blocks[0].mlp.up.weight.numel() == 0


@pytest.mark.soak
@torch.inference_mode()
def test_compiled_functions_compute_the_same_for_all_lengths() -> None:
    dit = toy_components().dit
    step = FusedDiT(dit, ops=compile_pointwise())
    result = fused_velocity(dit, step, LENGTHS)
    torch.testing.assert_close(result, velocity(dit, LENGTHS), rtol=0, atol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in (LENGTHS[:2], LENGTHS[:1], [(50, 7, 2, 3)], [(80, 9, 2, 3), (20, 3, 1, 9)]):
            result = fused_velocity(dit, step, lengths)
            torch.testing.assert_close(result, velocity(dit, lengths), rtol=0, atol=1e-5)


def test_a_step_goes_on_while_another_thread_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    gelu = compile_pointwise().gelu
    x = draw(3, 8)
    # PyTorch notes in the whole process that one of its threads traces a function.
    monkeypatch.setattr(torch.fx._symbolic_trace, "_is_fx_tracing_flag", True)
    torch.testing.assert_close(gelu(x), pointwise.gelu(x))


@torch.inference_mode()
def test_what_is_compiled_for_two_tokens_serves_many() -> None:
    # PyTorch 2.11 had no guard where N - 1 rows, being one row, tied the code to N = 2.
    fast = torch.compile(join_neighbours, backend="aot_eager", fullgraph=True)
    for count in (2, 160):
        x, first, last = draw(count, 16), torch.zeros(count, 1).bool(), torch.ones(count, 1).bool()
        for tensor in (x, first, last):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        with torch._dynamo.config.patch(error_on_recompile=count > 2):
            assert torch.equal(fast(x, first, last), join_neighbours(x, first, last))


@pytest.mark.parametrize("precision", get_args(Precision))
def test_every_function_between_the_products_is_compiled(precision: Precision) -> None:
    plain, fast = select_plain(precision), compile_pointwise(precision)
    assert all(a is not b for a, b in zip(plain, fast, strict=True))
