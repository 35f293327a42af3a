"""The generated code in the repository is that of the proto file."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_stubs_are_generated_from_the_proto_file(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "stubs.py"), str(tmp_path)], check=True)
    generated = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "foley" / "v1").glob("*_pb2*")}
    assert len(kept) == 3
    assert generated == kept, "run `python scripts/stubs.py`"
