"""A real server process, and clips to send to it."""

import contextlib
import json
import os
import signal
import socket
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

from runners.process import find_free_ports
from tests.patience import Deadline, scale, wait_for_exit, wait_until

ROOT = Path(__file__).resolve().parents[1]
# Options of a generation that takes far longer than any test: 6,400 evaluations of the model.
ENDLESS = {"num_inference_steps": 200, "solver": "rk4", "num_variations": 8}


@dataclass
class Server:
    """`bentoml serve` with the tiny preset, on a free port.

    Attributes:
        folder: for its log and its files.
        settings: further environment variables.
        grace_seconds: how long it lets requests end after SIGTERM; None for 30 s on a quiet
            machine.
        ready_seconds: how long it may take to become ready on a quiet machine.
        target: what is served.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    grace_seconds: int | None = None
    ready_seconds: int = 90
    target: str = "service:FoleyApi"

    def __post_init__(self) -> None:
        self.port, grpc_port = find_free_ports(2)
        self.grpc_address = f"127.0.0.1:{grpc_port}"
        self.scratch = self.folder / "scratch"
        self.log = self.folder / "server.log"
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=scale(120), trust_env=False
        )
        self.stop_seconds = self.grace_seconds or round(scale(30))
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FOLEY_")}
        environment = {
            **inherited,
            "FOLEY_PRESET": "tiny",
            "FOLEY_DEVICE": "cpu",
            "FOLEY_GRPC_PORT": str(grpc_port),
            "FOLEY_SCRATCH_DIR": str(self.scratch),
            # A busy machine takes longer than the default allows; tests of the limit set their own.
            "FOLEY_REQUEST_TIMEOUT_SECONDS": "3600",
            # Threads that share their cores with other tests mostly wait for one another.
            "OMP_NUM_THREADS": "1",
            "BENTOML_HOME": str(self.folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            **self.settings,
        }
        command = [sys.executable, "-m", "bentoml", "serve", self.target]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--timeout-graceful-shutdown", str(self.stop_seconds)]
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
        """Return the status of a probe; 0 if nothing listens yet."""
        try:
            return self.client.get(path, timeout=scale(5)).status_code
        except httpx.TransportError:
            return 0

    def wait_until_ready(self) -> list[tuple[int, int]]:
        """Wait for readiness and return all (readyz, livez) statuses seen on the way.

        Raises:
            AssertionError: the server ended, or its model failed, or the wait took too long.
        """
        deadline = Deadline(self.ready_seconds)
        seen = []
        while not seen or seen[-1][0] != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert not (line := self.model_failure()), line
            assert not deadline.is_over(), self.log.read_text()
            seen.append((self.probe("/readyz"), self.probe("/livez")))
            time.sleep(0.1)
        return seen

    def model_failure(self) -> str:
        """Return the line of the log about a model that could not be loaded; empty without one."""
        lines = self.log.read_text(errors="replace").splitlines()
        return next((line for line in lines if '"event": "model_failed"' in line), "")

    def generate(self, clip: bytes, *, accept: str = "*/*", **fields: object) -> httpx.Response:
        """POST /v1/generate."""
        data = {name: str(value) for name, value in fields.items()}
        headers = {"Accept": accept}
        return self.client.post("/v1/generate", files={"clip": clip}, data=data, headers=headers)

    def open_call(self, clip: bytes, **fields: object) -> socket.socket:
        """Send POST /v1/generate and return its connection. Closing that is leaving the call."""
        connection, rest = self.open_upload(clip, **fields)
        connection.sendall(rest)
        return connection

    def open_upload(self, clip: bytes, **fields: object) -> tuple[socket.socket, bytes]:
        """Send the first half of POST /v1/generate, and return its connection and the rest."""
        data = {name: str(value) for name, value in fields.items()}
        asked = httpx.Request("POST", "http://test/v1/generate", files={"clip": clip}, data=data)
        body = asked.read()
        head = (
            f"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            f"Content-Type: {asked.headers['content-type']}\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=scale(120))
        half = len(body) // 2
        connection.sendall(head.encode() + body[:half])
        return connection, body[half:]

    def metric(self, line_start: str) -> float:
        """Return the value of the metric whose line starts so; 0 without one."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(line_start):
                return float(line.split()[-1])
        return 0.0

    def wait_for_metric(self, line_start: str, value: float) -> None:
        """Wait until the metric has the value."""
        wait_until(
            lambda: self.metric(line_start) == value, what=f"{line_start} never became {value}"
        )

    def wait_for_num_requests(self, num_requests: int) -> None:
        """Wait until the model has so many requests, running and queued together."""
        names = ("foley_running", "foley_queue_depth")
        wait_until(
            lambda: sum(map(self.metric, names)) == num_requests,
            what=f"the model never had {num_requests} requests",
        )

    def end_jobs(self) -> None:
        """Cancel all durable jobs. They would take places that later tests count."""
        for state in ("queued", "running"):
            page = {"state": state, "limit": 100}
            for job in self.client.get("/v1/jobs", params=page).json()["jobs"]:
                self.client.post(job["cancel_url"])
        self.wait_for_num_requests(0)

    def wait_for_log(self, request_id: str) -> dict[str, Any]:
        """Return the log's latest line about a request, which may be later than its answer."""
        lines = wait_until(
            lambda: [line for line in self.log.read_text().splitlines() if request_id in line],
            what=f"no line about {request_id}",
        )
        event: dict[str, Any] = json.loads(lines[-1])
        return event

    def wait_until_scratch_is_empty(self) -> None:
        """Wait until no request has files any more. Kept results do not count.

        A client may have its answer before the files are gone.
        """
        wait_until(lambda: not self._request_files(), what=self._request_files)

    def _request_files(self) -> list[Path]:
        return [
            *(path for path in self.scratch.glob("foley-*/*") if "-common-" not in str(path)),
            *self.scratch.glob("foley-common-*/requests/*"),
        ]

    def stop(self) -> int:
        """Send SIGTERM and return the exit status. Processes that do not end are killed."""
        self.client.close()
        family = self.family()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            # It may use all of its grace for requests that a test left behind.
            return wait_for_exit(self.process, self.stop_seconds + 15)
        finally:
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            wait_for_exit(self.process, 5)

    def family(self) -> list[psutil.Process]:
        """Return the server's processes, without those that have ended and are not reaped yet."""
        if self.process.poll() is not None:
            return []
        launcher = psutil.Process(self.process.pid)
        return [p for p in (launcher, *launcher.children(recursive=True)) if _is_alive(p)]

    def find(self, argument: str) -> list[psutil.Process]:
        """Return the server's processes with that argument on their command line."""
        return [process for process in self.family() if argument in _read_arguments(process)]


def _read_arguments(process: psutil.Process) -> list[str]:
    """Return the command line of a process; empty if it has ended meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        arguments: list[str] = process.cmdline()
        return arguments
    return []


def _is_alive(process: psutil.Process) -> bool:
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
    """Write a clip of a moving bar at 25 fps, and return its bytes.

    Args:
        path: of the file; its suffix chooses the container.
        num_frames: length of the clip.
        size: width and height, in pixels.
        sound_only: write one second of silence and no picture instead.
    """
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
