"""On a GPU: adapters in the fused step and its graphs give what they give in the modules."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foley.adapters import AdapterStore
from foley.configs import TINY
from foley.denoise import Denoising, VelocityModel
from foley.gpu.compilation import PLAIN
from foley.gpu.cuda_graphs import CudaCapture
from foley.gpu.step_graphs import FusedStep
from foley.models.adapters import (
    AdapterSet,
    Groups,
    add_hooks,
    add_products,
    multiply_groups,
)
from foley.models.dit import FoleyDiT, build_dit
from foley.request import AdapterUse
from foley.sampling import draw_noise, make_sigmas
from foley.types import Conditions
from foley.weights.adapters import read_adapter
from tests.adapters import draw_adapter, run_together, write_random_adapter

pytestmark = pytest.mark.needs_gpu
CUDA = torch.device("cuda")
CONFIG = dataclasses.replace(TINY.dit, latent_dim=16, hidden_dim=64, num_heads=1)


def small_dit(dtype: torch.dtype) -> FoleyDiT:
    torch.manual_seed(0)
    dit = torch.nn.Module.to(build_dit(CONFIG), device=CUDA, dtype=dtype)
    add_hooks(dit.requires_grad_(False).eval())
    return dit


def start(dit: FoleyDiT, seed: int, adapters: AdapterSet | None, num_latents: int) -> Denoising:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(CUDA)

    conditions = Conditions(
        visual_tokens=draw(6, CONFIG.visual_dim),
        sync_tokens=draw(16, CONFIG.sync_dim),
        text_tokens=draw(2, 4, CONFIG.text_dim),
        num_latents=num_latents,
    )
    noise = draw_noise((seed,), CONFIG.latent_dim, num_latents).to(CUDA)
    return Denoising(dit, conditions, noise, make_sigmas(6), guidance_scale=2.0, adapters=adapters)


def place(adapters: AdapterSet, like: FoleyDiT) -> AdapterSet:
    """The same adapters on the GPU, weaker, in the layers' dtype."""
    members = []
    for adapter, scale in adapters.members:
        layers = {
            name: type(layer)(*(0.5 * t.to(CUDA, like.dtype) for t in layer))
            for name, layer in adapter.layers.items()
        }
        members.append((dataclasses.replace(adapter, layers=layers), scale))
    return AdapterSet(tuple(members))


@pytest.mark.parametrize("lengths", [(20, 20, 20, 20), (20, 31, 47, 9)])
@torch.inference_mode()
def test_the_fused_step_and_its_graphs_give_what_the_modules_give(lengths: tuple[int, ...]) -> None:
    exact, half = small_dit(torch.float32), small_dit(torch.bfloat16)
    first, second = draw_adapter(exact.cpu(), "a", 1), draw_adapter(exact, "b", 2, rank=7)
    exact.to(CUDA)
    sets = [
        AdapterSet(((first, 1.0),)),
        None,
        AdapterSet(((second, 0.5),)),
        AdapterSet(((first, 0.3), (second, 0.9))),
    ]
    wanted = [
        run_together(VelocityModel(exact), [start(exact, seed, s and place(s, exact), length)])[0]
        for seed, (s, length) in enumerate(zip(sets, lengths, strict=True))
    ]
    fused = VelocityModel(half, FusedStep(half, "bf16", PLAIN, CudaCapture()))
    for _ in range(2):  # the second time from the graph
        made = run_together(
            fused,
            [
                start(half, seed, s and place(s, half), length)
                for seed, (s, length) in enumerate(zip(sets, lengths, strict=True))
            ],
        )
        for one, other in zip(made, wanted, strict=True):
            error = (one - other).norm() / other.norm()
            assert error < 0.03, float(error)  # bf16; without the adapters it is over 0.3


def test_an_adapter_is_brought_to_the_gpu_beside_steps_that_are_queued(tmp_path: Path) -> None:
    dit = small_dit(torch.bfloat16)
    path = write_random_adapter(tmp_path / "a.safetensors", dit, "toy", rank=3)
    store = AdapterStore(dit, "toy", CUDA)
    store.load(path)
    wanted = read_adapter(path, dit, "toy", torch.bfloat16).layers
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    queued = torch.cuda.Event()
    queued.record()
    placed = store.select((AdapterUse(name="a", scale=1),))
    assert not queued.query()
    assert placed is not None
    for name, layer in placed.members[0][0].layers.items():
        for matrix, other in zip(layer, wanted[name], strict=True):
            assert torch.equal(matrix.cpu(), other)
    assert store.select((AdapterUse(name="a", scale=1),)).members == placed.members  # type: ignore[union-attr]


@torch.inference_mode()
def test_grouped_products_are_those_of_a_loop() -> None:
    lengths = (37, 64, 5)
    x = torch.randn(sum(lengths), 64, device=CUDA, dtype=torch.bfloat16)
    matrices = torch.randn(3, 64, 32, device=CUDA, dtype=torch.bfloat16)
    stops = torch.tensor([37, 101, 106], device=CUDA, dtype=torch.int32)
    made = multiply_groups(x, matrices, Groups(0, lengths, stops))
    parts = [a @ b for a, b in zip(x.split(lengths), copy.copy(matrices), strict=True)]
    torch.testing.assert_close(made, torch.cat(parts), rtol=0.02, atol=0.02)


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [None, (37, 64, 5), (40, 40, 40)])
def test_products_are_added_in_place(lengths: tuple[int, ...] | None) -> None:
    count, num_groups = (40, 1) if lengths is None else (sum(lengths), len(lengths))
    x = torch.randn(count, 64, device=CUDA, dtype=torch.bfloat16)
    matrices = torch.randn(num_groups, 64, 32, device=CUDA, dtype=torch.bfloat16)
    ends = torch.tensor(lengths or (count,)).cumsum(0)
    groups = Groups(0, lengths, ends.to(CUDA, torch.int32))
    sums = torch.ones(count, 48, device=CUDA, dtype=torch.bfloat16)
    add_products(sums[:, 8:40], x, matrices, groups)
    wanted = 1 + multiply_groups(x, matrices, groups)
    # bf16: 8 bits of values up to 30, once rounded here and twice there
    torch.testing.assert_close(sums[:, 8:40], wanted, rtol=0.02, atol=0.15)
    assert (sums[:, :8] == 1).all()
    assert (sums[:, 40:] == 1).all()
