"""Third-party files: found by their content, and refused by name if they do not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foley.configs import XL, XXL
from foley.errors import CheckpointError
from foley.weights.detection import find_file, has_official_files
from foley.weights.loading import load_components
from foley.weights.parts import load_official
from tests.official import official_preset, write_official_folder

DIT = "hunyuanvideo_foley_xl.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_official_folder(tmp_path / "files", "fp16")


def dit(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / DIT)


def test_files_of_any_name_are_found_by_their_content(folder: Path) -> None:
    names = {
        DIT: "some model.safetensors",
        "vae_128d_48k_fp16.safetensors": "models/b.safetensors",
        "synchformer_state_dict_fp16.safetensors": "models/c.safetensors",
        "siglip2-base-patch16-512/model.safetensors": "models/d.safetensors",
    }
    (folder / "models").mkdir()
    for old, new in names.items():
        (folder / old).rename(folder / new)
    preset = official_preset()
    found = {part: find_file(part, preset, folder) for part in ("dit", "vae", "synchformer")}
    assert found == {
        "dit": folder / "some model.safetensors",
        "vae": folder / "models/b.safetensors",
        "synchformer": folder / "models/c.safetensors",
    }
    assert load_components(folder, preset).preset == preset


def test_a_transformer_of_another_size_is_not_taken_for_this_one(folder: Path) -> None:
    (folder / DIT).rename(folder / "model.safetensors")
    assert has_official_files(official_preset(), folder)
    assert not has_official_files(XXL, folder)


def test_of_several_fitting_files_the_most_precise_is_used(folder: Path) -> None:
    weights = dit(folder)
    (folder / DIT).unlink()
    save_file({k: w.to(torch.float8_e4m3fn) for k, w in weights.items()}, folder / "a.safetensors")
    save_file(weights, folder / "b.safetensors")
    assert find_file("dit", official_preset(), folder) == folder / "b.safetensors"


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", b"\x04\0\0\0\0\0\0\0null"]
)
def test_damaged_files_in_the_folder_are_ignored(folder: Path, content: bytes) -> None:
    (folder / "vae_128d_48k_fp16.safetensors").rename(folder / "vae.safetensors")
    (folder / "a.safetensors").write_bytes(content)
    assert find_file("vae", official_preset(), folder) == folder / "vae.safetensors"


def refused(part: str, weights: dict[str, Tensor], preset: object = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_official(part, weights, preset or official_preset(), origin="file")  # type: ignore[arg-type]
    return str(caught.value)


def test_a_missing_key_is_named(folder: Path) -> None:
    weights = dit(folder)
    del weights["sync_in.0.bias"]
    assert "1 missing (first: clip_in.sync.0.bias)" in refused("dit", weights)


def test_another_preset_s_file_names_keys_and_the_preset_that_it_fits() -> None:
    with torch.device("meta"):
        weights = {
            "audio_embedder.proj.weight": torch.empty(1536, 128, 1),
            **{f"triple_blocks.{i}.audio_mod.linear.bias": torch.empty(1) for i in range(18)},
            **{f"single_blocks.{i}.linear1.bias": torch.empty(1) for i in range(36)},
        }
    message = refused("dit", weights, XL)
    assert "missing (first: " in message
    assert " of another shape (first: " in message
    assert ".audio_mod.linear.bias is [1], wanted [12672]" in message
    assert "wanted xl, and it fits preset xxl" in message


def test_a_file_of_another_part_says_which(folder: Path) -> None:
    assert "it holds the dit" in refused("vae", dit(folder))
    message = refused("vae", {"unet.conv.weight": torch.ones(1)})
    assert "it holds no part of this model" in message


@pytest.mark.parametrize("name", ["scaled_fp8", "final_layer.linear.scale_weight"])
def test_a_file_quantised_with_scales_is_refused(folder: Path, name: str) -> None:
    message = refused("dit", dit(folder) | {name: torch.ones(1)})
    assert f"quantised with scales, which are not read (first: {name})" in message


def test_integers_are_not_taken_for_weights(folder: Path) -> None:
    weights = dit(folder)
    weights["cond_in.linear_1.weight"] = weights["cond_in.linear_1.weight"].to(torch.int8)
    message = refused("dit", weights)
    assert "of a type that is not read (first: cond_in.linear_1.weight is int8)" in message
