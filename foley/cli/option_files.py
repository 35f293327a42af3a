"""Files that options name."""

from pathlib import Path

from foley.errors import ParameterError


def read_option_file(path: Path, option: str) -> str:
    """Return the text of a file.

    Args:
        path: of the file; UTF-8, with or without a byte order mark.
        option: that names it, as the user typed it.

    Raises:
        ParameterError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise ParameterError(f"{option} {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ParameterError(f"{option} {path} is not UTF-8; save it as that") from error
