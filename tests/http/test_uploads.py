"""Resumable uploads, by the public client tuspy and by hand, on the shared server."""

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tusclient.client import TusClient

from foley.errors import (
    BusyError,
    ConflictError,
    NotFoundError,
    StorageFullError,
    UploadTooLargeError,
)
from runners.durable import uploads
from runners.durable.files import MIN_ROOM_BYTES
from runners.durable.uploads import StoredUpload, UploadStore, remove_old_uploads
from tests.conftest import MAX_UPLOAD_BYTES
from tests.http.test_jobs import FEW_STEPS, submit, wait_for_end
from tests.media.clips import list_packets
from tests.patience import scale, wait_until
from tests.server import Server

TUS = {"Tus-Resumable": "1.0.0"}
PATCH = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}


def create(server: Server, num_bytes: int, **headers: str) -> str:
    """Begin an upload, and return its path."""
    response = server.client.post(
        "/v1/uploads", headers={**TUS, "Upload-Length": str(num_bytes), **headers}
    )
    assert response.status_code == 201, response.text
    location: str = response.headers["location"]
    return location


def offset(server: Server, path: str) -> int:
    return int(server.client.head(path, headers=TUS).headers["upload-offset"])


def test_a_public_client_uploads_in_pieces_resumes_and_a_job_takes_it(
    server: Server, short_clip: bytes
) -> None:
    client = TusClient(f"{server.client.base_url}/v1/uploads")
    piece = len(short_clip) // 3
    first = client.uploader(
        file_stream=io.BytesIO(short_clip), chunk_size=piece, metadata={"filename": "clip.mp4"}
    )
    first.upload_chunk()
    path = httpx.URL(first.url).path
    assert offset(server, path) == piece
    upload = path.rpartition("/")[2]
    early = submit(server, None, upload=upload, **FEW_STEPS)
    assert (early.status_code, early.json()["error"]["code"]) == (409, "conflict")
    second = client.uploader(file_stream=io.BytesIO(short_clip), chunk_size=piece, url=first.url)
    assert second.offset == piece
    second.upload()
    answer = server.client.head(path, headers=TUS)
    assert answer.headers["upload-metadata"] == "filename Y2xpcC5tcDQ="
    assert answer.headers["upload-length"] == str(len(short_clip))

    key = f"upload-{upload}"
    accepted = submit(server, None, key, upload=upload, **FEW_STEPS)
    assert accepted.status_code == 202, accepted.text
    again = submit(server, None, key, upload=upload, **FEW_STEPS)
    assert again.json()["id"] == accepted.json()["id"]
    done = wait_for_end(server, accepted.json())
    assert done["state"] == "succeeded", done
    direct = server.generate(short_clip, **FEW_STEPS)
    assert list_packets(server.client.get(done["result_url"]).content) == list_packets(
        direct.content
    )
    assert server.client.head(path, headers=TUS).status_code == 404  # the job has taken it


def test_what_arrived_before_a_connection_broke_is_kept(server: Server) -> None:
    path = create(server, 100_000)
    head = f"PATCH {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in PATCH.items()) + "\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=scale(60)) as connection:
        connection.sendall(head.encode() + b"x" * 40_000)
        wait_until(lambda: offset(server, path) == 40_000, what="the bytes did not arrive")
        busy = server.client.patch(path, headers={**PATCH, "Upload-Offset": "40000"}, content=b"y")
        assert busy.status_code == 409
        assert "another request writes" in busy.json()["error"]["message"]
    rest = {**PATCH, "Upload-Offset": "40000"}

    def goes_on() -> bool:
        return server.client.patch(path, headers=rest, content=b"y" * 60_000).status_code == 204

    wait_until(goes_on, what="the upload stayed locked")
    assert offset(server, path) == 100_000
    assert server.client.delete(path, headers=TUS).status_code == 204
    assert server.client.delete(path, headers=TUS).status_code == 404


def test_what_the_service_takes_is_described(server: Server) -> None:
    described = server.client.options("/v1/uploads")
    assert described.status_code == 204
    assert described.headers["tus-version"] == "1.0.0"
    assert described.headers["tus-max-size"] == str(MAX_UPLOAD_BYTES)
    assert described.headers["tus-extension"] == "creation,termination,expiration"


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"Tus-Resumable": "0.2.2"}, 412, "Tus-Resumable: uploads speak version 1.0.0"),
        ({"Upload-Length": "x"}, 422, "Upload-Length: must be"),
        ({"Upload-Length": "-1"}, 422, "Upload-Length: must be"),
        ({"Upload-Length": ""}, 422, "Upload-Length: must be"),
        ({"Upload-Length": "9" * 20}, 413, "Upload-Length: the limit is"),
        ({"Upload-Length": str(MAX_UPLOAD_BYTES + 1)}, 413, "Upload-Length: the limit is"),
        ({"Upload-Metadata": "a" * 5000}, 422, "Upload-Metadata: may have"),
    ],
)
def test_an_upload_that_cannot_be_is_refused(
    server: Server, headers: dict[str, str], status: int, message: str
) -> None:
    given = {**TUS, "Upload-Length": "10", **headers}
    refused = server.client.post("/v1/uploads", headers=given)
    assert refused.status_code == status
    assert refused.headers["tus-resumable"] == "1.0.0"
    assert message in refused.json()["error"]["message"]
    assert status != 412 or refused.headers["tus-version"] == "1.0.0"


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"Upload-Offset": "3"}, 409, "Upload-Offset: must be 0"),
        ({"Upload-Offset": ""}, 422, "Upload-Offset: must be a number"),
        ({"Content-Type": "text/plain"}, 415, "application/offset+octet-stream"),
        ({}, 413, "more than 10 bytes"),
        ({"X-HTTP-Method-Override": "PUT"}, 405, ""),
    ],
)
def test_bytes_that_do_not_belong_there_are_refused(
    server: Server, headers: dict[str, str], status: int, message: str
) -> None:
    path = create(server, 10)
    refused = server.client.patch(path, headers={**PATCH, **headers}, content=b"12345678901")
    assert refused.status_code == status, refused.text
    assert refused.headers["tus-resumable"] == "1.0.0"
    assert message in refused.json()["error"]["message"]
    assert offset(server, path) == 0
    override = {**PATCH, "X-HTTP-Method-Override": "PATCH"}
    assert server.client.post(path, headers=override, content=b"12").status_code == 204
    assert offset(server, path) == 2
    server.client.delete(path, headers=TUS)


def test_a_job_names_an_upload_or_a_clip(server: Server, short_clip: bytes) -> None:
    for upload in ("0" * 32, "../jobs.secret"):
        assert submit(server, None, upload=upload).status_code == 404
    both = submit(server, short_clip, upload="0" * 32)
    assert both.status_code == 422
    assert both.json()["error"]["message"].startswith("upload: got an upload and a clip")


@pytest.fixture
def store(tmp_path: Path) -> UploadStore:
    return UploadStore(tmp_path, max_bytes=1000, key_share=0.5)


def test_uploads_have_bounds_together_and_for_each_caller(store: UploadStore) -> None:
    first = store.create("a", "a", 400, "")
    with pytest.raises(BusyError, match="the uploads of this caller would have 501 bytes"):
        store.create("a", "a", 101, "")
    store.create("b", "b", 500, "")
    with pytest.raises(BusyError, match="all uploads together would have 1001 bytes"):
        store.create("c", "c", 101, "")
    store.remove(first.id)
    store.create("c", "c", 101, "")


def test_one_caller_leaves_others_a_number_of_uploads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 4)
    store = UploadStore(tmp_path, max_bytes=1000, key_share=0.5)
    for _ in range(2):
        store.create("a", "a", 0, "")
    with pytest.raises(BusyError, match="this caller has 2 uploads, its share"):
        store.create("a", "a", 0, "")
    for caller in "bc":
        store.create(caller, caller, 0, "")
    with pytest.raises(BusyError, match="there are 4 uploads, the limit") as refused:
        store.create("d", "d", 0, "")
    assert uploads.IDLE_SECONDS - 60 < refused.value.retry_after_seconds <= uploads.IDLE_SECONDS


def rest(folder: Path, upload: StoredUpload, seconds: float) -> None:
    """Have the last byte of an upload come so long ago."""
    then = time.time() - seconds
    os.utime(folder / "clips" / upload.id / "data", (then, then))


def test_room_of_the_disk_is_not_kept_for_what_is_not_sent(tmp_path: Path) -> None:
    store, gigabyte = UploadStore(tmp_path, max_bytes=10**15, key_share=1.0), 10**9
    stats = os.statvfs(tmp_path)
    most = stats.f_bavail * stats.f_frsize - MIN_ROOM_BYTES
    idle = store.create("a", "a", most - gigabyte, "")
    with pytest.raises(StorageFullError):
        store.create("b", "b", 2 * gigabyte, "")
    rest(tmp_path, idle, uploads.IDLE_SECONDS + 1)
    with pytest.raises(StorageFullError):  # without the other one too
        store.create("b", "b", most + gigabyte, "")
    assert store.find("a", idle.id) == idle
    store.create("b", "b", 2 * gigabyte, "")
    with pytest.raises(NotFoundError):
        store.find("a", idle.id)


def test_what_was_begun_and_not_sent_makes_room_for_others(
    store: UploadStore, tmp_path: Path
) -> None:
    whole, idle, idler = (store.create(owner, owner, 333, "") for owner in "abc")
    with store.open(whole, 0) as writer:
        writer.write(bytes(333))
    rest(tmp_path, whole, uploads.IDLE_SECONDS + 100)
    with pytest.raises(BusyError):
        store.create("d", "d", 300, "")
    rest(tmp_path, idle, uploads.IDLE_SECONDS + 1)
    rest(tmp_path, idler, uploads.IDLE_SECONDS + 2)
    with pytest.raises(BusyError):  # all that are idle would not be enough
        store.create("d", "d", 700, "")
    with pytest.raises(UploadTooLargeError, match="1001 bytes are more than the 1000"):
        store.create("d", "d", 1001, "")
    for upload in (whole, idle, idler):
        assert store.find(upload.owner, upload.id) == upload
    store.create("d", "d", 300, "")
    with pytest.raises(NotFoundError):
        store.find("c", idler.id)
    for upload in (whole, idle):
        assert store.find(upload.owner, upload.id) == upload
    rest(tmp_path, whole, uploads.KEEP_SECONDS - 60)
    rest(tmp_path, idle, 0)
    with pytest.raises(BusyError) as refused:
        store.create("e", "e", 300, "")
    assert 30 < refused.value.retry_after_seconds <= 60


def test_an_upload_is_its_owners_alone(store: UploadStore, tmp_path: Path) -> None:
    upload = store.create("a", "a", 2, "")
    for owner, upload_id in (("b", upload.id), ("a", "x"), ("a", f"../clips/{upload.id}")):
        with pytest.raises(NotFoundError):
            store.find(owner, upload_id)
        with pytest.raises(NotFoundError):
            store.link(owner, upload_id, tmp_path / "clip")
    with store.open(upload, 0) as writer:
        writer.write(b"1")
        with pytest.raises(ConflictError, match="another request"):
            store.open(upload, 1).__enter__()
    with pytest.raises(ConflictError, match="has 1 of 2 bytes"):
        store.link("a", upload.id, tmp_path / "clip")
    with store.open(upload, 1) as writer:
        writer.write(b"2")
    store.link("a", upload.id, tmp_path / "clip")
    assert (tmp_path / "clip").read_bytes() == b"12"


def test_an_upload_expires_a_day_after_its_last_byte(
    store: UploadStore, tmp_path: Path, monkeypatch: Any
) -> None:
    upload = store.create("a", "a", 2, "")
    remove_old_uploads(tmp_path / "clips")
    assert store.find("a", upload.id) == upload
    monkeypatch.setattr(uploads, "KEEP_SECONDS", -1.0)
    with pytest.raises(NotFoundError):
        store.find("a", upload.id)
    remove_old_uploads(tmp_path / "clips")
    assert not list((tmp_path / "clips").iterdir())
