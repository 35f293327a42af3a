import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foley.weights.sources import HubFile
from tests.patience import scale
from tests.server import ROOT
from tests.weights.hub_server import Hub, write_table

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub({"small.json": b'{"a": 1}', "large.pth": os.urandom(50_000)})
    yield hub
    hub.close()


@pytest.fixture
def start(hub: Hub, tmp_path: Path) -> Start:
    """Start a download in a process of its own, without this process's settings for the hub."""

    def start(
        folder: Path, table: list[HubFile] | None = None, **settings: str
    ) -> subprocess.Popen[str]:
        path = write_table(hub.table() if table is None else table, tmp_path / "table.json")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "FOLEY_"))}
        environment = inherited | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            # After 10 s, the default, a download asks again. A busy machine must not cause that.
            "HF_HUB_DOWNLOAD_TIMEOUT": str(round(scale(60))),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "tests.weights.child", str(path), str(folder)],
            cwd=ROOT,
            env=environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def run(start: Start) -> Run:
    """Run a download in a process of its own to its end."""

    def run(
        folder: Path, table: list[HubFile] | None = None, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        process = start(folder, table, **settings)
        out, err = process.communicate(timeout=scale(60))
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
