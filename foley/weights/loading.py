"""Load a complete model from a folder.

Three layouts are read: the official `.pth` files, third-party safetensors files under the official
tensor names, and this project's own (`foley.weights.layout`).
"""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foley.configs import Preset
from foley.errors import CheckpointError
from foley.weights.components import PARTS, Components
from foley.weights.detection import DESCRIPTION_FILE, find_official_file
from foley.weights.key_maps import RULES
from foley.weights.layout import load_layout
from foley.weights.manifest import find_revision
from foley.weights.parts import load_official, load_tokenizer
from foley.weights.pickles import check_pickle
from foley.weights.tensors import read_weights, refuse_pointer
from foley.weights.translation import is_used


def load_components(root: Path, preset: Preset | None = None, *, device: str = "cpu") -> Components:
    """Load a complete model from this project's layout, or from official files.

    Args:
        root: the folder.
        preset: required for official files; must agree with a folder in this project's layout.
        device: where the weights are put, part by part, such as cpu or cuda:0. Safetensors go there
            straight from a memory map.

    Raises:
        CheckpointError: something is missing or does not fit.
    """
    if (root / DESCRIPTION_FILE).is_file():
        return load_layout(root, preset, device)
    if preset is None:
        raise CheckpointError(f"{root} holds no {DESCRIPTION_FILE}; name the preset of these files")
    parts: dict[str, Any] = {}
    paths = {part: find_official_file(part, preset, root) for part in PARTS}
    for path in paths.values():
        refuse_pointer(path)
        check_pickle(path, torch.__version__)
    for part, path in paths.items():
        weights, _ = read_weights(path, device, functools.partial(is_used, rules=RULES[part]))
        module = load_official(part, weights, preset, origin=path.name)
        del weights
        # Moved before the next file is read, so that this file's map is released.
        parts[part] = nn.Module.to(module, device)
    return Components(
        preset=preset,
        tokenizer=load_tokenizer(root / "larger_clap_general"),
        source=str(root),
        revision=find_revision(root, paths["dit"]),
        **parts,
    )
