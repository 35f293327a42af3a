"""Sounds from official files, third-party files, and the layout of `foley convert`."""

from pathlib import Path

import pytest
import torch

from foley.configs import XL
from foley.errors import CheckpointError
from foley.pipeline import FoleyPipeline
from foley.types import VideoFrames
from foley.weights.layout import save_components
from foley.weights.loading import load_components
from foley.weights.tensors import read_weights
from tests.official import Format, official_preset, write_official_folder
from tests.toys import toy_frames


def frames() -> VideoFrames:
    sync = torch.nn.functional.interpolate(
        toy_frames(20).sync.permute(0, 3, 1, 2), size=(224, 224), mode="nearest"
    ).permute(0, 2, 3, 1)
    return VideoFrames(visual=toy_frames(20).visual, sync=sync, num_picked=20, source_seconds=0.8)


def sound(folder: Path) -> torch.Tensor:
    components = load_components(folder, official_preset())
    pipeline = FoleyPipeline(components, torch.device("cpu"))
    return pipeline(frames(), "tap", seed=1, num_inference_steps=2).waveforms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official_folder(tmp_path_factory.mktemp("official") / "files")


@pytest.fixture(scope="module")
def expected(folder: Path) -> torch.Tensor:
    return sound(folder)


def test_a_converted_model_sounds_the_same(
    folder: Path, expected: torch.Tensor, tmp_path: Path
) -> None:
    components = load_components(folder, official_preset())
    assert components.dit.dtype == torch.bfloat16  # as published: nothing was widened on the way
    save_components(components, tmp_path / "converted", source="a test")
    stored = tmp_path / "converted" / "dit" / "diffusion_pytorch_model.safetensors"
    weights, _ = read_weights(stored)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert torch.equal(sound(tmp_path / "converted"), expected)


@pytest.mark.parametrize("kind", ["fp16", "fp8"])
def test_third_party_files_sound_nearly_the_same(
    kind: Format, expected: torch.Tensor, tmp_path: Path
) -> None:
    made = sound(write_official_folder(tmp_path / "files", kind))
    assert made.isfinite().all()
    error = (made - expected).norm() / expected.norm()
    assert 0 < error < 0.001  # measured: 1e-4 for both


def test_a_folder_without_the_encoders_says_what_is_missing(tmp_path: Path) -> None:
    folder = write_official_folder(tmp_path / "files")
    (folder / "siglip2-base-patch16-512" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no vision weights.*siglip2-base-patch16-512"):
        load_components(folder, official_preset())


def test_a_folder_without_the_tokenizer_says_so(tmp_path: Path) -> None:
    folder = write_official_folder(tmp_path / "files")
    for path in (folder / "larger_clap_general").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_components(folder, official_preset())


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_official_folder(tmp_path / "files")
    with pytest.raises(CheckpointError, match="it fits no preset"):
        load_components(folder, XL)
