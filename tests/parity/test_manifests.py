"""The official checkpoints' keys and shapes, on the meta device: nothing is downloaded."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foley.configs import XL, XXL, Preset
from foley.errors import CheckpointError
from foley.weights.parts import load_official

MANIFESTS = Path(__file__).parents[1] / "assets" / "manifests"
CASES = [
    ("dit_xxl", "dit", XXL),
    ("dit_xl", "dit", XL),
    ("dac_vae", "vae", XXL),
    ("synchformer_full", "synchformer", XXL),
    ("synchformer_visual", "synchformer", XXL),
]


def manifest(name: str) -> dict[str, Tensor]:
    tensors = json.loads((MANIFESTS / f"{name}.json").read_text())["tensors"]
    return {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (shape, dtype) in tensors.items()
    }


@pytest.mark.parametrize(("name", "part", "preset"), CASES)
def test_official_keys_and_shapes_are_taken(name: str, part: str, preset: Preset) -> None:
    load_official(part, manifest(name), preset, origin=name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "part", "preset"), CASES)
def test_each_missing_key_is_an_error_that_names_it(name: str, part: str, preset: Preset) -> None:
    weights = manifest(name)
    translated_away = ("adaLN_modulation", "patch_embed.proj", "afeat", "transformer.", "aproj")
    used = [key for key in weights if not any(word in key for word in (*translated_away, "vproj"))]
    for key in used[:: max(1, len(used) // 5)]:
        with pytest.raises(CheckpointError, match=r"1 missing|does not fit preset"):
            load_official(part, {k: v for k, v in weights.items() if k != key}, preset, origin=name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "part", "preset"), CASES)
def test_a_key_of_another_shape_is_an_error_that_names_it(
    name: str, part: str, preset: Preset
) -> None:
    weights = manifest(name)
    key = next(
        k for k in weights if k.endswith(("qkv.weight", "conv_in.weight", "quant_conv.bias"))
    )
    weights[key] = torch.empty(*weights[key].shape[:-1], weights[key].shape[-1] + 1, device="meta")
    with pytest.raises(CheckpointError) as refusal:
        load_official(part, weights, preset, origin=name)
    assert key in str(refusal.value)
    assert "of another shape" in str(refusal.value)


def test_extra_keys_of_a_transformer_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    weights = manifest("dit_xl") | {"projector.weight": torch.empty(2, 2, device="meta")}
    with caplog.at_level(logging.WARNING):
        load_official("dit", weights, XL, origin="dit_xl")
    assert "projector.weight" in caplog.text


def test_extra_keys_of_other_parts_are_an_error() -> None:
    weights = manifest("dac_vae") | {"quantizer.codebook": torch.empty(2, 2, device="meta")}
    with pytest.raises(CheckpointError, match=r"quantizer\.codebook"):
        load_official("vae", weights, XXL, origin="dac_vae")


def test_a_transformer_of_another_size_names_the_preset_it_fits() -> None:
    with pytest.raises(CheckpointError, match="it fits preset xl"):
        load_official("dit", manifest("dit_xl"), XXL, origin="dit_xl")


def test_both_namings_of_weight_norm_give_the_same_weights() -> None:
    from tests.parity.fixtures import load

    fixture = load(MANIFESTS.parent / "golden" / "dac_tiny.safetensors")
    renamed = {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for key, tensor in fixture.weights.items()
    }
    from foley.weights.key_maps import fuse_weight_norm

    old, new = fuse_weight_norm(fixture.weights), fuse_weight_norm(renamed)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)
