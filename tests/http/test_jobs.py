"""Durable jobs over HTTP: one job at a time, on the shared server."""

import asyncio
import base64
import json
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from foley.client import verify_webhook
from foley.errors import NotFoundError
from foley.media.inspection import inspect_file
from runners.auth import ApiKeys
from runners.durable.request import JobOptions, JobRequest
from runners.durable.service import JobService
from runners.http.jobs import JobHandlers, build_job_routes
from runners.http.middleware import ErrorMiddleware
from runners.http.responses import KeptFile
from runners.settings import Settings
from tests.durable.receiver import SECRET, receive_webhooks
from tests.durable.reception import make_reception
from tests.http.test_generate import samples
from tests.media.clips import list_packets
from tests.media.test_images import draw_picture
from tests.patience import is_within, scale, wait_until
from tests.server import ENDLESS, Server

FEW_STEPS = {"num_inference_steps": "2", "seed": "11"}


def submit(
    server: Server, clip: bytes | None, key: str | None = None, **fields: object
) -> httpx.Response:
    parts: dict[str, Any] = {name: (None, str(value)) for name, value in fields.items()}
    if clip is not None:
        parts["clip"] = ("clip.mp4", clip)
    headers = {"Idempotency-Key": key} if key else {}
    return server.client.post("/v1/jobs", files=parts, headers=headers)


def accept(server: Server, clip: bytes | None, **fields: object) -> dict[str, Any]:
    response = submit(server, clip, **fields)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == response.json()["status_url"]
    job: dict[str, Any] = response.json()
    return job


def wait_for_end(server: Server, job: dict[str, Any]) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = server.client.get(job["status_url"]).json()
        return None if found["state"] in ("queued", "running") else found

    ended_job = wait_until(ended, 60, what=lambda: server.client.get(job["status_url"]).text)
    assert ended_job is not None
    return ended_job


def read_events(server: Server, job: dict[str, Any], last: str = "") -> list[tuple[str, Any]]:
    """Return the id and the data of each event until the stream ends."""
    response = server.client.get(job["events_url"], headers={"Last-Event-ID": last})
    events = []
    for block in response.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if lines:
            assert lines["event"] == "job"
            events.append((lines["id"], json.loads(lines["data"])))
    return events


@pytest.fixture(scope="module")
def done(server: Server, short_clip: bytes) -> dict[str, Any]:
    return wait_for_end(server, accept(server, short_clip, also="wav", **FEW_STEPS))


def test_a_job_gives_the_marked_sound_of_the_same_request_made_directly(
    server: Server, short_clip: bytes, done: dict[str, Any], tmp_path: Path
) -> None:
    assert done["state"] == "succeeded", done
    assert done["result"]["seeds"] == [11]
    files = done["result"]["files"]
    assert [file["format"] for file in files] == ["mp4", "wav"]
    for file in files:
        got = server.client.get(file["url"])
        assert got.headers["content-type"] == file["media_type"]
        assert len(got.content) == file["bytes"]
        direct = server.generate(short_clip, format=file["format"], **FEW_STEPS)
        assert list_packets(got.content) == list_packets(direct.content)
        path = tmp_path / f"job.{file['format']}"
        path.write_bytes(got.content)
        found = inspect_file(path)
        assert (found.state, found.made and found.made["seed"]) == ("valid", 11)
    assert server.client.get(done["result_url"]).headers["content-type"] == "video/mp4"


def test_a_result_is_sent_by_range(server: Server, done: dict[str, Any]) -> None:
    whole = server.client.get(done["result_url"]).content
    part = server.client.get(done["result_url"], headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.content == whole[100:200]


@pytest.mark.parametrize("given", ["", "bytes=1000-", "bytes=0-199999,300000-"])
def test_a_result_that_is_deleted_while_it_is_sent_comes_whole(tmp_path: Path, given: str) -> None:
    path = tmp_path / "foley-1.wav"
    content = random.Random(0).randbytes(3_000_000)
    path.write_bytes(content)
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == (206 if given else 200)
        elif body := message["body"]:
            sent.append(body)
            path.unlink(missing_ok=True)

    async def receive() -> Any:
        await asyncio.sleep(60)

    headers = [(b"range", given.encode())] if given else []
    scope = {"type": "http", "method": "GET", "headers": headers}
    asyncio.run(KeptFile(path)(scope, receive, send))
    received = b"".join(sent)
    assert 1 < len(sent) < 10  # each piece costs a turn of another thread
    if given.count("-") == 2:
        assert content[:200_000] in received
        assert content[300_000:] in received
    else:
        assert received == content[1000 if given else 0 :]
    with pytest.raises(NotFoundError, match="no longer kept"):
        asyncio.run(KeptFile(path)(scope, receive, send))


def test_an_ended_job_says_when(server: Server, done: dict[str, Any]) -> None:
    times = [done[f"{name}_at"] for name in ("created", "started", "finished", "expires")]
    assert times == sorted(times)
    assert done["priority"] == "bulk"
    assert "progress" not in done
    assert "queue_position" not in done


def test_a_result_says_for_how_long_devices_worked_on_it(
    server: Server, short_clip: bytes, done: dict[str, Any]
) -> None:
    result = done["result"]
    assert 0 < result["device_seconds"] < result["timings_seconds"]["total"]
    longer = wait_for_end(server, accept(server, short_clip, num_inference_steps=40))
    assert longer["result"]["device_seconds"] > result["device_seconds"]


def test_events_end_with_the_job_and_resume_after_the_last_one(
    server: Server, done: dict[str, Any]
) -> None:
    job = accept(server, None, prompt="rain", duration_seconds=1, num_inference_steps=2)
    events = read_events(server, job)
    assert [event_id for event_id, _ in events] == list(dict(events))  # each once
    last_id, last = events[-1]
    assert last["state"] == "succeeded"
    assert last == server.client.get(job["status_url"]).json()
    assert read_events(server, job, last=events[0][0])[-1] == events[-1]
    again = server.client.get(job["events_url"], headers={"Last-Event-ID": last_id})
    assert again.status_code == 204  # a browser does not connect again after it
    assert server.client.get(last["result_url"]).headers["content-type"] == "audio/wav"


def test_the_same_request_under_one_key_is_one_job(server: Server, short_clip: bytes) -> None:
    key = f"order-{time.time_ns()}"
    first = submit(server, short_clip, key, num_inference_steps=2)
    again = submit(server, short_clip, key, num_inference_steps=2)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["id"] == first.json()["id"]
    other = submit(server, short_clip, key, num_inference_steps=3)
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "conflict"
    assert submit(server, short_clip, "two words").status_code == 422
    done = wait_for_end(server, first.json())
    repeated = submit(server, short_clip, key, num_inference_steps=2)
    assert repeated.json() == done


def test_a_running_job_tells_its_progress_and_is_cancelled(
    server: Server, short_clip: bytes
) -> None:
    job = accept(server, short_clip, **ENDLESS)
    wait_until(
        lambda: server.client.get(job["status_url"]).json().get("progress", {}).get("step"),
        what="no progress",
    )
    assert server.client.get(job["result_url"]).status_code == 409
    refused = server.client.delete(job["status_url"])
    assert refused.status_code == 409
    assert "cancel it first" in refused.json()["error"]["message"]
    started = time.monotonic()
    cancelled = server.client.post(job["cancel_url"]).json()
    assert cancelled["state"] == "cancelled"
    server.wait_for_num_requests(0)  # the model does not go on
    assert is_within(time.monotonic() - started, 1)
    assert server.client.post(job["cancel_url"]).json() == cancelled
    assert read_events(server, job)[-1][1] == cancelled
    assert server.client.delete(job["status_url"]).status_code == 204
    assert server.client.get(job["status_url"]).status_code == 404


def test_a_job_waits_its_turn_and_is_cancelled_there(server: Server, short_clip: bytes) -> None:
    # Two jobs run at once, half of the places.
    jobs = [accept(server, short_clip, **ENDLESS) for _ in range(4)]
    try:
        states = wait_until(
            lambda: (
                (
                    found := [server.client.get(job["status_url"]).json() for job in jobs],
                    [job["state"] for job in found] == ["running"] * 2 + ["queued"] * 2,
                )[1]
                and found
            ),
            what="not two jobs run",
        )
        assert [job.get("queue_position") for job in states] == [None, None, 0, 1]
        assert [job.get("starts") for job in states] == [1, 1, None, None]
        soon = (datetime.now(UTC) + timedelta(seconds=scale(1))).isoformat()
        late = wait_for_end(server, accept(server, short_clip, start_by=soon, **FEW_STEPS))
        assert (late["state"], late["error"]["code"]) == ("failed", "not_started")
        assert server.generate(short_clip, **FEW_STEPS).status_code == 200  # goes first
    finally:
        for job in reversed(jobs):
            assert server.client.post(job["cancel_url"]).json()["state"] == "cancelled"
    server.wait_for_num_requests(0)


@pytest.mark.parametrize("clip", [b"no video", b""])
def test_a_clip_that_cannot_be_used_fails_the_job_with_its_code(
    server: Server, clip: bytes
) -> None:
    direct = server.generate(clip).json()["error"]
    failed = wait_for_end(server, accept(server, clip))
    assert failed["state"] == "failed"
    assert failed["error"] == {"code": direct["code"], "message": direct["message"]}
    assert server.client.get(failed["result_url"]).status_code == 409


def test_jobs_are_listed_in_pages(server: Server, done: dict[str, Any]) -> None:
    wait_for_end(server, accept(server, None, prompt="rain", duration_seconds=1, **FEW_STEPS))
    page = server.client.get("/v1/jobs", params={"limit": 1}).json()
    assert len(page["jobs"]) == 1
    assert page["next_offset"] == 1
    listed = server.client.get("/v1/jobs", params={"state": "succeeded", "limit": 100}).json()
    assert done in listed["jobs"]
    assert {job["state"] for job in listed["jobs"]} == {"succeeded"}


@pytest.mark.parametrize("query", ["state=done", "limit=0", "limit=101", "limit=x", "offset=-1"])
def test_a_wrong_parameter_of_a_list_is_named(server: Server, query: str) -> None:
    refused = server.client.get(f"/v1/jobs?{query}")
    assert refused.status_code == 422
    assert refused.json()["error"]["message"].startswith(query.split("=")[0] + ":")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"seed": "x"}, "seed"),
        ({"speed": 1}, "speed"),
        ({"format": "gif"}, "f"),
        ({"adapters": "glass"}, "adapters: no adapter is called 'glass'; there are rattle"),
        ({"start_by": "2026-01-01T00:00:00"}, "start_by"),  # without a zone
        ({"start_by": "2026-01-01T00:00:00Z"}, "start_by: 2026-01-01T00:00:00+00:00 has passed"),
    ],
)
def test_a_wrong_option_is_refused_before_the_job_is_accepted(
    server: Server, short_clip: bytes, fields: dict[str, object], name: str
) -> None:
    refused = submit(server, short_clip, **fields)
    assert refused.status_code == 422
    assert refused.json()["error"]["message"].startswith(name)


def test_a_mix_that_does_not_fit_is_refused_before_the_job_is_accepted(
    server: Server, short_clip: bytes
) -> None:
    response = submit(server, short_clip, original_sound="keep", format="wav")
    assert response.status_code == 422
    assert "format wav" in response.json()["error"]["message"]


def test_an_unknown_job_is_not_found(server: Server) -> None:
    for path in ("", "/events", "/result", "/result/foley-1.wav"):
        assert server.client.get(f"/v1/jobs/{'0' * 32}{path}").status_code == 404
    assert server.client.get("/v1/jobs/..%2Fjobs.secret").status_code == 404


def test_the_events_of_a_job_that_is_deleted_meanwhile_end_with_an_error(tmp_path: Path) -> None:
    settings = Settings(jobs_dir=tmp_path)
    jobs = JobService(settings)
    reception = make_reception(settings, jobs)
    with jobs.files.receive() as folder:
        request = JobRequest.settle(JobOptions(prompt="rain", duration_seconds=1), None)
        job = jobs.accept("", folder, request, upload=None, idempotency_key=None, root="")

    async def read() -> httpx.Response:
        api = SimpleNamespace(job_handlers=JobHandlers(settings, reception))
        router = Starlette(routes=build_job_routes(lambda: api))

        async def delete_once_it_is_watched(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_and_delete(message: Message) -> None:
                await send(message)
                if b"event: job" in message.get("body", b""):
                    jobs.queue.cancel("", job.id)
                    jobs.delete("", job.id)

            await router(scope, receive, send_and_delete)

        app = ErrorMiddleware(delete_once_it_is_watched, ApiKeys([]))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(f"/v1/jobs/{job.id}/events", headers={"X-Request-Id": "mine"})

    with capture_logs() as logs:
        answer = asyncio.run(read())
    jobs.close()
    first, last, rest = answer.text.split("\n\n")
    assert "event: job\n" in first
    name, data = last.split("\n")
    assert (name, rest) == ("event: error", "")
    error = json.loads(data.removeprefix("data: "))["error"]
    assert (error["code"], error["request_id"]) == ("not_found", "mine")
    (logged,) = (entry for entry in logs if entry["event"] == "request")
    assert (logged["status"], logged["code"]) == (200, "not_found")


@pytest.mark.long
def test_a_killed_executor_is_replaced_and_its_job_is_finished(
    server: Server, short_clip: bytes
) -> None:
    job = accept(server, short_clip, num_inference_steps=100)
    wait_until(
        lambda: server.client.get(job["status_url"]).json().get("progress", {}).get("step"),
        what="no progress",
    )
    (executor,) = server.find("runners.durable.executor")
    executor.kill()
    done = wait_for_end(server, job)
    assert done["state"] == "succeeded", done
    (replaced,) = server.find("runners.durable.executor")
    assert replaced.pid != executor.pid
    assert time.time() - replaced.create_time() < scale(120)


def test_a_job_edits_a_file_that_it_keeps_and_another_job_its_result(
    server: Server, short_clip: bytes, voiced_clip: bytes
) -> None:
    edit = {"source": "file", "ranges": [{"start_seconds": 0.25, "stop_seconds": 0.5}]}
    parts = {
        "edit": (None, json.dumps(edit)),
        "format": (None, "wav"),
        "clip": ("clip", short_clip),
        "edit_source": ("a.mov", voiced_clip),
        **{name: (None, value) for name, value in FEW_STEPS.items()},
    }
    response = server.client.post("/v1/jobs", files=parts)
    assert response.status_code == 202, response.text
    first = wait_for_end(server, response.json())
    assert first["state"] == "succeeded", first
    edit["source"] = first["id"]
    options = {**FEW_STEPS, "format": "wav", "edit": json.dumps(edit), "negative_prompt": "wind"}
    second = wait_for_end(server, accept(server, short_clip, **options))
    assert second["state"] == "succeeded", second
    first_sound, second_sound = (
        samples(server.client.get(job["result_url"]).content) for job in (first, second)
    )
    assert (first_sound[: 2 * 12_000] == second_sound[: 2 * 12_000]).all()
    assert not (first_sound == second_sound).all()


def test_a_job_takes_the_clip_from_where_it_is(
    server: Server, short_clip: bytes, done: dict[str, Any]
) -> None:
    uri = "data:video/mp4;base64," + base64.b64encode(short_clip).decode()
    job = wait_for_end(server, accept(server, None, clip_url=uri, **FEW_STEPS))
    assert job["state"] == "succeeded", job
    files = [server.client.get(found["result_url"]).content for found in (job, done)]
    assert list_packets(files[0]) == list_packets(files[1])
    refused = submit(server, None, clip_url=f"http://127.0.0.1:{server.port}/docs", **FEW_STEPS)
    assert refused.status_code == 422
    assert refused.json()["error"]["code"] == "clip_not_fetched"


def test_a_still_picture_is_the_clip_of_a_job(server: Server) -> None:
    picture, options = draw_picture(3), {"duration_seconds": 1.2, **FEW_STEPS}
    job = wait_for_end(server, accept(server, picture, **options))
    assert job["state"] == "succeeded", job
    made = server.client.get(job["result_url"]).content
    direct = server.generate(picture, **options)
    assert direct.headers["content-type"] == "video/mp4", direct.text
    assert list_packets(made) == list_packets(direct.content)


def test_a_job_comes_as_json(server: Server, short_clip: bytes, done: dict[str, Any]) -> None:
    uri = "data:video/mp4;base64," + base64.b64encode(short_clip).decode()
    cues = [{"start_seconds": 0.0, "stop_seconds": 0.5, "prompt": "rain"}]
    fields = {"clip_url": uri, "num_inference_steps": 2, "seed": 11, "also": ["wav"]}
    response = server.client.post("/v1/jobs", json=fields)
    assert response.status_code == 202, response.text
    with_cues = server.client.post("/v1/jobs", json={**fields, "cues": cues}).json()
    job = wait_for_end(server, response.json())
    files = [server.client.get(found["result_url"]).content for found in (job, done)]
    assert list_packets(files[0]) == list_packets(files[1])
    assert [file["format"] for file in job["result"]["files"]] == ["mp4", "wav"]
    assert wait_for_end(server, with_cues)["state"] == "succeeded"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("{", 400, "the body is not JSON"),
        (100_000 * "[", 400, "the body is not JSON"),
        ("[]", 400, "the body is JSON, but no object"),
        ('{"prompt": "rain"}', 422, "clip: missing"),
        ('{"prompt": "x", "duration_seconds": 1, "seed": 1.5}', 422, "seed:"),
        ('{"prompt": "x", "duration_seconds": true}', 422, "duration_seconds: input should be a"),
        ('{"prompt": "x", "duration_seconds": 1, "speed": 1}', 422, "speed:"),
        ('{"duration_seconds": NaN}', 400, "the body is not JSON"),
        ('{"clip_url": "s3://bucket/clip"}', 422, "clip_url: s3://bucket/clip lies in no bucket"),
        (
            '{"prompt": "x", "duration_seconds": 1, "output": "s3://bucket/x"}',
            422,
            "output: s3://bucket/x lies in no bucket that this service uses for it; it uses none",
        ),
    ],
)
def test_json_that_is_no_job_is_refused(server: Server, body: str, status: int, words: str) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    refused = server.client.post("/v1/jobs", content=body, headers=headers)
    assert refused.status_code == status, refused.text
    assert refused.json()["error"]["message"].startswith(words)


def test_the_end_of_a_job_is_told_to_its_receiver(server: Server) -> None:
    with receive_webhooks() as receiver:
        receiver.statuses = [410, 200]
        fields = {"prompt": "rain", "duration_seconds": 1, "webhook_url": receiver.url}
        job = accept(server, None, num_inference_steps=2, **fields)
        assert job["webhook"]["state"] == "waiting"

        def failed() -> Any:
            listed = server.client.get("/v1/webhooks/failed")
            assert listed.status_code == 200, listed.text
            return listed.json()["webhooks"]

        (given_up,) = wait_until(failed, 60, what="it was not given up")
        assert (given_up["job_id"], given_up["tries"]) == (job["id"], 1)
        resent = server.client.post(given_up["resend_url"])
        assert resent.json()["state"] == "sending"
        wait_until(lambda: len(receiver.got) == 2, what="it was not sent again")
    for headers, body in receiver.got:
        told = verify_webhook(SECRET, body, headers)
        assert (told.id, told.state) == (job["id"], "succeeded")
        assert headers["webhook-id"] == f"msg_{job['id']}"
    wait_until(
        lambda: wait_for_end(server, job)["webhook"]["state"] == "delivered",
        what="it was not delivered",
    )
    listed = server.client.get("/v1/jobs", params={"limit": 100}).json()["jobs"]
    assert [found["webhook"] for found in listed if found["id"] == job["id"]]


@pytest.mark.parametrize("url", ["http://169.254.169.254/", "gopher://a.test/", "http://10.0.0.1/"])
def test_a_receiver_that_cannot_be_one_is_refused(server: Server, url: str) -> None:
    refused = submit(server, None, prompt="rain", duration_seconds=1, webhook_url=url)
    assert refused.status_code == 422
    assert refused.json()["error"]["message"].startswith("webhook_url: the receiver's address")
    assert server.client.post("/v1/webhooks/../resend").status_code == 404
    assert server.client.post(f"/v1/webhooks/{'0' * 32}/resend").status_code == 404
