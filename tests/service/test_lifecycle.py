"""Time limits, the loss of the runner, and shutdown, each on a server of its own."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from foley.client import FoleyClient, RemoteGeneration, RemotePiece
from foley.v1.foley_pb2 import GenerateOptions, GenerateRequest, GetModelRequest
from foley.v1.foley_pb2_grpc import FoleyServiceStub
from tests.grpc.test_calls import read, wait_for_refusal
from tests.http.test_generate import packets
from tests.http.test_refusals import check
from tests.patience import is_within, scale, slowdown, wait_for_exit, wait_until
from tests.server import Server, draw_clip
from tests.service.test_serving import ENDLESS, post

pytestmark = pytest.mark.long

TIMEOUT = "FOLEY_REQUEST_TIMEOUT_SECONDS"
# Of two pieces.
LONG: dict[str, Any] = {"prompt": "rain", "duration_seconds": 16, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a server with a short time limit and two API workers."""
    # Requests that are to end must do so within the limit.
    timeout_seconds = round(3 * slowdown(max_age_seconds=0))
    settings = {TIMEOUT: str(timeout_seconds), "FOLEY_API_WORKERS": "2"}
    server = Server(tmp_path_factory.mktemp("hasty"), settings)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def test_a_request_over_its_time_limit_is_dropped_and_frees_the_runner(
    hasty: Server, short_clip: bytes
) -> None:
    started = time.monotonic()
    response = hasty.generate(short_clip, **ENDLESS)
    check(response, 504, "timeout", f"{hasty.settings[TIMEOUT]} s")
    over_seconds = time.monotonic() - started - int(hasty.settings[TIMEOUT])
    assert is_within(over_seconds, 1.5)  # measured: 0.1 s
    assert hasty.generate(short_clip, num_inference_steps=1).status_code == 200
    hasty.wait_for_metric("foley_running", 0)
    hasty.wait_until_scratch_is_empty()


@pytest.mark.soak  # tests/worker has it of the scheduler
def test_the_time_limit_includes_time_in_the_queue(hasty: Server, short_clip: bytes) -> None:
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(post, hasty, short_clip, **ENDLESS) for _ in range(4)]
        started = time.monotonic()
        for call in calls:
            check(call.result(), 504, "timeout")
        assert is_within(time.monotonic() - started - int(hasty.settings[TIMEOUT]), 2)
    assert hasty.generate(short_clip, num_inference_steps=1).status_code == 200


def test_a_killed_runner_gives_503_and_is_replaced(hasty: Server, short_clip: bytes) -> None:
    (runner,) = hasty.find("GpuRunner")
    with ThreadPoolExecutor() as pool:
        call = pool.submit(post, hasty, short_clip, **ENDLESS)
        hasty.wait_for_metric("foley_running", 1)
        runner.kill()
        check(call.result(), 503, "runner_lost")
    assert hasty.probe("/readyz") == 503
    assert hasty.probe("/livez") == 200
    hasty.wait_until_ready()  # the launcher looks for lost processes every 10 s
    assert hasty.generate(short_clip, num_inference_steps=1).status_code == 200
    hasty.wait_until_scratch_is_empty()


def test_sigterm_finishes_running_requests_and_refuses_new_ones(
    tmp_path: Path, short_clip: bytes
) -> None:
    server = Server(tmp_path, {"FOLEY_API_WORKERS": "2"})
    try:
        server.wait_until_ready()
        with (
            ThreadPoolExecutor() as pool,
            grpc.insecure_channel(server.grpc_address) as channel,
            grpc.insecure_channel(server.grpc_address) as late_channel,
        ):
            FoleyServiceStub(late_channel).GetModel(GetModelRequest())  # connects it
            call = pool.submit(post, server, short_clip, num_inference_steps=45)
            heard: list[RemotePiece] = []
            long_call = pool.submit(generate_long, server, heard.append)
            sent = iter([GenerateRequest(options=GenerateOptions(pieces=True, **LONG))])
            grpc_call = pool.submit(read, FoleyServiceStub(channel).Generate(sent))
            server.wait_for_num_requests(3)
            upload, rest = server.open_upload(short_clip, num_inference_steps=1)
            wait_until(lambda: len(list(server.scratch.glob("*/requests/*"))) == 4)
            with upload:
                started = time.monotonic()
                server.process.terminate()
                wait_until(lambda: error_of_readyz(server).get("code") == "ending", 5)
                assert server.probe("/livez") == 200
                assert server.probe("/ping") == 503
                refused = post(server, short_clip)
                check(refused, 503, "ending")
                assert refused.headers["retry-after"] == "5"
                assert wait_for_refusal(late_channel) is grpc.StatusCode.UNAVAILABLE
                upload.sendall(rest)
                head = upload.recv(4096)
                assert head.startswith(b"HTTP/1.1 200"), server.log.read_text()
            assert wait_for_exit(server.process) == 0
            assert is_within(time.monotonic() - started, 10)
            assert call.result().status_code == 200
            assert long_call.result().duration_seconds == 16
            assert [piece.number for piece in heard] == [1, 2]
            answer = grpc_call.result()
            assert [piece.number for piece in answer.sounds] == [1, 2]
            pieces, whole = (
                b"".join(data for file in files for data, _ in packets(file, "audio"))
                for files in ([piece.data for piece in answer.sounds], answer.files.values())
            )
            assert pieces == whole
    finally:
        server.stop()
    assert list(server.scratch.iterdir()) == []


def generate_long(server: Server, on_sound: Callable[[RemotePiece], None]) -> RemoteGeneration:
    with FoleyClient(str(server.client.base_url)) as client:
        return client.generate(None, on_sound=on_sound, **LONG)


@pytest.mark.soak  # tests/unit/test_process.py has it of the launcher
def test_sigterm_while_the_model_loads_ends_the_server_with_status_0(tmp_path: Path) -> None:
    server = Server(tmp_path)
    stopping = threading.Event()

    def probe() -> None:
        while not stopping.is_set():
            statuses.append(server.probe("/readyz"))
            time.sleep(0.02)

    statuses: list[int] = []
    with ThreadPoolExecutor() as pool:
        probing = pool.submit(probe)
        try:
            wait_until(lambda: 503 in statuses, 60, what=server.log.read_text)
            server.process.terminate()
            assert wait_for_exit(server.process, 20) == 0, server.log.read_text()
        finally:
            stopping.set()
            probing.result()
            server.stop()
    assert 200 not in statuses
    assert list(server.scratch.iterdir()) == []


@pytest.mark.soak  # tests/jobs/test_ending.py has what ends what is left
def test_shutdown_waits_neither_for_long_requests_nor_for_a_client_that_stops_reading(
    tmp_path: Path, short_clip: bytes
) -> None:
    server = Server(tmp_path, grace_seconds=2)
    clip = draw_clip(tmp_path / "clip.mp4", num_frames=10 * 25)
    try:
        server.wait_until_ready()
        with server.open_call(
            clip, num_inference_steps=1, num_variations=4, format="wav"
        ) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            assert connection.recv(12) == b"HTTP/1.1 200"  # 5.7 MB follow, which nobody reads
            with ThreadPoolExecutor() as pool:
                plain = pool.submit(post, server, short_clip, **ENDLESS)
                streamed = pool.submit(read_events, server, short_clip, **ENDLESS)
                server.wait_for_num_requests(2)
                started = time.monotonic()
                assert server.stop() == 0
                check(plain.result(), 503, "ending")
                event, error = streamed.result()[-2:]
            assert (event, '"code": "ending"' in error) == ("event: error", True)
            assert time.monotonic() - started > 2
            assert is_within(time.monotonic() - started, 8)
    finally:
        server.stop()
    assert list(server.scratch.iterdir()) == []


def test_readyz_reports_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    server = Server(tmp_path, {"FOLEY_WEIGHTS": str(tmp_path / "nowhere")})
    try:
        # The line in the log ends the wait for readiness, long before that gives up.
        with pytest.raises(AssertionError, match="CheckpointError"):
            server.wait_until_ready()
        assert is_within(time.monotonic() - server.started, 60)
        wait_until(
            lambda: error_of_readyz(server).get("code") not in (None, "not_ready"),
            60,
            what=server.log.read_text,
        )
        error = error_of_readyz(server)
        assert error["code"] == "model_failed"
        assert str(tmp_path) not in error["message"]
        check(server.generate(b"any"), 503, "model_failed")
        assert server.probe("/ping") == 503  # for a load balancer
        assert server.probe("/livez") == 200
    finally:
        assert server.stop() == 0


def read_events(server: Server, clip: bytes, **fields: object) -> list[str]:
    """Return the lines of a streamed request, until it ends; without those that are empty."""
    with httpx.stream(
        "POST",
        f"{server.client.base_url}/v1/generate",
        files={"clip": clip},
        data={name: str(value) for name, value in fields.items()},
        headers={"Accept": "text/event-stream"},
        timeout=scale(120),
        trust_env=False,
    ) as response:
        return [line for line in response.iter_lines() if line and not line.startswith(":")]


def error_of_readyz(server: Server) -> dict[str, str]:
    """Return the error in the answer of /readyz; empty while nothing answers."""
    if server.probe("/livez") != 200:
        return {}
    response = server.client.get("/readyz")
    error: dict[str, str] = {} if response.status_code == 200 else response.json()["error"]
    return error


def test_a_wrong_setting_ends_the_start_with_one_line_of_log(tmp_path: Path) -> None:
    server = Server(tmp_path, {"FOLEY_MAX_CONCURRENCY": "0"})  # tests/unit tries others
    assert wait_for_exit(server.process, 60) == 3
    (line,) = server.log.read_text().strip().splitlines()
    assert "FOLEY_MAX_CONCURRENCY" in line
    server.client.close()


@pytest.mark.soak  # tests/image has it of a container
def test_a_process_that_cannot_start_ends_the_whole_service_with_one_line_of_log(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    file.touch()
    server = Server(tmp_path, {"FOLEY_SCRATCH_DIR": str(file)})
    try:
        assert wait_for_exit(server.process, 60) == 3
    finally:
        server.stop()
    log = server.log.read_text()
    assert "Traceback" not in log
    assert [str(file) in line for line in log.splitlines() if "start_failed" in line] == [True]


def test_processes_end_in_order_after_their_launcher_was_killed(
    tmp_path: Path, short_clip: bytes
) -> None:
    server = Server(tmp_path, {"FOLEY_JOBS_DIR": str(tmp_path / "jobs")})
    family: list[psutil.Process] = []
    try:
        server.wait_until_ready()
        wait_until(lambda: server.find("runners.durable.executor"), 30)
        family = server.family()
        assert len(family) >= 5  # the launcher, the API, the GPU process, the executor, the sandbox
        with ThreadPoolExecutor() as pool:
            call = pool.submit(server.generate, short_clip, num_inference_steps=25)
            server.wait_for_num_requests(1)
            server.process.kill()
            assert call.result().status_code == 200
        _, left = psutil.wait_procs(family, timeout=scale(20))
        assert left == [], server.log.read_text()
        assert server.probe("/livez") == 0
        assert list(server.scratch.iterdir()) == []
    finally:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        server.stop()
