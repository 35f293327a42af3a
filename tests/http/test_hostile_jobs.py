"""What no caller should send about jobs, on the shared server: each has its answer, and harms none.

Other such requests are among the tests of what they are about, such as `tests/http/test_jobs.py`.
"""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.http.test_jobs import accept, wait_for_end
from tests.http.test_refusals import check
from tests.server import ENDLESS, Server

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
RAIN = {"prompt": "rain", "duration_seconds": 1, "num_inference_steps": 1}
DEEP = 10_000


def write(**fields: object) -> str:
    return json.dumps({**RAIN, **fields})


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        ({}, "", 415, "send the clip and the options as multipart/form-data"),
        (FORM, "", 400, "the form cannot be read"),
        (JSON, "", 400, "the body is not JSON"),
        (JSON, "null", 400, "the body is JSON, but no object"),
        (JSON, DEEP * "[" + DEEP * "]", 400, "the body is not JSON"),
        (JSON, f'{{"cues": {DEEP * "["}{DEEP * "]"}}}', 400, "the body is not JSON"),
        (JSON, DEEP * '{"a":' + "1" + DEEP * "}", 400, "the body is not JSON"),
        (JSON, '{"prompt": "\\ud800"}', 400, "the body is not JSON"),
        (JSON, write(webhook_url="http://a.test/" + 100_000 * "a"), 422, "longer than 4096"),
        (JSON, write(webhook_url={"a": 1}), 422, "webhook_url:"),
        (JSON, json.dumps({"upload": 100_000 * "a"}), 404, "no such upload"),
        (JSON, write(clip_url="x"), 422, "the clip's address must begin with"),
        (JSON, write(output="s3://" + 100_000 * "a"), 422, "names no bucket; write s3://BUCKET"),
        (JSON, write(start_by="2026-01-01T00:00:00Z"), 422, "start_by: 2026-01-01T00:00:00+00:00"),
        (JSON, write(start_by="9999-12-31T23:59:59-23:59"), 422, "between the years 1 and"),
        (JSON, write(start_by=-1), 422, "start_by: 1969"),
        (JSON, write(start_by=1e308), 422, "start_by"),
        (JSON, write(pieces=True), 422, "pieces: are for a caller who waits"),
        (JSON | {"Idempotency-Key": ""}, write(), 422, "Idempotency-Key: '' is no key"),
        (JSON | {"Idempotency-Key": 10_000 * "k"}, write(), 422, "use 1 to 255 visible ASCII"),
        (JSON | {"Idempotency-Key": "a\tb"}, write(), 422, "use 1 to 255 visible ASCII"),
        (JSON | {"Idempotency-Key": "caf\u00e9"}, write(), 422, "use 1 to 255 visible ASCII"),
    ],
)
def test_a_hostile_submission_is_refused(
    server: Server, headers: dict[str, str], body: str, status: int, words: str
) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    refused = server.client.post("/v1/jobs", content=body.encode(), headers=encoded)
    assert refused.status_code == status, refused.text[:500]
    message = refused.json()["error"]["message"]
    assert words in message
    assert len(message) < 1000


@pytest.fixture(scope="module")
def done(server: Server) -> dict[str, Any]:
    return wait_for_end(server, accept(server, None, **RAIN))


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "words"),
    [
        *[
            ("GET", f"/v1/jobs?{name}={value}", {}, 422, f"{name}: must be")
            for name, values in {
                "limit": ("0", "-1", "abc", "", "1e1", "%D9%A1", "1%00", 100 * "9"),
                "offset": ("-1", "1.5", 100 * "9"),
            }.items()
            for value in values
        ],
        ("GET", "/v1/jobs?state=%00", {}, 422, "state: '\\x00' is none"),
        ("GET", "/v1/jobs/%00", {}, 404, "no such job"),
        ("GET", "/v1/jobs/" + 10_000 * "0", {}, 404, "no such job"),
        ("GET", "/v1/jobs/%ff%fe", {}, 404, "no such job"),
        ("POST", "/v1/jobs/%00/cancel", {}, 404, "no such job"),
        ("DELETE", "/v1/jobs/%00", {}, 404, "no such job"),
        ("POST", "/v1/webhooks/%00/resend", {}, 404, "no webhook"),
        ("GET", "/v1/jobs/{id}/result/..%2F..%2Fjobs.secret", {}, 404, ""),
        ("GET", "/v1/jobs/{id}/result/%00", {}, 404, "no such file"),
        ("GET", "/v1/jobs/{id}/result/" + 10_000 * "a" + ".wav", {}, 404, "no such file"),
        ("GET", "/v1/jobs/{id}/result", {"Range": "bytes=999999999-"}, 416, ""),
        ("PUT", "/v1/jobs/{id}", {}, 405, ""),
    ],
)
def test_a_hostile_question_is_refused(
    server: Server,
    done: dict[str, Any],
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    words: str,
) -> None:
    refused = server.client.request(method, path.format(id=done["id"]), headers=headers)
    assert refused.status_code == status, refused.text[:500]
    assert words in refused.json()["error"]["message"]
    assert server.client.get(done["status_url"]).json() == done


@pytest.mark.parametrize("last", ["f" * 16, "999999999999", "-1", "x" * 10_000, "caf\u00e9"])
def test_events_from_an_unknown_one_are_the_job_as_it_is(
    server: Server, done: dict[str, Any], last: str
) -> None:
    headers = {"Last-Event-ID": last.encode()}
    events = server.client.get(done["events_url"], headers=headers).text
    (data,) = [line[6:] for line in events.splitlines() if line.startswith("data: ")]
    assert json.loads(data) == done


def test_a_job_that_was_deleted_is_gone_for_every_call(server: Server) -> None:
    job = wait_for_end(server, accept(server, None, **RAIN))
    assert server.client.delete(job["status_url"]).status_code == 204
    for method, url in (
        ("DELETE", job["status_url"]),
        ("GET", job["status_url"]),
        ("POST", job["cancel_url"]),
        ("GET", job["events_url"]),
        ("GET", job["result_url"]),
    ):
        check(server.client.request(method, url), 404, "not_found", "no such job")


def test_a_job_is_finished_and_told_though_the_clock_was_set_back_meanwhile(
    server: Server,
) -> None:
    """What was accepted before is an hour in the future then."""
    held = [accept(server, None, prompt="rain", duration_seconds=1, **ENDLESS) for _ in range(2)]
    job = accept(server, None, **RAIN)
    database = Path(server.settings["FOLEY_JOBS_DIR"], "jobs.sqlite")
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute(
            "UPDATE workflow_status SET created_at = created_at + 3600000 WHERE workflow_uuid = ?",
            (job["id"],),
        )
    for each in held:
        server.client.post(each["cancel_url"])
    done = wait_for_end(server, job)
    assert done["state"] == "succeeded"
    assert done["created_at"] > done["finished_at"]
    assert server.client.delete(done["status_url"]).status_code == 204
