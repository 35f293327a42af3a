"""`foley jobs`: submit durable jobs to a service, watch them and fetch their files."""

import contextlib
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console

from foley.cli.options import ServerOptions, SoundOptions
from foley.cli.plan import check_part_flags
from foley.cli.whole import WHOLE
from foley.errors import ParameterError
from foley.media.numbering import is_pattern, name_pictures, pack_pictures
from foley.request import AudioFormat, Format

if TYPE_CHECKING:
    from foley.client import FoleyClient, RemoteJob

MAX_WAIT_SECONDS = 600.0  # how long a service that is busy or restarted is waited for

app = App(
    name="jobs",
    help="Submit jobs to a service, which finishes them even if it is restarted.",
    help_format="plaintext",
)
JobId = Annotated[str, Parameter(help="Id of the job.")]


@app.command
def submit(
    clip: Annotated[
        Path | None,
        Parameter(
            help="Video file, zip of numbered pictures, or their pattern such as frames/%04d.png."
        ),
    ] = None,
    *,
    sound: SoundOptions = SoundOptions(),  # noqa: B008 - it is frozen
    output_format: Annotated[
        Format | None,
        Parameter(name="--format", help="Of the files. By default mp4, or wav without a clip."),
    ] = None,
    also: Annotated[
        tuple[AudioFormat, ...],
        Parameter(negative=(), help="Format of the sound alone that is written too."),
    ] = (),
    trim: Annotated[
        bool, Parameter(negative=(), help="Cut a clip that is too long instead of refusing it.")
    ] = False,
    start_seconds: Annotated[
        float,
        Parameter(name="--start", help="Second of the clip at which the used part begins."),
    ] = 0.0,
    frame_rate: Annotated[
        float | None, Parameter(help="Pictures per second of numbered pictures.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        Parameter(help="The same request under the same key is the same job, such as an order."),
    ] = None,
    clip_url: Annotated[
        str | None,
        Parameter(help="Address at which the service finds the clip: https://, or s3://."),
    ] = None,
    output: Annotated[
        str | None,
        Parameter(help="s3://BUCKET/PREFIX that gets the files, in place of the service."),
    ] = None,
    webhook_url: Annotated[
        str | None, Parameter(help="Address that is told when the job has ended.")
    ] = None,
    start_by: Annotated[
        datetime | None,
        Parameter(help="Time, such as 2026-12-01T18:00:00, by which it must have begun."),
    ] = None,
    server: ServerOptions = ServerOptions(),  # noqa: B008
) -> int:
    """Submit a job, and write its id to standard output."""
    request = sound.parse().model_dump()
    if (source := sound.find_source()) is not None:
        request["edit"]["source"] = source
    if output_format is not None:
        request["format"] = output_format
    if clip_url is not None:
        request["clip_url"] = clip_url
    check_part_flags(start_seconds, frame_rate)
    if start_seconds:
        request["start_seconds"] = start_seconds
    if frame_rate is not None:
        request["frame_rate"] = frame_rate
    with open_client(server) as client, _pack(clip, frame_rate) as sent:
        job = client.jobs.submit(
            sent,
            idempotency_key=idempotency_key,
            webhook_url=webhook_url,
            start_by=start_by,
            output=output,
            max_wait_seconds=MAX_WAIT_SECONDS,
            trim=trim,
            also=also,
            **request,
        )
    print(job.id)
    return 0


@app.command(name="list")
def list_jobs(
    *,
    state: Annotated[
        Literal["queued", "running", "succeeded", "failed", "cancelled"] | None,
        Parameter(help="Of the jobs that are listed; all without it."),
    ] = None,
    limit: Annotated[int, WHOLE, Parameter(help="How many at most; 1 to 100.")] = 20,
    offset: Annotated[int, WHOLE, Parameter(help="How many of the newest to leave out.")] = 0,
    server: ServerOptions = ServerOptions(),  # noqa: B008
) -> int:
    """Write the newest jobs of the key: id, state and time of acceptance."""
    with open_client(server) as client:
        for job in client.jobs.list(state, limit=limit, offset=offset):
            print(job.id, job.state, job.created_at.isoformat(timespec="seconds"))
    return 0


@app.command
def watch(job_id: JobId, *, server: ServerOptions = ServerOptions()) -> int:  # noqa: B008
    """Show how far a job is until it has ended, and write its last state to standard output."""
    with open_client(server) as client:
        return 1 if watch_job(client, job_id).result is None else 0


@app.command
def cancel(job_id: JobId, *, server: ServerOptions = ServerOptions()) -> int:  # noqa: B008
    """Cancel a job, and write its state to standard output."""
    with open_client(server) as client:
        print(client.jobs.cancel(job_id).state)
    return 0


@app.command
def fetch(
    job_id: JobId,
    *,
    output: Annotated[Path, Parameter(alias="-o", help="Folder for the files.")] = Path("."),
    wait: Annotated[bool, Parameter(negative=(), help="Wait for the job to end first.")] = False,
    server: ServerOptions = ServerOptions(),  # noqa: B008
) -> int:
    """Write the files of a job that has succeeded, and their paths to standard output."""
    with open_client(server) as client:
        if wait:
            for _ in client.jobs.watch(job_id, max_wait_seconds=MAX_WAIT_SECONDS):
                pass
        for path in client.jobs.fetch(job_id, output):
            print(path)
    return 0


@contextlib.contextmanager
def _pack(clip: Path | None, frame_rate: float | None) -> Iterator[Path | None]:
    """Yield the file that is sent: the clip, or a zip of its numbered pictures."""
    if clip is None or not is_pattern(clip):
        yield clip
        return
    if frame_rate is None:
        raise ParameterError(
            f"--frame-rate: missing; the pictures {clip} have no rate of their own, such as 24"
        )
    with tempfile.TemporaryDirectory(prefix="foley-") as scratch:
        packed = Path(scratch, f"{name_pictures(clip)}.zip")
        pack_pictures(clip, packed)
        yield packed


@contextlib.contextmanager
def open_client(server: ServerOptions) -> Iterator["FoleyClient"]:
    """Yield a client of the service.

    Args:
        server: its address and key.

    Raises:
        ParameterError: no address was given.
    """
    from foley.client import FoleyClient

    if server.url is None:
        raise ParameterError("--server: missing; give the address of a service that takes jobs")
    with FoleyClient(server.url, api_key=server.api_key) as client:
        yield client


def watch_job(client: "FoleyClient", job_id: str) -> "RemoteJob":
    """Show how far a job is until it has ended, and return it.

    Args:
        client: of the service.
        job_id: of the job.

    Raises:
        FoleyError: the job has failed, with its error.
    """
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    job = client.jobs.get(job_id)
    for job in client.jobs.watch(job_id, max_wait_seconds=MAX_WAIT_SECONDS):
        console.print(describe(job))
    if (error := job.to_error()) is not None:
        raise error
    print(job.state)
    return job


def describe(job: "RemoteJob") -> str:
    """Return a line about the state of a job."""
    if job.queue_position is not None:
        return f"{job.state}, {job.queue_position} before"
    told = job.progress
    if "message" in told:
        return f"{job.state}, waiting: {told['message']}"
    step = f" {told['step']}/{told['num_steps']}" if "num_steps" in told else ""
    return f"{job.state}, {told['stage']}{step}" if "stage" in told else job.state
