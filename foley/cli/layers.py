"""Layers on the command line: `--layer "rain on a roof"`, and files of layers."""

import json
from pathlib import Path
from typing import Any

from foley.cli.option_files import read_option_file
from foley.errors import ParameterError

_EXAMPLE = '{"prompt": "rain", "gain_db": -6}'


def parse_layer(text: str) -> dict[str, Any]:
    """Return the layer of an option; its fields may be out of bounds.

    Args:
        text: a prompt, or an object of JSON.

    Raises:
        ParameterError: it begins like an object and is none.
    """
    if not text.lstrip().startswith("{"):
        return {"prompt": text}
    layer = _read_json(text, "--layer")
    if not isinstance(layer, dict):
        raise ParameterError(f"--layer {text!r} is no object; write a prompt, or {_EXAMPLE}")
    return layer


def read_layers(path: Path) -> list[dict[str, Any]]:
    """Return the layers of a file.

    Args:
        path: of a .json file with a list of objects; UTF-8.

    Raises:
        ParameterError: the file cannot be read, or holds no list of objects.
    """
    text = read_option_file(path, "--layers")
    layers = _read_json(text, f"--layers {path}")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ParameterError(f"--layers {path} must hold a list of objects such as [{_EXAMPLE}]")
    if not layers:
        raise ParameterError(f"--layers {path} holds no layer; leave it out, or add one")
    return layers


def _read_json(text: str, option: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParameterError(
            f"{option} is not JSON ({error}); an object is written as {_EXAMPLE}"
        ) from error
