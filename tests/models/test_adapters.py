"""Adapters add their products to a layer's own, for each request of a batch by itself."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from foley.denoise import Denoising, VelocityModel
from foley.gpu.compilation import PLAIN
from foley.gpu.fused_step import FusedDiT
from foley.gpu.step_graphs import FusedStep
from foley.models.adapter_stacks import AdapterStacks, Member
from foley.models.adapters import (
    Adapter,
    AdapterSet,
    Groups,
    add_hooks,
    add_products,
    find_adapters,
    list_layers,
    multiply_groups,
)
from foley.models.dit import FoleyDiT
from foley.sampling import draw_noise, make_sigmas
from foley.types import Conditions
from tests.adapters import draw_adapter, run_together
from tests.gpu.test_step_graphs import Recorder
from tests.toys import toy_components


def conditions(seed: int, num_latents: int, segments: int) -> Conditions:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Conditions(
        visual_tokens=draw(5 + seed, 24),
        sync_tokens=draw(8 * segments, 16),
        text_tokens=draw(2, 4, 16),
        num_latents=num_latents,
    )


def start(
    dit: FoleyDiT,
    seed: int,
    adapters: AdapterSet | None,
    num_latents: int = 20,
    num_steps: int = 2,
) -> Denoising:
    return Denoising(
        dit,
        conditions(seed, num_latents, 2),
        draw_noise((seed,), 8, num_latents),
        make_sigmas(num_steps),
        guidance_scale=2.0,
        adapters=adapters,
    )


def merge(dit: FoleyDiT, adapters: AdapterSet) -> FoleyDiT:
    """A copy of the transformer whose weights hold the adapters: what they mean."""
    merged = copy.deepcopy(dit)
    for adapter, scale in adapters.members:
        for name, (down, up) in adapter.layers.items():
            weight = merged.get_parameter(f"{name}.weight")
            change = torch.einsum("ckr,rf->fck", down, up)  # [F, C, K]
            weight.data += scale * change.view(weight.shape)
    return merged


@pytest.fixture(scope="module")
def dit() -> FoleyDiT:
    dit = toy_components().dit
    add_hooks(dit)
    return dit


@pytest.mark.parametrize("num_latents", [20, 31])
@torch.inference_mode()
def test_an_adapter_does_what_its_product_in_the_weights_does(
    dit: FoleyDiT, num_latents: int
) -> None:
    adapters = AdapterSet(((draw_adapter(dit, "a", 1), 0.7), (draw_adapter(dit, "b", 2, 3), 0.4)))
    (made,) = run_together(VelocityModel(dit), [start(dit, 0, adapters, num_latents)])
    merged = merge(dit, adapters)
    (expected,) = run_together(VelocityModel(merged), [start(merged, 0, None, num_latents)])
    (plain,) = run_together(VelocityModel(dit), [start(dit, 0, None, num_latents)])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)  # measured: 1e-6
    assert (made - plain).abs().max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("lengths", [(20, 20, 20, 20, 20), (20, 31, 20, 9, 31)])
@torch.inference_mode()
def test_in_any_mix_a_request_gives_what_it_gives_alone(
    fused: bool, lengths: tuple[int, ...]
) -> None:
    dit = toy_components().dit
    add_hooks(dit)
    recorder = Recorder()
    step = FusedStep(dit, "bf16", PLAIN, recorder) if fused else None
    first, second = draw_adapter(dit, "a", 1), draw_adapter(dit, "b", 2, rank=7)
    sets = [
        AdapterSet(((first, 1.0),)),
        None,
        AdapterSet(((second, 0.5),)),
        AdapterSet(((first, 0.3), (second, 0.9))),
        AdapterSet(((first, 1.0),)),  # the first one's, of another request
    ]
    requests = list(enumerate(zip(sets, lengths, strict=True)))
    alone = [
        run_together(VelocityModel(dit), [start(dit, seed, adapters, length)])[0]
        for seed, (adapters, length) in requests
    ]
    together = run_together(
        VelocityModel(dit, step),
        [start(dit, seed, adapters, length) for seed, (adapters, length) in requests],
    )
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)  # measured: 2e-6
    assert find_adapters() is None
    assert recorder.captures == (1 if fused else 0)


@torch.inference_mode()
def test_a_graph_serves_other_adapters_of_the_same_sizes() -> None:
    dit = toy_components().dit
    add_hooks(dit)
    recorder = Recorder()
    velocities = VelocityModel(dit, FusedStep(dit, "bf16", PLAIN, recorder))
    for seed in range(3):
        adapters = AdapterSet(((draw_adapter(dit, "a", seed), 1.0),))
        (made,) = run_together(velocities, [start(dit, 0, adapters, num_steps=3)])
        (expected,) = run_together(VelocityModel(dit), [start(dit, 0, adapters, num_steps=3)])
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    assert (recorder.captures, recorder.replays) == (1, 2 + 3 + 3)
    run_together(velocities, [start(dit, 0, None, num_steps=3)])
    assert recorder.captures == 2  # without adapters there is less to do


@torch.inference_mode()
def test_a_request_without_adapters_has_the_same_bits_beside_one_with(dit: FoleyDiT) -> None:
    adapters = AdapterSet(((draw_adapter(dit, "a", 1), 1.0),))
    with_none = run_together(VelocityModel(dit), [start(dit, 0, None), start(dit, 1, None)])
    with_one = run_together(VelocityModel(dit), [start(dit, 0, None), start(dit, 1, adapters)])
    assert torch.equal(with_none[0], with_one[0])
    assert not torch.allclose(with_none[1], with_one[1], atol=1e-3)


@pytest.mark.parametrize(
    "kind", ["clip_in", "time_", "text_", "modulation", "mlp.down", "velocity"]
)
@torch.inference_mode()
def test_each_kind_of_layer_is_changed(dit: FoleyDiT, kind: str) -> None:
    adapter = draw_adapter(dit, "a", 3, wants=lambda name: kind in name)
    assert adapter.layers
    adapters = AdapterSet(((adapter, 1.0),))
    (made,) = run_together(VelocityModel(dit), [start(dit, 0, adapters)])
    merged = merge(dit, adapters)
    (expected,) = run_together(VelocityModel(merged), [start(merged, 0, None)])
    (plain,) = run_together(VelocityModel(dit), [start(dit, 0, None)])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    assert (made - plain).abs().max() > 1e-3


def test_grouped_products_are_those_of_each_group() -> None:
    matrices = torch.randn(3, 8, 5)
    for lengths in ((4, 4, 4), (1, 7, 2)):
        x = torch.randn(sum(lengths), 8)
        made = multiply_groups(x, matrices, Groups(0, lengths, None))
        parts = [a @ b for a, b in zip(x.split(lengths), matrices, strict=True)]
        torch.testing.assert_close(made, torch.cat(parts), rtol=0, atol=1e-5)
        # Added in place to some columns, all others stay.
        sums = torch.ones(len(x), 9)
        add_products(sums[:, 2:7], x, matrices, Groups(0, lengths, None))
        torch.testing.assert_close(sums[:, 2:7], 1 + made, rtol=0, atol=1e-5)
        assert (sums[:, :2] == 1).all()
        assert (sums[:, 7:] == 1).all()
    sums = torch.ones(6, 9)
    add_products(sums[:, 2:7], x[:6], matrices, Groups(0, None, None))
    torch.testing.assert_close(sums[:, 2:7], 1 + x[:6] @ matrices[0], rtol=0, atol=1e-5)


def test_sets_keep_their_places_while_others_come_and_go(dit: FoleyDiT) -> None:
    stacks = AdapterStacks(dit)
    a, b, c, d = (AdapterSet(((Adapter(name, {}), 1.0),)) for name in "abcd")
    assert stacks.order([a, None, b, c]) == [0, -1, 1, 2]
    assert stacks.order([c, b, d]) == [2, 1, 0]  # the new one takes the place that is free
    assert stacks.order([c, d]) == [1, 0]
    assert stacks.order([None]) == [-1]
    for count in range(1, 4):
        for chosen in itertools.permutations((a, b, c, d), count):
            assert sorted(stacks.order(chosen)) == list(range(count))


@torch.inference_mode()
def test_stacks_are_filled_in_place_for_other_sets_of_the_same_sizes(dit: FoleyDiT) -> None:
    stacks = AdapterStacks(dit)
    first, second = (AdapterSet(((draw_adapter(dit, n, i), 1.0),)) for i, n in enumerate("ab"))
    like = torch.zeros(1)
    x = torch.randn(6, 32)
    made = stacks.make([Member(first, (6,), 3, 8)], like)
    assert made is not None
    before = made.compute("joint_blocks.0.audio.out", x)
    again = stacks.make([Member(second, (6,), 3, 8)], like)
    assert again is made
    after = made.compute("joint_blocks.0.audio.out", x)
    down, up = second.members[0][0].layers["joint_blocks.0.audio.out"]
    torch.testing.assert_close(after, x @ down[:, 0] @ up, rtol=0, atol=1e-4)
    assert not torch.allclose(before, after)


def test_every_layer_with_a_matrix_can_be_changed(dit: FoleyDiT) -> None:
    kinds = (nn.Linear, nn.Conv1d)
    with_matrix = {name for name, module in dit.named_modules() if isinstance(module, kinds)}
    assert set(list_layers(dit)) == with_matrix
    fused = FusedDiT(toy_components().dit)
    named = set()
    for block in (*fused._joint_blocks, *fused._audio_blocks):
        parts = [block, *(getattr(block, n, None) for n in ("_audio", "_visual"))]
        for part in parts:
            for matrix in vars(part).values() if part is not None else ():
                named |= {layer.name for layer in getattr(matrix, "_layers", ())}
    assert named == {n for n in with_matrix if n.startswith(("joint_blocks", "audio_blocks"))}
