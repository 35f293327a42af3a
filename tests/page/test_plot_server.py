"""The page's pictures are drawn in confined children, which read what the service reads."""

from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from PIL import Image

from foley.errors import VideoDecodeError
from runners.page.plot_server import FILM_STRIP
from runners.page.plots import NUM_COLUMNS, NUM_FRAMES
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from runners.settings import child_environment
from tests.media.clips import write_clip
from tests.page.loops import run_apart
from tests.server import draw_clip

MIB = 2**20


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    limits = SandboxLimits(memory_bytes=1024 * MIB, cpu_seconds=60, file_bytes=16 * MIB)
    sandbox = Sandbox(limits, child_environment(), module="runners.page.plot_server")
    yield sandbox
    sandbox.close()


def test_a_film_strip_is_drawn(sandbox: Sandbox, tmp_path: Path) -> None:
    draw_clip(tmp_path / "clip.mp4")
    (tmp_path / "clip.mp4").rename(tmp_path / "clip.html")  # names say nothing
    drawing = sandbox.run("draw_film_strip", tmp_path, clip="clip.html", duration_seconds=1.0)
    assert run_apart(drawing) == ".mp4"
    with Image.open(tmp_path / FILM_STRIP) as strip:
        assert strip.width % NUM_FRAMES == 0


def test_a_sound_is_drawn(sandbox: Sandbox, tmp_path: Path) -> None:
    draw_clip(tmp_path / "clip.mp4", sound_only=True)
    drawing = sandbox.run("draw_sound", tmp_path, file="clip.mp4", duration_seconds=1.0)
    waveform, name = run_apart(drawing)
    assert waveform.count("L") == 2 * NUM_COLUMNS - 1
    with Image.open(tmp_path / name) as spectrogram:
        assert spectrogram.width == NUM_COLUMNS


def test_a_clip_without_sound_has_no_waveform(sandbox: Sandbox, tmp_path: Path) -> None:
    draw_clip(tmp_path / "clip.mp4")
    drawing = sandbox.run("draw_sound", tmp_path, file="clip.mp4", duration_seconds=1.0)
    assert run_apart(drawing) is None


@pytest.mark.parametrize("task", ["draw_film_strip", "draw_sound"])
def test_a_playlist_that_names_a_file_of_the_server_is_refused(
    sandbox: Sandbox, tmp_path: Path, task: str
) -> None:
    private = write_clip(tmp_path / "private.ts", container="mpegts")
    lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2.0,", f"file://{private}")
    playlist = tmp_path / "clip.m3u8"
    playlist.write_text("\n".join((*lines, "#EXT-X-ENDLIST", "")))
    with av.open(str(playlist)) as container:  # what the page did
        assert container.format.name == "hls"
        assert len(container.streams.video) == 1
    name = {"draw_film_strip": "clip", "draw_sound": "file"}[task]
    with pytest.raises(VideoDecodeError):
        run_apart(sandbox.run(task, tmp_path, duration_seconds=1.0, **{name: playlist.name}))
