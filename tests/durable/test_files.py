"""The folder of the jobs: what is accepted and published appears whole, and once."""

import os
import time
from pathlib import Path

import pytest

from foley.errors import NotFoundError, StorageFullError
from runners.durable.files import LEFTOVER_SECONDS, JobFiles
from runners.durable.request import JobOptions, JobRequest
from runners.handoff import CLIP

JOB = "0" * 32


def make_request(**options: object) -> JobRequest:
    return JobRequest.settle(JobOptions.model_validate(options), None)


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path / "jobs")


def accept(files: JobFiles, request: JobRequest, clip: bytes = b"clip") -> JobRequest:
    with files.receive() as folder:
        (folder / CLIP).write_bytes(clip)
        return files.accept(folder, JOB, request)


def test_a_request_is_settled_so_that_its_repetition_gives_the_same_sound() -> None:
    request = make_request(prompt="rain", duration_seconds=1)
    assert request.options.seed is not None
    assert request.options.format == "wav"
    assert request.options.priority == "bulk"
    asked = make_request(seed=7, format="mkv", priority="interactive").options
    assert (asked.seed, asked.format, asked.priority) == (7, "mkv", "interactive")


def test_equal_requests_have_equal_digests_though_their_seeds_are_drawn(tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    clip.write_bytes(b"one")
    options = JobOptions(prompt="rain")
    first, second = (JobRequest.settle(options, clip) for _ in range(2))
    assert first.options.seed != second.options.seed
    assert first.digest == second.digest
    other = JobRequest.settle(JobOptions(prompt="snow"), clip)
    clip.write_bytes(b"two")
    assert len({first.digest, other.digest, JobRequest.settle(options, clip).digest}) == 3


def test_a_second_acceptance_changes_nothing(files: JobFiles) -> None:
    first = accept(files, make_request(prompt="rain"), b"first")
    assert accept(files, make_request(prompt="snow"), b"second") == first
    assert files.clip(JOB).read_bytes() == b"first"


def test_what_is_not_accepted_leaves_nothing(files: JobFiles) -> None:
    with files.receive() as folder:
        (folder / CLIP).write_bytes(b"clip")
    assert not list((files.folder / "uploads").iterdir())


def test_a_result_is_published_once_and_the_clip_is_removed(files: JobFiles) -> None:
    accept(files, make_request())
    assert files.find_result(JOB) is None
    for number, expected in ((1, 1), (2, 1)):  # the second one is a repeated step
        with files.partial_results(JOB) as partial:
            (partial / "foley-1.wav").write_text(str(number))
            assert files.publish(partial, JOB, {"number": number}) == {"number": expected}
    assert files.find_file(JOB, "foley-1.wav", {}).read_text() == "1"
    assert not files.clip(JOB).exists()


def test_an_attempt_removes_what_a_killed_one_left(files: JobFiles) -> None:
    accept(files, make_request())
    left = files.clip(JOB).parent / ".partial-killed"
    left.mkdir()
    with files.partial_results(JOB):
        assert not left.exists()
    assert files.find_result(JOB) is None


@pytest.mark.parametrize("name", ["../request.json", "result.json", "foley-2.wav", "..", ""])
def test_no_other_file_is_found(files: JobFiles, name: str) -> None:
    accept(files, make_request())
    with files.partial_results(JOB) as partial:
        (partial / "foley-1.wav").write_text("sound")
        files.publish(partial, JOB, {})
    with pytest.raises(NotFoundError):
        files.find_file(JOB, name, {})


def test_old_folders_without_a_job_are_removed(files: JobFiles) -> None:
    accept(files, make_request())
    old = time.time() - LEFTOVER_SECONDS - 60
    for path in (files.folder / "jobs" / JOB, files.folder / "uploads" / "cut-off"):
        path.mkdir(exist_ok=True)
        os.utime(path, (old, old))
    with files.receive() as receiving:
        files.remove_leftovers([JOB])
        assert files.clip(JOB).exists()
        assert list((files.folder / "uploads").iterdir()) == [receiving]
        files.remove_leftovers([])
        assert not files.clip(JOB).exists()


def test_a_try_that_was_killed_after_its_result_appeared_leaves_no_clip(files: JobFiles) -> None:
    request = make_request()
    accept(files, request)
    assert files.take_up(JOB) is None
    assert files.clip(JOB).exists()
    with files.partial_results(JOB) as partial:
        (partial / "foley-1.wav").write_bytes(b"sound")
        result = files.publish(partial, JOB, {"files": []})
    files.clip(JOB).write_bytes(b"clip")
    assert files.take_up(JOB) == result
    assert not files.clip(JOB).exists()


def test_a_job_without_room_for_its_result_is_refused(
    files: JobFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = os.statvfs(files.folder)
    free_bytes = stats.f_bavail * stats.f_frsize
    # Room for half a gigabyte, and a clip of a quarter of one that takes no room itself.
    monkeypatch.setattr("runners.durable.files.MIN_ROOM_BYTES", free_bytes - 500_000_000)

    def accept_large(**options: object) -> None:
        with files.receive() as folder:
            (folder / CLIP).touch()
            os.truncate(folder / CLIP, 250_000_000)
            files.accept(folder, JOB, make_request(**options))

    with pytest.raises(StorageFullError):
        accept_large(num_variations=8, format="mp4")
    assert not list((files.folder / "jobs").iterdir())
    accept_large(num_variations=8, format="wav")
