"""What a file must be, and which files of a folder were found to be so."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foley.weights.sources import HubFile

LEDGER_FILE = "foley-files.json"


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What a file's content must be: its SHA-256, or git's id of it for small files."""

    num_bytes: int
    sha256: str | None = None
    git_id: str | None = None

    def mismatch(self, path: Path) -> str:
        """What is wrong with a file, or nothing."""
        num_bytes = path.stat().st_size
        if num_bytes != self.num_bytes:
            return f"it has {num_bytes} bytes, wanted {self.num_bytes}"
        if self.sha256 and (found := sha256_of(path)) != self.sha256:
            return f"its SHA-256 is {found}, wanted {self.sha256}"
        if self.git_id and (found := _git_id_of(path)) != self.git_id:
            return f"its git id is {found}, wanted {self.git_id}"
        return ""


@dataclass(frozen=True)
class Ledger:
    """The files of a folder that were verified, as they were then."""

    folder: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """The folder's ledger; empty where there is none that can be read."""
        try:
            files = json.loads((folder / LEDGER_FILE).read_text())["files"]
            return cls(folder, dict(files))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(folder)

    def holds(self, file: HubFile) -> bool:
        """Whether the file was verified for its revision, and has not changed since."""
        entry = self.files.get(file.place)
        if entry is None or entry.get("revision") != file.revision:
            return False
        if entry.get("absent"):
            return not file.required
        if file.sha256 and entry.get("sha256") != file.sha256:
            return False
        try:
            found = (self.folder / file.place).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (entry.get("bytes"), entry.get("mtime_ns"))

    def add(self, file: HubFile, digest: Digest | None) -> None:
        """Note a verified file, or with None that its repository does not hold it."""
        entry: dict[str, Any] = {"repo": file.repo, "revision": file.revision}
        path = self.folder / file.place
        if digest is None:
            entry["absent"] = True
        else:
            found = path.stat()
            entry |= {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
            entry["sha256"] = digest.sha256 or sha256_of(path)
        self.files[file.place] = entry
        partial = self.folder / f".{LEDGER_FILE}"
        partial.write_text(json.dumps({"files": self.files}, indent=2) + "\n")
        partial.replace(self.folder / LEDGER_FILE)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_id_of(path: Path) -> str:
    content = path.read_bytes()
    head = f"blob {len(content)}\0".encode()
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


def revision_of(folder: Path, path: Path) -> str:
    """The revision of a file that was verified here and is unchanged; else nothing."""
    place = path.relative_to(folder).as_posix()
    entry = Ledger.read(folder).files.get(place, {})
    found = path.stat()
    unchanged = (found.st_size, found.st_mtime_ns) == (entry.get("bytes"), entry.get("mtime_ns"))
    return str(entry["revision"]) if unchanged else ""
