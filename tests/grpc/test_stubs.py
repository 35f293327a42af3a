"""The generated code in the repository is that of the interface's description."""

import re
import subprocess
import sys
from pathlib import Path

from foley import errors
from runners.status import status_of

ROOT = Path(__file__).parents[2]


def test_the_stubs_are_what_the_description_gives(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "stubs.py"), str(tmp_path)], check=True)
    generated = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "runners" / "rpc").glob("*_pb2*")}
    assert len(kept) == 3
    assert generated == kept, "run `python scripts/stubs.py`"


def test_the_table_of_errors_in_the_document_is_the_one_that_is_served() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    described = {
        code: (statuses.split(", "), name)
        for statuses, name, codes in rows
        for code in re.findall(r"`([a-z_]+)`", codes)
    }
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if kind is not errors.ConnectionFailedError:  # only clients raise it
            statuses, name = described[kind.code]
            status = status_of(kind)
            assert (str(status.http) in statuses, name) == (True, status.grpc), kind
