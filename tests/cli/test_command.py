"""`foley generate --server`: the requests it sends, the files it writes, its exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foley.cli.app import main
from tests.client.stub_server import (
    EVENTS,
    RESULT,
    Reply,
    StubServer,
    encode_event,
    error_reply,
    event_reply,
    run_stub_server,
)
from tests.patience import scale, wait_for_exit

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples" / "bigbuckbunny.mp4"
MODELS = Reply(
    pieces=(json.dumps({"models": [{"preset": "tiny", "about": "a small model"}]}).encode(),),
)


def result_reply(*formats: str) -> Reply:
    """A result with one variation in these formats."""
    files = [
        {
            "variation": 1,
            "seed": 7,
            "format": name,
            "media_type": "audio/wav" if name == "wav" else "video/mp4",
            "bytes": 4,
            "url": f"/v1/results/r-1/foley-1.{name}",
        }
        for name in formats
    ]
    return event_reply(encode_event("result", {**RESULT, "seeds": [7], "files": files}))


@pytest.fixture
def service() -> Iterator[StubServer]:
    with run_stub_server() as stub:
        yield stub


@pytest.fixture
def foley(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """A function that runs the command; it returns the exit code and standard error."""

    def run(*arguments: object, key: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["foley", "generate", *map(str, arguments)])
        monkeypatch.setenv("FOLEY_API_KEY", key)
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capfd.readouterr().err

    return run


RunFoley = Callable[..., tuple[int, str]]


def test_pieces_are_written_and_named_while_the_rest_is_made(
    service: StubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    piece = {"variation": 1, "start_seconds": 0.0, "duration_seconds": 8.0, "bytes": 4}
    piece |= {"number": 1, "media_type": "audio/wav", "url": "/v1/results/r-1/foley-1-piece-1.wav"}
    (whole,) = result_reply("wav").pieces
    result = event_reply(encode_event("sound", piece), whole, wait=lambda: ended.wait(scale(20)))
    service.replies = [MODELS, result, Reply(pieces=(b"pie.",)), Reply(pieces=(b"all.",))]
    out = tmp_path / "out.wav"
    command = [sys.executable, "-m", "foley.cli.app", "generate", "-o", str(out), "--pieces"]
    command += ["--seconds", "16", "-p", "rain", "--server", service.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = tmp_path / "out-piece-1.wav"
        assert process.stdout.readline() == f"{first}\n"
        assert first.read_bytes() == b"pie."
        assert not out.exists()
        ended.set()
        assert process.stdout.read() == f"{out}\n"
        assert process.wait(scale(20)) == 0
    (asked,) = [request for request in service.requests if request.path == "/v1/generate"]
    assert b'"pieces"\r\n\r\ntrue' in asked.body


def test_a_table_of_clips_is_sent_as_bulk_requests(
    foley: RunFoley, service: StubServer, tmp_path: Path
) -> None:
    shutil.copy(CLIP, tmp_path / "a.mp4")
    table = tmp_path / "clips.csv"
    table.write_text(
        "clip,prompt,output\na.mp4,x,out/one.mp4\na.mp4,y,two.wav\na.mp4,z,three.mp4\n"
    )
    (tmp_path / "three.mp4").write_bytes(b"there")
    service.replies = [
        MODELS,
        result_reply("wav", "mp4"),
        Reply(pieces=(b"pic.",)),
        error_reply(422, "prompt_too_long"),
    ]
    code, stderr = foley(
        "--csv", table, "--server", service.url, "--skip-existing", "--steps", 3, key="k-1"
    )
    assert code == 1, stderr
    assert f"preset tiny at {service.url}; -v says what it can do" in stderr
    assert "1 of 3 results exist: skipped" in stderr
    assert "two.wav" not in "".join(path.name for path in tmp_path.iterdir())
    assert "a.mp4: why" in stderr
    assert "seed 7" in stderr
    assert (tmp_path / "out" / "one.mp4").read_bytes() == b"pic."
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "a.mp4", "clips.csv", "one.mp4", "three.mp4",
    ]  # fmt: skip
    asked = [r for r in service.requests if r.path == "/v1/generate"]
    assert [b'"format"\r\n\r\nmp4' in r.body for r in asked] == [True, False]
    assert all(b'"priority"\r\n\r\nbulk' in r.body for r in asked)
    assert all(b'"num_inference_steps"\r\n\r\n3' in r.body for r in asked)
    assert not any(b"guidance_scale" in r.body for r in asked)  # the service knows its model's own
    assert {r.headers["authorization"] for r in service.requests} == {"Bearer k-1"}


@pytest.mark.parametrize(
    ("replies", "options", "code", "words"),
    [
        ([error_reply(401, "unauthorized")], [], 2, "why"),
        ([error_reply(503, "not_ready")], [], 3, "why"),
        ([MODELS, Reply(502)], [], 3, "502"),
        ([MODELS, event_reply(EVENTS[:-30])], [], 3, "before the result"),
        ([MODELS, result_reply("mp4"), Reply(pieces=(b"p",))], [], 3, "1 of 4 bytes"),
        ([MODELS], ["--preset", "xl"], 2, "leave --preset"),
    ],
)
def test_a_failure_ends_with_a_message_and_no_files(
    foley: RunFoley,
    service: StubServer,
    tmp_path: Path,
    replies: list[Reply],
    options: list[str],
    code: int,
    words: str,
) -> None:
    service.replies = replies
    ended, stderr = foley(CLIP, "-o", tmp_path / "out.mp4", "--server", service.url, *options)
    assert ended == code, stderr
    assert words in stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_service_ends_with_3(foley: RunFoley, tmp_path: Path) -> None:
    code, stderr = foley(CLIP, "-o", tmp_path / "out.mp4", "--server", "http://127.0.0.1:9")
    assert code == 3
    assert "http://127.0.0.1:9 cannot be reached" in stderr


@pytest.mark.long
def test_an_interrupted_download_leaves_no_file(service: StubServer, tmp_path: Path) -> None:
    end = threading.Event()
    file = Reply(pieces=(b"p", b"ic."), wait=lambda: end.wait(scale(20)))
    service.replies = [MODELS, result_reply("mp4"), file]
    program = "from foley.cli.app import main; main()"
    arguments = [sys.executable, "-c", program, "generate", str(CLIP)]
    arguments += ["-o", str(tmp_path / "out.mp4"), "--server", service.url]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.iterdir()):  # until the file is being written
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()
        assert process.stderr is not None
        rest = process.stderr.read()
        assert wait_for_exit(process) == 128 + signal.SIGTERM
    end.set()
    assert "no partial file was left" in rest
    assert list(tmp_path.iterdir()) == []


def generate_twice(service: StubServer, clip: bytes, folder: Path, stdout: int) -> tuple[int, str]:
    """Run the command for two copies of a clip; return its status and what it said."""
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(clip)
    service.replies = [MODELS, *[result_reply("mp4"), Reply(pieces=(b"pic.",))] * 2]
    command = [sys.executable, "-m", "foley.cli.app", "generate", "a.mp4", "b.mp4", "-q"]
    ended = subprocess.run(
        [*command, "--server", service.url],
        cwd=folder,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=scale(60),
    )
    return ended.returncode, ended.stderr


@pytest.mark.long
def test_a_reader_that_has_seen_enough_ends_the_command(
    service: StubServer, short_clip: bytes, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert generate_twice(service, short_clip, tmp_path, writer) == (141, "")
    os.close(writer)
    assert (tmp_path / "a.foley.mp4").read_bytes() == b"pic."


@pytest.mark.long
def test_standard_output_without_room_is_named(
    service: StubServer, short_clip: bytes, tmp_path: Path
) -> None:
    with open("/dev/full", "wb") as full:
        code, stderr = generate_twice(service, short_clip, tmp_path, full.fileno())
    assert code == 1
    assert stderr.startswith("foley: standard output cannot be written (No space left on device)")
    assert len(stderr.splitlines()) == 1
    assert (tmp_path / "a.foley.mp4").read_bytes() == b"pic."
