"""Folders and buckets as one: a small S3 service in this process stands for Amazon's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from foley.errors import OutputError, ParameterError, VideoDecodeError
from foley.storage import Storage, fetch_clip, open_storage
from tests.s3 import serve_bucket


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with serve_bucket() as address:
        yield f"{address}/a"


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "new" / "place")
    return f"{request.getfixturevalue('s3')}/{request.node.callspec.id}/{request.node.originalname}"


@pytest.fixture
def storage(address: str) -> Storage:
    return open_storage(address)


def test_files_come_back_by_their_names(storage: Storage, address: str, tmp_path: Path) -> None:
    assert storage.list_sizes() == {}
    storage.write("x/one.json", b"12")
    storage.write("x/one.json", b"123")
    assert storage.read("x/one.json") == b"123"
    source = tmp_path / "source"
    source.write_bytes(bytes(70_000))
    storage.put(source, "x/ü two.wav", replace=False)
    storage.put(source, "three.wav", replace=False)
    assert storage.list_sizes() == {"three.wav": 70_000, "x/one.json": 3, "x/ü two.wav": 70_000}
    assert storage.list_sizes("x") == {"x/one.json": 3, "x/ü two.wav": 70_000}
    storage.fetch("x/ü two.wav", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    fetch_clip(f"{address}/three.wav", tmp_path / "clip")
    assert (tmp_path / "clip").stat().st_size == 70_000


def test_a_file_is_overwritten_only_if_that_is_asked_for(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"first")
    storage.put(source, "one.wav", replace=False)
    source.write_bytes(b"second")
    with pytest.raises(OutputError, match=r"one\.wav exists; another run"):
        storage.put(source, "one.wav", replace=False)
    assert storage.has("one.wav")
    assert not storage.has("one.wa")
    assert storage.read("one.wav") == b"first"
    storage.put(source, "one.wav", replace=True)
    assert storage.read("one.wav") == b"second"


def test_what_is_not_there_is_named(storage: Storage, address: str, tmp_path: Path) -> None:
    with pytest.raises(VideoDecodeError, match=rf"{address}/none\.mp4 cannot be read"):
        storage.fetch("none.mp4", tmp_path / "copy")
    with pytest.raises(OutputError, match=rf"{address}/none\.json cannot be read"):
        storage.read("none.json")
    with pytest.raises(VideoDecodeError, match=r"none\.mp4 cannot be read"):
        fetch_clip(f"{address}/none.mp4", tmp_path / "copy")


@pytest.mark.slow
def test_a_bucket_that_is_missing_is_named(s3: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="s3://other/x/ cannot be listed"):
        open_storage("s3://other/x").list_sizes()
    with pytest.raises(ParameterError, match="names no bucket"):
        open_storage("s3:///x")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/x\.wav cannot be written"):
        open_storage(str(tmp_path / "file")).write("x.wav", b"")
    with pytest.raises(VideoDecodeError, match="cannot be read"):  # a folder is no clip
        fetch_clip(str(tmp_path), tmp_path / "copy")
