"""The transformer: batches, contexts, and what its velocity depends on."""

import torch

from foley.models.context import DiTContext
from foley.models.dit import FoleyDiT, build_dit
from tests.toys import toy_components, toy_preset

A, V, S, T = 37, 6, 24, 5


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model() -> FoleyDiT:
    return toy_components().dit


def context(dit: FoleyDiT, seed: int = 0) -> DiTContext:
    return dit.make_context(
        draw(1, V, 24, seed=seed), draw(1, S, 16, seed=seed), draw(1, T, 16, seed=seed), A
    )


@torch.no_grad()
def test_an_item_gets_the_same_velocity_alone_and_in_a_batch() -> None:
    dit = model()
    contexts = [context(dit, seed) for seed in range(3)]
    latents = draw(3, 8, A)
    times = dit.make_time_modulation(torch.tensor([1.0, 0.7, 0.1]))
    together = dit(latents, times, DiTContext.concatenate(contexts))
    for i in range(3):
        alone = dit(latents[i : i + 1], times[torch.tensor([i])], contexts[i])
        # Measured: 4e-7. The products are split into other blocks, so the bits may differ.
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_eight_empty_rows_stand_for_the_whole_empty_sequence() -> None:
    dit = model()
    text = draw(2, T, 16)
    short = dit.make_empty_context(V, S, text, A)
    assert len(short.sync_rows) == 2 * 8
    full = dit.make_context(
        dit.clip_in.empty_visual.expand(2, V, -1), dit.clip_in.empty_sync.expand(2, S, -1), text, A
    )
    assert len(full.sync_rows) == 2 * S
    latents, times = draw(2, 8, A), dit.make_time_modulation(torch.tensor([0.9, 0.3]))
    torch.testing.assert_close(
        dit(latents, times, short), dit(latents, times, full), rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_every_condition_changes_the_velocity() -> None:
    dit = model()
    latents, times = draw(1, 8, A), dit.make_time_modulation(torch.tensor([0.5]))
    inputs = [draw(1, V, 24), draw(1, S, 16), draw(1, T, 16)]
    before = dit(latents, times, dit.make_context(*inputs, A))
    for changed in range(3):
        others = [x + (i == changed) for i, x in enumerate(inputs)]
        after = dit(latents, times, dit.make_context(*others, A))
        assert (after - before).abs().max() > 1e-3
    other_time = dit.make_time_modulation(torch.tensor([0.6]))
    assert (dit(latents, other_time, dit.make_context(*inputs, A)) - before).abs().max() > 1e-4


@torch.no_grad()
def test_half_precision_stays_close() -> None:
    dit = model()
    latents, sigmas = draw(1, 8, A), torch.tensor([0.5])
    exact = dit(latents, dit.make_time_modulation(sigmas), context(dit))
    half = torch.nn.Module.to(model(), dtype=torch.bfloat16)
    rough = half(latents, half.make_time_modulation(sigmas), context(half))
    assert rough.dtype == torch.float32
    error = (rough - exact).norm() / exact.norm()
    assert error < 0.015  # measured: 0.0045


def test_widths_of_the_model_are_those_of_its_config() -> None:
    config = toy_preset().dit
    dit = build_dit(config)
    assert dit.audio_blocks[0].mlp.gate.weight.shape == (config.conv_mlp_dim, config.hidden_dim, 3)
    assert len(dit.joint_blocks) == config.num_joint_blocks


@torch.no_grad()
def test_the_two_guidance_contexts_are_those_made_one_by_one() -> None:
    dit, words = model(), draw(2, T, 16)
    empty, cond = dit.make_guidance_contexts(draw(1, V, 24), draw(1, S, 16), words, A)
    expected = (
        dit.make_empty_context(V, S, words[:1], A),
        dit.make_context(draw(1, V, 24), draw(1, S, 16), words[1:], A),
    )
    latents, times = draw(1, 8, A), dit.make_time_modulation(torch.tensor([0.5]))
    for actual, alone in zip((empty, cond), expected, strict=True):
        assert actual.lengths == alone.lengths
        torch.testing.assert_close(actual.text_keys, alone.text_keys, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            dit(latents, times, actual), dit(latents, times, alone), rtol=0, atol=1e-6
        )
