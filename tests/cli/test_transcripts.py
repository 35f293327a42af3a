"""What `foley generate` says, word for word: `transcripts.txt` is the golden text.

In a transcript, `> ` stands before what goes to standard output; all else is standard error.
Measured seconds are #, ABOUT is what the model says of itself, PACKAGE is the package's folder.
"""

import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import av
import numpy as np
import pytest

import foley
from foley.cli.app import main
from foley.configs import TINY
from tests.media.clips import write_clip
from tests.media.test_images import number_files

SCRIPT = Path(__file__).with_name("transcripts.txt").read_text().strip().split("\n\n")
SECONDS = re.compile(r"(?<=in )\d+\.\d\d s|(?<=[a-z] )\d+\.\d\d s(?=[,)])")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two clips of one second, pictures, a file that is no clip, an empty one."""
    folder = tmp_path_factory.mktemp("transcripts")
    write_clip(folder / "clip.mp4")
    shutil.copy(folder / "clip.mp4", folder / "other.mp4")
    (folder / "bad.mp4").write_bytes(b"not a video")
    (folder / "empty").touch()
    (folder / "shot").mkdir()
    for name, content in number_files(25):
        (folder / "shot" / name).write_bytes(content)
    return folder


class BothStreams(io.RawIOBase):
    """Collects standard output in the transcript, as lines that are marked."""

    def __init__(self, transcript: io.StringIO) -> None:
        self._transcript = transcript

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        text = bytes(data)  # type: ignore[call-overload]
        self._transcript.writelines(f"> {line}\n" for line in text.decode().splitlines())
        return len(text)


def run(command: str) -> str:
    """Run a command in this process, and return its transcript."""
    words = shlex.split(command)
    source, target = b"", None
    if ">" in words:
        *words, _, target = words
    if "<" in words:
        *words, _, name = words
        source = Path(name).read_bytes()
    transcript = io.StringIO()
    output = io.BytesIO() if target else io.BufferedWriter(BothStreams(transcript))
    code: object = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source)))
        patch.setattr(sys, "stdout", io.TextIOWrapper(output, write_through=True))
        patch.setattr(sys, "stderr", transcript)
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        if isinstance(output, io.BytesIO) and target:
            Path(target).write_bytes(output.getvalue())
    text = SECONDS.sub("# s", transcript.getvalue()).replace(TINY.about, "ABOUT")
    text = text.replace(str(Path(foley.__file__).parent), "PACKAGE")
    return f"$ {command}\n{text}" + (f"exit code {code}\n" if code else "")


@pytest.mark.parametrize("transcript", SCRIPT, ids=lambda text: text.splitlines()[0][2:])
def test_a_command_says_what_its_transcript_has(
    transcript: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = {path.name for path in folder.iterdir()}
    assert run(transcript.splitlines()[0][2:]) == transcript + "\n"
    if "exit code 2" in transcript:
        assert {path.name for path in folder.iterdir()} == before


def read_samples(path: str) -> np.ndarray:
    with av.open(path) as reader:
        return np.concatenate([f.to_ndarray() for f in reader.decode(audio=0)], axis=-1)


def test_clips_made_at_once_and_through_pipes_have_the_sound_of_one_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for script in SCRIPT[:3]:
        run(script.splitlines()[0][2:])
    alone = read_samples("clip.foley.mp4")
    assert np.abs(alone).max() > 0.01
    assert np.array_equal(read_samples("piped.mp4"), alone)
    # 0 was measured; on another processor, sums of another size may be added in another order.
    together = read_samples("out/other.foley.mp4")
    assert np.abs(together - alone).max() < 1e-3
