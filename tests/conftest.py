"""Fixtures that several folders share: one server for the whole run, and clips to send to it.

Tests that need a GPU are skipped where there is none, unless FOLEY_REQUIRE_GPU=1.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_timeout
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

# PyTorch's threads spin while they wait for one another, which takes the cores from other processes
# where there are more of these than cores: a command of 32 s then took 192 s. It is read once, when
# PyTorch is imported, and the processes that the tests start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# As many processes as cores run tests. One thread in each took 70 s of CPU time where two took 110.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A key for marks is made there, and weights that somebody has downloaded are not what is tested.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="foley-tests-")
# Neither PyTorch nor our networks are imported here: the process that hands out the tests needs
# none of them, and the other processes wait until it has read this file.
from tests.collector import Collector
from tests.durable.receiver import SECRET
from tests.keyed import KeyedStart, end_keyed_server, start_keyed_server
from tests.patience import scale
from tests.server import ROOT, Server, draw_clip

atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
# A shell starts a background process with SIGINT ignored, nohup one with SIGHUP ignored, and all
# its children inherit that. Tests stop commands, so the children have to start with the defaults.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Where `CI` is set, Hypothesis has these by itself. Elsewhere a busy machine would fail tests.
hypothesis_settings.register_profile(
    "patient",
    hypothesis_settings(),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
hypothesis_settings.load_profile("patient")

MAX_UPLOAD_BYTES = 4_000_000
MAX_CONCURRENCY = 4


def _group(items: list[pytest.Item]) -> None:
    """Have each file run in one process, and all files that share a server in the same one.

    To start a server takes as long as thirty of these tests.
    """
    fixtures: dict[Path, set[str]] = {}
    for item in items:
        fixtures.setdefault(item.path, set()).update(getattr(item, "fixturenames", ()))
    for item in items:
        used = fixtures[item.path]
        if "keyed_server" in used or "page" in item.path.parts:
            name = "keyed_server"  # the page needs a server of its own, and that with keys
        elif "server" in used:
            name = "server"
        else:
            name = item.path.relative_to(ROOT).as_posix()
        item.add_marker(pytest.mark.xdist_group(name))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep what the tests import out of garbage collection.

    It is a million objects, which live as long as the process. Each full collection that visits
    them takes half a second, and one comes every few tests.
    """
    gc.disable()
    try:
        result = yield
    finally:
        gc.freeze()
        gc.enable()
    return result


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _group(items)
    for_gpu = [item for item in items if "needs_gpu" in item.keywords]
    if not for_gpu or os.environ.get("FOLEY_REQUIRE_GPU") == "1" or _has_gpu():
        return
    left_out = pytest.mark.skip(reason="no CUDA device; FOLEY_REQUIRE_GPU=1 makes that a failure")
    for item in for_gpu:
        item.add_marker(left_out)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> object:
    """Scale the time limit of each test, whether it comes from pyproject.toml or from a mark."""
    scaled = settings._replace(timeout=scale(settings.timeout))
    return pytest_timeout.pytest_timeout_set_timer(item, scaled)


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """Check that no test has made this process a real-time one, as encoders may when run by root.

    A browser that such a process starts takes both cores from everything else.
    """
    yield
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture(scope="session")
def probes() -> list[tuple[int, int]]:
    """Return the (readyz, livez) statuses while `server` started, which fills them in."""
    return []


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, probes: list[tuple[int, int]]
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    adapters = folder / "rattle.safetensors"
    _write_adapter(adapters)
    settings = {
        "FOLEY_ADAPTERS": str(adapters),
        "FOLEY_JOBS_DIR": str(folder / "jobs"),
        "FOLEY_MAX_UPLOAD_BYTES": str(MAX_UPLOAD_BYTES),
        "FOLEY_MAX_CONCURRENCY": str(MAX_CONCURRENCY),
        "FOLEY_WEBHOOK_SECRET": SECRET,
        "FOLEY_WEBHOOK_NETWORKS": "127.0.0.0/8",
        "FOLEY_MAX_CLIP_SECONDS": "6",
        "FOLEY_MAX_CLIP_PIXELS": str(1280 * 720),
    }
    server = Server(folder, settings)
    try:
        probes.extend(server.wait_until_ready())
        yield server
    finally:
        assert server.stop() == 0, server.log.read_text()


def _write_adapter(path: Path) -> None:
    from foley.configs import TINY
    from foley.models.dit import build_dit
    from foley.weights.adapters import write_adapter
    from tests.adapters import draw_layers

    dit = build_dit(TINY.dit)
    layers = draw_layers(dit, seed=0, rank=2, wants=lambda name: "audio.out" in name)
    lines = {"about": "a test", "trigger": "a rattle"}
    write_adapter(path, layers, base="tiny", rank=2, metadata=lines)


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Receives the traces of `keyed_server`."""
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="session")
def keyed_start() -> KeyedStart:
    """Filled by `keyed_server`."""
    return KeyedStart()


@pytest.fixture(scope="session")
def keyed_server(
    tmp_path_factory: pytest.TempPathFactory, keyed_start: KeyedStart, collector: Collector
) -> Iterator[Server]:
    """Has keys, two workers, a port for health, kept results and traces."""
    server = start_keyed_server(tmp_path_factory.mktemp("keyed"), keyed_start, collector)
    yield server
    end_keyed_server(server)


@pytest.fixture(scope="session")
def real_clip() -> bytes:
    return (ROOT / "examples" / "bigbuckbunny.mp4").read_bytes()


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def short_clip(clips: Path) -> bytes:
    """One second."""
    return draw_clip(clips / "short.mp4")


@pytest.fixture(scope="session")
def voiced_clip(clips: Path, short_clip: bytes) -> bytes:
    """One second of picture, with a quiet tone of its own on two channels."""
    from tests.media.clips import add_sound

    tone = 0.05 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    samples = np.stack([tone, tone])
    return add_sound(clips / "short.mp4", clips / "voiced.mov", samples).read_bytes()


@pytest.fixture(scope="session")
def long_clip(clips: Path) -> bytes:
    """Eight seconds, where the server's limit is six."""
    return draw_clip(clips / "long.mp4", num_frames=200)
