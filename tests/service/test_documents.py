"""The commands and programs in the documents, run as they are written."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import wave
from glob import glob
from pathlib import Path

import av
import pytest

from foley.cli.app import main
from tests.media.test_images import draw_picture, number_files, write_zip
from tests.patience import scale
from tests.server import ROOT, Server, draw_clip

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Beginnings of commands that cannot run here, and where else they are tested.
ELSEWHERE = {
    "make": "continuous integration runs them; tests/image tests those of the image",
    "VARIANTS=": "as make",
    "ENGINE=": "as make",
    "docker": "tests/image: needs a daemon",
    "kubectl": "tests/image: needs a cluster",
    "git clone": "needs a network",
    "ssh-keygen": "writes into the home folder",
    "foley serve": "tests/cli: it does not end",
    "foley bulk clips/": "tests/cli: starts a process with a model",
    'foley bulk "clips': "as foley bulk clips/",
    "foley bulk s3://": "as foley bulk clips/",
    "foley download": "tests/weights: needs a network",
    "foley train": "tests/tuning: needs clips with their own sound",
    "torchrun": "as foley train",
    "foley generate clip.mp4 --adapters": "tests/cli: needs an adapter",
    "foley convert": "tests/weights: needs official weights",
    "foley generate - ": "tests/cli: the result is standard output",
    "curl -o out.mp4 http://127.0.0.1:3000/v1/generate -F clip_url": "tests/jobs: needs a network",
    "grpcurl": "tests/grpc does the same from Python",
    "python -m runners.page": "tests/page: it does not end",
    "python -m tests.parity.check": "tests/parity: compares the same files",
    "python -m benchmarks.bench_gpu": "tests/benchmarks: needs a GPU",
    "python -m benchmarks.plot_gpu": "as bench_gpu: it draws a record",
}


def blocks(language: str) -> list[str]:
    """Return the code blocks of all documents in that language."""
    return [
        block
        for path in DOCUMENTS
        for block in re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)
    ]


def commands() -> list[str]:
    """Return every command once, with continued lines joined and without its comment."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    found = [re.sub(r" {2,}", " ", re.split(r"(?:^|\s)# ", line)[0]).strip() for line in lines]
    return [command for command in dict.fromkeys(found) if command]


def fill(folder: Path, text: str) -> None:
    """Put what the documents assume into a folder.

    Args:
        folder: gets `clip.mp4`, `photo.jpg`, `clips.csv`, `cues.vtt`, `clip.foley.json`,
            `first.wav`, `out.wav` and links to the folders of the project.
        text: the command or program. Clips have 1 s, or 4 s where it names times in them.
    """
    (folder / "clips").mkdir()
    for name in ("clip.mp4", "clips/one.mp4"):
        draw_clip(folder / name, num_frames=100 if re.search("cue|edit", text) else 25)
    (folder / "photo.jpg").write_bytes(draw_picture(7, "JPEG"))
    (folder / "clips.csv").write_text("clip,prompt,seed\nclips/one.mp4,steps,3\n")
    (folder / "cues.vtt").write_text("WEBVTT\n\n00:01.200 --> 00:03.500\nglass shatters\n")
    (folder / "clip.foley.json").write_text('{"foley_project": 1, "clip": "clip.mp4"}')
    for name in ("first.wav", "out.wav"):
        with wave.open(str(folder / name), "wb") as sound:
            sound.setparams((1, 2, 48_000, 0, "NONE", ""))
            sound.writeframes(bytes(4 * 2 * 48_000))
    for name in ("examples", "tests", "foley", "runners"):
        (folder / name).symlink_to(ROOT / name)


def draw_pictures(folder: Path) -> None:
    """Put numbered pictures into a folder, in frames/ and in frames.zip."""
    pictures = number_files(25)
    write_zip(folder / "frames.zip", pictures, rate=None)
    (folder / "frames").mkdir()
    for name, content in pictures:
        (folder / "frames" / name).write_bytes(content)


def exit_code() -> int:
    """Run the command that `sys.argv` holds, and return its exit code."""
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command in a folder that has what the documents assume.

    `foley` runs in this process if the command needs no more of the shell than `&&` and a file for
    standard output: to import PyTorch takes longer than most of these commands.
    """
    fill(folder, command)
    if "frames" in command:
        draw_pictures(folder)
    parts = command.split(" && ")
    if all(re.fullmatch(r"foley [^$>|;&]+( > [\w.]+)?", part) for part in parts):
        monkeypatch.chdir(folder)
        for part in parts:
            words, _, printed = part.partition(" > ")
            argv = [
                path
                for word in shlex.split(words)
                for path in (sorted(glob(word)) if "*" in word else [word])
            ]
            monkeypatch.setattr(sys, "argv", argv)
            out = folder / printed if printed else Path(os.devnull)
            with out.open("w") as file, contextlib.redirect_stdout(file):
                assert exit_code() == 0
        return
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=scale(150),
    )
    assert done.returncode == 0, done.stderr


def point_at(text: str, server: Server) -> str:
    """Return the text with the addresses of this server."""
    text = re.sub(r"(?:127\.0\.0\.1|host):3000", f"127.0.0.1:{server.port}", text)
    return text.replace("127.0.0.1:50051", server.grpc_address)


def has_sound(path: Path) -> bool:
    with av.open(str(path)) as reader:
        return bool(reader.streams.audio) and next(reader.decode(audio=0)).samples > 0


def test_every_exception_is_a_command_of_the_documents() -> None:
    assert len(commands()) > 20
    for known in ELSEWHERE:
        assert any(command.startswith(known) for command in commands()), f"{known}: not used"


@pytest.mark.long
@pytest.mark.parametrize(
    "command", [c for c in commands() if not c.startswith(tuple(ELSEWHERE))], ids=lambda c: c[:40]
)
def test_commands_succeed_and_write_sound(
    command: str, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command.startswith("curl") and not shutil.which("curl"):
        pytest.skip("no curl here")
    run(point_at(command, server), tmp_path, monkeypatch)
    if "/v1/jobs" in command:
        server.end_jobs()
    for output in re.findall(r"-o (\S+)", command):
        made = tmp_path / output
        found = list(made.rglob("*.mp4")) if made.is_dir() else [made]
        assert found
        assert all(has_sound(path) for path in found)


@pytest.mark.long
@pytest.mark.parametrize("program", blocks("python"), ids=lambda p: p.split("\n")[0])
def test_programs_succeed_and_write_sound(
    program: str, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, program)
    monkeypatch.chdir(tmp_path)
    # In this process, which has imported PyTorch: that takes longer than most of the programs.
    exec(compile(point_at(program, server), "program", "exec"), {"__name__": "__main__"})
    made = [path for path in tmp_path.rglob("*.mp4") if path.name not in ("clip.mp4", "one.mp4")]
    assert all(has_sound(path) for path in made)
