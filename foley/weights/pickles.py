"""Decide whether a pickled file of weights may be read by this version of PyTorch."""

import re
from collections.abc import Mapping
from pathlib import Path

from foley.errors import CheckpointError
from foley.weights.manifest import hash_file
from foley.weights.sources import FILES

# PyTorch's restricted unpickler had two known holes before this version: CVE-2025-32434 ran code
# (fixed in 2.6.0), and CVE-2026-24747 corrupts memory (fixed in 2.10.0).
SAFE_TORCH = (2, 10)

OFFICIAL_DIGESTS = {
    Path(file.place).name: file.sha256
    for files in FILES.values()
    for file in files
    if file.sha256 is not None
}


def check_pickle(
    path: Path, torch_version: str, digests: Mapping[str, str] = OFFICIAL_DIGESTS
) -> None:
    """Check that reading a file cannot run code. Safetensors files cannot.

    With an older PyTorch the file must be the official one, which takes a few seconds for each
    gigabyte to check.

    Args:
        path: an existing file of weights.
        torch_version: such as 2.8.0+cu128.
        digests: the SHA-256 of known files by their names, hexadecimal.

    Raises:
        CheckpointError: the file is not known, and this PyTorch has a known hole.
    """
    if path.suffix == ".safetensors" or can_read_pickles(torch_version):
        return
    known = digests.get(path.name)
    if known is None or hash_file(path) != known:
        raise CheckpointError(
            f"{path} is not the official file, and PyTorch {torch_version} has known holes in "
            f"reading such files; use PyTorch {'.'.join(map(str, SAFE_TORCH))} or newer, a "
            "safetensors file, or `foley download`"
        )


def can_read_pickles(torch_version: str) -> bool:
    """Whether this PyTorch reads any pickled weights without a known hole.

    Args:
        torch_version: such as 2.8.0+cu128.
    """
    return _parse_version(torch_version) >= SAFE_TORCH


def _parse_version(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
