"""Long sounds in files of bare samples, float32, which grow while they are made.

A sound in memory would be held twice on its way to a file: once where it is made, and once where it
is written.
"""

# S samples

import tempfile
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foley.errors import OutputError

Samples = npt.NDArray[np.float32]

_ITEM_BYTES = 4
_MAX_READ = 480_000  # samples, 10 s


def append_samples(path: Path, samples: Samples, *, is_first: bool) -> None:
    """Write samples at the end of a file.

    Args:
        path: of the file.
        samples: float32 [S].
        is_first: whether the file begins with them.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with path.open("wb" if is_first else "ab") as file:
            file.write(samples.data)
    except OSError as error:  # of a full disk, which does not say where
        error.filename = str(path)
        raise


def map_samples(path: Path) -> Tensor:
    """Return the samples of a file, float32 [1, S], which are read when they are used.

    Args:
        path: of a file with at least one sample.

    Raises:
        OSError: it cannot be read.
    """
    # Nothing is changed, but PyTorch warns of memory that cannot be.
    return torch.from_numpy(np.memmap(path, np.float32, mode="c"))[None]


def read_samples(path: Path, start: int, num_samples: int) -> Tensor:
    """Return a part of a file, float32 [1, S].

    Args:
        path: of the file.
        start: the first sample.
        num_samples: of the part.

    Raises:
        OSError: the file is not there, or ends before.
    """
    samples = np.fromfile(path, np.float32, num_samples, offset=_ITEM_BYTES * start)
    if len(samples) < num_samples:
        raise OSError(f"{path.name} ends before sample {start + num_samples}")
    return torch.from_numpy(samples)[None]


class SoundFolder:
    """A folder for long sounds while they are made. It is there from the first of them to the end.

    A sound that was mapped before the end stays readable after it. A sound that cannot be stored
    raises an `OutputError`.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._folder is None:
            return
        self._folder.cleanup()
        # Another error of the system is not about the folder, such as one of who takes the pieces.
        if isinstance(error, OSError) and str(error.filename).startswith(self._folder.name):
            raise _make_error(error) from error

    def name(self, number: int, variation: int) -> Path:
        """Return the path of the file of a sound.

        Args:
            number: of its request.
            variation: of its request, counted from 1.

        Raises:
            OutputError: the folder cannot be made.
        """
        if self._folder is None:
            try:
                self._folder = tempfile.TemporaryDirectory(prefix="foley-")
            except OSError as error:
                raise _make_error(error) from error
        return Path(self._folder.name, f"{number}-{variation}.f32")


def _make_error(error: OSError) -> OutputError:
    return OutputError(
        f"a long sound cannot be stored while it is made ({error.strerror}); free some "
        "space, or set TMPDIR to another folder"
    )


class GrowingSound:
    """Reads a file while it grows.

    Args:
        path: of the file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_read = 0

    def read(self) -> Samples:
        """Return samples that have come since the last call, float32 [S]: at most 10 s of them."""
        try:
            # The last sample of the file may be written in part.
            count = self._path.stat().st_size // _ITEM_BYTES - self._num_read
        except FileNotFoundError:
            return np.empty(0, np.float32)
        samples = np.fromfile(
            self._path, np.float32, min(count, _MAX_READ), offset=_ITEM_BYTES * self._num_read
        )
        self._num_read += len(samples)
        return samples
