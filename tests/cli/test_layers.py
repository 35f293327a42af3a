"""Layers as people write them."""

from pathlib import Path

import pytest

from foley.cli.layers import parse_layer, read_layers
from foley.cli.options import SoundOptions
from foley.errors import ParameterError


def test_a_layer_is_a_prompt_or_an_object() -> None:
    assert parse_layer("rain: heavy") == {"prompt": "rain: heavy"}
    assert parse_layer(' {"prompt": "rain", "pan": 1}') == {"prompt": "rain", "pan": 1}
    with pytest.raises(ParameterError, match="--layer is not JSON"):
        parse_layer('{"prompt": rain}')


def test_options_and_files_are_joined_and_checked_together(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "rain", "gain_db": -6}]')
    request = SoundOptions(layer=("wind",), layers=path).parse()
    assert [(layer.prompt, layer.gain_db) for layer in request.layers] == [
        ("wind", 0),
        ("rain", -6),
    ]
    with pytest.raises(ParameterError, match="layers: cannot be combined with prompt"):
        SoundOptions(prompt="storm", layer=("wind",)).parse()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "holds no layer"),
        ('{"prompt": "rain"}', "must hold a list of objects"),
        ('["rain"]', "must hold a list of objects"),
        ("rain", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_without_layers_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ParameterError, match=words):
        read_layers(path)
    with pytest.raises(ParameterError, match="No such file"):
        read_layers(tmp_path / "none.json")
