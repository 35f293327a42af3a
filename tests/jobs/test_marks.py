"""What the service signs, for children that a clip may have taken over."""

import base64
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from foley.errors import ConfigError
from foley.marks.mark import Signer
from runners.jobs.marks import (
    MAX_SIGNED_BYTES,
    SIGNED_PREFIX,
    answer_with_signature,
    load_service_marks,
)
from runners.settings import Settings

SIGNER = Signer(chain="", algorithm="Es256", sign=lambda data: b"signed " + data[-1:])


def encode(data: bytes) -> dict[str, str]:
    return {"sign": base64.b64encode(data).decode()}


def test_a_claim_is_signed() -> None:
    answer = answer_with_signature(SIGNER, encode(SIGNED_PREFIX + b"x"))
    assert base64.b64decode(answer["signature"]) == b"signed x"


@pytest.mark.parametrize(
    "question",
    [
        encode(b"0\x82 a certificate"),
        encode(b""),
        encode(SIGNED_PREFIX + bytes(MAX_SIGNED_BYTES)),
        {"sign": "no base64 \N{SNOWMAN}"},
        {"sign": 3},
        {"sign": ["x"]},
        {},
        [],
        None,
    ],
    ids=["a certificate", "nothing", "too much", "text", "3", "list", "no key", "array", "null"],
)
def test_nothing_else_is_signed(question: Any) -> None:
    with capture_logs() as logs:
        assert list(answer_with_signature(SIGNER, question)) == ["refused"]
    assert [entry["event"] for entry in logs] == ["mark_refused"]


def test_the_log_says_once_which_marks_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(**settings: Any) -> tuple[Any, dict[str, Any]]:
        with capture_logs() as logs:
            marks = load_service_marks(Settings(**settings))
        (entry,) = logs
        return marks, dict(entry)

    marks, entry = load(marks_prompt=True)
    assert marks.with_words
    assert (entry["event"], entry["self_signed"]) == ("marks_signed", True)
    marks, entry = load(marks="off")
    assert marks is None
    assert "must mark it" in entry["duty"]
    monkeypatch.setitem(sys.modules, "c2pa", None)
    marks, entry = load()
    assert marks.signer is None
    assert "plain tags alone" in entry["reason"]


def test_a_key_without_a_chain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a chain"):
        load_service_marks(Settings(marks_key=tmp_path / "key.pem"))
