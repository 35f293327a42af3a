"""What a file's content must be, and the manifest of a folder's verified files."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foley.atomic import atomic_path
from foley.weights.sources import HubFile

MANIFEST_FILE = "foley-files.json"


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What a file's content must be.

    Attributes:
        num_bytes: its size.
        sha256: hexadecimal; None if it is not known.
        git_id: git's id of the content as a blob, hexadecimal; the hub states it for small files.
    """

    num_bytes: int
    sha256: str | None = None
    git_id: str | None = None

    def find_mismatch(self, path: Path) -> str:
        """Return what is wrong with the file at `path`; an empty string if nothing is."""
        num_bytes = path.stat().st_size
        if num_bytes != self.num_bytes:
            return f"it has {num_bytes} bytes, wanted {self.num_bytes}"
        if self.sha256 and (found := hash_file(path)) != self.sha256:
            return f"its SHA-256 is {found}, wanted {self.sha256}"
        if self.git_id and (found := _git_id(path)) != self.git_id:
            return f"its git id is {found}, wanted {self.git_id}"
        return ""


@dataclass(frozen=True)
class Manifest:
    """The verified files of a folder.

    Each entry holds a file's revision, SHA-256, size and modification time, so that a later start
    notices a change without reading gigabytes.

    Attributes:
        folder: the folder of weights.
        files: entries by the place of the file in the folder.
    """

    folder: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Return the folder's manifest; an empty one if there is none, or it cannot be read."""
        try:
            files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
            return cls(folder, dict(files))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(folder)

    def holds(self, file: HubFile) -> bool:
        """Return whether the file was verified for its revision and is unchanged since."""
        entry = self.files.get(file.place)
        if entry is None or entry.get("revision") != file.revision:
            return False
        if entry.get("absent"):
            return not file.required
        if file.sha256 and entry.get("sha256") != file.sha256:
            return False
        return _is_unchanged(self.folder / file.place, entry)

    def add(self, file: HubFile, digest: Digest | None) -> None:
        """Add a verified file, and write the manifest.

        Args:
            file: lies in the folder.
            digest: what it was verified against; None if its repository does not hold it.

        Raises:
            OSError: the folder cannot be written.
        """
        entry: dict[str, Any] = {"repo": file.repo, "revision": file.revision}
        path = self.folder / file.place
        if digest is None:
            entry["absent"] = True
        else:
            found = path.stat()
            entry |= {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
            entry["sha256"] = digest.sha256 or hash_file(path)
        self.files[file.place] = entry
        with atomic_path(self.folder / MANIFEST_FILE) as partial:
            partial.write_text(json.dumps({"files": self.files}, indent=2) + "\n")


def missing_files(files: Sequence[HubFile], folder: Path) -> list[HubFile]:
    """Return the files that the folder lacks, or that were not verified or changed since."""
    manifest = Manifest.read(folder)
    return [file for file in files if not manifest.holds(file)]


def find_revision(folder: Path, path: Path) -> str:
    """Return the revision that a file was verified for; empty if that is not known.

    Args:
        folder: the folder of weights.
        path: an existing file in it.
    """
    entry = Manifest.read(folder).files.get(path.relative_to(folder).as_posix(), {})
    return str(entry["revision"]) if _is_unchanged(path, entry) else ""


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_unchanged(path: Path, entry: dict[str, Any]) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (entry.get("bytes"), entry.get("mtime_ns"))


def _git_id(path: Path) -> str:
    content = path.read_bytes()
    head = f"blob {len(content)}\0".encode()
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
