import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from foley.configs import TINY, XXL
from foley.errors import CheckpointError, OutputError
from foley.pipeline import FoleyPipeline
from foley.weights import tensors
from foley.weights.detection import find_official_file
from foley.weights.layout import save_components
from foley.weights.loading import load_components
from foley.weights.parts import load_strict, load_tokenizer
from foley.weights.tensors import read_weights
from tests.toys import toy_components, toy_frames, toy_preset


def sound(folder: Path) -> torch.Tensor:
    pipeline = FoleyPipeline(load_components(folder), torch.device("cpu"))
    return pipeline(toy_frames(), "tap", seed=1, num_inference_steps=2).waveforms


def test_a_saved_model_comes_back_and_sounds_the_same(tmp_path: Path) -> None:
    components = toy_components()
    save_components(components, tmp_path / "model", source="a test")
    before = FoleyPipeline(components, torch.device("cpu"))(
        toy_frames(), "tap", seed=1, num_inference_steps=2
    )
    for name, module in load_components(tmp_path / "model").modules().items():
        saved = components.modules()[name].state_dict()
        assert all(torch.equal(t, saved[key]) for key, t in module.state_dict().items())
    # A file's tensors start at multiples of 8 bytes, and kernels sum them in another order than
    # those in memory. Measured: 4e-7.
    torch.testing.assert_close(sound(tmp_path / "model"), before.waveforms, rtol=0, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # no temporary folder is left


def test_a_folder_that_holds_something_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="not empty"):
        save_components(toy_components(), tmp_path, source="a test")
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    components = toy_components()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(components.vae, "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left"):
        save_components(components, tmp_path / "model", source="a test")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_components(toy_components(), tmp_path / "model", source="a test")
    return tmp_path / "model"


def test_a_tokenizer_that_needs_config_json_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}')
    (tmp_path / "merges.txt").write_text("#version: 0.2")
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    with pytest.raises(CheckpointError, match=r"config\.json missing; run `foley download`") as got:
        load_tokenizer(tmp_path)
    assert "\n" not in str(got.value)


def test_a_newer_format_is_refused(model: Path) -> None:
    description = json.loads((model / "foley.json").read_text())
    (model / "foley.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_components(model)


def test_a_damaged_description_is_refused(model: Path) -> None:
    (model / "foley.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_components(model)


def test_another_preset_than_the_folder_holds_is_refused(model: Path) -> None:
    with pytest.raises(CheckpointError, match="holds preset toy, not xxl"):
        load_components(model, XXL)


def test_a_missing_part_is_refused(model: Path) -> None:
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"vae.*safetensors is missing"):
        load_components(model)


def test_a_cut_file_is_refused(model: Path) -> None:
    path = model / "dit" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"dit.* bytes, the index says"):
        load_components(model)


def test_a_device_is_filled_through_several_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map's pages count as memory until it is closed, so a large file needs several maps."""
    path = tmp_path / "weights.safetensors"
    saved = {f"part{index}": torch.full((100,), float(index)) for index in range(7)}
    save_file(saved, path, metadata={"of": "seven"})
    opened = []

    def on_the_cpu(path: Path, framework: str, device: str) -> object:
        opened.append(device)
        return safe_open(path, framework=framework, device="cpu")

    monkeypatch.setattr(tensors, "safe_open", on_the_cpu)
    monkeypatch.setattr(tensors, "_MAPPED_BYTES", 700)  # two tensors of 400 bytes
    found, metadata = read_weights(path, "cuda:0", lambda key: key != "part3")
    assert opened == ["cuda:0"] * 3
    assert metadata == {"of": "seven"}
    assert found.keys() == saved.keys() - {"part3"}
    assert all(torch.equal(tensor, saved[key]) for key, tensor in found.items())
    read_weights(path)
    assert opened[3:] == ["cpu"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"this is not a checkpoint" * 10)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read_weights(path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (marker,)  # type: ignore[return-value]

    path = tmp_path / "weights.pth"
    torch.save({"a": Attack()}, path, pickle_module=pickle)
    with pytest.raises(CheckpointError):
        read_weights(path)
    assert not marker.exists()


def test_a_file_of_other_things_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save([1, 2, 3], path)
    with pytest.raises(CheckpointError, match="not a dictionary of tensors"):
        read_weights(path)


def test_metadata_of_the_official_autoencoder_file_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "vae.pth"
    metadata = {"kwargs": {"latent_dim": 128}}
    torch.save({"state_dict": {"a": torch.ones(2)}, "metadata": metadata}, path)
    weights, found = read_weights(path)
    assert torch.equal(weights["a"], torch.ones(2))
    assert found == metadata


def test_files_written_before_memory_maps_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.bin"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(path)[0]["a"], torch.ones(2))


def test_a_missing_file_names_all_places_looked_at(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"hunyuanvideo_foley.safetensors.*\.pth"):
        find_official_file("dit", XXL, tmp_path)


def test_a_third_party_safetensors_file_is_found_before_the_original(tmp_path: Path) -> None:
    for name in ("hunyuanvideo_foley.pth", "hunyuanvideo_foley.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / name)
    assert find_official_file("dit", XXL, tmp_path).suffix == ".safetensors"


def test_strict_loading_takes_tensors_without_copying() -> None:
    module = toy_components().vae
    weights = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    load_strict(module, weights, origin="a test")
    assert module.post_quant.weight.data_ptr() == weights["post_quant.weight"].data_ptr()


def test_the_toy_is_not_a_published_preset() -> None:
    assert toy_preset() != TINY
