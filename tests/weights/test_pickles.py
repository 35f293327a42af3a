"""Files of weights that could run code, or that are not there, are refused in one line."""

import os
from pathlib import Path

import pytest
import torch

from foley.errors import CheckpointError
from foley.weights.loading import load_components
from foley.weights.manifest import hash_file
from foley.weights.pickles import OFFICIAL_DIGESTS, check_pickle
from foley.weights.tensors import read_weights
from tests.official import official_preset, write_official_folder

POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:07e6139ff33bd21ba8a7a7f40ed24aab13ac0d100cd686f8a9f3e03dc5251cb1
size 1486465965
"""


class MakeFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_official_folder(tmp_path / "files")


def message_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_components(path, official_preset())
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("version", ["2.8.0+cu128", "2.9.1", "2.5.1"])
def test_an_older_torch_reads_known_pickles_only(tmp_path: Path, version: str) -> None:
    path = tmp_path / "vae_128d_48k.pth"
    torch.save({"a": torch.zeros(1)}, path)
    check_pickle(path, version, {path.name: hash_file(path)})
    with pytest.raises(CheckpointError, match=r"known holes.*use PyTorch 2\.10 or newer"):
        check_pickle(path, version)
    with pytest.raises(CheckpointError, match="not the official file"):
        check_pickle(path, version, {})


@pytest.mark.parametrize(("name", "version"), [("a.pth", "2.10.0"), ("a.safetensors", "2.8.0")])
def test_a_newer_torch_and_safetensors_need_no_digest(
    tmp_path: Path, name: str, version: str
) -> None:
    check_pickle(tmp_path / name, version)


def test_the_digests_of_all_official_pickles_are_known() -> None:
    assert {name for name in OFFICIAL_DIGESTS if name.endswith((".pth", ".bin"))} == {
        "vae_128d_48k.pth",
        "synchformer_state_dict.pth",
        "pytorch_model.bin",
        "hunyuanvideo_foley_xl.pth",
        "hunyuanvideo_foley.pth",
    }


def test_loading_checks_the_pickles_of_a_named_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.8.0")
    assert "known holes" in message_of(folder)


def test_no_message_advises_to_read_a_pickle_without_the_restriction(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": MakeFolder(tmp_path / "made")}, path)
    with pytest.raises(CheckpointError, match="could run code") as caught:
        read_weights(path)
    assert not (tmp_path / "made").exists()
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__  # no log shows PyTorch's message


@pytest.mark.parametrize(
    "place", ["hunyuanvideo_foley_xl.pth", "siglip2-base-patch16-512/model.safetensors"]
)
def test_a_pointer_of_git_lfs_says_what_to_run(folder: Path, place: str) -> None:
    (folder / place).write_text(POINTER)
    assert "git lfs pull" in message_of(folder)


def test_a_pointer_is_not_taken_for_an_unknown_pickle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.8.0")
    (folder / "hunyuanvideo_foley_xl.pth").write_text(POINTER)
    assert "git lfs pull" in message_of(folder)


def test_a_clone_of_the_official_repository_says_where_the_encoders_are(folder: Path) -> None:
    for name in ("siglip2-base-patch16-512", "larger_clap_general"):
        (folder / name).rename(folder.parent / name)
    message = message_of(folder)
    assert "does not hold this part: run `foley download xl`, or clone google/siglip2" in message


@pytest.mark.parametrize("removed", ["tokenizer*.json", "*.json"])
def test_a_text_encoder_without_its_settings_says_what_is_missing(
    folder: Path, removed: str
) -> None:
    for path in (folder / "larger_clap_general").glob(removed):
        path.unlink()
    message = message_of(folder)
    assert "tokenizer_config.json" in message
    assert "run `foley download`" in message
