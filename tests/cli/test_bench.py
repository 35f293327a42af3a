"""`foley bench`: what callers of a service see, as a table, as JSON and as a picture."""

import io
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from foley.cli.app import main
from foley.cli.bench import LoadResult, draw_loads, make_table
from tests.client.stub_server import Reply, error_reply, run_stub_server
from tests.server import Server


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["foley", "bench", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.soak  # tests/service/test_documents.py runs a short one
def test_each_load_is_measured(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "bench.svg"
    address = f"http://127.0.0.1:{server.port}"
    load = ("--seconds", 0.5, "--steps", 1, "--callers", 1, 2, "--requests", 3)
    assert run(monkeypatch, "--server", address, *load, "--json", "-o", picture) == 0
    one, two = json.loads(capfd.readouterr().out)
    assert (one["callers"], two["callers"]) == (1, 2)
    for figures in (one, two):
        assert (figures["num_done"], figures["errors"]) == (3, {})
        assert figures["sound_seconds"] == pytest.approx(1.5, abs=0.01)
        assert len(figures["latencies"]) == 3
        assert 0 < figures["p50_seconds"] <= figures["p95_seconds"] <= figures["seconds"]
    assert ElementTree.fromstring(picture.read_text()) is not None
    # More callers than the service has places: what it refuses is counted.
    load = ("--seconds", 3, "--steps", 20, "--callers", 12, "--requests", 12)
    assert run(monkeypatch, "--server", address, *load) == 1
    assert "busy" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name it with --server"),
        (("--server", "http://127.0.0.1:1", "--callers", "0"), "--callers: 0 is not possible"),
        (("--server", "http://127.0.0.1:1", "--requests", "0"), "--requests: 0 measure nothing"),
        (("none.mp4", "--server", "http://127.0.0.1:1"), "there is no file none.mp4"),
        (("--server", "http://127.0.0.1:1", "-o", "x.png"), "name a .svg file"),
        (("--server", "http://127.0.0.1:1", "--callers"), "--callers is empty"),
    ],
)
def test_a_load_that_cannot_be_measured_is_refused(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert message in capfd.readouterr().err


def test_a_picture_that_cannot_be_written_is_refused_before_the_load(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Nothing listens there, which a measurement would say.
    assert run(monkeypatch, "--server", "http://127.0.0.1:1", "-o", "/proc/x/x.svg") == 1
    assert "folder /proc/x cannot be made" in capfd.readouterr().err


def test_a_request_that_no_service_can_answer_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with run_stub_server() as stub:
        models = Reply(pieces=(b'{"models": [{"preset": "tiny"}]}',))
        stub.replies = [models, error_reply(422, "video_unreadable")]
        command = (tmp_path / "x.mp4", "--server", stub.url, "--requests", 9, "--callers", 3)
        assert run(monkeypatch, *command) == 1
        assert len(stub.requests) == 2
    assert "why" in capfd.readouterr().err


def test_the_names_of_errors_are_not_cut_off() -> None:
    refused = LoadResult(
        callers=16,
        num_done=9,
        errors={"video_unreadable": 12, "storage_full": 3},
        seconds=1.0,
        sound_seconds=9.0,
        latencies=(0.5,) * 9,
    )
    printed = io.StringIO()
    Console(file=printed, width=80).print(make_table([refused]))
    assert "12 video_unreadable " in printed.getvalue()


def test_a_load_without_a_sound_is_drawn() -> None:
    refused = LoadResult(
        callers=4, num_done=0, errors={"busy": 4}, seconds=1.0, sound_seconds=0.0, latencies=()
    )
    texts = [e.text for e in ElementTree.fromstring(draw_loads([refused], title="x")).iter()]
    assert "busy: 4" in texts
