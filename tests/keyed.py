"""A server with two workers, keys, a port for health, kept results and traces, for many tests."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from runners.process import find_free_port
from tests.collector import Collector
from tests.patience import Deadline, is_within, scale, slowdown
from tests.server import Server

FIRST_KEY, SECOND_KEY = "first-key-of-a-test", "second-key-of-a-test"
MAX_UPLOAD_BYTES = 4_000_000
MAX_CONCURRENCY = 4
KEEP = "FOLEY_KEEP_RESULTS_SECONDS"
KEEP_BYTES = 3_000_000
HEALTH_PATH = "/health/check"


@dataclass
class KeyedStart:
    """What probes saw while the server started.

    Attributes:
        port: the port for health.
        grpc: statuses of the health service.
        http: statuses of the health path on the service's port, and on the port for health.
    """

    port: int = field(default_factory=find_free_port)
    grpc: list[int] = field(default_factory=list)
    http: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))

    def is_over(self) -> bool:
        serving = health_pb2.HealthCheckResponse.SERVING
        return self.grpc[-1:] == [serving] and all(200 in statuses for statuses in self.http)

    def probe(self, server: Server) -> None:
        """Ask each address once. One that does not listen yet adds nothing."""
        self.grpc.extend(check_health(server))
        for port, statuses in zip((server.port, self.port), self.http, strict=True):
            try:
                url = f"http://127.0.0.1:{port}{HEALTH_PATH}"
                response = httpx.get(url, trust_env=False, timeout=scale(5))
            except httpx.TransportError:
                continue
            statuses.add(response.status_code)
            if response.status_code < 400:
                assert response.content == b""


def check_health(server: Server, name: str = "") -> list[int]:
    """The status from the gRPC health service; nothing while the server does not listen."""
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            request = health_pb2.HealthCheckRequest(service=name)
            return [stub.Check(request, timeout=scale(5)).status]
        except grpc.RpcError:
            return []


def start_keyed_server(folder: Path, start: KeyedStart, collector: Collector) -> Server:
    """Start the server, and wait until it is ready on each of its ports."""
    settings = {
        "FOLEY_API_WORKERS": "2",
        "FOLEY_API_KEYS": f"{FIRST_KEY},{SECOND_KEY}",
        "FOLEY_MAX_CONCURRENCY": str(MAX_CONCURRENCY),
        "FOLEY_MAX_UPLOAD_BYTES": str(MAX_UPLOAD_BYTES),
        "FOLEY_MAX_CLIP_SECONDS": "6",
        KEEP: str(round(6 * slowdown(max_age_seconds=0))),
        "FOLEY_KEEP_RESULTS_BYTES": str(KEEP_BYTES),
        "FOLEY_HEALTH_PORT": str(start.port),
        "FOLEY_HEALTH_PATH": HEALTH_PATH,
        "FOLEY_CONTAINER_STARTED": str(time.time() - 100),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    server = Server(folder, settings)
    server.client.headers["Authorization"] = f"Bearer {FIRST_KEY}"
    deadline = Deadline(server.ready_seconds)
    try:
        while not start.is_over():
            assert server.process.poll() is None, server.log.read_text()
            assert not deadline.is_over(), (start, server.log.read_text())
            start.probe(server)
            time.sleep(0.02)
    except BaseException:
        server.stop()
        raise
    return server


def end_keyed_server(server: Server) -> None:
    """Stop the server, and check that it ends in time and leaves nothing."""
    started = time.monotonic()
    assert server.stop() == 0, server.log.read_text()
    # The log says what it waited for.
    assert is_within(time.monotonic() - started, 15), server.log.read_text()[-8000:]
    assert list(server.scratch.iterdir()) == []  # kept results included
