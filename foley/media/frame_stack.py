"""The scaled frames of a clip, in the order in which they are shown: in memory, or in a file."""

# S output side

import mmap
import os

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foley.types import FramePlace


class FrameStack:
    """Collects scaled frames in one array, which is shrunk to their number without a copy.

    The unused capacity takes address space, not memory. With a place in a file the frames are
    written there instead, by any thread, until one comes that has no room left. Then they are read
    into the array.

    Args:
        size: S, the side of the square frames in pixels.
        capacity: expected number of frames; the array grows when there are more.
        place: room for so many frames; None for the array.
    """

    def __init__(self, size: int, capacity: int, place: FramePlace | None = None) -> None:
        self._size = size
        self._count = 0
        self._last: npt.NDArray[np.uint8] | None = None  # of the frames that were taken
        self._capacity = capacity
        self._place = place
        self._num_claimed = 0  # frames of the place
        self._frames = self._make_array(0 if place else capacity)

    def __len__(self) -> int:
        return self._count

    @property
    def is_placed(self) -> bool:
        """Whether all frames are in the place in a file."""
        return self._place is not None

    @property
    def num_free(self) -> int:
        """How many more frames have room in the place; 0 without one."""
        return 0 if self._place is None else self._place.capacity - self._num_claimed

    def claim(self, times: int) -> int:
        """Return the index in the place for the next frame, which has room there.

        Args:
            times: how often the frame is shown, at most `num_free`.
        """
        index = self._num_claimed
        self._num_claimed += times
        return index

    def close(self) -> None:
        """Have all further frames appended."""
        self._num_claimed = self._place.capacity if self._place else 0

    def put(self, index: int, image: Tensor, times: int) -> None:
        """Write the image, uint8 [S, S, 3], `times` times, at an index of `claim`.

        Raises:
            OSError: there is no room.
        """
        assert self._place is not None
        content = np.ascontiguousarray(image.numpy()).reshape(-1).data
        for number in range(index, index + times):
            self._write(content, self._place.start + number * len(content))

    def count_put(self, times: int) -> None:
        """Count frames that were put; in the order of their indices."""
        self._count += times

    def append(self, image: Tensor, times: int) -> None:
        """Append the image, uint8 [S, S, 3], `times` times. All claimed frames have been put."""
        self._leave_place()
        needed = self._count + times
        if needed > len(self._frames):
            self._resize(max(needed, 2 * len(self._frames)))
        self._frames[self._count : needed] = image.numpy()
        self._count = needed

    def repeat_last(self, times: int) -> None:
        """Append the last frame `times` more times. All claimed frames have been put."""
        if not times:
            return
        last = self._view()[self._count - 1].copy() if self._count else self._last
        if last is None:
            return
        image = torch.from_numpy(last)
        if self.num_free < times:
            self.append(image, times)
        else:
            self.put(self.claim(times), image, times)
            self.count_put(times)

    def take(self, count: int, capacity: int) -> Tensor:
        """Return the first frames, uint8 [count, S, S, 3], and keep the others.

        Args:
            count: of frames to take, at most as many as there are.
            capacity: expected number of frames until the next call.
        """
        self._leave_place()
        rest = self._frames[count : self._count].copy()
        self._last = self._frames[count - 1].copy() if count else self._last
        self._resize(count)
        taken = self._frames
        self._frames = self._make_array(max(capacity, len(rest)))
        self._frames[: len(rest)], self._count = rest, len(rest)
        return torch.from_numpy(taken)

    def finish(self) -> Tensor:
        """The frames, uint8 [N, S, S, 3]. The stack is empty afterwards."""
        if self._place is None:
            self._resize(self._count)
        frames = self._view()
        self._frames, self._count = self._make_array(0), 0
        return torch.from_numpy(frames)

    def _view(self) -> npt.NDArray[np.uint8]:
        """The frames, without a copy."""
        if self._place is None:
            return self._frames[: self._count] if self._count < len(self._frames) else self._frames
        num_bytes = self._count * 3 * self._size**2
        if not num_bytes:
            return self._make_array(0)
        # What is written to a private mapping would stay in this process.
        mapped = mmap.mmap(
            self._place.descriptor, self._place.start + num_bytes, flags=mmap.MAP_PRIVATE
        )
        pixels = np.frombuffer(mapped, np.uint8, num_bytes, self._place.start)
        return pixels.reshape(self._count, self._size, self._size, 3)

    def _leave_place(self) -> None:
        """Read the frames of the place into the array, which is used from now on."""
        if self._place is None:
            return
        frames = self._view()
        self._place = None
        self._frames = self._make_array(max(self._capacity, self._count))
        self._frames[: self._count] = frames

    def _write(self, content: memoryview, start: int) -> None:
        assert self._place is not None
        while content:
            num_bytes = os.pwrite(self._place.descriptor, content, start)
            content, start = content[num_bytes:], start + num_bytes

    def _make_array(self, capacity: int) -> npt.NDArray[np.uint8]:
        return np.empty((capacity, self._size, self._size, 3), np.uint8)

    def _resize(self, capacity: int) -> None:
        # Reallocation moves pages instead of copying them. No view of the array exists here.
        self._frames.resize((capacity, self._size, self._size, 3), refcheck=False)


def claim_together(*wanted: tuple[FrameStack, int]) -> tuple[int | None, ...]:
    """Return the indices for the next frames of stacks that are taken together.

    Args:
        wanted: each stack, and how often its frame is shown.

    Returns:
        None for each if one of them has no room left: these frames and all further ones have to be
        appended. So no frame is on its way to a place when a stack leaves it.
    """
    if any(stack.num_free < times for stack, times in wanted):
        for stack, _ in wanted:
            stack.close()
        return tuple(None for _ in wanted)
    return tuple(stack.claim(times) for stack, times in wanted)
