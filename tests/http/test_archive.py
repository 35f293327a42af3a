"""A zip that is sent without being written."""

import io
import zipfile
from pathlib import Path

from runners.http.archive import CHUNK_BYTES, lay_out_zip

SIZES = (0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5)


def test_a_zip_has_its_announced_length_and_all_files_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    files = [tmp_path / f"foley-{number}.wav" for number in range(len(SIZES))]
    for path, size in zip(files, SIZES, strict=True):
        path.write_bytes(bytes(index % 251 for index in range(size)))
    layout = lay_out_zip(files, {"manifest.json": "{}"})
    content = b"".join(layout.read())
    assert len(content) == layout.num_bytes
    assert sorted(tmp_path.iterdir()) == files
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [*(path.name for path in files), "manifest.json"]
        for path in files:
            assert archive.read(path.name) == path.read_bytes()
        # A checksum after a stored file is what Java's reader refuses.
        assert all(not entry.flag_bits & 0x08 for entry in archive.infolist())
