"""Limits in number and time, calls side by side, cancellation, metrics, logs."""

import concurrent.futures
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.conftest import MAX_CONCURRENCY
from tests.http.test_refusals import check
from tests.server import Server

# 800 model evaluations: far longer than any test waits.
ENDLESS = {"num_inference_steps": 200, "solver": "rk4", "format": "wav"}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def post(server: Server, clip: bytes, seconds: float = 120, **fields: object) -> httpx.Response:
    """A call on a connection of its own, given up after so many seconds."""
    with httpx.Client(base_url=server.client.base_url, timeout=seconds, trust_env=False) as client:
        data = {name: str(value) for name, value in fields.items()}
        return client.post("/v1/generate", files={"clip": clip}, data=data)


def wait_until_in_house(server: Server, count: int) -> None:
    """Return when the model has so many requests, begun or waiting; fail after 20 s."""
    deadline = time.monotonic() + 20
    while server.metric("foley_running") + server.metric("foley_queue_depth") != count:
        assert time.monotonic() < deadline, f"never {count} in the house"
        time.sleep(0.05)


def test_ready_goes_from_503_to_200_while_live_is_200(
    server: Server, probes: list[tuple[int, int]]
) -> None:
    assert server.probe("/readyz") == 200
    answered = [(ready, live) for ready, live in probes if live]
    assert {live for _, live in answered} == {200}
    readiness = [ready for ready, _ in answered if ready]
    assert readiness == sorted(readiness, reverse=True)  # no way back
    assert set(readiness) == {503, 200}


def test_130_short_calls_beside_a_slow_one_all_succeed(
    server: Server, pool: ThreadPoolExecutor, short_clip: bytes
) -> None:
    # BentoML's client between services is closed after 100 calls unless told otherwise, and the
    # calls in flight die with it. A readiness probe is such a call, and so is each generation.
    slow = pool.submit(post, server, short_clip, num_inference_steps=200)
    server.wait_for_metric("foley_running", 1)
    assert list(pool.map(server.probe, ["/readyz"] * 130)) == [200] * 130
    assert not slow.done(), "too short a call to show anything"
    short = [pool.submit(post, server, short_clip, num_inference_steps=1) for _ in range(3)]
    assert [call.result().status_code for call in [slow, *short]] == [200] * 4


def test_one_call_too_many_is_told_to_come_again(
    server: Server, pool: ThreadPoolExecutor, short_clip: bytes
) -> None:
    assert server.generate(short_clip, num_inference_steps=1).status_code == 200
    calls = [
        pool.submit(post, server, short_clip, num_inference_steps=40)
        for _ in range(MAX_CONCURRENCY)
    ]
    wait_until_in_house(server, MAX_CONCURRENCY)
    refused = server.generate(short_clip)
    check(refused, 429, "busy", str(MAX_CONCURRENCY))
    # Where nothing was measured yet it is 5; these take a second or two, four at once.
    assert 1 <= int(refused.headers["retry-after"]) < 5
    assert server.probe("/readyz") == 200
    assert [call.result().status_code for call in calls] == [200] * MAX_CONCURRENCY
    assert server.generate(short_clip, num_inference_steps=1).status_code == 200


def test_a_caller_who_leaves_frees_the_model(
    server: Server, pool: ThreadPoolExecutor, short_clip: bytes
) -> None:
    before = server.metric('foley_errors_total{code="cancelled"}')
    left: list[Future[httpx.Response]] = [
        pool.submit(post, server, short_clip, 2, **ENDLESS) for _ in range(2)
    ]
    server.wait_for_metric("foley_running", 1)
    for call in concurrent.futures.as_completed(left):
        assert isinstance(call.exception(), httpx.ReadTimeout)
    started = time.monotonic()
    assert server.generate(short_clip, num_inference_steps=1).status_code == 200
    assert time.monotonic() - started < 3  # measured: 0.3 s; the calls left would take a minute
    server.wait_until_scratch_is_empty()
    assert server.metric('foley_errors_total{code="cancelled"}') == before + 2


def test_callers_who_leave_free_their_places_while_the_model_works(
    server: Server, pool: ThreadPoolExecutor, short_clip: bytes
) -> None:
    running = pool.submit(post, server, short_clip, 9, **ENDLESS)
    server.wait_for_metric("foley_running", 1)
    left = [pool.submit(post, server, short_clip, 3, **ENDLESS) for _ in range(MAX_CONCURRENCY - 1)]
    wait_until_in_house(server, MAX_CONCURRENCY)
    for call in left:
        assert isinstance(call.exception(), httpx.ReadTimeout)
    wait_until_in_house(server, 1)
    following = server.generate(short_clip, num_inference_steps=1)
    assert not running.done(), "left too early to show anything"
    assert following.status_code == 200
    assert isinstance(running.exception(), httpx.ReadTimeout)


def test_a_short_call_ends_while_a_long_one_goes_on(
    server: Server, pool: ThreadPoolExecutor, short_clip: bytes, real_clip: bytes
) -> None:
    long = pool.submit(post, server, real_clip, num_inference_steps=50)
    server.wait_for_metric("foley_running", 1)
    started = time.monotonic()
    assert server.generate(short_clip, num_inference_steps=2).status_code == 200
    assert not long.done()
    assert time.monotonic() - started < 3  # measured: 0.7 s; the long one takes 5 s
    assert long.result().status_code == 200
    for name in ("batch_size", "batch_tokens", "step_seconds", "wait_seconds"):
        assert server.metric(f"foley_{name}_count") > 0


def test_metrics_hold_ours_and_those_of_bentoml(server: Server, short_clip: bytes) -> None:
    before = server.metric("foley_audio_seconds_total")
    response = server.generate(short_clip, num_inference_steps=1)
    seconds = float(response.headers["x-foley-duration-seconds"])
    assert server.metric("foley_audio_seconds_total") - before == pytest.approx(seconds, abs=1e-5)
    for stage in json.loads(response.headers["x-foley-timings"]):
        if stage != "total":
            assert server.metric(f'foley_stage_seconds_count{{stage="{stage}"}}') > 0
    errors = server.metric('foley_errors_total{code="not_found"}')
    assert server.client.get("/nowhere").status_code == 404
    assert server.metric('foley_errors_total{code="not_found"}') == errors + 1
    assert server.metric("foley_queue_depth") == 0
    text = server.client.get("/metrics").text
    assert 'bentoml_service_request_total{endpoint="/generate"' in text  # of the runner


def test_requests_are_counted_by_route_whatever_paths_are_tried(server: Server) -> None:
    before = server.metric('foley_requests_total{route="other",status="404"}')
    name = 'foley_requests_total{route="/v1/results/{request_id}/{file}",status="404"}'
    kept = server.metric(name)
    for number in range(3):
        server.client.get(f"/tried-{number}/secret")
        server.client.get(f"/v1/results/tried-{number}/foley-1.wav")
    text = server.client.get("/metrics").text
    assert "tried-" not in text
    assert server.metric('foley_requests_total{route="other",status="404"}') == before + 3
    assert server.metric(name) == kept + 3
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
    # The first line is the launcher's, from before any process of ours.
    assert [json.loads(line) for line in lines[1:]].count(event) == 1
    assert event["event"] == "request"
    assert event["status"] == 422
    assert event["code"] == "invalid_parameter"
    assert event["path"] == "/v1/generate"


def test_the_api_reads_no_clip_itself(server: Server, short_clip: bytes) -> None:
    assert server.generate(short_clip, num_inference_steps=1).status_code == 200
    workers = [process for process in server.family() if "FoleyApi" in process.cmdline()]
    readers = [
        process for process in server.family() if "runners.sandbox.fork_server" in process.cmdline()
    ]
    assert len(workers) == len(readers) == 1

    def libraries(process: psutil.Process) -> str:
        return " ".join(mapped.path for mapped in process.memory_maps())

    for library in ("libavcodec", "libtorch"):
        assert library in libraries(readers[0])
        assert library not in libraries(workers[0])
