"""The key with which the executor calls for the owner of a job."""

from functools import partial
from pathlib import Path

import pytest

from foley.errors import ConfigError, UnauthorizedError
from runners.auth import ApiKeys
from runners.durable.secret import load_secret, make_job_key, read_job_key


def test_the_secret_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    first = load_secret(tmp_path / "jobs")
    assert load_secret(tmp_path / "jobs") == first
    assert load_secret(tmp_path / "other") != first
    assert len(first) == 32
    (path,) = (tmp_path / "jobs").iterdir()
    assert path.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"FOLEY_JOBS_DIR: .*file"):
        load_secret(tmp_path / "file" / "jobs")


def test_a_job_key_stands_for_its_owner_alone(tmp_path: Path) -> None:
    secret = load_secret(tmp_path)
    keys = ApiKeys(["first"], partial(read_job_key, secret))
    owner = keys.owner_of({"x-api-key": "first"})
    key = make_job_key(secret, owner)
    assert keys.owner_of({"authorization": f"Bearer {key}"}) == owner
    forged = [
        key.replace(owner, "b" * 64),
        key[:-1],
        make_job_key(b"other", owner),
        f"foley-job.{owner}.",
        "foley-job",
        f"foley-job.{owner}.é",
    ]
    for wrong in forged:
        with pytest.raises(UnauthorizedError):
            keys.owner_of({"x-api-key": wrong})
    with pytest.raises(UnauthorizedError):
        ApiKeys(["first"]).owner_of({"x-api-key": key})


@pytest.mark.parametrize("needed", [[], ["first"]])
def test_a_job_key_alone_tells_the_executor(tmp_path: Path, needed: list[str]) -> None:
    secret = load_secret(tmp_path)
    keys = ApiKeys(needed, partial(read_job_key, secret))
    for owner in ("", "a" * 64):
        key = make_job_key(secret, owner)
        assert keys.is_executor({"authorization": f"Bearer {key}"})
        assert not ApiKeys(needed).is_executor({"authorization": f"Bearer {key}"})
        for other in (key[:-1], make_job_key(b"other", owner), f"foley-job.{owner}.", "first", ""):
            assert not keys.is_executor({"authorization": f"Bearer {other}"})
    assert not keys.is_executor({})
