"""A real full disk under a whole service; needs root, to mount one of some MiB."""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.patience import wait_until
from tests.server import Server, draw_clip
from tests.service.test_serving import post

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system"),
]
SIZE_MB = 64


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "scratch"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine mounts nothing")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_blames_nobody_and_passes(tmp_path: Path, small_disk: Path) -> None:
    clip = draw_clip(tmp_path / "clip.mp4")
    server = Server(tmp_path, {"FOLEY_MAX_UPLOAD_BYTES": str(60_000_000)})
    try:
        server.wait_until_ready()
        assert server.generate(clip, num_inference_steps=1).status_code == 200
        server.wait_until_scratch_is_empty()

        def fill(left_mb: float) -> Path:
            stats = os.statvfs(small_disk)
            filler = small_disk / "filler"
            filler.write_bytes(bytes(int(stats.f_bavail * stats.f_frsize - left_mb * 2**20)))
            return filler

        # Enough to be asked, and too little for eight stereo sounds of 6 s with files of their own.
        filler = fill(33)
        asked = {"num_variations": 8, "also": "wav,flac", "num_inference_steps": 1}
        long = draw_clip(tmp_path / "long.mp4", num_frames=14 * 25)
        check_full(server.generate(long, **asked))
        with ThreadPoolExecutor(6) as pool:  # together they would not fit
            calls = [pool.submit(post, server, clip, **asked, seed=seed) for seed in range(6)]
            statuses = [call.result().status_code for call in calls]
        assert set(statuses) <= {200, 429, 503}, statuses
        filler.unlink()
        wait_until(lambda: server.probe("/readyz") == 200)
        filler = fill(1)
        check_full(server.generate(clip))
        assert server.probe("/readyz") == 503
        filler.unlink()
        wait_until(lambda: server.probe("/readyz") == 200)
        assert server.generate(clip, num_inference_steps=1).status_code == 200
        log = server.log.read_text()
        # Once each time that the disk was full, and once when it was not any more.
        times_full = log.count('"event": "storage_full"')
        assert 1 <= times_full <= 2
        assert log.count('"event": "storage_free"') == times_full
        assert "Traceback" not in log
    finally:
        assert server.stop() == 0, server.log.read_text()


def check_full(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_full")
    assert int(answer.headers["retry-after"]) > 0
