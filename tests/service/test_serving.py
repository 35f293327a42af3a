"""Concurrent requests and their limit, clients that leave, metrics, and the log."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.conftest import MAX_CONCURRENCY
from tests.http.test_refusals import check
from tests.patience import is_within, scale, wait_until
from tests.server import ENDLESS, Server

# 800 model evaluations take longer than any test waits.


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def post(server: Server, clip: bytes, **fields: object) -> httpx.Response:
    """Generate on a connection of its own."""
    base_url, timeout = server.client.base_url, scale(120)
    with httpx.Client(base_url=base_url, timeout=timeout, trust_env=False) as client:
        data = {name: str(value) for name, value in fields.items()}
        return client.post("/v1/generate", files={"clip": clip}, data=data)


def test_readyz_goes_from_503_to_200_while_livez_is_200(
    server: Server, probes: list[tuple[int, int]]
) -> None:
    assert server.probe("/readyz") == 200
    answered = [(ready, live) for ready, live in probes if live]
    assert {live for _, live in answered} == {200}
    readiness = [ready for ready, _ in answered if ready]
    assert readiness == sorted(readiness, reverse=True)  # no way back
    assert set(readiness) == {503, 200}


@pytest.mark.long
def test_130_probes_during_a_slow_request_all_succeed(
    server: Server, pool: ThreadPoolExecutor, short_clip: bytes
) -> None:
    # By default BentoML closes its client between services after 100 calls, and the calls in
    # flight fail. A readiness probe is such a call, and so is each generation.
    with server.open_call(short_clip, **ENDLESS) as slow:
        server.wait_for_metric("foley_running", 1)
        assert list(pool.map(server.probe, ["/readyz"] * 130)) == [200] * 130
        short = [pool.submit(post, server, short_clip, num_inference_steps=1) for _ in range(3)]
        assert [call.result().status_code for call in short] == [200] * 3
        slow.setblocking(False)
        with pytest.raises(BlockingIOError):  # it has neither failed nor ended
            slow.recv(1)
    server.wait_for_num_requests(0)


def test_a_request_over_the_limit_gets_429_and_retry_after(
    server: Server, pool: ThreadPoolExecutor, short_clip: bytes
) -> None:
    assert server.generate(short_clip, num_inference_steps=1).status_code == 200
    calls = [
        pool.submit(post, server, short_clip, num_inference_steps=20)
        for _ in range(MAX_CONCURRENCY)
    ]
    server.wait_for_num_requests(MAX_CONCURRENCY)
    refused = server.generate(short_clip)
    check(refused, 429, "busy", str(MAX_CONCURRENCY))
    streamed = server.generate(short_clip, accept="text/event-stream")
    check(streamed, 429, "busy")  # before the stream begins
    # Its size follows the measured pace: tests/worker/test_scheduler.py.
    assert int(refused.headers["retry-after"]) >= 1
    assert server.probe("/readyz") == 200
    assert [call.result().status_code for call in calls] == [200] * MAX_CONCURRENCY
    assert server.generate(short_clip, num_inference_steps=1).status_code == 200


def test_clients_that_leave_free_the_model(server: Server, short_clip: bytes) -> None:
    cancelled = 'foley_errors_total{code="cancelled"}'
    before = server.metric(cancelled)
    calls = [server.open_call(short_clip, **ENDLESS) for _ in range(2)]
    server.wait_for_num_requests(2)
    wait_until(lambda: server.metric("foley_running"))
    for call in calls:
        call.close()
    started = time.monotonic()
    assert server.generate(short_clip, num_inference_steps=1).status_code == 200
    # Measured: 0.3 s. The calls that were left would take a minute.
    assert is_within(time.monotonic() - started, 3)
    server.wait_until_scratch_is_empty()
    server.wait_for_metric(cancelled, before + 2)


def test_clients_that_leave_free_their_places_while_the_model_works(
    server: Server, short_clip: bytes
) -> None:
    running = server.open_call(short_clip, **ENDLESS)
    wait_until(lambda: server.metric("foley_running"))
    waiting = [server.open_call(short_clip, **ENDLESS) for _ in range(MAX_CONCURRENCY - 1)]
    server.wait_for_num_requests(MAX_CONCURRENCY)
    check(server.generate(short_clip), 429, "busy")
    for call in waiting:
        call.close()
    server.wait_for_num_requests(1)
    assert server.generate(short_clip, num_inference_steps=1).status_code == 200
    running.setblocking(False)
    with pytest.raises(BlockingIOError):  # no answer yet
        running.recv(1)
    running.close()
    server.wait_for_num_requests(0)


@pytest.mark.long
def test_a_short_request_ends_while_a_long_one_runs(
    server: Server, short_clip: bytes, real_clip: bytes
) -> None:
    with server.open_call(real_clip, **ENDLESS) as long:
        wait_until(lambda: server.metric("foley_running"))
        started = time.monotonic()
        assert server.generate(short_clip, num_inference_steps=2).status_code == 200
        assert is_within(time.monotonic() - started, 3)  # measured: 0.7 s
        long.setblocking(False)
        with pytest.raises(BlockingIOError):  # no answer yet
            long.recv(1)
    server.wait_for_num_requests(0)
    for name in ("batch_size", "batch_tokens", "step_seconds", "wait_seconds"):
        assert server.metric(f"foley_{name}_count") > 0


def test_metrics_are_ours_and_those_of_bentoml(server: Server, short_clip: bytes) -> None:
    before = server.metric("foley_audio_seconds_total")
    response = server.generate(short_clip, num_inference_steps=1)
    seconds = float(response.headers["x-foley-duration-seconds"])
    assert server.metric("foley_audio_seconds_total") - before == pytest.approx(seconds, abs=1e-5)
    for stage in json.loads(response.headers["x-foley-timings"]):
        if stage != "total":
            assert server.metric(f'foley_stage_seconds_count{{stage="{stage}"}}') > 0
    errors = server.metric('foley_errors_total{code="not_found"}')
    assert server.client.get("/nowhere").status_code == 404
    server.wait_for_metric('foley_errors_total{code="not_found"}', errors + 1)
    assert server.metric("foley_queue_depth") == 0
    text = server.client.get("/metrics").text
    assert 'bentoml_service_request_total{endpoint="/generate"' in text  # of the runner


def test_requests_are_counted_by_route_and_not_by_path(server: Server) -> None:
    before = server.metric('foley_requests_total{route="other",status="404"}')
    name = 'foley_requests_total{route="/v1/results/{request_id}/{file}",status="404"}'
    kept = server.metric(name)
    for number in range(3):
        server.client.get(f"/tried-{number}/secret")
        server.client.get(f"/v1/results/tried-{number}/foley-1.wav")
    # A request is counted after its answer is sent.
    server.wait_for_metric('foley_requests_total{route="other",status="404"}', before + 3)
    server.wait_for_metric(name, kept + 3)
    assert "tried-" not in server.client.get("/metrics").text
    assert server.metric('foley_request_seconds_count{route="other"}') >= 3


def test_logs_are_json_with_request_ids_and_without_prompts(
    server: Server, short_clip: bytes
) -> None:
    secret = "a walrus in a lighthouse"
    for steps in (1, 0):
        answer = server.generate(short_clip, prompt=secret, num_inference_steps=steps)
    assert answer.status_code == 422
    event = server.wait_for_log(answer.headers["x-request-id"])
    lines = server.log.read_text().splitlines()
    assert secret not in "\n".join(lines)
    # The launcher writes the first line before it starts a process of ours.
    assert [json.loads(line) for line in lines[1:]].count(event) == 1
    assert event["event"] == "request"
    assert event["status"] == 422
    assert event["code"] == "invalid_parameter"
    assert event["path"] == "/v1/generate"


def test_only_the_fork_server_loads_the_media_libraries(server: Server, short_clip: bytes) -> None:
    assert server.generate(short_clip, num_inference_steps=1).status_code == 200
    workers = server.find("FoleyApi")
    readers = server.find("runners.sandbox.fork_server")
    assert len(workers) == len(readers) == 1

    def libraries(process: psutil.Process) -> str:
        return " ".join(mapped.path for mapped in process.memory_maps())

    for library in ("libavcodec", "libtorch"):
        assert library in libraries(readers[0])
        assert library not in libraries(workers[0])
