"""The programs in examples/ run and write what they say."""

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import pytest

from foley.plans import TINY_PLAN
from runners.process import find_free_port
from tests.client.stub_server import Reply, run_stub_server
from tests.patience import scale
from tests.server import ROOT, Server

pytestmark = pytest.mark.long

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def clip(short_clip: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a clip of 1 s."""
    path = tmp_path_factory.mktemp("clips") / "short.mp4"
    path.write_bytes(short_clip)
    return path


@dataclass(frozen=True)
class Ended:
    """The exit code of a program and what it printed."""

    returncode: int
    stdout: str
    stderr: str


RunExample = Callable[..., Ended]


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RunExample:
    """A function that runs an example: in this process, where it is written in Python.

    To import what it needs would take longer than most examples.
    """

    def run(name: str, *arguments: object) -> Ended:
        monkeypatch.delenv("FOLEY_API_KEY", raising=False)
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name), *map(str, arguments)])
        if name.endswith(".mjs"):
            done = subprocess.run(
                [find_node(), *sys.argv], capture_output=True, text=True, timeout=scale(120)
            )
            return Ended(done.returncode, done.stdout, done.stderr)
        code: object = 0
        capfd.readouterr()
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        # Where the interpreter ends, it prints what is no number.
        return (
            Ended(int(code), out, err) if isinstance(code, int) else Ended(1, out, f"{err}{code}\n")
        )

    return run


def find_node() -> str:
    """The program that runs JavaScript."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    if int(version.removeprefix("v").split(".")[0]) < 20:
        pytest.skip(f"node is {version.strip()}, the example needs 20")
    return node


def read_streams(path: Path) -> set[str]:
    with av.open(str(path)) as container:
        assert next(container.decode(audio=0)).samples > 0
        return {stream.type for stream in container.streams}


def test_generate_file_writes_the_clip_with_sound(
    run_example: RunExample, clip: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    done = run_example("generate_file.py", clip, output, "--seed", 7)
    assert done.returncode == 0, done.stderr
    assert read_streams(output) == {"video", "audio"}
    steps = TINY_PLAN.num_inference_steps
    assert f"sample {steps}/{steps}" in done.stdout
    assert "seed 7" in done.stdout


def test_call_http_saves_two_variations(
    run_example: RunExample, server: Server, clip: Path, tmp_path: Path
) -> None:
    done = run_example("call_http.py", clip, tmp_path / "results", "--server", address(server))
    assert done.returncode == 0, done.stderr
    names = ["short.foley-1.mp4", "short.foley-2.mp4"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == names
    assert all(read_streams(tmp_path / "results" / name) == {"video", "audio"} for name in names)
    steps = TINY_PLAN.num_inference_steps
    assert f"sample {steps} {steps}" in done.stdout


def test_call_http_ends_with_the_error_of_the_service(
    run_example: RunExample, server: Server, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"not a video")
    done = run_example("call_http.py", clip, tmp_path / "results", "--server", address(server))
    assert done.returncode == 1
    assert re.match(r"video_\w+: ", done.stderr)
    assert "Traceback" not in done.stderr


def test_the_javascript_client_writes_the_clip_with_sound_or_the_error(
    run_example: RunExample, server: Server, clip: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    options = ("--prompt", "birds", "--server", address(server))
    done = run_example("call_http.mjs", clip, output, *options)
    assert done.returncode == 0, done.stderr
    assert read_streams(output) == {"video", "audio"}
    assert re.fullmatch(rf"{output}: seed \d+\n", done.stdout)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    done = run_example("call_http.mjs", bad, tmp_path / "none.mp4", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(r"video_\w+: ", done.stderr)
    assert not (tmp_path / "none.mp4").exists()


@pytest.mark.parametrize("server", ["nonsense", "http://127.0.0.1:{port}", "ftp://127.0.0.1"])
def test_the_javascript_client_says_which_address_it_cannot_fetch(
    run_example: RunExample, clip: Path, tmp_path: Path, server: str
) -> None:
    server, output = server.format(port=find_free_port()), tmp_path / "out.mp4"
    done = run_example("call_http.mjs", clip, output, "--server", server)
    assert (done.returncode, done.stdout) == (1, "")
    told = rf"{server} cannot be reached \(.+\); check the address, and that a service runs\n"
    assert re.fullmatch(told, done.stderr)
    assert not output.exists()


def test_the_javascript_client_names_a_missing_clip_and_an_answer_of_others(
    run_example: RunExample, clip: Path, tmp_path: Path
) -> None:
    missing, output = tmp_path / "missing.mp4", tmp_path / "out.mp4"
    done = run_example("call_http.mjs", missing, output)
    assert done.returncode == 1
    assert re.fullmatch(rf"{missing} cannot be read \(ENOENT.*\); check the path\n", done.stderr)
    with run_stub_server() as other:
        other.replies = [Reply(status=502, pieces=(b"<html>",))]
        done = run_example("call_http.mjs", clip, output, "--server", other.url)
    assert (done.returncode, done.stderr) == (1, f"{other.url} answered 502\n")


def test_call_http_async_generates_one_sound_for_each_prompt(
    run_example: RunExample, server: Server, clip: Path
) -> None:
    done = run_example("call_http_async.py", clip, "rain", "wind", "--server", address(server))
    assert done.returncode == 0, done.stderr
    sizes = dict(re.findall(r"^(\w+): .* s, (\d+) bytes", done.stdout, re.MULTILINE))
    assert sizes.keys() == {"rain", "wind"}
    assert all(int(size) > 50_000 for size in sizes.values())


def test_call_grpc_writes_the_clip_with_sound(
    run_example: RunExample, server: Server, clip: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    done = run_example("call_grpc.py", clip, output, "--server", server.grpc_address)
    assert done.returncode == 0, done.stderr
    assert read_streams(output) == {"video", "audio"}


def test_call_grpc_leaves_no_file_when_the_call_fails(
    run_example: RunExample, server: Server, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"not a video")
    output = tmp_path / "out.mp4"
    done = run_example("call_grpc.py", clip, output, "--server", server.grpc_address)
    assert done.returncode == 1
    assert done.stderr.startswith("INVALID_ARGUMENT: ")
    assert not output.exists()


@pytest.mark.parametrize("is_clip_there", [True, False])
def test_call_grpc_keeps_what_was_there_when_it_fails(
    run_example: RunExample, clip: Path, tmp_path: Path, is_clip_there: bool
) -> None:
    given, output = clip if is_clip_there else tmp_path / "missing.mp4", tmp_path / "out.mp4"
    output.write_text("an earlier result")
    server = f"127.0.0.1:{find_free_port()}"  # nobody listens there
    done = run_example("call_grpc.py", given, output, "--server", server)
    told = "UNAVAILABLE: " if is_clip_there else f"{given} cannot be read (No such file"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(told)
    assert output.read_text() == "an earlier result"
    assert list(tmp_path.iterdir()) == [output]


def test_call_grpc_says_where_it_cannot_write(
    run_example: RunExample, clip: Path, tmp_path: Path
) -> None:
    output = tmp_path / "missing" / "out.mp4"
    done = run_example("call_grpc.py", clip, output)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{output} cannot be written (No such file")


def test_batch_continues_after_a_bad_clip_and_skips_results(
    run_example: RunExample, server: Server, short_clip: bytes, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "bad.mp4").write_bytes(b"not a video")
    (clips / "notes.txt").write_text("no clip")
    for name in ("one.mp4", "two.mp4"):
        (clips / name).write_bytes(short_clip)
    results = tmp_path / "results"
    done = run_example("batch.py", clips, results, "--server", address(server))
    assert done.returncode == 1
    assert "bad.mp4" in done.stderr
    names = ["one.foley.mp4", "two.foley.mp4"]
    assert sorted(path.name for path in results.iterdir()) == names

    shutil.move(clips / "bad.mp4", tmp_path)
    done = run_example("batch.py", clips, results, "--server", address(server))
    assert (done.returncode, done.stdout) == (0, "")


def test_every_example_is_listed() -> None:
    text = (EXAMPLES / "README.md").read_text()
    for path in sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.mjs")]):
        assert f"`{path.name}`" in text, path.name


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_example_explains_its_arguments(run_example: RunExample, name: str) -> None:
    done = run_example(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout


def address(server: Server) -> str:
    return str(server.client.base_url)
