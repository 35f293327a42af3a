"""Clips of over 15 s through a whole service: their frames flow, and end with their request."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
import psutil
import pytest

from tests.http.test_generate import seconds_of_sound
from tests.http.test_streaming import stream
from tests.patience import scale, wait_until
from tests.server import Server, draw_clip

pytestmark = pytest.mark.soak

OPTIONS = {"prompt": "dripping water", "num_inference_steps": 1, "guidance_scale": 1, "seed": 1}


@pytest.fixture(scope="module")
def long_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("long"), ready_seconds=300)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """Clips by their seconds."""
    folder = tmp_path_factory.mktemp("clips")
    return {
        seconds: draw_clip(folder / f"{seconds}.mp4", num_frames=25 * seconds)
        for seconds in (1, 30, 60, 120, 600)
    }


def pieces(server: Server) -> list[Path]:
    return sorted(server.scratch.glob("*/*/frames-*.safetensors"))


def count_bytes(server: Server) -> int:
    total = 0
    for path in pieces(server):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_a_long_clip_gets_its_whole_sound_and_does_not_hold_up_a_short_one(
    long_server: Server, clips: dict[int, bytes]
) -> None:
    made: list[httpx.Response] = []
    sending = threading.Thread(
        target=lambda: made.append(long_server.generate(clips[30], format="wav", **OPTIONS))
    )
    sending.start()
    wait_until(lambda: bool(pieces(long_server)), seconds=300)
    short = long_server.generate(clips[1], format="wav", **OPTIONS)
    assert short.status_code == 200, short.text
    assert not made  # the long one is still being worked on
    largest = 0
    while sending.is_alive():
        largest = max(largest, count_bytes(long_server))
        time.sleep(0.05)
    (long,) = made
    assert long.status_code == 200, long.text
    assert float(long.headers["x-foley-duration-seconds"]) == 30
    assert len(long.content) == pytest.approx(30 * 48_000 * 3, rel=0.01)
    assert largest < 100e6  # the frames of 30 s have 130 MB at the sizes of tiny
    assert not pieces(long_server)


def test_pieces_of_a_long_sound_have_addresses_before_its_end(
    long_server: Server, clips: dict[int, bytes]
) -> None:
    headers = {"Authorization": ""}  # of a service without keys
    asked = {**OPTIONS, "pieces": "true", "format": "wav"}
    sounds, name = [], ""
    for name, data in stream(long_server, clips[30], headers=headers, **asked):
        if name == "sound":
            sounds.append(data)
            piece = long_server.client.get(str(data["url"]))  # it can be fetched at once
            assert piece.status_code == 200, piece.text
            assert seconds_of_sound(piece.content) == pytest.approx(data["duration_seconds"])
    assert name == "result"
    assert [data["number"] for data in sounds] == [1, 2, 3, 4]
    assert sum(data["duration_seconds"] for data in sounds) == 30
    # The pieces stay when the result is stored.
    assert long_server.client.get(str(sounds[0]["url"])).status_code == 200


class Watch:
    """What a service takes while a request runs, looked at four times a second.

    Attributes:
        memory: the most bytes of each process, by its number.
        scratch_bytes: the most of all files.
    """

    def __init__(self, server: Server) -> None:
        self.memory: dict[int, int] = {}
        self.scratch_bytes = 0
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.25):
            for process in self._server.family():
                with contextlib.suppress(psutil.Error):
                    used = process.memory_info()
                    own = used.rss - used.shared
                    self.memory[process.pid] = max(own, self.memory.get(process.pid, 0))
            self.scratch_bytes = max(self.scratch_bytes, count_all_bytes(self._server.scratch))


def count_all_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_blocks * 512
    return total


@pytest.mark.timeout(3600)
def test_ten_minutes_take_what_a_minute_takes_and_starve_nobody(
    long_server: Server, clips: dict[int, bytes]
) -> None:
    (runner,) = long_server.find("GpuRunner")
    asked = {**OPTIONS, "pieces": "true", "format": "wav"}
    taken: dict[int, Watch] = {}
    for seconds in (60, 600):
        started, events, short_seconds = time.monotonic(), [], 0.0
        with Watch(long_server) as taken[seconds]:
            for name, data in stream(
                long_server, clips[seconds], headers={"Authorization": ""}, **asked
            ):
                events.append((name, data, time.monotonic() - started))
                if name == "sound" and data["number"] == 2:
                    began = time.monotonic()
                    short = long_server.generate(clips[1], format="wav", **OPTIONS)
                    assert short.status_code == 200, short.text
                    short_seconds = time.monotonic() - began
        assert events[-1][0] == "result"
        heard = sum(data["duration_seconds"] for name, data, _ in events if name == "sound")
        first = next(when for name, _, when in events if name == "sound")
        print(
            f"{seconds} s: first sound after {first:.1f} s, all after {events[-1][2]:.1f} s, "
            f"1 s beside it {short_seconds:.1f} s; "
            f"runner {taken[seconds].memory[runner.pid] / 1e6:.0f} MB, largest other "
            f"{max(v for k, v in taken[seconds].memory.items() if k != runner.pid) / 1e6:.0f} MB, "
            f"scratch {taken[seconds].scratch_bytes / 1e6:.0f} MB",
            flush=True,
        )
        assert heard == pytest.approx(seconds)  # of many pieces, each a rounded number
        assert short_seconds < events[-1][2] / 2
    sounds = 540 * 48_000 * 4  # the sound itself is held once, and is once in scratch
    memory = {s: watch.memory[runner.pid] for s, watch in taken.items()}
    assert memory[600] - memory[60] < 1.5 * sounds + 0.1 * memory[60]
    assert taken[600].scratch_bytes < 300e6 + 600 * 48_000 * 3 * 2  # the pieces, and the result


def test_a_long_clip_that_is_left_frees_everything(
    long_server: Server, clips: dict[int, bytes]
) -> None:
    connection = long_server.open_call(clips[120], **OPTIONS)
    wait_until(lambda: bool(pieces(long_server)), seconds=300)
    connection.close()
    wait_until(lambda: not pieces(long_server), seconds=60)
    wait_until(lambda: long_server.metric("foley_running ") == 0, seconds=60)
    short = long_server.generate(clips[1], format="wav", **OPTIONS)
    assert short.status_code == 200


def test_a_long_clip_is_told_at_once_that_the_runner_was_lost(
    long_server: Server, clips: dict[int, bytes]
) -> None:
    made: list[httpx.Response] = []
    sending = threading.Thread(
        target=lambda: made.append(long_server.generate(clips[120], format="wav", **OPTIONS))
    )
    sending.start()
    wait_until(lambda: bool(pieces(long_server)), seconds=300)
    (runner,) = long_server.find("GpuRunner")
    runner.kill()
    sending.join(scale(30))
    assert not sending.is_alive()
    assert json.loads(made[0].content)["error"]["code"] == "runner_lost"
    wait_until(lambda: not pieces(long_server), seconds=30)
