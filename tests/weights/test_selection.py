"""Which model is loaded if no folder is named."""

import shutil
from pathlib import Path

import pytest
import torch

from foley.configs import TINY, XL
from foley.errors import CheckpointError, ConfigError
from foley.weights import selection
from foley.weights.layout import read_description
from foley.weights.manifest import Digest, Manifest
from foley.weights.sources import FILES
from tests.official import official_preset, write_official_folder

CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands in for the one that `foley download` fills."""
    monkeypatch.setattr(selection, "default_folder", lambda: tmp_path / "foley")
    return tmp_path / "foley"


def test_without_weights_a_preset_says_how_to_get_them(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"xl needs weights, .*run `foley download xl`"):
        selection.load_preset("xl", None, CPU)


def test_half_a_download_is_not_loaded(home: Path) -> None:
    write_official_folder(home)
    with pytest.raises(
        CheckpointError, match=r"lacks 12 of the files of xl .*run `foley download xl` again"
    ):
        selection.load_preset("xl", None, CPU)


def test_what_was_downloaded_is_loaded_with_its_revision(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_official_folder(home)
    manifest = Manifest(home)
    for file in FILES["xl"]:
        if (home / file.place).is_file():
            manifest.add(file, Digest(num_bytes=(home / file.place).stat().st_size))
    # These are smaller than the published ones, whose sizes and hashes are known.
    monkeypatch.setitem(selection.FILES, "xl", ())
    monkeypatch.setitem(selection.PRESETS, "xl", official_preset())
    components = selection.load_preset("xl", None, CPU)
    assert components.revision == "3abd4e833b95b8db0fc9c687afc52483a48e9a97"
    assert components.source == str(home)


def test_auto_on_the_cpu_is_tiny(home: Path) -> None:
    assert selection.find_largest_preset(CPU) == "tiny"


def test_a_copy_of_the_files_has_no_known_revision(tmp_path: Path) -> None:
    folder = write_official_folder(tmp_path / "files")
    assert selection.load_components(folder, official_preset()).revision == ""
    assert selection.choose_preset("auto", folder) == XL  # a .pth is trusted by its name


def test_the_small_model_is_in_the_package_and_small() -> None:
    preset, description = read_description(selection.EMBEDDED_WEIGHTS)
    assert preset == TINY
    sizes = {p: p.stat().st_size for p in selection.EMBEDDED_WEIGHTS.rglob("*") if p.is_file()}
    assert sum(sizes.values()) <= 24_000_000
    assert max(sizes.values()) <= 16_000_000
    assert description["licence"] == "Apache-2.0"


def test_a_package_without_its_small_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(selection.EMBEDDED_WEIGHTS / "text", tmp_path / "text")
    monkeypatch.setattr(selection, "EMBEDDED_WEIGHTS", tmp_path)
    with pytest.raises(CheckpointError, match="installed without its small model"):
        selection.load_preset("tiny", None, CPU)
