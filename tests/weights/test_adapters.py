"""Files of adapters: what is read, and what is refused with a reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foley.errors import CheckpointError
from foley.models.adapters import LowRank, list_layers
from foley.weights.adapters import read_adapter, write_adapter
from foley.weights.key_maps import RULES
from foley.weights.translation import translate
from tests.adapters import draw_layers, write_random_adapter
from tests.toys import toy_components

DIT = toy_components().dit
LAYER = "joint_blocks.0.audio.qkv"
CONV = "audio_blocks.0.mlp.down"


def matrices(layer: str = LAYER, rank: int = 4) -> dict[str, Tensor]:
    inputs, outputs, taps = list_layers(DIT)[layer]
    down = torch.randn(rank, inputs, taps) if taps > 1 else torch.randn(rank, inputs)
    up = torch.randn(outputs, rank, 1) if taps > 1 else torch.randn(outputs, rank)
    return {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}


def read(tmp_path: Path, tensors: dict[str, Tensor], **metadata: str) -> dict[str, LowRank]:
    path = tmp_path / "a.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=metadata or None)
    return read_adapter(path, DIT, "toy").layers


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "glass.safetensors"
    layers = draw_layers(DIT, seed=1, rank=3)
    metadata = {"about": "glass", "trigger": "glass rattles"}
    write_adapter(path, layers, base="toy", rank=3, metadata=metadata, dtype=torch.float32)
    file = read_adapter(path, DIT, "toy")
    assert (file.base, file.rank, file.about, file.trigger) == ("toy", 3, *metadata.values())
    assert file.layers.keys() == layers.keys()
    for name, (down, up) in layers.items():
        assert torch.equal(file.layers[name].down, down)
        assert torch.equal(file.layers[name].up, up)
    # The conventions of peft and diffusers.
    assert load_file(path)[f"{CONV}.lora_A.weight"].shape == (3, 256, 3)


@pytest.mark.parametrize("layer", [LAYER, CONV])
@pytest.mark.parametrize(
    "rename",
    [
        lambda key: f"transformer.{key}",
        lambda key: f"base_model.model.{key}",
        lambda key: key.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default"),
        lambda key: key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
    ],
)
def test_names_of_other_programs_are_understood(
    tmp_path: Path, layer: str, rename: Callable[[str], str]
) -> None:
    given = matrices(layer)
    expected, made = read(tmp_path, given), read(tmp_path, {rename(k): v for k, v in given.items()})
    assert made.keys() == expected.keys() == {layer}
    assert all(map(torch.equal, made[layer], expected[layer]))


def test_names_of_the_published_checkpoint_are_translated(tmp_path: Path) -> None:
    inputs, outputs, _ = list_layers(DIT)["audio_blocks.1.qkv"]
    down, up = torch.randn(2, inputs), torch.randn(outputs, 2)
    official = "single_blocks.1.linear_qkv"
    made = read(tmp_path, {f"{official}.lora_A.weight": down, f"{official}.lora_B.weight": up})[
        "audio_blocks.1.qkv"
    ]
    # The rows of that layer have another order: the change must be that of the whole weight.
    whole = translate({f"{official}.weight": up @ down}, RULES["dit"]).weights
    expected = whole["audio_blocks.1.qkv.weight"]
    torch.testing.assert_close((made.down[:, 0] @ made.up).t(), expected)
    assert not torch.allclose(expected, up @ down)
    rank_one = {"audio_embedder.proj.lora_A.weight": torch.randn(1, 8, 1)}
    rank_one["audio_embedder.proj.lora_B.weight"] = torch.randn(32, 1)
    assert read(tmp_path, rank_one)["audio_in"].up.shape == (1, 32)


@pytest.mark.parametrize(
    ("extra", "settings", "factor"),
    [
        ({}, {}, 1.0),
        ({f"{LAYER}.alpha": torch.tensor(2.0)}, {"lora_alpha": 99}, 0.5),
        ({}, {"lora_alpha": 8}, 2.0),
        ({}, {"transformer.lora_alpha": 8}, 2.0),
        ({}, {"lora_alpha": 8, "use_rslora": True}, 4.0),
        ({}, {"lora_alpha": 8, "alpha_pattern": {"audio.qkv": 16}}, 4.0),
    ],
)
def test_alpha_sets_the_factor(
    tmp_path: Path, extra: dict[str, Tensor], settings: dict[str, object], factor: float
) -> None:
    given = matrices()
    made = read(tmp_path, {**given, **extra}, lora_adapter_metadata=json.dumps(settings))
    torch.testing.assert_close(made[LAYER].up, factor * given[f"{LAYER}.lora_B.weight"].t())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{LAYER}.lora_B.weight"), "one of its two matrices"),
        (lambda t: t.clear(), "no layer of an adapter"),
        (lambda t: t.update({"other.layer.lora_A.weight": torch.zeros(4, 4)}), "does not have"),
        (lambda t: t.update({f"{LAYER}.weight": torch.zeros(4, 4)}), "no part of a low-rank"),
        (lambda t: t.update({f"{LAYER}.dora_scale": torch.zeros(4)}), "no part of a low-rank"),
        (lambda t: t[f"{LAYER}.lora_A.weight"].fill_(float("nan")), "not finite"),
        (lambda t: t[f"{LAYER}.lora_B.weight"][1].fill_(float("-inf")), "not finite"),
        (lambda t: t.update({f"{LAYER}.lora_A.weight": torch.zeros(4, 31)}), r"shapes \[4, 31\]"),
        (lambda t: t.update({f"{LAYER}.lora_A.weight": torch.zeros(600, 32)}), "rank is 1 to 512"),
        (lambda t: t.update({f"{LAYER}.lora_A.weight": torch.tensor(1.0)}), "rank is 1 to 512"),
        (lambda t: t.update({f"{LAYER}.lora_A.weight": torch.ones(4, 32).int()}), "whole numbers"),
        (lambda t: t.update({f"{LAYER}.alpha": torch.ones(2)}), "not one number"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    tensors = matrices()
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, tensors)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"base_model": "xxl"}, "adapter of xxl, but the model is toy"),
        ({"lora_adapter_metadata": "{"}, "not a JSON object"),
        ({"lora_adapter_metadata": "[]"}, "not a JSON object"),
        ({"lora_adapter_metadata": '{"lora_alpha": "x"}'}, "not a number"),
        ({"lora_adapter_metadata": '{"lora_alpha": Infinity}'}, "not a finite number"),
        ({"lora_adapter_metadata": '{"use_dora": true}'}, "use_dora, which is not supported"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, matrices(), **metadata)


def test_only_whole_safetensors_files_are_read(tmp_path: Path) -> None:
    path = write_random_adapter(tmp_path / "a.safetensors", DIT, "toy")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-10])
    pickle = tmp_path / "a.pt"
    torch.save(matrices(), pickle)
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(pickle.read_bytes())
    for file, message in (
        (pickle, "no other kind"),
        (cut, "cannot be read"),
        (renamed, "cannot be read"),
        (tmp_path / "none.safetensors", "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_adapter(file, DIT, "toy")
