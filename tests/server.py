"""A real server process, and clips to send to it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import psutil

from runners.process import free_ports

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Server:
    """`bentoml serve` with the tiny preset, on a free port."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    grace_seconds: int = 30
    ready_seconds: int = 90
    target: str = "service:FoleyApi"

    def __post_init__(self) -> None:
        self.port, grpc_port = free_ports(2)
        self.grpc_address = f"127.0.0.1:{grpc_port}"
        self.scratch = self.folder / "scratch"
        self.log = self.folder / "server.log"
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=120, trust_env=False
        )
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FOLEY_")}
        environment = {
            **inherited,
            "FOLEY_PRESET": "tiny",
            "FOLEY_DEVICE": "cpu",
            "FOLEY_GRPC_PORT": str(grpc_port),
            "FOLEY_SCRATCH_DIR": str(self.scratch),
            # Threads that share their cores with other tests wait for each other most of the time.
            "OMP_NUM_THREADS": "1",
            "BENTOML_HOME": str(self.folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            **self.settings,
        }
        command = [sys.executable, "-m", "bentoml", "serve", self.target]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--timeout-graceful-shutdown", str(self.grace_seconds)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started = time.monotonic()

    def probe(self, path: str) -> int:
        """The status of a probe; 0 when nothing listens yet."""
        try:
            return self.client.get(path, timeout=5).status_code
        except httpx.TransportError:
            return 0

    def wait_until_ready(self) -> list[tuple[int, int]]:
        """All (readyz, livez) statuses seen on the way. A model that fails ends the wait."""
        seen = []
        while not seen or seen[-1][0] != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert not (line := self.model_failure()), line
            assert time.monotonic() - self.started < self.ready_seconds, self.log.read_text()
            seen.append((self.probe("/readyz"), self.probe("/livez")))
            time.sleep(0.1)
        return seen

    def model_failure(self) -> str:
        """The log's line about a model that could not be had; empty where there is none."""
        lines = self.log.read_text(errors="replace").splitlines()
        return next((line for line in lines if '"event": "model_failed"' in line), "")

    def generate(self, clip: bytes, *, accept: str = "*/*", **fields: object) -> httpx.Response:
        """POST /v1/generate."""
        data = {name: str(value) for name, value in fields.items()}
        headers = {"Accept": accept}
        return self.client.post("/v1/generate", files={"clip": clip}, data=data, headers=headers)

    def metric(self, line_start: str) -> float:
        """The value of the metric whose line starts so; 0 when there is none."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(line_start):
                return float(line.split()[-1])
        return 0.0

    def wait_for_metric(self, line_start: str, value: float) -> None:
        """Return when the metric has the value; fail after 20 s."""
        deadline = time.monotonic() + 20
        while self.metric(line_start) != value:
            assert time.monotonic() < deadline, f"{line_start} never became {value}"
            time.sleep(0.05)

    def wait_for_log(self, request_id: str) -> dict[str, Any]:
        """The line of the log about a request, which may come after its answer; fails after 5 s."""
        deadline = time.monotonic() + 5
        while not (lines := [x for x in self.log.read_text().splitlines() if request_id in x]):
            assert time.monotonic() < deadline, f"no line about {request_id}"
            time.sleep(0.02)
        event: dict[str, Any] = json.loads(lines[-1])
        return event

    def wait_until_scratch_is_empty(self) -> None:
        """Return when no request has files any more; fail after 5 s. Kept results do not count."""
        deadline = time.monotonic() + 5  # a client may have its answer before the files are gone
        while left := [
            *(path for path in self.scratch.glob("foley-*/*") if "-common-" not in str(path)),
            *self.scratch.glob("foley-common-*/requests/*"),
        ]:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM, and the exit status. Whatever does not end by itself is killed."""
        self.client.close()
        family = self.family()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            # It may use all of its grace for requests that a test left behind.
            return self.process.wait(self.grace_seconds + 15)
        finally:
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            self.process.wait(5)

    def family(self) -> list[psutil.Process]:
        """The server's processes; not those that have ended and wait to be noticed."""
        if self.process.poll() is not None:
            return []
        launcher = psutil.Process(self.process.pid)
        return [p for p in (launcher, *launcher.children(recursive=True)) if _lives(p)]


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def draw_clip(
    path: Path,
    *,
    num_frames: int = 25,
    size: tuple[int, int] = (64, 48),
    sound_only: bool = False,
) -> bytes:
    """A clip of a moving bar at 25 fps."""
    width, height = size
    with av.open(str(path), "w") as writer:
        if sound_only:
            stream = writer.add_stream("aac", rate=48_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), "fltp", "mono")
            frame.sample_rate = 48_000
            writer.mux(stream.encode(frame))
        else:
            stream = writer.add_stream("mpeg4", rate=25, width=width, height=height)
            stream.pix_fmt = "yuv420p"
            for index in range(num_frames):
                pixels = np.zeros((height, width, 3), np.uint8)
                pixels[:, (2 * index) % width] = 255
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return path.read_bytes()
