"""Durable jobs over gRPC, on the server whose jobs tests/http/test_jobs.py has over HTTP."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from foley.v1 import foley_pb2 as proto
from foley.v1.foley_pb2_grpc import JobServiceStub, add_JobServiceServicer_to_server
from runners.auth import ApiKeys
from runners.durable.job import Job
from runners.durable.request import OF_THE_JOB, JobOptions, JobRequest
from runners.durable.service import JobService
from runners.grpc.jobs import JobServicer, describe_job
from runners.http.responses import describe_file
from runners.jobs.outputs import OutputFile
from runners.settings import Settings
from tests.durable.receiver import receive_webhooks
from tests.durable.reception import make_reception
from tests.patience import scale, wait_until
from tests.server import ENDLESS, Server

FEW_STEPS = proto.GenerateOptions(num_inference_steps=2, seed=11, also=["wav"])


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[JobServiceStub]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        grpc.channel_ready_future(channel).result(timeout=scale(20))
        yield JobServiceStub(channel)


def submit(
    stub: JobServiceStub, clip: bytes | None, generation: proto.GenerateOptions, **fields: Any
) -> proto.Job:
    def messages() -> Iterator[proto.SubmitJobRequest]:
        options = proto.JobOptions(generation=generation, **fields)
        yield proto.SubmitJobRequest(options=options)
        if clip is not None:
            yield proto.SubmitJobRequest(chunk=clip[:1000])
            yield proto.SubmitJobRequest(chunk=clip[1000:])

    job: proto.Job = stub.SubmitJob(messages(), timeout=scale(60))
    return job


def test_an_output_must_be_allowed(stub: JobServiceStub) -> None:
    options = proto.GenerateOptions(prompt="rain", duration_seconds=1)
    with pytest.raises(grpc.RpcError) as caught:
        submit(stub, None, options, output="s3://bucket/out")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "output: s3://bucket/out lies in no bucket" in caught.value.details()


def fetch(stub: JobServiceStub, job: proto.Job, index: int, offset: int = 0) -> bytes:
    request = proto.FetchJobRequest(id=job.id, file_index=index, offset=offset)
    chunks = list(stub.FetchJob(request, timeout=scale(60)))
    assert {chunk.file_index for chunk in chunks} <= {index}
    return b"".join(chunk.data for chunk in chunks)


def test_a_job_is_submitted_watched_fetched_and_deleted(
    server: Server, stub: JobServiceStub, short_clip: bytes
) -> None:
    with receive_webhooks() as receiver:
        job = submit(stub, short_clip, FEW_STEPS, webhook_url=receiver.url)
        assert job.webhook.state == "waiting"
        seen = list(stub.WatchJob(proto.WatchJobRequest(id=job.id), timeout=scale(60)))
        wait_until(lambda: receiver.got, what="the receiver was not told")
    done = seen[-1]
    assert done.state == "succeeded"
    assert len({found.SerializeToString() for found in seen}) == len(seen)
    assert [file.format for file in done.result.files] == ["mp4", "wav"]
    same = server.client.get(f"/v1/jobs/{job.id}").json()
    assert [file.num_bytes for file in done.result.files] == [
        file["bytes"] for file in same["result"]["files"]
    ]
    assert done.result.device_seconds == same["result"]["device_seconds"] > 0
    assert done.created_at.ToJsonString()[:19] == same["created_at"][:19]
    assert done.expires_at.ToJsonString()[:19] == same["expires_at"][:19]
    for index, file in enumerate(same["result"]["files"]):
        content = server.client.get(file["url"]).content
        assert fetch(stub, job, index) == content
        assert fetch(stub, job, index, offset=1000) == content[1000:]
    listed = stub.ListJobs(proto.ListJobsRequest(state="succeeded", limit=100)).jobs
    assert job.id in [found.id for found in listed]
    stub.DeleteJob(proto.DeleteJobRequest(id=job.id))
    assert server.client.get(f"/v1/jobs/{job.id}").status_code == 404


def test_a_job_is_cancelled_and_the_same_key_gives_the_same_job(
    server: Server, stub: JobServiceStub, short_clip: bytes
) -> None:
    endless = proto.GenerateOptions(**ENDLESS)
    job = submit(stub, short_clip, endless, idempotency_key="grpc-1")
    assert submit(stub, short_clip, endless, idempotency_key="grpc-1").id == job.id
    with pytest.raises(grpc.RpcError) as caught:
        submit(stub, short_clip, FEW_STEPS, idempotency_key="grpc-1")
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as caught:
        fetch(stub, job, 0)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert stub.CancelJob(proto.CancelJobRequest(id=job.id)).state == "cancelled"
    assert server.client.get(f"/v1/jobs/{job.id}").json()["state"] == "cancelled"
    page = stub.ListJobs(proto.ListJobsRequest(limit=1))
    assert (len(page.jobs), page.jobs[0].id) == (1, job.id)
    server.wait_for_num_requests(0)


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("GetJob", proto.GetJobRequest(id="0" * 32), "NOT_FOUND"),
        ("CancelJob", proto.CancelJobRequest(id="../jobs.secret"), "NOT_FOUND"),
        ("DeleteJob", proto.DeleteJobRequest(), "NOT_FOUND"),
        ("ListJobs", proto.ListJobsRequest(limit=0), "INVALID_ARGUMENT"),
        ("ListJobs", proto.ListJobsRequest(limit=101), "INVALID_ARGUMENT"),
        ("ListJobs", proto.ListJobsRequest(offset=-1), "INVALID_ARGUMENT"),
        ("ListJobs", proto.ListJobsRequest(state="done"), "INVALID_ARGUMENT"),
    ],
)
def test_what_is_wrong_has_its_status(
    stub: JobServiceStub, method: str, request_: Any, code: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request_, timeout=scale(20))
    assert caught.value.code().name == code
    assert "foley-error-code" in dict(caught.value.trailing_metadata())


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"idempotency_key": "two words"}, "idempotency_key"), ({"webhook_url": "x"}, "webhook_url")],
)
def test_an_option_of_the_job_is_checked(
    stub: JobServiceStub, fields: dict[str, str], name: str
) -> None:
    rain = proto.GenerateOptions(prompt="rain", duration_seconds=1)
    with pytest.raises(grpc.RpcError, match=f"{name}:"):
        submit(stub, None, rain, **fields)


def test_every_option_of_a_job_is_one_over_grpc_too() -> None:
    fields = set(proto.JobOptions.DESCRIPTOR.fields_by_name)
    assert fields == {*OF_THE_JOB, "generation", "idempotency_key"}


@contextlib.asynccontextmanager
async def serve_jobs(settings: Settings) -> AsyncIterator[tuple[JobService, JobServicer, str]]:
    """The calls about jobs, in this process and without an executor, and their address."""
    jobs = JobService(settings)
    reception = make_reception(settings, jobs)
    servicer = JobServicer(settings, reception, ApiKeys(()))
    server = grpc.aio.server()
    add_JobServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield jobs, servicer, f"127.0.0.1:{port}"
    await server.stop(None)
    jobs.close()


@pytest.mark.parametrize("speech_seconds", [None, 0.0, 0.5])
def test_the_files_of_a_job_are_described_in_full(
    tmp_path: Path, speech_seconds: float | None
) -> None:
    path = tmp_path / "foley-1.wav"
    path.write_bytes(b"sound")
    made = OutputFile(
        variation=1, seed=7, path=path, container="wav", layer=2, speech_seconds=speech_seconds
    )
    result = {
        "model": "tiny",
        "duration_seconds": 1.0,
        "sample_rate_hz": 48_000,
        "timings_seconds": {},
        "notices": [],
        "files": [describe_file(made)],
    }
    job = Job(
        id="1",
        owner="",
        state="succeeded",
        priority="bulk",
        created_ms=1,
        started_ms=2,
        finished_ms=3,
        digest="",
        progress={},
        error=None,
        result=result,
        has_webhook=False,
        upload_digest=None,
        output=None,
        start_by=None,
        num_starts=1,
    )
    (file,) = describe_job(job, 60.0, None, None).result.files
    assert file == proto.File(
        variation=1,
        layer=2,
        speech_seconds=speech_seconds,
        seed=7,
        format="wav",
        media_type="audio/wav",
        num_bytes=5,
    )
    assert file.HasField("speech_seconds") == (speech_seconds is not None)


def test_a_watch_ends_with_the_service_and_does_not_hold_it_up(tmp_path: Path) -> None:
    async def watch() -> tuple[proto.Job, grpc.StatusCode]:
        async with serve_jobs(Settings(jobs_dir=tmp_path)) as (jobs, servicer, address):
            with jobs.files.receive() as folder:
                request = JobRequest.settle(JobOptions(prompt="rain", duration_seconds=1), None)
                job = jobs.accept("", folder, request, upload=None, idempotency_key=None, root="")
            async with grpc.aio.insecure_channel(address) as channel:
                call = JobServiceStub(channel).WatchJob(proto.WatchJobRequest(id=job.id))
                first = await call.read()
                servicer.end_watches()
                return first, await call.code()

    first, code = asyncio.run(watch())
    assert (first.state, first.queue_position) == ("queued", 0)
    assert code == grpc.StatusCode.UNAVAILABLE


def test_a_full_queue_takes_a_repetition_and_reads_no_clip_of_another(tmp_path: Path) -> None:
    rain = proto.GenerateOptions(prompt="rain", duration_seconds=1)

    async def send(channel: grpc.aio.Channel, key: str | None) -> proto.Job:
        async def list_messages() -> AsyncIterator[proto.SubmitJobRequest]:
            options = proto.JobOptions(generation=rain, idempotency_key=key)
            yield proto.SubmitJobRequest(options=options)
            if key != "first":  # no chunk ever comes; the answer does not wait for one
                await asyncio.Event().wait()

        return await JobServiceStub(channel).SubmitJob(list_messages())

    async def submit_all() -> None:
        async with (
            serve_jobs(Settings(jobs_dir=tmp_path, max_jobs=1)) as (_, _, address),
            grpc.aio.insecure_channel(address) as channel,
        ):
            job = await send(channel, "first")
            assert (await send(channel, "first")).id == job.id
            for key in ("second", None):
                with pytest.raises(grpc.RpcError, match="1 jobs wait, the limit"):
                    await send(channel, key)

    asyncio.run(submit_all())
