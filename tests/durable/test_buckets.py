"""Clips that come from a bucket, files that a job writes to one, and those that machines share."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest

from foley.errors import FetchError, NotReadyError, ParameterError, UploadTooLargeError
from foley.storage import open_storage
from runners import buckets
from runners.durable import attempts
from runners.durable.attempts import JobRunner, ProgressNotes
from runners.durable.bucket_files import BucketFiles
from runners.durable.files import JobFiles
from runners.durable.queue import JobQueue
from runners.durable.request import JobOptions, JobRequest
from runners.handoff import CLIP, SOURCE
from runners.jobs.clip_url import ClipLoader
from runners.jobs.intake import make_intake
from runners.jobs.job import GenerationOptions
from runners.settings import Settings
from tests.durable.api import Api, serve_api
from tests.patience import wait_until
from tests.s3 import serve_bucket, serve_weed

OWNER = "a" * 64
JOB = "0" * 32


@pytest.fixture(scope="module", params=["moto", pytest.param("seaweed", marks=pytest.mark.soak)])
def bucket(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "moto":
        with serve_bucket() as address:
            yield address
        return
    with serve_weed(tmp_path_factory.mktemp("seaweed")) as address:
        yield address


@pytest.mark.soak
@pytest.mark.parametrize("bucket", ["seaweed"], indirect=True)
def test_a_bucket_that_refuses_the_keys_may_not_be_read(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(FetchError, match="may not read it; check the key"):
        load(tmp_path, Settings(clip_buckets=bucket), clip_url=f"{bucket}/clip")


def put(key: str, content: bytes) -> None:
    """Store a file by the library of Amazon, so that its name is what their users mean by it."""
    with closing(boto3.client("s3")) as client:
        client.put_object(Bucket="bucket", Key=key, Body=content)


def load(folder: Path, settings: Settings, **options: Any) -> GenerationOptions:
    """Return the options once what they name lies in the folder."""
    with make_intake(settings).receive("") as upload:
        loader = ClipLoader(settings)
        given = GenerationOptions.model_validate(options)
        return asyncio.run(loader.load(given, folder, upload))


@pytest.mark.parametrize("key", ["clip.mp4", "a b/caf\u00e9 #1 100%.mp4"])
def test_a_clip_comes_from_a_bucket(bucket: str, tmp_path: Path, key: str) -> None:
    put(f"clips/{key}", b"content")
    settings = Settings(clip_buckets=f"s3://other,{bucket}/clips/", clip_urls=False)
    address = f"{bucket}/clips/{key}"
    edit = {"source": address, "strength": 0.5}
    options = load(tmp_path, settings, clip_url=address, edit=edit)
    assert (tmp_path / CLIP).read_bytes() == (tmp_path / SOURCE).read_bytes() == b"content"
    assert options.clip_url is None


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("s3://bucket/other/clip", ParameterError, "it uses s3://bucket/clips, which its operator"),
        ("s3://bucket/clips/../other/clip", ParameterError, "lies in no bucket"),
        ("s3://bucket2/clips/clip", ParameterError, "lies in no bucket"),
        ("s3://bucket", ParameterError, "names no file"),
        ("s3://bucket/clips/", ParameterError, "names no file"),
        ("s3://bucket/clips/none", FetchError, "does not exist; check the bucket and the key"),
        ("s3://bucket/clips/large", UploadTooLargeError, "has 2000 bytes, the limit is 1000"),
    ],
)
def test_what_no_clip_can_come_from_is_refused(
    bucket: str, tmp_path: Path, address: str, error: type[Exception], words: str
) -> None:
    put("clips/large", bytes(2000))
    put("other/clip", b"secret")
    settings = Settings(clip_buckets=f"{bucket}/clips", max_upload_bytes=1000)  # type: ignore[arg-type]
    with pytest.raises(error, match=words):
        load(tmp_path, settings, clip_url=address)
    assert not list(tmp_path.iterdir())


def test_a_bucket_that_does_not_answer_is_no_fault_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 0.1)
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ALLOW_HTTP", "true")):
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "x")
    with pytest.raises(NotReadyError, match="does not answer; try again"):
        load(tmp_path, Settings(clip_buckets="s3://bucket"), clip_url="s3://bucket/clip")
    with pytest.raises(ParameterError, match="it uses none, which its operator sets by"):
        load(tmp_path, Settings(), clip_url="s3://bucket/clip")


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    queue = JobQueue(tmp_path / "jobs.sqlite", max_waiting=9)
    yield queue
    queue.close()


def accept(files: JobFiles | BucketFiles, queue: JobQueue, **options: object) -> JobRequest:
    given = {"prompt": "rain", "duration_seconds": 1, "seed": 7, **options}
    request = JobRequest.settle(JobOptions.model_validate(given), None)
    with files.receive() as folder:
        files.accept(folder, JOB, request)
    queue.submit(OWNER, JOB, request)
    return request


def run_job(
    api: Api, files: JobFiles | BucketFiles, queue: JobQueue, request: JobRequest
) -> dict[str, Any]:
    return asyncio.run(run_here(JobRunner(api.url, b"", files, queue, ProgressNotes()), request))


async def run_here(runner: JobRunner, request: JobRequest) -> dict[str, Any]:
    """Run the job; a real executor ends with its connections."""
    try:
        return await runner.run(JOB, OWNER, request)
    finally:
        for client in runner._clients.values():
            await client.close()


def test_a_job_writes_its_files_to_a_bucket_once(
    bucket: str, tmp_path: Path, queue: JobQueue
) -> None:
    output = f"{bucket}/out/day"
    there = open_storage(f"{output}/{JOB}")
    with serve_api() as api:
        for folder in ("first", "second"):  # which knows nothing of the first, as after its loss
            files = JobFiles(tmp_path / folder)
            request = accept(files, queue, output=output)
            result = run_job(api, files, queue, request)
            (file,) = result["files"]
            assert (file["name"], file["bytes"]) == (
                "foley-1.wav",
                there.list_sizes()[file["name"]],
            )
            assert [path.name for path in (files.folder / "jobs" / JOB / "results").iterdir()] == [
                "result.json"
            ]
            there.write("foley-1.wav", b"was there before")
    assert there.read("foley-1.wav") == b"was there before"


@pytest.mark.parametrize("bucket", ["moto"], indirect=True)  # SeaweedFS makes a bucket on demand
def test_a_job_waits_for_its_bucket_and_its_sound_is_made_once(
    bucket: str, tmp_path: Path, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 0.1)
    files = JobFiles(tmp_path / "jobs")
    request = accept(files, queue, output="s3://made-later/out")

    async def run(api: Api) -> dict[str, Any]:
        notes = ProgressNotes()
        running = asyncio.create_task(
            run_here(JobRunner(api.url, b"", files, queue, notes), request)
        )

        def find_progress() -> dict[str, Any]:
            notes.write(queue)
            return queue.find(OWNER, JOB).progress

        told = await asyncio.to_thread(wait_until, find_progress, what="it tells nothing")
        assert (told["code"], told["retries"] > 0) == ("not_ready", True)
        assert "bucket" in told["message"]
        with closing(boto3.client("s3")) as client:
            client.create_bucket(Bucket="made-later")
        return await running

    with serve_api() as api:
        result = asyncio.run(run(api))
    assert api.seeds["7"] == 1
    assert list(open_storage(f"s3://made-later/out/{JOB}").list_sizes()) == ["foley-1.wav"]
    assert [file["name"] for file in result["files"]] == ["foley-1.wav"]


def test_the_sound_of_a_result_in_a_bucket_is_found_for_an_edit(
    bucket: str, tmp_path: Path, queue: JobQueue
) -> None:
    files = BucketFiles(f"{bucket}/jobs", JobFiles(tmp_path / "jobs"))
    request = accept(files, queue)
    with serve_api() as api:
        result = run_job(api, files, queue, request)
    other = BucketFiles(f"{bucket}/jobs", JobFiles(tmp_path / "other"))  # another machine
    for name in (None, "foley-1.wav"):
        found = other.find_sound(JOB, name, result)
        assert found is not None
        assert found.read_text() == "7"
    for name in ("foley-2.wav", "../request.json", ""):
        assert other.find_sound(JOB, name, result) is None
