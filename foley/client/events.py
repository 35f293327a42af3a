"""A parser for server-sent events that arrive in pieces.

Source: HTML Living Standard, 9.2 "Server-sent events". The parser reads names, ids, data and
comments; the service sends no retry times.
"""

import re
from dataclasses import dataclass

_LINE = re.compile(rb"([^\r\n]*)(?:\r\n|\n|\r(?=.))", re.DOTALL)  # \r at the end may become \r\n


@dataclass(frozen=True)
class Event:
    """One server-sent event.

    Attributes:
        name: the event's type; `message` if the stream names none.
        data: the lines of its data, joined by newlines.
        id: of the event; that of the one before it if it has none.
    """

    name: str
    data: str
    id: str = ""


class EventParser:
    """Parses a stream of bytes that may be cut anywhere into events."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that end in this chunk.

        Args:
            chunk: the next bytes of the stream. Invalid UTF-8 becomes U+FFFD.
        """
        self._rest += chunk
        events = []
        end = 0
        for line in _LINE.finditer(self._rest):
            end = line.end()
            if line[1]:
                self._read_line(line[1].decode("utf-8", "replace"))
            else:
                if self._data:
                    events.append(Event(self._name or "message", "\n".join(self._data), self._id))
                self._name, self._data = "", []
        self._rest = self._rest[end:]
        return events

    def _read_line(self, line: str) -> None:
        name, _, value = line.partition(":")  # the name of a comment is empty
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "id":
            self._id = value
        elif name == "data":
            self._data.append(value)
