"""Server-sent events, kept results and cancelling, with two API workers and with keys."""

import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import httpx
import numpy as np
import pytest

from foley.media.inspection import inspect_file
from tests.http.test_generate import samples, seconds_of_sound
from tests.http.test_refusals import POST, check, exchange_raw
from tests.keyed import FIRST_KEY, KEEP, KEEP_BYTES, SECOND_KEY
from tests.patience import is_within, scale, wait_until
from tests.server import ENDLESS, Server

KEY = {"Authorization": f"Bearer {FIRST_KEY}"}
OTHER_KEY = {"X-Api-Key": SECOND_KEY}
# 800 model evaluations: far longer than any test waits.
STAGES = ["decode_video", "queue", "encode", "sample", "decode_audio", "mux"]


Event = tuple[str, dict[str, object]]


def stream(
    server: Server,
    clip: bytes | None,
    *,
    path: str = "/v1/generate",
    accept: str = "text/event-stream",
    headers: dict[str, str] | None = None,
    **fields: object,
) -> Iterator[Event]:
    """The events of one request, as they come, on a connection of its own."""
    base_url, timeout = server.client.base_url, scale(60)
    with httpx.Client(base_url=base_url, timeout=timeout, trust_env=False) as client:
        data = {name: str(value) for name, value in fields.items()}
        headers = {**KEY, **(headers or {}), "Accept": accept}
        # Without a clip the fields are parts of a form all the same.
        body = {"files": {name: (None, value) for name, value in data.items()}}
        if clip is not None:
            body = {"files": {"clip": clip}, "data": data}
        with client.stream("POST", path, headers=headers, **body) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"] == "text/event-stream"
            event = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    event = line[7:]
                elif line.startswith("data: "):
                    yield event, json.loads(line[6:])


def request_anew(server: Server, method: str, path: str, **options: object) -> httpx.Response:
    """A call on a new connection, which either worker may get."""
    base_url, timeout = server.client.base_url, scale(30)
    with httpx.Client(base_url=base_url, timeout=timeout, trust_env=False) as client:
        return client.request(method, path, **{"headers": KEY, **options})  # type: ignore[arg-type]


def test_the_beginning_of_a_short_sound_has_an_address_before_its_end(keyed_server: Server) -> None:
    asked = {"prompt": "rain", "duration_seconds": 6, "num_inference_steps": 1, "seed": 1}
    asked |= {"pieces": "true", "format": "wav"}
    names, files = [], []
    for name, data in stream(keyed_server, None, **asked):
        names.append(name)
        if name == "sound":
            assert (data["number"], data["start_seconds"], data["duration_seconds"]) == (1, 0, 2.56)
            files.append(keyed_server.client.get(str(data["url"]), headers=KEY).content)
        if name == "result":
            (file,) = data["files"]  # type: ignore[misc]
            files.append(keyed_server.client.get(str(file["url"]), headers=KEY).content)
    assert names.count("sound") == 1
    beginning, whole = (samples(file) for file in files)
    assert len(beginning) == round(2.56 * 48_000)
    # Float noise, and two roundings to 24 bits; measured: 1.2e-6.
    np.testing.assert_allclose(beginning, whole[: len(beginning)], rtol=0, atol=1e-5)


def test_a_path_of_its_own_has_events_for_any_accept(
    keyed_server: Server, short_clip: bytes
) -> None:
    path = "/v1/generate/events"
    events = list(
        stream(keyed_server, short_clip, path=path, accept="audio/wav", num_inference_steps=1)
    )
    assert [events[0][0], events[-1][0]] == ["accepted", "result"]


def test_events_report_progress_and_then_the_files(
    keyed_server: Server, short_clip: bytes, tmp_path: Path
) -> None:
    given = {"X-Request-Id": "story-1"}
    fields = {"num_inference_steps": 4, "num_variations": 2, "seed": 5, "priority": "bulk"}
    fields["also"] = "wav,flac"
    events = list(stream(keyed_server, short_clip, headers=given, **fields))
    assert events[0] == ("accepted", {"request_id": "story-1"})
    assert {name for name, _ in events[1:-1]} == {"progress"}
    updates = [data for _, data in events[1:-1]]
    stages = list(dict.fromkeys(update["stage"] for update in updates))
    assert stages == STAGES
    steps = [update for update in updates if update["stage"] == "sample"]
    assert [update["num_steps"] for update in steps] == [4] * len(steps)
    assert [update["step"] for update in steps] == sorted(update["step"] for update in steps)
    assert steps[-1]["seconds_left"] == 0
    assert all(None not in update.values() for update in updates)

    name, result = events[-1]
    assert name == "result"
    assert result["request_id"] == "story-1"
    assert result["kept_seconds"] == int(keyed_server.settings[KEEP])
    assert result["seeds"] == [5, 6]
    assert (result["model"], result["sample_rate_hz"]) == ("tiny", 48_000)
    assert next(iter(result["timings_seconds"])) == "upload"
    files = result["files"]
    assert [(file["variation"], file["format"]) for file in files] == [
        (variation, kind) for variation in (1, 2) for kind in ("mp4", "wav", "flac")
    ]
    assert [file["seed"] for file in files] == [5, 5, 5, 6, 6, 6]
    for file in files:
        answer = request_anew(keyed_server, "GET", file["url"])
        assert answer.status_code == 200
        assert answer.headers["content-type"] == file["media_type"]
        assert len(answer.content) == file["bytes"]
        assert seconds_of_sound(answer.content) == pytest.approx(
            result["duration_seconds"], abs=0.05
        )
        with av.open(io.BytesIO(answer.content)) as reader:
            assert len(reader.streams.video) == int(file["format"] == "mp4")
        path = tmp_path / f"streamed.{file['format']}"
        path.write_bytes(answer.content)
        found = inspect_file(path)
        assert (found.state, found.made and found.made["seed"]) == ("valid", file["seed"])


@pytest.fixture(scope="module")
def kept(keyed_server: Server, short_clip: bytes) -> dict[str, object]:
    """A result's wav, and when it came."""
    (*_, (_, result)) = stream(keyed_server, short_clip, num_inference_steps=1, format="wav")
    (wav,) = result["files"]  # nothing that was not asked for
    return {"url": wav["url"], "bytes": wav["bytes"], "since": time.monotonic()}


def test_a_result_is_edited_by_its_id_without_being_sent_again(
    keyed_server: Server, voiced_clip: bytes
) -> None:
    options = {"num_inference_steps": 1, "format": "wav", "seed": 1}

    def read(url: str) -> np.ndarray:
        values = samples(keyed_server.client.get(url).content)
        return values.reshape(-1, 2).T  # the clip's own channels

    def edit(**fields: object) -> str:
        fields["ranges"] = [{"start_seconds": 0.25, "stop_seconds": 0.5}]
        (*_, (_, result)) = stream(keyed_server, voiced_clip, edit=json.dumps(fields), **options)
        (wav,) = result["files"]
        return wav["url"]

    def outside(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[..., :12_000], values[..., 24_000:]], axis=-1)

    first = edit(source="original")
    made = read(first)
    tone = 0.05 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    assert np.abs(outside(made) - outside(tone[: made.shape[-1]])).max() < 1 / 2**23
    request_id = first.split("/")[-2]
    options["seed"] = 2
    for source in (request_id, f"{request_id}/foley-1.wav"):
        again = read(edit(source=source))
        assert np.array_equal(outside(again), outside(made))
        assert not np.array_equal(again, made)
    for headers, source in ((KEY, "unknown"), (OTHER_KEY, request_id)):
        sent = {"files": {"clip": voiced_clip}, "data": {"edit": json.dumps({"source": source})}}
        refused = request_anew(keyed_server, "POST", "/v1/generate", headers=headers, **sent)
        check(refused, 422, "invalid_parameter", f"edit.source: there is no result {source}")


def test_results_are_served_in_ranges_by_any_worker(
    keyed_server: Server, kept: dict[str, object]
) -> None:
    whole = keyed_server.client.get(kept["url"]).content
    for _ in range(8):
        part = request_anew(
            keyed_server, "GET", kept["url"], headers={**KEY, "Range": "bytes=4-11"}
        )
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes 4-11/{kept['bytes']}"
        assert part.content == whole[4:12]
    head = request_anew(keyed_server, "HEAD", kept["url"])
    assert (head.status_code, head.headers["accept-ranges"]) == (200, "bytes")
    outside = {**KEY, "Range": "bytes=99999999-"}
    refused = request_anew(keyed_server, "GET", kept["url"], headers=outside)
    check(refused, 416, "range_not_satisfiable")
    assert refused.headers["content-range"] == f"bytes */{kept['bytes']}"
    check(
        request_anew(keyed_server, "GET", kept["url"], headers={**KEY, "Range": "bytes=x"}),
        400,
        "invalid_request",
    )


def test_a_result_belongs_to_the_key_that_made_it(
    keyed_server: Server, kept: dict[str, object]
) -> None:
    check(request_anew(keyed_server, "GET", kept["url"], headers=OTHER_KEY), 404, "not_found")
    check(request_anew(keyed_server, "GET", kept["url"], headers={}), 401, "unauthorized")


def test_a_result_is_gone_after_its_time(keyed_server: Server, kept: dict[str, object]) -> None:
    seconds = int(keyed_server.settings[KEEP])
    time.sleep(max(0.0, kept["since"] + seconds + 0.1 - time.monotonic()))
    check(keyed_server.client.get(kept["url"]), 404, "not_found", f"{seconds} s")
    # Results are swept every tenth of their time.
    wait_until(lambda: not list(keyed_server.scratch.glob("foley-common-*/results/*")))


@pytest.mark.parametrize("name", ["foley-9.wav", "clip", "..", "%2e%2e%2fclip", "foley-1.wav%00"])
def test_other_names_are_not_found(keyed_server: Server, name: str) -> None:
    check(keyed_server.client.get(f"/v1/results/story-1/{name}"), 404, "not_found")


def test_a_result_that_cannot_be_kept_is_refused_before_the_sound_is_made(
    keyed_server: Server, clips: object, real_clip: bytes
) -> None:
    before = keyed_server.metric('foley_stage_seconds_count{stage="decode_video"}')
    data = {"num_variations": "8"}
    refused = keyed_server.client.post(
        "/v1/generate",
        files={"clip": real_clip},
        data=data,
        headers={"Accept": "text/event-stream"},
    )
    check(refused, 422, "invalid_output", str(KEEP_BYTES), "fewer variations")
    assert keyed_server.metric('foley_stage_seconds_count{stage="decode_video"}') == before


def test_errors_before_the_form_is_read_are_ordinary_and_later_ones_are_events(
    keyed_server: Server, short_clip: bytes
) -> None:
    headers = {"Accept": "text/event-stream"}
    refused = keyed_server.client.post(
        "/v1/generate", files={"clip": short_clip}, data={"seed": "-1"}, headers=headers
    )
    check(refused, 422, "invalid_parameter")
    before = keyed_server.metric('foley_errors_total{code="video_unreadable"}')
    given = {"X-Request-Id": "broken-1"}
    (*_, (name, data)) = stream(keyed_server, b"not a video", headers=given)
    assert name == "error"
    assert data["error"]["code"] == "video_unreadable"
    assert data["error"]["request_id"] == "broken-1"
    keyed_server.wait_for_metric('foley_errors_total{code="video_unreadable"}', before + 1)
    assert keyed_server.wait_for_log("broken-1")["code"] == "video_unreadable"


@pytest.mark.parametrize("stage", ["queue", "sample"])
def test_cancelling_takes_effect_within_a_second_whichever_worker_is_asked(
    keyed_server: Server, short_clip: bytes, stage: str
) -> None:
    with ThreadPoolExecutor() as pool:
        ahead = stream(keyed_server, short_clip, headers={"X-Request-Id": "ahead"}, **ENDLESS)
        if stage == "queue":
            while next(ahead)[1].get("stage") != "sample":
                pass
        events = stream(
            keyed_server, short_clip, headers={"X-Request-Id": f"cancel-{stage}"}, **ENDLESS
        )
        while next(events)[1].get("stage") != stage:
            pass
        started = time.monotonic()
        rest = pool.submit(list, events)
        answer = request_anew(keyed_server, "POST", f"/v1/requests/cancel-{stage}/cancel")
        assert answer.json() == {"cancelled": True}
        assert rest.result()[-1][1]["error"]["code"] == "cancelled"
        assert is_within(time.monotonic() - started, 1)
        ahead.close()
        keyed_server.wait_for_metric("foley_running", 0)
        gone = request_anew(keyed_server, "POST", f"/v1/requests/cancel-{stage}/cancel")
        check(gone, 404, "not_found")


def test_an_upload_that_goes_on_can_be_cancelled(keyed_server: Server) -> None:
    head = f"{POST}Authorization: Bearer {FIRST_KEY}\r\nX-Request-Id: upload-1\r\n"
    head += "Content-Length: 99\r\n\r\n"
    with ThreadPoolExecutor() as pool:
        call = pool.submit(exchange_raw, keyed_server, head.encode() + b"--b\r\n")
        path = "/v1/requests/upload-1/cancel"
        wait_until(lambda: request_anew(keyed_server, "POST", path).status_code != 404)
        started = time.monotonic()
        answer = call.result()
        assert is_within(time.monotonic() - started, 1)
    assert answer.startswith(b"HTTP/1.1 499 ")
    assert b'"cancelled"' in answer


def test_a_request_for_a_file_can_be_cancelled_too_but_not_by_another_key(
    keyed_server: Server, short_clip: bytes
) -> None:
    with ThreadPoolExecutor() as pool:
        options = {"files": {"clip": short_clip}, "data": {k: str(v) for k, v in ENDLESS.items()}}
        headers = {**KEY, "X-Request-Id": "file-1"}
        call = pool.submit(
            request_anew, keyed_server, "POST", "/v1/generate", headers=headers, **options
        )
        keyed_server.wait_for_metric("foley_running", 1)
        other = request_anew(keyed_server, "POST", "/v1/requests/file-1/cancel", headers=OTHER_KEY)
        check(other, 404, "not_found")
        assert not call.done()
        assert request_anew(keyed_server, "POST", "/v1/requests/file-1/cancel").status_code == 200
        check(call.result(), 499, "cancelled")


def test_a_caller_who_leaves_a_stream_stops_the_runner(
    keyed_server: Server, short_clip: bytes
) -> None:
    events = stream(keyed_server, short_clip, **ENDLESS)
    while next(events)[1].get("stage") != "sample":
        pass
    keyed_server.wait_for_metric("foley_running", 1)
    started = time.monotonic()
    events.close()
    keyed_server.wait_for_metric("foley_running", 0)
    # The call that was left would take a minute.
    assert is_within(time.monotonic() - started, 3)
    keyed_server.wait_until_scratch_is_empty()


def test_a_request_without_a_key_is_refused_before_the_body_is_read(keyed_server: Server) -> None:
    # Only the head is sent: a response can come only without the body.
    answer = exchange_raw(keyed_server, f"{POST}Content-Length: 1000\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: bearer" in answer.lower()
    assert b'"unauthorized"' in answer


def test_probes_and_the_document_need_no_key(keyed_server: Server) -> None:
    statuses = {
        path: request_anew(keyed_server, "GET", path, headers={}).status_code
        for path in (
            *("/livez", "/readyz", "/healthz", "/docs", "/docs.json", "/"),
            *("/v1/models", "/metrics", "/nowhere"),
        )
    }
    assert statuses == {
        "/livez": 200, "/readyz": 200, "/healthz": 200, "/docs": 200, "/docs.json": 200, "/": 307,
        "/v1/models": 401, "/metrics": 401, "/nowhere": 401,
    }  # fmt: skip
    assert request_anew(keyed_server, "GET", "/v1/models", headers=OTHER_KEY).status_code == 200
    assert FIRST_KEY not in keyed_server.log.read_text()
