"""`foley download` from a local server that speaks the hub's protocol."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from foley.cli.download import download_preset
from foley.errors import DownloadError
from foley.pipeline import FoleyPipeline
from foley.weights.hub import PIECE_BYTES
from foley.weights.licences import ACCEPTANCE_FILE
from foley.weights.loading import load_components
from foley.weights.manifest import MANIFEST_FILE, missing_files
from tests.official import official_preset, write_official_folder
from tests.patience import scale, wait_until
from tests.toys import toy_frames
from tests.weights.conftest import Run, Start
from tests.weights.hub_server import REPO, REVISION, Hub, git_id

MB = 1_000_000
NOBODY = 65534


def weights_in(folder: Path) -> dict[str, bytes]:
    ours = (MANIFEST_FILE, ACCEPTANCE_FILE)
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in ours and not path.name.startswith(".")
    }


def test_a_fresh_download_is_complete_and_a_second_start_fetches_nothing(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    first = run(tmp_path / "weights")
    assert first.returncode == 0, first.stderr
    assert "verified" in first.stdout
    assert weights_in(tmp_path / "weights") == hub.files
    assert sorted(hub.fetched) == ["large.pth", "small.json"]
    hub.seen.clear()
    second = run(tmp_path / "weights")
    assert second.returncode == 0, second.stderr
    assert hub.seen == []  # not even asked


def test_official_files_become_a_model_that_sounds_as_before(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    folder = write_official_folder(tmp_path / "official")
    hub.files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    result = run(tmp_path / "weights")
    assert result.returncode == 0, result.stderr

    def sound(root: Path) -> torch.Tensor:
        components = load_components(root, official_preset())
        pipeline = FoleyPipeline(components, torch.device("cpu"))
        frames = dataclasses.replace(toy_frames(20), sync=torch.zeros(20, 224, 224, 3).byte())
        return pipeline(frames, "tap", seed=1, num_inference_steps=1).waveforms

    assert torch.equal(sound(tmp_path / "weights"), sound(folder))


def test_an_interrupted_download_resumes(hub: Hub, start: Start, run: Run, tmp_path: Path) -> None:
    hub.files = {"large.pth": os.urandom(25 * MB)}
    hub.cut_after = {"large.pth": 23 * MB}
    received = 23 * MB // PIECE_BYTES * PIECE_BYTES
    process = start(tmp_path / "weights")
    partial = tmp_path / "weights" / ".large.pth.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_size == received)
    process.kill()  # it waits a second before it asks for the rest
    process.communicate()
    hub.seen.clear()
    result = run(tmp_path / "weights")
    assert result.returncode == 0, result.stderr
    assert weights_in(tmp_path / "weights") == hub.files
    (got,) = [seen for seen in hub.seen if seen.method == "GET" and seen.path in hub.files]
    assert got.start == received
    assert got.num_sent == 25 * MB - got.start


def test_a_cut_connection_resumes_in_the_same_run(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.files = {"large.pth": os.urandom(12 * MB)}
    hub.cut_after = {"large.pth": 11 * MB}
    result = run(tmp_path / "weights")
    assert result.returncode == 0, result.stderr
    assert weights_in(tmp_path / "weights") == hub.files
    starts = [seen.start for seen in hub.seen if seen.method == "GET" and seen.path in hub.files]
    assert starts == [0, 11 * MB // PIECE_BYTES * PIECE_BYTES]


def test_a_busy_server_is_retried(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.num_busy = 1
    result = run(tmp_path / "weights")
    assert result.returncode == 0, result.stderr
    assert "503" in result.stderr
    assert hub.num_busy == 0


def test_without_ranges_the_download_restarts(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.ignore_ranges = True
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / ".large.pth.partial").write_bytes(hub.files["large.pth"][:999])
    result = run(tmp_path / "weights")
    assert result.returncode == 0, result.stderr
    assert weights_in(tmp_path / "weights") == hub.files


def test_a_corrupt_file_is_named_and_only_it_is_removed(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.corrupt = {"large.pth"}
    result = run(tmp_path / "weights")
    assert result.returncode == 3
    assert "large.pth came, but its SHA-256 is" in result.stderr
    assert "Traceback" not in result.stderr
    assert weights_in(tmp_path / "weights") == {"small.json": hub.files["small.json"]}
    assert not list((tmp_path / "weights").glob(".*.partial"))
    hub.corrupt.clear()
    hub.seen.clear()
    assert run(tmp_path / "weights").returncode == 0
    assert hub.fetched == ["large.pth"]  # and nothing else again
    assert weights_in(tmp_path / "weights") == hub.files


@pytest.mark.long
def test_a_file_damaged_on_disk_is_named_and_only_it_is_downloaded_again(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    assert run(tmp_path / "weights").returncode == 0
    damaged = tmp_path / "weights" / "large.pth"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    hub.seen.clear()
    result = run(tmp_path / "weights")
    assert result.returncode == 0, result.stderr
    assert f"{damaged} is not the published file: its SHA-256" in result.stderr
    assert hub.fetched == ["large.pth"]
    assert weights_in(tmp_path / "weights") == hub.files


def test_files_copied_by_hand_are_verified_and_not_fetched(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "weights" / name).write_bytes(content)
    assert run(tmp_path / "weights").returncode == 0
    assert hub.fetched == []


def test_a_file_that_differs_from_the_table_is_refused_before_it_is_downloaded(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    table = hub.table()
    table[1] = dataclasses.replace(table[1], sha256="0" * 64)
    result = run(tmp_path / "weights", table)
    assert result.returncode == 3
    assert "large.pth should have 50000 bytes with SHA-256 0000" in result.stderr
    assert hub.fetched == []


def test_files_without_a_known_hash_are_verified_against_the_hub_s(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    hub.corrupt = {"small.json"}
    result = run(tmp_path / "weights", hub.table(hashed=False))
    assert result.returncode == 3
    assert "small.json came, but its git id is" in result.stderr
    hub.corrupt = {"large.pth"}
    result = run(tmp_path / "weights", hub.table(hashed=False))
    assert "large.pth came, but its SHA-256 is" in result.stderr


@pytest.mark.long
def test_an_optional_file_may_be_absent(hub: Hub, run: Run, tmp_path: Path) -> None:
    table = hub.table()
    table.append(dataclasses.replace(table[0], path="gone", place="gone", required=False))
    assert run(tmp_path / "weights", table).returncode == 0
    hub.seen.clear()
    assert run(tmp_path / "weights", table).returncode == 0
    assert hub.seen == []
    table[-1] = dataclasses.replace(table[-1], required=True)
    result = run(tmp_path / "weights", table)
    assert result.returncode == 3
    assert f"{REPO}: gone: it is not at {hub.url}" in result.stderr


def test_a_disk_too_small_is_noticed_before_a_byte_is_fetched(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    hub.misstated = {"large.pth": 10**18}
    table = [dataclasses.replace(file, num_bytes=None) for file in hub.table()]
    result = run(tmp_path / "weights", table)
    assert result.returncode == 3
    assert "GB free and 1000000000.00 GB more are needed" in result.stderr
    assert hub.fetched == []


def test_a_full_disk_is_reported_and_the_download_resumes(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    # /dev/full refuses each write as a full disk does (ENOSPC), for every user and everywhere.
    (tmp_path / "weights").mkdir()
    partial = tmp_path / "weights" / ".large.pth.partial"
    partial.symlink_to("/dev/full")
    result = run(tmp_path / "weights")
    assert result.returncode == 3
    assert "large.pth cannot be stored: No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert weights_in(tmp_path / "weights") == {"small.json": hub.files["small.json"]}
    partial.unlink()
    hub.seen.clear()
    assert run(tmp_path / "weights").returncode == 0
    assert hub.fetched == ["large.pth"]


@pytest.mark.long
def test_offline_downloaded_files_are_used_and_missing_ones_are_named(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    offline = {"HF_HUB_OFFLINE": "1"}
    result = run(tmp_path / "weights", **offline)
    assert result.returncode == 3
    assert f"{REPO}: small.json cannot be fetched" in result.stderr
    assert "unset HF_HUB_OFFLINE" in result.stderr
    assert run(tmp_path / "weights").returncode == 0
    hub.seen.clear()
    assert run(tmp_path / "weights", **offline).returncode == 0
    assert hub.seen == []


@pytest.mark.long
def test_without_a_network_downloaded_files_are_used(hub: Hub, run: Run, tmp_path: Path) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    result = run(tmp_path / "weights", **nowhere)
    assert result.returncode == 3
    assert "check the network or HF_ENDPOINT" in result.stderr
    assert run(tmp_path / "weights").returncode == 0
    assert run(tmp_path / "weights", **nowhere).returncode == 0


def test_of_two_processes_one_fetches_and_the_other_waits(
    hub: Hub, start: Start, tmp_path: Path
) -> None:
    hub.slow = threading.Event()
    first = start(tmp_path / "weights")
    wait_until(lambda: (tmp_path / "weights" / ".small.json.partial").exists())
    second = start(tmp_path / "weights")
    assert second.stderr is not None
    assert any("waiting" in line for line in iter(second.stderr.readline, ""))
    hub.slow.set()
    out = [process.communicate(timeout=scale(30)) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], out
    assert sorted(hub.fetched) == ["large.pth", "small.json"]  # each once
    assert weights_in(tmp_path / "weights") == hub.files


def test_a_waiting_process_takes_over_from_a_killed_one(
    hub: Hub, start: Start, tmp_path: Path
) -> None:
    hub.slow = threading.Event()
    first = start(tmp_path / "weights")
    wait_until(lambda: (tmp_path / "weights" / ".small.json.partial").exists())
    second = start(tmp_path / "weights")
    first.kill()
    first.communicate()
    hub.slow.set()
    _, err = second.communicate(timeout=scale(30))
    assert second.returncode == 0, err
    assert weights_in(tmp_path / "weights") == hub.files


def test_an_interrupted_download_says_how_to_continue(
    hub: Hub, start: Start, tmp_path: Path
) -> None:
    hub.slow = threading.Event()
    process = start(tmp_path / "weights")
    wait_until(lambda: (tmp_path / "weights" / ".small.json.partial").exists())
    process.send_signal(signal.SIGINT)
    hub.slow.set()
    _, err = process.communicate(timeout=scale(30))
    assert process.returncode == 130
    assert "run the command again to continue" in err
    assert "Traceback" not in err


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Make a folder refuse writes. Root may write anywhere, so it becomes another user."""
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Return a folder that other users may read, which pytest's own may not be."""
    folder = Path(tempfile.mkdtemp(prefix="foley-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_folder_is_refused_in_one_line(
    hub: Hub, public_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        unwritable(public_folder),
        pytest.raises(DownloadError, match=r"cannot write to .*: Permission denied.*--to"),
    ):
        download_preset("xl", hub.table(), public_folder, accepted=True, quiet=True)
    assert hub.seen == []


def test_a_complete_read_only_folder_is_used_as_it_is(
    hub: Hub, run: Run, public_folder: Path
) -> None:
    assert run(public_folder).returncode == 0
    hub.seen.clear()
    with unwritable(public_folder):
        assert not os.access(public_folder, os.W_OK, effective_ids=True)
        download_preset("xl", hub.table(), public_folder, accepted=False, quiet=True)
    assert hub.seen == []


@pytest.mark.parametrize(
    ("gated", "settings", "words"),
    [
        (False, {}, "not authorised, no token was sent (401); set HF_TOKEN"),
        (
            False,
            {"HF_TOKEN": "hf_wrong"},
            "the token in use has no right to it (401); set HF_TOKEN",
        ),
        (True, {"HF_TOKEN": "hf_right"}, "gated and the token in use has no right to it (403)"),
    ],
)
def test_a_missing_right_says_what_to_do(
    hub: Hub, run: Run, tmp_path: Path, gated: bool, settings: dict[str, str], words: str
) -> None:
    hub.token, hub.gated = "hf_right", gated
    result = run(tmp_path / "weights", **settings)
    assert result.returncode == 3
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    if gated:
        assert f"accept its terms at {hub.url}/{REPO}" in result.stderr


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    hub.token = "hf_right"
    result = run(tmp_path / "weights", HF_TOKEN="hf_right")
    assert result.returncode == 0, result.stderr
    large = [seen for seen in hub.seen if seen.path == "large.pth"]
    assert {(seen.method, seen.authorization) for seen in large} == {
        ("HEAD", "Bearer hf_right"),
        ("GET", ""),
    }


def write_cache(home: Path, files: dict[str, bytes]) -> Path:
    """Write a cache in the layout of huggingface_hub."""
    root = home / "hub" / f"models--{REPO.replace('/', '--')}"
    snapshot = root / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for name, content in files.items():
        blob = root / "blobs" / git_id(content)
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)
    return root


def test_the_hub_s_cache_is_used_without_a_network(hub: Hub, run: Run, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "home", hub.files)
    result = run(tmp_path / "weights", HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr
    assert hub.seen == []
    linked = tmp_path / "weights" / "large.pth"
    blob = cache / "blobs" / git_id(hub.files["large.pth"])
    assert linked.stat().st_ino == blob.stat().st_ino  # no second copy
    shutil.rmtree(cache)
    assert weights_in(tmp_path / "weights") == hub.files


def test_a_damaged_file_of_the_cache_is_left_alone_and_fetched(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    damaged = {"large.pth": b"x" * 50_000, "small.json": hub.files["small.json"]}
    cache = write_cache(tmp_path / "home", damaged)
    result = run(tmp_path / "weights")
    assert result.returncode == 0, result.stderr
    assert "large.pth in the hub cache is damaged" in result.stderr
    assert hub.fetched == ["large.pth"]
    assert (cache / "blobs" / git_id(damaged["large.pth"])).exists()
    assert weights_in(tmp_path / "weights") == hub.files


def test_the_acceptance_is_recorded_beside_the_weights(hub: Hub, run: Run, tmp_path: Path) -> None:
    result = run(tmp_path / "weights")
    assert "European Union" in result.stderr
    record = json.loads((tmp_path / "weights" / ACCEPTANCE_FILE).read_text())
    assert record.keys() == {"licence", "who", "how", "when", "sha256", "text"}
    assert "European Union" in record["text"]
    assert "European Union" not in run(tmp_path / "weights").stderr  # shown once


def test_missing_files_are_known_without_hashing(hub: Hub, run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "weights").returncode == 0
    assert missing_files(hub.table(), tmp_path / "weights") == []
    moved_on = [dataclasses.replace(file, revision="f" * 40) for file in hub.table()]
    assert missing_files(moved_on, tmp_path / "weights") == moved_on
