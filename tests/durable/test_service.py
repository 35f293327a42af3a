"""What an API process does with jobs, without an executor."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request

from foley.errors import BusyError, ConflictError, NotFoundError, ParameterError
from runners.durable import files
from runners.durable.job import Job
from runners.durable.reception import Admit, JobReception, Read
from runners.durable.request import JobOptions, JobRequest
from runners.durable.service import JobService
from runners.handoff import CLIP
from runners.http.uploads import UploadHandlers
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.clip_url import ClipLoader
from runners.jobs.ending import Ending
from runners.jobs.intake import Upload, make_intake
from runners.settings import Settings
from tests.durable import versions

OWNER = "a" * 64


@pytest.fixture
def service(tmp_path: Path) -> Iterator[JobService]:
    service = JobService(Settings(jobs_dir=tmp_path))
    yield service
    service.close()


def accept(service: JobService, key: str | None = None, **options: object) -> Job:
    upload = options.get("upload")
    assert upload is None or isinstance(upload, str)
    with service.files.receive() as folder:
        clip = None
        if upload:
            clip = service.uploads.find_complete(OWNER, upload)
        elif "duration_seconds" not in options:
            clip = folder / CLIP
            clip.write_bytes(b"clip")
        request = JobRequest.settle(JobOptions.model_validate(options), clip)
        return service.accept(
            OWNER, folder, request, upload=upload, idempotency_key=key, root="/below"
        )


def test_a_running_job_tells_that_the_disk_is_full(
    service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = accept(service, prompt="rain", duration_seconds=1)
    monkeypatch.setattr(files, "FULL_BYTES", 2**60)
    assert service.find(OWNER, job.id) == job  # it waits for its turn
    with closing(sqlite3.connect(service.files.database)) as connection, connection:
        connection.execute("UPDATE workflow_status SET status = 'PENDING'")
    assert service.find(OWNER, job.id).progress["code"] == "storage_full"
    monkeypatch.setattr(files, "FULL_BYTES", 0)
    assert service.find(OWNER, job.id).progress == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system")
def test_a_job_can_be_deleted_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MIN_ROOM_BYTES", 0)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        service = JobService(Settings(jobs_dir=tmp_path))
        job = accept(service, prompt="rain")
        service.files.clip(job.id).write_bytes(bytes(2_000_000))
        service.queue.cancel(OWNER, job.id)
        other = (tmp_path / "other").open("wb", buffering=0)
        with other, contextlib.suppress(OSError):
            while other.write(bytes(4096)):
                pass
        with pytest.raises(SQLAlchemyError, match="full"):
            service.queue.delete(OWNER, job.id)
        service.delete(OWNER, job.id)
        with pytest.raises(NotFoundError):
            service.find(OWNER, job.id)
        service.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_job_takes_its_upload_once_and_its_key_gives_it_again(service: JobService) -> None:
    upload = service.uploads.create(OWNER, OWNER, 4, "")
    with pytest.raises(ConflictError, match="has 0 of 4 bytes"):
        accept(service, "key", upload=upload.id)
    with service.uploads.open(upload, 0) as writer:
        writer.write(b"clip")
    job = accept(service, "key", upload=upload.id)
    assert service.files.clip(job.id).read_bytes() == b"clip"
    assert accept(service, "key", upload=upload.id).id == job.id
    with pytest.raises(NotFoundError, match="no such upload"):
        accept(service, upload=upload.id)


def upload_clip(service: JobService, content: bytes) -> str:
    upload = service.uploads.create(OWNER, OWNER, len(content), "")
    with service.uploads.open(upload, 0) as writer:
        writer.write(content)
    return upload.id


def test_a_clip_is_the_same_whichever_way_it_came(service: JobService) -> None:
    job = accept(service, "key", prompt="rain")
    again = upload_clip(service, b"clip")
    assert accept(service, "key", prompt="rain", upload=again).id == job.id
    with pytest.raises(NotFoundError):  # the job has it, and nothing is left behind
        service.uploads.find(OWNER, again)
    other = upload_clip(service, b"other")
    with pytest.raises(ConflictError):
        accept(service, "key", prompt="rain", upload=other)
    assert service.uploads.find_complete(OWNER, other) is not None
    with pytest.raises(ConflictError):  # which is not known, and not taken by this job
        accept(service, "key", prompt="rain", upload="0" * 32)
    first = accept(service, "sent in pieces", upload=upload_clip(service, b"clip"))
    assert accept(service, "sent in pieces").id == first.id


def test_a_full_queue_still_knows_its_jobs(tmp_path: Path) -> None:
    service = JobService(Settings(jobs_dir=tmp_path, max_jobs=1))
    service.check_room(OWNER, OWNER, None)
    accept(service, "key", prompt="rain")
    service.check_room(OWNER, OWNER, "key")
    for owner, key in ((OWNER, None), (OWNER, "other"), ("b" * 64, "key")):
        with pytest.raises(BusyError, match="1 jobs wait, the limit"):
            service.check_room(owner, owner, key)
    service.close()


def test_the_jobs_of_the_first_version_are_known(tmp_path: Path) -> None:
    versions.restore(tmp_path)
    service = JobService(Settings(jobs_dir=tmp_path))
    try:
        found = {job.id: job.state for job in service.queue.list_jobs("", limit=9)}
        assert found == {versions.WAITING: "queued", versions.RUNNING: "running"}
        with service.files.receive() as folder:
            (folder / CLIP).write_bytes(versions.CLIP)
            options = JobOptions.model_validate(versions.REQUEST)
            again = JobRequest.settle(options, folder / CLIP)
            for key, job_id in (("order-1", versions.WAITING), ("order-2", versions.RUNNING)):
                same = {"upload": None, "idempotency_key": key, "root": ""}
                assert service.accept("", folder, again, **same).id == job_id
        assert service.queue.cancel("", versions.WAITING).state == "cancelled"
    finally:
        service.close()


def test_an_output_lies_in_a_bucket_that_the_operator_has_named(tmp_path: Path) -> None:
    service = JobService(Settings(jobs_dir=tmp_path, output_buckets="s3://one/out,s3://two/"))
    try:
        for output in (
            *(
                "s3://three/",
                "s3://one/other",
                "s3://one/outer",
                "s3://one/out/../other",
                "s3://one/out//x",
            ),
            *("/tmp", "s3://", "s3://one/out?x", "http://one/out", "s3://one/out/" + 1200 * "x"),
        ):
            with pytest.raises(ParameterError, match="output:"):
                accept(service, output=output)
        job = accept(service, output="s3://one/out/day/")
        assert job.output == f"s3://one/out/day/{job.id}"
        with pytest.raises(ConflictError, match=f"written to {job.output}"):
            service.find_file(replace(job, result={"files": []}), "foley-1.mp4")
        assert accept(service, output="s3://two").output
    finally:
        service.close()


def test_what_a_job_asks_for_beside_its_sound_is_checked_before_it_is_accepted(
    service: JobService,
) -> None:
    for options in (
        {"webhook_url": "https://a.test/"},  # there is no secret
        {"start_by": "2026-01-01T00:00:00Z"},
    ):
        with pytest.raises(ParameterError, match=f"{next(iter(options))}:"):
            accept(service, prompt="rain", duration_seconds=1, **options)
    assert service.queue.list_ids() == []
    assert not list((service.files.folder / "jobs").iterdir())


def test_results_whose_queue_is_gone_are_told_of_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(JobService(Settings(jobs_dir=tmp_path))) as service:
        job = accept(service, "order-1", prompt="rain", duration_seconds=1)
        with service.files.partial_results(job.id) as partial:
            (partial / "foley-1.wav").write_bytes(b"sound")
            service.files.publish(partial, job.id, {})
    assert "jobs_lost" not in capsys.readouterr().out
    for path in tmp_path.glob("jobs.sqlite*"):
        path.unlink()
    with closing(JobService(Settings(jobs_dir=tmp_path))) as service:
        told = capsys.readouterr().out
        assert "jobs_lost" in told
        assert f"{tmp_path}/jobs.sqlite is gone, and the files of 1 job are in" in told
        with pytest.raises(NotFoundError):
            service.find(OWNER, job.id)
        folder = tmp_path / "jobs" / job.id
        os.utime(folder, (0, 0))
        service.files.remove_leftovers(service.queue.list_ids())
        assert (folder / "results/foley-1.wav").read_bytes() == b"sound"
        # The same request finds it.
        assert accept(service, "order-1", prompt="rain", duration_seconds=1).id == job.id
    assert (tmp_path / "jobs.lost").read_text() == f"{job.id}\n"
    JobService(Settings(jobs_dir=tmp_path)).close()
    assert "jobs_lost" not in capsys.readouterr().out


def begin_upload(caller: str) -> Request:
    headers = [(b"tus-resumable", b"1.0.0"), (b"upload-length", b"9")]
    scope = {"type": "http", "method": "POST", "path": "/v1/uploads", "headers": headers}
    return Request({**scope, "foley.owner": OWNER, "foley.caller": caller})


def test_a_caller_has_so_many_jobs_a_minute_and_an_upload_is_none(
    service: JobService, tmp_path: Path
) -> None:
    settings = Settings(jobs_dir=tmp_path, requests_per_minute=2)
    intake, ending = make_intake(settings), Ending(5.0)
    registry = CancellationRegistry(tmp_path / "requests")
    reception = JobReception(settings, service, intake, ClipLoader(settings), ending, registry)
    handlers = UploadHandlers(settings, service.uploads, intake, ending)

    async def read(_folder: Path, _upload: Upload, admit: Admit) -> JobOptions:
        await admit(None)
        return JobOptions(prompt="rain", duration_seconds=1)

    async def read_wrong(_folder: Path, _upload: Upload, _admit: Admit) -> JobOptions:
        raise ParameterError("wrong")

    async def submit(read: Read) -> None:
        await reception.submit(OWNER, "caller", read, root="")

    async def submit_all() -> None:
        for _ in range(3):
            assert (await handlers.create(begin_upload("caller"))).status_code == 201
            with pytest.raises(ParameterError):
                await submit(read_wrong)
        await submit(read)
        await submit(read)
        with pytest.raises(BusyError, match="2 requests within a minute"):
            await submit(read_wrong)  # which is not read

    asyncio.run(submit_all())
