"""Numbered pictures: their order, gaps in it, and a pattern of their paths such as frames/%04d.png.

Nothing here reads a picture, so this needs no FFmpeg.
"""

import re
import zipfile
from pathlib import Path

from foley.atomic import atomic_path
from foley.errors import OutputError, VideoDecodeError

_NUMBER = re.compile(r"%(0?\d*)d")


def is_pattern(path: Path) -> bool:
    """Whether a path names numbered pictures, such as frames/%04d.png, and no file.

    Args:
        path: as a caller wrote it.
    """
    return bool(_NUMBER.search(path.name)) and not path.exists()


def name_pictures(pattern: Path) -> str:
    """Return a name for the pictures of a pattern: what is before the number, or else the folder's.

    Args:
        pattern: as of `is_pattern`.
    """
    return pattern.name.partition("%")[0].rstrip("._- ") or pattern.absolute().parent.name


def list_pictures(pattern: Path) -> list[Path]:
    """Return the paths of a pattern in the order of their numbers.

    Args:
        pattern: as of `is_pattern`.

    Raises:
        VideoDecodeError: there is none, or a number is missing.
    """
    match = _NUMBER.search(pattern.name)
    assert match is not None
    digits = match[1].lstrip("0")
    number = rf"\d{{{digits},}}" if match[1].startswith("0") and digits else r"\d+"
    before, after = re.escape(pattern.name[: match.start()]), re.escape(pattern.name[match.end() :])
    wanted = re.compile(before + number + after)
    folder = pattern.parent
    names = (
        [p.name for p in folder.iterdir() if wanted.fullmatch(p.name)] if folder.is_dir() else []
    )
    if not names:
        raise VideoDecodeError(
            f"no file is named {pattern}, with a number in place of {match[0]}; check the path"
        )
    names.sort(key=split_numbers)
    if len(names) > 1:
        check_numbers(names)
    return [folder / name for name in names]


def pack_pictures(pattern: Path, destination: Path) -> None:
    """Write the pictures of a pattern into a zip, without compression.

    Args:
        pattern: as of `is_pattern`.
        destination: of the zip.

    Raises:
        VideoDecodeError: there is no picture, or a number is missing.
        OutputError: the zip cannot be written.
    """
    pack_files(list_pictures(pattern), destination)


def pack_files(pictures: list[Path], destination: Path) -> None:
    """Write files into a zip, without compression.

    Args:
        pictures: their paths; a zip has no folders.
        destination: of the zip.

    Raises:
        OutputError: the zip cannot be written.
    """
    try:
        with atomic_path(destination) as partial, zipfile.ZipFile(partial, "w") as archive:
            for picture in pictures:
                archive.write(picture, picture.name)
    except OSError as error:
        raise OutputError(
            f"the pictures cannot be packed into {destination.parent} ({error.strerror}); make "
            "room there, or set TMPDIR to another folder"
        ) from error


def split_numbers(name: str) -> list[tuple[str, int]]:
    """Return a key that sorts names by the numbers in them: frame2 before frame10.

    Args:
        name: of a file.
    """
    parts = re.split(r"(\d+)", name)
    return [(parts[i], int(parts[i + 1][:18])) for i in range(0, len(parts) - 1, 2)] + [
        (parts[-1], 0)
    ]


def check_numbers(names: list[str]) -> None:
    """Check that no number is missing, since every later picture would come too early.

    Args:
        names: sorted by `split_numbers`. Names without numbers are not checked.

    Raises:
        VideoDecodeError: a number is missing.
    """
    last = [re.search(r"(\d+)\D*$", name) for name in names]
    numbers = [int(found[1][:18]) for found in last if found]
    if len(numbers) != len(names):
        return
    step = numbers[1] - numbers[0]
    for before, after, name in zip(numbers, numbers[1:], names[1:], strict=False):
        if after - before != step:
            raise VideoDecodeError(
                f"{name} follows number {before}, and the first pictures count by {step}; number "
                "the pictures without gaps"
            )
