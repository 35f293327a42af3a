"""What diffusers offers for its models works on ours."""

from pathlib import Path

import pytest
import torch
from diffusers import TorchAoConfig
from torchao.quantization import Int8WeightOnlyConfig

from foley.models.dit import FoleyDiT
from foley.models.vae import FoleyVAE
from tests.toys import toy_components

CPU = torch.device("cpu")


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def velocity(dit: FoleyDiT) -> torch.Tensor:
    context = dit.context(draw(2, 6, 24), draw(2, 24, 16), draw(2, 5, 16), 37)
    return dit(draw(2, 8, 37), dit.time_modulation(torch.tensor([1.0, 0.5])), context)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    components = toy_components()
    components.dit.save_pretrained(tmp_path / "dit")
    components.vae.save_pretrained(tmp_path / "vae")
    return tmp_path


@pytest.fixture
def expected() -> torch.Tensor:
    return velocity(toy_components().dit)


def test_saved_models_come_back_the_same(saved: Path, expected: torch.Tensor) -> None:
    assert (saved / "dit" / "diffusion_pytorch_model.safetensors").is_file()
    assert torch.equal(velocity(FoleyDiT.from_pretrained(saved / "dit")), expected)
    latents = draw(1, 8, 10)
    with torch.no_grad():
        before = toy_components().vae.decode(latents)
        assert torch.equal(FoleyVAE.from_pretrained(saved / "vae").decode(latents), before)


def test_layerwise_casting_stores_fp8_and_computes_wider(
    saved: Path, expected: torch.Tensor
) -> None:
    dit = FoleyDiT.from_pretrained(saved / "dit")
    dit.enable_layerwise_casting(torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert dit.audio_blocks[0].mlp.gate.weight.dtype == torch.float8_e4m3fn
    error = (velocity(dit) - expected).norm() / expected.norm()
    assert 0 < error < 0.06  # measured: 0.03; three bits of mantissa


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload_changes_nothing(saved: Path, expected: torch.Tensor, kind: str) -> None:
    dit = FoleyDiT.from_pretrained(saved / "dit")
    dit.enable_group_offload(
        onload_device=CPU,
        offload_device=CPU,
        offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
    )
    assert torch.equal(velocity(dit), expected)


def test_quantised_weights_stay_close(saved: Path, expected: torch.Tensor) -> None:
    dit = FoleyDiT.from_pretrained(
        saved / "dit",
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
        torch_dtype=torch.float32,
    )
    assert type(dit.audio_blocks[0].qkv.weight) is not torch.nn.Parameter
    error = (velocity(dit) - expected).norm() / expected.norm()
    assert 0 < error < 0.02  # measured: 0.004
