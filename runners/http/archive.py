"""A zip of files that is sent without being written: its layout, and the bytes of the layout."""

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class ZipLayout:
    """Where the headers and the files of a zip lie. Media does not shrink, so it is stored.

    Attributes:
        num_bytes: of the whole zip.
        parts: in order: bytes, or a file whose content stands there.
    """

    num_bytes: int
    parts: Sequence[bytes | Path]

    def read(self) -> Iterator[bytes]:
        """Yield the zip in chunks. The files must not have changed since `lay_out_zip`."""
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
                continue
            with part.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk


def lay_out_zip(files: Sequence[Path], texts: Mapping[str, str]) -> ZipLayout:
    """Return the layout of a zip; reads the files once, for their checksums.

    Each header has its file's size and checksum, since many readers refuse a stored file whose
    checksum follows it.

    Args:
        files: under their own names.
        texts: further files, by their names.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            entry = zipfile.ZipInfo.from_file(path, path.name)
            with archive.open(entry, "w") as writer, path.open("rb") as file:
                sink.stands_for = path
                while chunk := file.read(CHUNK_BYTES):
                    writer.write(chunk)
                sink.stands_for = None
        for name, text in texts.items():
            archive.writestr(name, text)
    return ZipLayout(sink.end, [sink.parts[offset] for offset in sorted(sink.parts)])


class _Sink(io.RawIOBase):
    """A file that keeps what is written to it, but of the content of files only the name.

    Attributes:
        stands_for: the file whose content is being written.
        parts: by offset.
        end: the file's size.
    """

    def __init__(self) -> None:
        self.stands_for: Path | None = None
        self.parts: dict[int, bytes | Path] = {}
        self.end = 0
        self._offset = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._offset = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self.end}[
            whence
        ] + offset
        return self._offset

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.stands_for is None:
            self.parts[self._offset] = bytes(data)  # a header that is written again has its length
        elif self.stands_for not in self.parts.values():
            self.parts[self._offset] = self.stands_for
        self._offset += len(data)
        self.end = max(self.end, self._offset)
        return len(data)
