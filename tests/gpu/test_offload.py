"""Weights that are on the device only for their turn are there for every use."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from foley.denoise import EvaluationPart, VelocityModel, make_clip_context
from foley.gpu.offload import WeightStreamer, split_by_bytes, stream_blocks
from foley.models.dit import FoleyDiT
from foley.types import Conditions
from tests.toys import toy_components

CPU = torch.device("cpu")


@pytest.fixture
def poison_absent_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for a second device: unloaded weights read NaN until they are loaded again."""
    unload = WeightStreamer._unload
    move_to_host = WeightStreamer._move_to_host

    def unload_and_poison(self: WeightStreamer, index: int) -> None:
        unload(self, index)
        for weight, home in self._homes[index]:
            weight.data = torch.full_like(home, float("nan"))

    def move_and_poison(
        self: WeightStreamer, module: nn.Module
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        homes = [(weight, home.clone()) for weight, home in move_to_host(self, module)]
        for weight, home in homes:
            weight.data = torch.full_like(home, float("nan"))
        return homes

    monkeypatch.setattr(WeightStreamer, "_unload", unload_and_poison)
    monkeypatch.setattr(WeightStreamer, "_move_to_host", move_and_poison)


def velocity_of(dit: FoleyDiT) -> Callable[[int], torch.Tensor]:
    """The velocity of a seeded clip, its context and modulations included."""

    def velocity(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        conditions = Conditions(
            visual_tokens=torch.randn(6, 24, generator=generator),
            sync_tokens=torch.randn(24, 16, generator=generator),
            text_tokens=torch.randn(2, 5, 16, generator=generator),
            num_latents=37,
        )
        context = make_clip_context(dit, conditions, 1, guided=True)
        time = dit.make_time_modulation(torch.tensor([0.3]))
        latents = torch.randn(1, 8, 37, generator=generator)
        return VelocityModel(dit)([EvaluationPart(seed, latents, time, context, 4.5)])[0]

    return velocity


@pytest.mark.usefixtures("poison_absent_weights")
@torch.inference_mode()
def test_every_step_finds_every_block() -> None:
    dit = toy_components().dit
    velocity = velocity_of(dit)
    expected = [velocity(seed) for seed in range(3)]
    blocks = [*dit.joint_blocks, *dit.audio_blocks]
    streamed = WeightStreamer(blocks, CPU)
    assert blocks[0].audio.qkv.weight.isnan().all()
    for seed in range(3):
        assert torch.equal(velocity(seed), expected[seed])
        assert streamed._present == [True, False, False, False]  # the next step's first block


@pytest.mark.usefixtures("poison_absent_weights")
@torch.inference_mode()
def test_blocks_beyond_a_budget_are_streamed() -> None:
    dit = toy_components().dit
    velocity = velocity_of(dit)
    expected = velocity(0)
    blocks = [*dit.joint_blocks, *dit.audio_blocks]
    sizes = [sum(4 * p.numel() for p in block.parameters()) for block in blocks]
    stream_blocks(dit, CPU, sum(sizes) // 2)
    absent = [next(block.parameters()).isnan().all().item() for block in blocks]
    assert 0 < sum(absent) < len(blocks)
    assert torch.equal(velocity(0), expected)
    assert torch.equal(velocity(0), expected)


@pytest.mark.usefixtures("poison_absent_weights")
@torch.inference_mode()
def test_a_single_module_is_loaded_for_each_call_and_unloaded() -> None:
    vae = toy_components().vae
    latents = torch.randn(1, 8, 10)
    expected = vae(latents)
    WeightStreamer([vae], CPU)
    assert torch.equal(vae(latents), expected)
    assert vae.post_quant.weight.isnan().all()
    with pytest.raises(RuntimeError):
        vae(latents[:, :3])  # an error unloads the weights, too
    assert vae.post_quant.weight.isnan().all()
    assert torch.equal(vae(latents), expected)


@pytest.mark.parametrize(("budget", "stay"), [(0, 0), (260, 2), (520, 5), (10_000, 10)])
def test_resident_modules_are_spread_over_the_order(budget: int, stay: int) -> None:
    layers = [nn.Linear(5, 5, bias=False) for _ in range(10)]  # 100 bytes each
    resident, streamed = split_by_bytes(layers, budget)
    assert (len(resident), len(streamed)) == (stay, 10 - stay)
    assert 100 * len(resident) <= budget
    if stay == 5:
        assert resident == layers[1::2]
