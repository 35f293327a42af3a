"""`foley convert`: the folder that it writes, its index, and storage in eight bits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foley.errors import CheckpointError
from foley.weights.fp8 import SCALE_SUFFIX, pack_fp8, unpack_fp8
from foley.weights.layout import save_components
from foley.weights.licences import ACCEPTANCE_FILE, TENCENT, is_accepted, record_acceptance
from foley.weights.loading import load_components
from tests.official import official_preset, write_official_folder

DIT = Path("dit", "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_official_folder(tmp_path_factory.mktemp("official") / "files")
    (folder / "LICENSE").write_text("terms")
    record_acceptance(TENCENT, folder, how="a test")
    return folder


def convert(source: Path, destination: Path, storage: str = "bf16") -> Path:
    components = load_components(source, official_preset())
    save_components(
        components,
        destination,
        source="a test",
        storage=storage,  # type: ignore[arg-type]
        terms=source,
    )
    return destination


def test_the_index_names_every_file_and_the_terms_come_along(source: Path, tmp_path: Path) -> None:
    folder = convert(source, tmp_path / "converted")
    description = json.loads((folder / "foley.json").read_text())
    indexed = {entry["path"]: entry["bytes"] for entry in description["files"].values()}
    there = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*.safetensors")
    }
    assert indexed == there
    assert description["licence"] == TENCENT.name
    assert (folder / "LICENSE").read_text() == "terms"
    assert is_accepted(TENCENT, folder)
    assert (folder / ACCEPTANCE_FILE).is_file()


def test_only_the_towers_that_are_used_are_written(source: Path, tmp_path: Path) -> None:
    folder = convert(source, tmp_path / "converted")
    keys = {key for path in folder.rglob("*.safetensors") for key in load_file(path)}
    for unused in ("logit_scale", "audio_model", "afeat_extractor", "adaLN", "text_projection."):
        assert not any(unused in key for key in keys), unused


def test_fp8_halves_the_blocks_and_stays_near(source: Path, tmp_path: Path) -> None:
    plain = convert(source, tmp_path / "bf16")
    packed = convert(source, tmp_path / "fp8", "fp8")
    stored = load_file(packed / DIT)
    assert stored["audio_blocks.0.mlp.gate.weight"].dtype == torch.float8_e4m3fn
    assert stored["audio_in.weight"].dtype == torch.bfloat16
    assert (packed / DIT).stat().st_size < 0.62 * (plain / DIT).stat().st_size  # 0.58 at toy width
    before = load_components(plain).dit.state_dict()
    after = load_components(packed).dit.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert after[key].dtype == torch.bfloat16
        error = (after[key].float() - tensor.float()).norm() / tensor.float().norm()
        assert error < 0.03, key  # e4m3's rounding; measured: 0.0264 at most


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_the_loss_does_not_depend_on_the_size_of_the_weights(size: float) -> None:
    torch.manual_seed(0)
    weight = (size * torch.randn(64, 32, 3)).bfloat16()
    stored = pack_fp8({"audio_blocks.0.x": weight})
    assert stored["audio_blocks.0.x" + SCALE_SUFFIX].shape == (64,)
    error = (unpack_fp8(stored)["audio_blocks.0.x"].float() - weight.float()).norm()
    assert error / weight.float().norm() < 0.03  # measured: 0.0258


def test_rows_of_zeros_survive() -> None:
    packed = pack_fp8({"audio_blocks.0.x": torch.zeros(4, 4)})
    assert not unpack_fp8(packed)["audio_blocks.0.x"].any()


def test_a_part_that_the_index_does_not_name_is_refused(source: Path, tmp_path: Path) -> None:
    folder = convert(source, tmp_path / "converted")
    description = json.loads((folder / "foley.json").read_text())
    del description["files"]["vae"]
    (folder / "foley.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="names no file of the vae"):
        load_components(folder)
