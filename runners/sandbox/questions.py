"""Questions of a confined child to the process that asked for its task, while the task runs.

    child                                    pool
    ask ── {"asks": question}, one line ──► answers it
        ◄── the answer, one line ─────────

So a child can have something done with a secret that it must not hold, such as a signature. It can
wait for something too, since an answer may come late.
"""

import json
import os
from typing import Any

READ_BYTES = 65536
MAX_ANSWER_BYTES = 1024 * 1024

WHEN_COMPLETE = {"when": "complete"}  # answered once the sound is, with the arguments of `write`

_descriptor: int | None = None


def connect(descriptor: int) -> None:
    """Ask over this socket from now on. The fork server calls it in each child.

    Args:
        descriptor: of the socket from which the task was read.
    """
    global _descriptor
    _descriptor = descriptor


def send(descriptor: int, message: dict[str, Any]) -> None:
    """Write a message to a socket, by `write`, since a confined child may not call `send`.

    Args:
        descriptor: of the socket.
        message: as JSON can hold it.

    Raises:
        OSError: the peer has left.
    """
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(descriptor, line) :]


def ask(question: Any) -> Any:
    """Return the answer to a question.

    Args:
        question: as JSON can hold it.

    Raises:
        OSError: there is nobody to ask.
    """
    if _descriptor is None:
        raise ConnectionError("this process runs no task")
    send(_descriptor, {"asks": question})
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(_descriptor, READ_BYTES)
        if not part or len(line) > MAX_ANSWER_BYTES:
            raise ConnectionError("the question got no answer")
        line += part
    return json.loads(line)
