import json

import pytest

from benchmarks.records import ROOT, finish


def test_a_record_does_not_tell_where_the_repository_lies(
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = {"what": "x", "weights": f"{ROOT}/foley/weights/tiny", "clips": [f"{ROOT}/a.mp4"]}
    finish(record, hardware="cpu", write=False)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == {"what": "x", "weights": "foley/weights/tiny", "clips": ["a.mp4"]}
