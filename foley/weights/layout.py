"""This project's own layout of a model's files, which `foley convert` writes.

DIR/foley.json                 preset, source, and an index: each part's file and its size
DIR/{dit,vae,synchformer}/     diffusers layout: config.json and safetensors
DIR/{vision,text}/             transformers layout; the tokenizer lies in text/
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from foley.configs import Preset, parse_preset
from foley.errors import CheckpointError, ConfigError, OutputError
from foley.weights.components import PARTS, Components, build_on_meta
from foley.weights.detection import DESCRIPTION_FILE
from foley.weights.fp8 import Storage, pack_fp8, unpack_fp8
from foley.weights.licences import ACCEPTANCE_FILE, get_licence
from foley.weights.parts import load_strict, load_tokenizer
from foley.weights.tensors import read_weights

FORMAT_VERSION = 1
# Copied with the weights, so that the terms stay beside them.
TERMS_FILES = ("LICENSE", "NOTICE", ACCEPTANCE_FILE)


def read_description(root: Path) -> tuple[Preset, dict[str, Any]]:
    """Read `foley.json`; returns the preset and the whole content.

    Args:
        root: a folder in this layout.

    Raises:
        CheckpointError: the file cannot be read, or has another format version.
    """
    path = root / DESCRIPTION_FILE
    try:
        description = json.loads(path.read_text())
        version = description["format"]
        preset = parse_preset(description["preset"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; convert again") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}, this version reads {FORMAT_VERSION}; convert again"
        )
    return preset, description


def load_layout(root: Path, preset: Preset | None, device: str) -> Components:
    """Load a model from a folder in this layout.

    Args:
        root: the folder.
        preset: the preset that the folder must hold; None admits any.
        device: where the weights are put, such as cpu or cuda:0.

    Raises:
        CheckpointError: the folder holds another preset, or a file is missing, cut or does not fit.
    """
    found, description = read_description(root)
    if preset is not None and preset != found:
        raise CheckpointError(
            f"{root} holds preset {found.name}, not {preset.name}, or another version of it; "
            "convert the original files again"
        )
    parts: dict[str, Any] = {}
    for part, path in _find_part_files(root, description).items():
        weights, _ = read_weights(path, device)
        module = build_on_meta(part, found)
        load_strict(module, unpack_fp8(weights), origin=f"{root.name}/{part}")
        del weights
        parts[part] = nn.Module.to(module, device)
    return Components(
        preset=found,
        tokenizer=load_tokenizer(root / "text"),
        source=str(root),
        revision=str(description.get("revision", "")),
        **parts,
    )


def save_components(
    components: Components,
    destination: Path,
    *,
    source: str,
    storage: Storage = "bf16",
    terms: Path | None = None,
) -> None:
    """Write a model in this layout. The folder appears when it is complete.

    Args:
        components: written in the dtypes that it has.
        destination: must not exist, or be an empty folder.
        source: where the weights came from, for people.
        storage: fp8 halves the transformer's file.
        terms: folder whose licence files are copied.

    Raises:
        OutputError: the destination holds something, or cannot be written.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise OutputError(f"{destination} exists and is not empty; name another folder")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        raise OutputError(f"cannot write to {destination.parent}: {error.strerror}") from error
    try:
        description = {
            "format": FORMAT_VERSION,
            "preset": components.preset.as_dict(),
            "source": source,
            "revision": components.revision,
            "licence": get_licence(components.preset.name).name,
            "storage": storage,
            "files": _write_parts(components, partial, storage),
        }
        components.tokenizer.save_pretrained(partial / "text")
        for name in TERMS_FILES:
            if terms is not None and (terms / name).is_file():
                shutil.copyfile(terms / name, partial / name)
        (partial / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")
        partial.chmod(0o755)
        if destination.exists():
            destination.rmdir()
        partial.rename(destination)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {destination}: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_parts(components: Components, folder: Path, storage: Storage) -> dict[str, Any]:
    """Write each network; returns the index of their files."""
    files = {}
    for part, module in components.modules().items():
        # One file a part: the loader maps it whole, so shards would only be more names.
        module.save_pretrained(folder / part, max_shard_size="1TB")  # type: ignore[operator]
        (path,) = (folder / part).glob("*.safetensors")
        if part == "dit" and storage == "fp8":
            save_file(pack_fp8(module.state_dict()), path, metadata={"format": "pt"})
        files[part] = {
            "path": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
        }
    return files


def _find_part_files(root: Path, description: Mapping[str, Any]) -> dict[str, Path]:
    """Return the file of each part after checking that it is there and has its size."""
    paths = {}
    for part in PARTS:
        entry = description.get("files", {}).get(part)
        if entry is None:
            raise CheckpointError(f"{root / DESCRIPTION_FILE} names no file of the {part}")
        path = root / entry["path"]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; copy the folder again, or convert again")
        if (found := path.stat().st_size) != entry["bytes"]:
            raise CheckpointError(
                f"{path} has {found} bytes, the index says {entry['bytes']}; copy the folder "
                "again, or convert again"
            )
        paths[part] = path
    return paths
