"""Server-sent events, as bytes come in.

Source: HTML Living Standard, 9.2 "Server-sent events" (names, data and comments; the service sends
neither ids nor retry times).
"""

import re
from dataclasses import dataclass

_LINE = re.compile(rb"([^\r\n]*)(?:\r\n|\n|\r(?=.))", re.DOTALL)  # \r at the end may become \r\n


@dataclass(frozen=True)
class Event:
    """One event."""

    name: str
    data: str


class EventParser:
    """Bytes in, events out. They may be cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end in this chunk."""
        self._rest += chunk
        events = []
        end = 0
        for line in _LINE.finditer(self._rest):
            end = line.end()
            if line[1]:
                self._read(line[1].decode("utf-8", "replace"))
            else:
                if self._data:
                    events.append(Event(self._name or "message", "\n".join(self._data)))
                self._name, self._data = "", []
        self._rest = self._rest[end:]
        return events

    def _read(self, line: str) -> None:
        name, _, value = line.partition(":")  # a comment has no name
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
