"""The queue worker: the SDK's own loop with a stub queue and a real service."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from tests.http.test_generate import packets
from tests.image.sounds import seconds_of
from tests.media.test_images import draw_picture
from tests.patience import is_within, scale, wait_for_exit
from tests.runpod.queue_server import JobQueue
from tests.server import ROOT, draw_clip

pytestmark = pytest.mark.long

MAX_CONCURRENCY = 3
MAX_RESULT_BYTES = 300_000
LONG = {"num_inference_steps": 200, "solver": "rk4", "num_variations": 8}


class Bucket(HTTPServer):
    """A stub of S3 that accepts uploads of one part."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Put)
        self.objects: dict[str, tuple[str, bytes]] = {}
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Put(BaseHTTPRequestHandler):
    server: Bucket

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = join_chunks(body)
        if "refused" in self.path:
            self.send_error(403)
            return
        self.server.objects[self.path] = (self.headers["Content-Type"], body)
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def join_chunks(body: bytes) -> bytes:
    """Return the content of a body in signed chunks."""
    content = b""
    while True:
        head, _, body = body.partition(b"\r\n")
        size = int(head.partition(b";")[0], 16)
        if not size:
            return content
        content, body = content + body[:size], body[size + 2 :]


class HandlerProcess:
    """`python handler.py`, as the image starts it for the role `queue`."""

    def __init__(
        self, folder: Path, queue: JobQueue | None, settings: dict[str, str] | None = None
    ) -> None:
        self.log = folder / "handler.log"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FOLEY_", "RUNPOD_"))}
        environment = {
            **inherited,
            "FOLEY_PRESET": "tiny",
            "FOLEY_DEVICE": "cpu",
            "FOLEY_GRPC_PORT": "0",
            "FOLEY_SCRATCH_DIR": str(folder / "scratch"),
            "FOLEY_MAX_CONCURRENCY": str(MAX_CONCURRENCY),
            "FOLEY_MAX_RESULT_BYTES": str(MAX_RESULT_BYTES),
            "FOLEY_API_KEYS": "a-key-of-the-service",
            "OMP_NUM_THREADS": "1",
            "BENTOML_HOME": str(folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            **(queue.environment() if queue else {}),
            **(settings or {}),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "handler.py"],
                cwd=folder,  # the SDK writes a file there
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def family(self) -> list[psutil.Process]:
        worker = psutil.Process(self.process.pid)
        return [worker, *worker.children(recursive=True)]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, return the exit status and kill the remaining processes."""
        family = self.family() if self.process.poll() is None else []
        try:
            self.process.send_signal(number)
            return wait_for_exit(self.process, 60)
        finally:
            _, alive = psutil.wait_procs(family, scale(1))
            for member in alive:
                member.kill()


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    bucket = Bucket()
    yield bucket
    bucket.shutdown()
    bucket.server_close()


@pytest.fixture(scope="module")
def queue() -> Iterator[JobQueue]:
    queue = JobQueue()
    yield queue
    queue.close()


@pytest.fixture(scope="module")
def worker(
    queue: JobQueue, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HandlerProcess]:
    worker = HandlerProcess(
        tmp_path_factory.mktemp("worker"),
        queue,
        {
            "FOLEY_BUCKET": "sounds",
            "BUCKET_ENDPOINT_URL": f"http://127.0.0.1:{bucket.server_port}",
            "BUCKET_ACCESS_KEY_ID": "id",
            "BUCKET_SECRET_ACCESS_KEY": "secret",
        },
    )
    yield worker
    family = worker.family()
    started = time.monotonic()
    assert worker.stop() == 0, worker.log.read_text()
    assert is_within(time.monotonic() - started, 20)
    assert not [member for member in family if member.is_running()]  # the service went with it


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One second, as base64."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return base64.b64encode(draw_clip(path)).decode()


def job_input(clip: str, **options: object) -> dict[str, object]:
    return {"clip_base64": clip, "num_inference_steps": 2, "output": "base64", **options}


def test_a_job_reports_progress_and_returns_base64(
    queue: JobQueue, worker: HandlerProcess, clip: str
) -> None:
    queue.send("first", job_input(clip, format="wav", seed=7))
    result = queue.result("first", 90)
    assert "error" not in result, result
    output = result["output"]
    assert output["seeds"] == [7]
    (file,) = output["files"]
    content = base64.b64decode(file["base64"])
    assert (file["format"], file["media_type"], file["num_bytes"]) == (
        "wav",
        "audio/wav",
        len(content),
    )
    assert seconds_of(content) == pytest.approx(1, abs=0.1)
    progress = [m["output"] for m in queue.messages["first"] if m.get("status") == "IN_PROGRESS"]
    assert {"decode_video", "sample"} <= {update["stage"] for update in progress}
    assert queue.num_pings > 0
    # The worker asks for as many jobs as the service runs at once.
    queue.send("again", job_input("data:video/mp4;base64," + clip, format="wav", seed=7))
    (file,) = queue.result("again")["output"]["files"]
    again = base64.b64decode(file["base64"])
    assert packets(again, "audio") == packets(content, "audio")
    assert max(queue.batch_sizes) == MAX_CONCURRENCY


def test_a_still_picture_is_a_clip(queue: JobQueue, worker: HandlerProcess) -> None:
    picture = base64.b64encode(draw_picture(3)).decode()
    queue.send("still", job_input(picture, duration_seconds=1.2))
    result = queue.result("still", 90)
    assert "error" not in result, result
    (file,) = result["output"]["files"]
    assert file["media_type"] == "video/mp4"
    content = base64.b64decode(file["base64"])
    assert seconds_of(content) == pytest.approx(1.2, abs=0.1)
    assert packets(content, "video")


def test_files_are_uploaded_to_the_bucket_if_there_is_one(
    queue: JobQueue, worker: HandlerProcess, bucket: Bucket, clip: str
) -> None:
    queue.send("by-bucket", job_input(clip, output="auto", num_variations=2))
    result = queue.result("by-bucket")
    assert "error" not in result, result
    files = result["output"]["files"]
    for number, file in enumerate(files, start=1):
        place = f"/sounds/by-bucket/foley-{number}.mp4"
        assert file["url"].startswith(f"http://127.0.0.1:{bucket.server_port}{place}?")
        assert "base64" not in file
        media_type, content = bucket.objects[place]
        assert media_type == "video/mp4"
        assert len(content) == file["num_bytes"]
        assert content[4:8] == b"ftyp"
    queue.send("refused", job_input(clip, output="bucket"))
    assert "its bucket did not take it" in queue.result("refused")["error"]


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        ({"clip_base64": "!"}, "invalid_parameter", "clip_base64"),
        ({"clip_base64": None}, "invalid_parameter", "clip_url or as clip_base64"),
        ({"clip_url": "https://example.com/"}, "invalid_parameter", "not as both"),
        ({"guidance_scale": 99}, "invalid_parameter", "guidance_scale"),
        ({"steps": 5}, "invalid_parameter", "steps"),
        ({"clip_base64": "AAAA"}, "", "clip"),
        ({"clip_base64": None, "clip_url": "http://example.com/"}, "clip_not_fetched", "https"),
        ({"clip_base64": None, "clip_url": "https://127.0.0.1/"}, "clip_not_fetched", "network"),
        (
            {"clip_base64": None, "clip_url": "https://169.254.169.254/latest/meta-data/"},
            "clip_not_fetched",
            "not the open internet",
        ),
        ({"num_variations": 3, "format": "wav"}, "invalid_output", f"limit is {MAX_RESULT_BYTES}"),
    ],
)
def test_a_wrong_job_returns_an_error_with_its_code(
    queue: JobQueue,
    worker: HandlerProcess,
    clip: str,
    wrong: dict[str, object],
    code: str,
    words: str,
) -> None:
    job_id = f"wrong-{hash(str(wrong))}"
    queue.send(job_id, {k: v for k, v in job_input(clip, **wrong).items() if v is not None})
    result = queue.result(job_id)
    error_code, _, message = result["error"].partition(": ")
    assert error_code == code or not code
    assert words in message
    assert "Traceback" not in result["error"]
    assert "output" not in result


def test_the_log_holds_neither_clips_nor_prompts(
    queue: JobQueue, worker: HandlerProcess, clip: str
) -> None:
    queue.send("secret", job_input(clip, prompt="a whispered secret", format="wav"))
    assert "output" in queue.result("secret")
    text = worker.log.read_text()
    assert "secret" in text  # the job's id
    assert "whispered" not in text
    assert clip[:60] not in text


def test_an_input_that_is_no_object_is_refused(queue: JobQueue, worker: HandlerProcess) -> None:
    queue.send("no-object", "clip")
    assert queue.result("no-object")["error"].startswith("invalid_parameter: ")


def test_a_cancelled_job_ends_and_the_others_continue(
    queue: JobQueue, worker: HandlerProcess, clip: str
) -> None:
    queue.send("endless", job_input(clip, **LONG))
    queue.wait_for("endless", lambda message: message["output"].get("stage") == "sample")
    queue.send("beside", job_input(clip, format="wav"))
    stopped = time.monotonic()
    queue.stop("endless")
    assert "output" in queue.result("beside")
    # Measured: 2 s. The whole job would take minutes.
    assert is_within(time.monotonic() - stopped, 30)
    results = [m for m in queue.messages["endless"] if m.get("status") != "IN_PROGRESS"]
    assert results == []


@pytest.mark.soak
def test_a_job_waits_for_a_restarted_runner(
    queue: JobQueue, worker: HandlerProcess, clip: str
) -> None:
    (runner,) = [p for p in worker.family() if "GpuRunner" in p.cmdline()]
    runner.kill()
    queue.send("after-loss", job_input(clip, format="wav"))
    assert "output" in queue.result("after-loss")


@pytest.mark.soak  # starts one more service
def test_a_worker_exits_when_its_service_ends(tmp_path: Path) -> None:
    queue = JobQueue()
    worker = HandlerProcess(tmp_path, queue, {"FOLEY_PRESET": "xl", "FOLEY_WEIGHTS": str(tmp_path)})
    try:
        assert wait_for_exit(worker.process, 60) == 1
        assert queue.batch_sizes == []  # no job was taken
    finally:
        worker.stop(signal.SIGKILL)
        queue.close()


def test_a_bucket_without_keys_fails_the_fitness_check(tmp_path: Path) -> None:
    queue = JobQueue()
    worker = HandlerProcess(tmp_path, queue, {"FOLEY_BUCKET": "sounds"})
    try:
        assert wait_for_exit(worker.process, 60) == 1
        assert "BUCKET_ENDPOINT_URL" in worker.log.read_text()
        assert queue.batch_sizes == []
    finally:
        worker.stop(signal.SIGKILL)
        queue.close()


@pytest.mark.soak  # starts one more service
def test_the_example_input_runs(tmp_path: Path) -> None:
    shutil.copy(ROOT / "test_input.json", tmp_path)
    worker = HandlerProcess(tmp_path, None)  # without a queue the SDK runs test_input.json
    try:
        assert wait_for_exit(worker.process, 90) == 0, worker.log.read_text()
    finally:
        worker.stop(signal.SIGKILL)
    assert "completed successfully" in worker.log.read_text()
    example = json.loads((ROOT / "test_input.json").read_text())["input"]
    for test in json.loads((ROOT / ".runpod" / "tests.json").read_text())["tests"]:
        assert test["input"]["clip_base64"] == example["clip_base64"]


def test_every_input_of_the_hub_s_tests_is_valid() -> None:
    from runners.runpod.job_input import parse_job_input

    tests: list[dict[str, Any]] = json.loads((ROOT / ".runpod" / "tests.json").read_text())["tests"]
    assert tests
    for test in tests:
        parse_job_input(test["input"])
