"""The parts that need no server: settings, statuses, files between processes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from foley import errors as foley_errors
from foley import errors as runner_errors
from foley.errors import ConfigError, FoleyError, NoFramesError, error_of
from foley.types import VideoFrames
from runners.handoff import load_frames, save_frames
from runners.http.negotiation import accept_weights, acceptable
from runners.jobs.job import GenerationOptions
from runners.jobs.scratch import Scratch, remove_leftovers
from runners.settings import load_settings
from runners.status import status_of
from tests.server import ROOT

ERRORS = [
    kind
    for module in (foley_errors, runner_errors)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, FoleyError)
]


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("FOLEY_PRESET", "FOLEY_DEVICE", "FOLEY_SCRATCH_DIR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_settings_come_from_the_environment(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("FOLEY_MAX_UPLOAD_BYTES", "2MiB")
    clean_environment.setenv("FOLEY_SCRATCH_DIR", "/somewhere")
    clean_environment.setenv("FOLEY_REQUIRE_GPU", "0")  # the tests' own, known here
    settings = load_settings()
    assert settings.max_upload_bytes == 2 * 1024**2
    assert settings.scratch_root == Path("/somewhere")
    assert settings.preset == "auto"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FOLEY_MAX_UPLOAD_BITES", "1", "did you mean FOLEY_MAX_UPLOAD_BYTES"),
        ("FOLEY_DEVICE", "tpu", "device"),
        ("FOLEY_REQUEST_TIMEOUT_SECONDS", "0", "request_timeout_seconds"),
        ("FOLEY_MAX_CLIP_SECONDS", "16", "max_clip_seconds"),
    ],
)
def test_wrong_settings_are_named(
    clean_environment: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    clean_environment.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        load_settings()


@pytest.mark.parametrize("kind", ERRORS)
def test_whose_fault_decides_the_class_of_the_status(kind: type[FoleyError]) -> None:
    status = status_of(kind).http
    assert status // 100 == (4 if issubclass(kind, foley_errors.RequestError) else 5)


def test_codes_are_unique_and_revive_their_class() -> None:
    assert len({kind.code for kind in ERRORS}) == len(set(ERRORS))
    error = error_of(NoFramesError.code, "none")
    assert type(error) is NoFramesError
    assert str(error) == "none"


def test_grpc_codes_exist() -> None:
    known = {
        "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL", "UNAVAILABLE",
        "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "NOT_FOUND",
    }  # fmt: skip
    assert {status_of(kind).grpc for kind in ERRORS} <= known


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        ("*/*", "video/mp4"),
        ("audio/*", "audio/wav"),
        ("audio/wav;q=0.1, video/webm;q=0.2", "video/webm"),
        ("AUDIO/FLAC", "audio/flac"),
        ("audio/flac;q=0.5, audio/x-wav", "audio/wav"),
        ("application/zip", "application/zip"),
        ("audio/wav;q=x", None),
        ("audio/wav;q=1_0", None),
        ("", "video/mp4"),
        (" , ", "video/mp4"),
        # The most specific range counts, whatever the order.
        ("video/mp4;q=0, */*", "video/quicktime"),
        ("*/*, video/mp4;q=0", "video/quicktime"),
        ("video/*;q=0, */*;q=0.1", "audio/wav"),
        ("*/*;q=0.9, audio/*;q=0.5, audio/flac;q=0.8, video/*;q=0.7", "application/zip"),
        ("*/*;q=0.1, video/*;q=0, audio/*;q=0, audio/flac;q=0.8", "audio/flac"),
        ("audio/x-wav;q=0, audio/*", "audio/flac"),
        ("*/*;q=0, video/webm;q=0.001", "video/webm"),
        ("*/*;q=0", None),
    ],
)
def test_accept_names_the_most_wanted(accept: str, best: str | None) -> None:
    assert next(iter(acceptable(accept_weights(accept))), None) == best


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("seed", "num_inference_steps", "num_variations")
        for value in ("1_0", "1.0", "1e0", " 1", "1 ", "\u0661", "--1", "0x1", "1,0")
    ]
    + [("guidance_scale", value) for value in ("1_0", "1,5", " 2", "2 ", "\u0662", "0x2", "2.")],
)
def test_numbers_are_written_plainly(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match="unable to parse"):
        GenerationOptions.model_validate({name: value})


def test_plain_numbers_are_read() -> None:
    form = GenerationOptions.model_validate(
        {"seed": "+7", "num_inference_steps": "010", "guidance_scale": "25e-1"}
    )
    assert (form.seed, form.num_inference_steps, form.guidance_scale) == (7, 10, 2.5)


def frames() -> VideoFrames:
    torch.manual_seed(0)
    return VideoFrames(
        visual=torch.randint(256, (8, 4, 4, 3), dtype=torch.uint8),
        sync=torch.randint(256, (25, 6, 6, 3), dtype=torch.uint8),
        num_picked=24,
        source_seconds=0.96,
        trimmed=True,
        notices=("one", 'a "second"'),
    )


def test_frames_cross_unchanged_and_the_folder_goes(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    with scratch.workspace() as folder:
        sent = frames()
        save_frames(sent, folder)
        received = load_frames(folder)
        for name in ("visual", "sync"):
            assert torch.equal(getattr(received, name), getattr(sent, name))
        for name in ("num_picked", "source_seconds", "trimmed", "notices"):
            assert getattr(received, name) == getattr(sent, name)
    assert list(scratch.folder.iterdir()) == []
    scratch.close()
    assert list(tmp_path.iterdir()) == []


def test_a_failing_request_leaves_no_folder(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)

    def fail() -> None:
        with scratch.workspace() as folder:
            (folder / "clip").write_bytes(b"bytes")
            raise NoFramesError("none")

    with pytest.raises(NoFramesError):
        fail()
    assert list(scratch.folder.iterdir()) == []
    scratch.close()


def test_leftovers_of_a_killed_process_are_removed_and_those_of_a_living_one_are_not(
    tmp_path: Path,
) -> None:
    program = (
        "import pathlib, sys, time; from runners.jobs.scratch import Scratch\n"
        "scratch = Scratch(pathlib.Path(sys.argv[1]))\n"
        "(scratch.folder / 'clip').write_bytes(b'x'); print('made', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert remove_leftovers(tmp_path) == []
        (clip,) = tmp_path.glob("foley-*/clip")
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert remove_leftovers(tmp_path) == [clip.parent]
    assert list(tmp_path.iterdir()) == []
