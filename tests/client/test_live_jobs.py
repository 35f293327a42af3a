"""Durable jobs from the Python clients and from `foley jobs`, with a real service."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from foley.cli.app import main
from foley.client import AsyncFoleyClient, FoleyClient, RemoteJob, transport, uploads
from foley.client.sync_jobs import Jobs
from foley.errors import (
    ConflictError,
    ConnectionFailedError,
    NotFoundError,
    RequestError,
    VideoDecodeError,
)
from tests.durable.receiver import SECRET, receive_webhooks
from tests.media.clips import list_packets
from tests.media.test_images import draw_picture
from tests.patience import wait_until
from tests.server import ENDLESS, Server


@pytest.fixture
def client(server: Server) -> Iterator[FoleyClient]:
    with FoleyClient(str(server.client.base_url)) as client:
        yield client


def test_a_job_is_submitted_watched_fetched_and_deleted(
    client: FoleyClient, short_clip: bytes, tmp_path: Path
) -> None:
    job = client.jobs.submit(short_clip, seed=3, num_inference_steps=2, also=["wav"])
    states = list(client.jobs.watch(job.id))
    assert states[-1].state == "succeeded"
    assert states[-1].result is not None
    assert states[-1].result.seeds == (3,)
    assert states[-1] in client.jobs.list("succeeded", limit=100)
    saved = client.jobs.fetch(job.id, tmp_path / "out")
    assert [path.name for path in saved] == ["foley-1.mp4", "foley-1.wav"]
    direct = client.generate(short_clip, seed=3, num_inference_steps=2, format="wav")
    assert list_packets(saved[1].read_bytes()) == list_packets(client.read(direct.files[0]))
    client.jobs.delete(job.id)
    with pytest.raises(NotFoundError):
        client.jobs.get(job.id)


class Breaking:
    """Sends the requests of a client, and loses the answers to some that add to an upload."""

    def __init__(self, client: FoleyClient) -> None:
        self._client = client
        self.methods: list[str] = []

    @contextlib.contextmanager
    def __call__(self, method: str, path: str, **content: object) -> Iterator[httpx.Response]:
        self.methods.append(method)
        with self._client._request(method, path, **content) as response:
            if method == "PATCH" and self.methods.count("PATCH") in (1, 3):
                raise ConnectionFailedError("it broke")
            yield response


def test_a_large_clip_is_sent_in_pieces_over_connections_that_break(
    client: FoleyClient, short_clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MIN_PIECEWISE_BYTES", 1000)
    monkeypatch.setattr(uploads, "PIECE_BYTES", len(short_clip) // 3)
    monkeypatch.setattr(transport, "DEFAULT_RETRY_SECONDS", 0.01)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(short_clip)
    key = {"idempotency_key": f"pieces-{time.time_ns()}", "num_inference_steps": 2}
    send = Breaking(client)
    job = Jobs(send, client.download).submit(clip, max_wait_seconds=60, **key)  # type: ignore[arg-type]
    pieces = ["POST", "PATCH", "HEAD", "PATCH", "PATCH", "HEAD", "PATCH", "POST"]
    assert send.methods == pieces
    with pytest.raises(ConnectionFailedError):  # it was not asked to try again
        Jobs(Breaking(client), client.download).submit(clip, **key)  # type: ignore[arg-type]
    assert client.jobs.submit(short_clip, **key).id == job.id  # type: ignore[arg-type]

    async def submit() -> RemoteJob:
        async with AsyncFoleyClient(str(client._http.base_url)) as other:
            return await other.jobs.submit(clip, **key)  # type: ignore[arg-type]

    assert asyncio.run(submit()).id == job.id
    monkeypatch.setattr(uploads, "MIN_PIECEWISE_BYTES", 10**9)
    assert client.jobs.submit(clip, **key).id == job.id  # type: ignore[arg-type]
    assert list(client.jobs.watch(job.id))[-1].state == "succeeded"


def test_a_large_clip_is_sent_whole_where_its_upload_is_not_known(
    client: FoleyClient, short_clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MIN_PIECEWISE_BYTES", 1000)

    @contextlib.contextmanager
    def send(method: str, path: str, **content: object) -> Iterator[httpx.Response]:
        if method == "PATCH":  # as by another machine
            path = f"/v1/uploads/{'0' * 32}"
        with client._request(method, path, **content) as response:
            yield response

    job = Jobs(send, client.download).submit(short_clip, num_inference_steps=2)
    assert client.jobs.cancel(job.id).id == job.id


def test_a_cancelled_job_has_no_result(client: FoleyClient, short_clip: bytes) -> None:
    job = client.jobs.submit(short_clip, **ENDLESS)  # type: ignore[arg-type]
    assert not job.has_ended
    assert client.jobs.cancel(job.id).state == "cancelled"
    with pytest.raises(RequestError, match="is cancelled, and has no result"):
        client.jobs.fetch(job.id, ".")


def test_a_failed_job_raises_its_own_error(client: FoleyClient, tmp_path: Path) -> None:
    job = client.jobs.submit(b"no video")
    (*_, last) = client.jobs.watch(job.id)
    assert last.state == "failed"
    with pytest.raises(VideoDecodeError, match="cannot be read as a video") as caught:
        client.jobs.fetch(job.id, tmp_path)
    assert caught.value.request_id == job.id


def test_the_same_key_gives_the_same_job_to_both_clients(server: Server, tmp_path: Path) -> None:
    options = {"prompt": "rain", "duration_seconds": 1.0, "num_inference_steps": 2}
    address = str(server.client.base_url)

    async def submit_and_watch() -> list[RemoteJob]:
        async with AsyncFoleyClient(address) as client:
            first = await client.jobs.submit(None, idempotency_key="both", **options)  # type: ignore[arg-type]
            assert first.id in [job.id for job in await client.jobs.list(limit=100)]
            jobs = [first, *[job async for job in client.jobs.watch(first.id)]]
            (path,) = await client.jobs.fetch(first.id, tmp_path)
            assert path == tmp_path / "foley-1.wav"
            other = await client.jobs.submit(None, **options)  # type: ignore[arg-type]
            await client.jobs.cancel(other.id)
            await client.jobs.delete(other.id)
            return jobs

    first, *_, last = asyncio.run(submit_and_watch())
    with FoleyClient(address) as client:
        again = client.jobs.submit(None, idempotency_key="both", **options)  # type: ignore[arg-type]
        assert (again.id, again) == (first.id, last)
        with pytest.raises(ConflictError):
            client.jobs.submit(None, idempotency_key="both", prompt="snow", duration_seconds=1)


def run(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *words: str,
    group: str = "jobs",
) -> str:
    """Run a command of `foley` and return what it writes to standard output."""
    monkeypatch.setattr("sys.argv", ["foley", group, *words])
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code in (0, None), capfd.readouterr().err
    return capfd.readouterr().out.strip()


def test_the_command_submits_and_fetches(
    server: Server,
    short_clip: bytes,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = tmp_path / "walk.mp4"
    clip.write_bytes(short_clip)
    there = ("--server", str(server.client.base_url))
    job_id = run(capfd, monkeypatch, "submit", str(clip), "--steps", "2", "--also", "flac", *there)
    output = run(capfd, monkeypatch, "fetch", job_id, "--wait", "-o", str(tmp_path / "out"), *there)
    assert output.splitlines() == [f"{tmp_path}/out/foley-1.{name}" for name in ("mp4", "flac")]
    assert all(Path(path).is_file() for path in output.splitlines())
    assert run(capfd, monkeypatch, "watch", job_id, *there) == "succeeded"
    assert run(capfd, monkeypatch, "cancel", job_id, *there) == "succeeded"
    assert f"{job_id} succeeded" in run(capfd, monkeypatch, "list", *there)
    listed = run(capfd, monkeypatch, "list", "--state", "succeeded", "--limit", "100", *there)
    assert {line.split()[1] for line in listed.splitlines()} == {"succeeded"}
    assert run(capfd, monkeypatch, "list", "--offset", "100000", *there) == ""


def test_the_command_sends_numbered_pictures_and_names_a_part(
    server: Server,
    client: FoleyClient,
    short_clip: bytes,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "clip.mp4").write_bytes(short_clip)
    for number in range(10):
        (tmp_path / f"{number:02}.png").write_bytes(draw_picture(number))
    common = ("--format", "wav", "--steps", "1", "--server", str(server.client.base_url))
    part = (str(tmp_path / "clip.mp4"), "--start", "0.2")
    pictures = (str(tmp_path / "%02d.png"), "--frame-rate", "10")
    for words, seconds in ((part, 0.8), (pictures, 1.0)):
        job_id = run(capfd, monkeypatch, "submit", *words, *common)
        (*_, last) = client.jobs.watch(job_id)
        assert last.result is not None
        assert last.result.duration_seconds == pytest.approx(seconds)


def test_the_command_checks_and_resends_a_webhook(
    server: Server,
    client: FoleyClient,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = ("--server", str(server.client.base_url))
    with receive_webhooks() as receiver:
        receiver.statuses = [410]
        job = client.jobs.submit(None, prompt="rain", duration_seconds=1, webhook_url=receiver.url)
        client.jobs.cancel(job.id)
        wait_until(
            lambda: job.id in [hook.job_id for hook in client.jobs.list_failed_webhooks()],
            what="it was not given up",
        )
        output = run(capfd, monkeypatch, "failed", *there, group="webhook")
        assert f"{job.id} 1 {receiver.url} the receiver answered 410" in output.splitlines()
        assert run(capfd, monkeypatch, "resend", job.id, *there, group="webhook") == "sending"
        wait_until(lambda: len(receiver.got) == 2, what="it was not sent again")
    headers, body = receiver.got[-1]
    file = tmp_path / "body.json"
    file.write_bytes(body)
    monkeypatch.setenv("FOLEY_WEBHOOK_SECRET", SECRET)
    words = ["verify", str(file)]
    for name in ("id", "timestamp", "signature"):
        words += [f"--{name}", headers[f"webhook-{name}"]]
    assert run(capfd, monkeypatch, *words, group="webhook") == f"{job.id} cancelled"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["list"], 2, "--server: missing"),
        (["watch", "0" * 32, "--server", "URL"], 1, "there is no such job"),
        (["submit", "absent.mp4", "--server", "URL"], 1, "absent.mp4 cannot be read"),
        (["submit", "--server", "URL"], 2, "give a clip"),
        (["submit", "--clip-url", "s3://one/b", "--server", "URL"], 2, "lies in no bucket"),
        (
            ["submit", "--clip-url", "data:,x", "--output", "s3://one/b", "--server", "URL"],
            2,
            "output: s3://one/b lies in no bucket",
        ),
        (["submit", "%02d.png", "--server", "URL"], 2, "--frame-rate: missing; the pictures"),
        (["submit", "x.mp4", "--start", "-1", "--server", "URL"], 2, "--start: must be from 0 to"),
    ],
)
def test_the_command_says_what_is_wrong(
    words: list[str],
    code: int,
    message: str,
    server: Server,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = str(server.client.base_url)
    monkeypatch.setattr(
        "sys.argv", ["foley", "jobs", *(address if w == "URL" else w for w in words)]
    )
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code
    assert message in capfd.readouterr().err
