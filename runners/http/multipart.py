"""Parse a multipart/form-data body as it arrives, and write its file straight to its destination.

Starlette's form parser would keep the file in the system's temporary folder first. Here every byte
of a clip is written once, into the request's folder, so FOLEY_SCRATCH_DIR governs all of them, and
memory does not grow with the clip. The next piece of the body is read only after the last one was
written, which is backpressure for the sender.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from foley.errors import ParameterError, RequestError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class StoredForm:
    """A form that was received whole.

    Attributes:
        fields: name and value of each text field, in order; a name may be repeated.
        files: names of the fields that are files, which were stored.
    """

    fields: list[tuple[str, str]]
    files: frozenset[str]


async def store_form(
    body: AsyncIterator[bytes],
    content_type: str,
    *,
    files: Mapping[str, Path],
    max_field_bytes: Mapping[str, int],
    max_fields: int,
) -> StoredForm:
    """Read a form, and write its files to their paths.

    Args:
        body: pieces of the body, cut anywhere.
        content_type: value of the Content-Type header, which names the boundary.
        files: where the file of each field that may be one goes. None must exist; after an error
            one may hold a part of its file.
        max_field_bytes: limits of text fields that may be larger than others.
        max_fields: how many text fields are accepted, of at most 64 KiB each.

    Raises:
        ParameterError: another field is a file.
        RequestError: the form is malformed, incomplete or over a limit. Limits are checked while
            the body is read.

    Source: RFC 7578.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise RequestError("the form cannot be read: its Content-Type names no boundary")
    parts = _PartCollector(files, max_fields, max_field_bytes)
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        with contextlib.ExitStack() as stack:
            opened: dict[str, BinaryIO] = {}
            async for piece in body:
                parser.write(piece)
                for name, data in parts.take_unwritten():
                    if name not in opened:
                        opened[name] = stack.enter_context(files[name].open("xb"))
                    await asyncio.to_thread(opened[name].writelines, data)
    except FormParserError as error:
        raise RequestError("the form cannot be read: it is not valid multipart data") from error
    if not parts.is_complete:
        raise RequestError("the form cannot be read: it ends before its closing boundary")
    return StoredForm(fields=parts.fields, files=frozenset(parts.names))


class _PartCollector:
    """Receives the parser's callbacks: keeps text fields, and bytes of files until written."""

    def __init__(self, files: Iterable[str], max_fields: int, max_bytes: Mapping[str, int]) -> None:
        self.fields: list[tuple[str, str]] = []
        self.names: list[str] = []  # of the files
        self.is_complete = False
        self._unwritten: list[tuple[str, list[bytes]]] = []
        self._files = tuple(files)
        self._max_fields = max_fields
        self._max_bytes = max_bytes  # of the fields that may be large
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._name = ""
        self._in_file = False
        self._value = bytearray()

    def take_unwritten(self) -> list[tuple[str, list[bytes]]]:
        """Return the name and the next bytes of each file that has some."""
        unwritten, self._unwritten = self._unwritten, []
        return unwritten

    def callbacks(self) -> "MultipartCallbacks":
        """Return the callbacks as the parser takes them."""
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": self._add_content,
            "on_part_end": self._end_part,
            "on_end": self._end_form,
        }

    def _begin_part(self) -> None:
        self._disposition = b""
        self._value = bytearray()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _begin_content(self) -> None:
        parameters = parse_options_header(self._disposition)[1]
        if b"name" not in parameters:
            raise RequestError("the form cannot be read: a part has no name")
        self._name = _decode(parameters[b"name"])
        self._in_file = b"filename" in parameters
        if self._in_file:
            if self._name not in self._files:
                raise ParameterError(
                    f"{self._name}: only {' and '.join(self._files)} may be a file"
                )
            if self._name in self.names:
                raise RequestError(
                    f"the form cannot be read: too many files {self._name}; send one"
                )
            self.names.append(self._name)
            self._unwritten.append((self._name, []))
        elif len(self.fields) == self._max_fields:
            raise RequestError(f"the form cannot be read: more than {self._max_fields} fields")

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            if not self._unwritten or self._unwritten[-1][0] != self._name:
                self._unwritten.append((self._name, []))
            self._unwritten[-1][1].append(data[start:end])
            return
        self._value += data[start:end]
        limit = self._max_bytes.get(self._name, MAX_FIELD_BYTES)
        if len(self._value) > limit:
            raise RequestError(
                f"the form cannot be read: {self._name} has more than {limit} bytes, the limit"
            )

    def _end_part(self) -> None:
        if not self._in_file:
            self.fields.append((self._name, _decode(bytes(self._value))))

    def _end_form(self) -> None:
        self.is_complete = True


def _decode(text: bytes) -> str:
    """Decode text as UTF-8, or as Latin-1 where it is none: some clients send their own charset."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
