"""Files through which the API and the runner pass frames and waveforms.

A body of 100 MB takes half a second through the socket between two processes, and a fifth of that
through a file in shared memory. So the processes send each other paths.

    <folder of the request>/
        clip                    by the API: what the caller sent
        part                    by the process that decodes the clip: the part of it that is used,
                                if the caller asked for one
        source                  by the API: what an edit starts from, unless it is the clip
        source.safetensors      by the process that decodes it: its sound
        sound                   by the API: a sound that the caller sent to be mixed with the clip
        frames.safetensors      by the process that decodes the clip, while it does; absent without
                                a clip
        frames.json             by the API: the frames are complete, and this many
        expected.json           instead of both, of a clip of over 15 s, by the process that
                                decodes it: how long it may be
        frames-00000.safetensors, frames-00001.safetensors, ...
                                its pieces, while it is still being decoded
        waveforms.safetensors   by the runner
        waveform-1.f32, ...     instead, of each variation of a long sound, while it is made: its
                                samples so far
        beginning-1.f32, ...    by the runner, of each variation of a short sound on a CPU, where it
                                is asked for: its first samples, ahead of the rest
        write.json              by the API: such a sound is complete, and how its files are written

The runner replaces each piece that it has read by an empty file. The decoding process waits while
`MAX_PIECES` pieces are unread, so the folder holds as much of a long clip as of a short one. After
its death the process that decodes the clip again leaves out the pieces that it finds.
"""

# V frames at 8 fps, n25 frames at 25 fps, N variations, L layers, C channels

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from foley.atomic import atomic_path
from foley.types import ClipFacts, FramePiece, FramePlace, FrameStream

if TYPE_CHECKING:  # torch takes seconds to import, and building a bento must not need it
    from torch import Tensor

    from foley.types import SourceSound, VideoFrames

CLIP = "clip"
PART = "part"
SOURCE = "source"
SOURCE_SOUND = "source.safetensors"
SOUND = "sound"
FRAMES = "frames.safetensors"
FRAME_COUNTS = "frames.json"
WAVEFORMS = "waveforms.safetensors"
EXPECTED = "expected.json"
GROWING = "waveform-{}.f32"
BEGINNING = "beginning-{}.f32"
WRITE = "write.json"
PIECE = "frames-{:05}.safetensors"
MAX_PIECES = 2  # that no one has read; the first one has 150 MB, the others have 40 MB
WAIT_SECONDS = 0.02
HEADER_BYTES = 8192  # before the frames; the facts of a clip take some hundred
MAX_FRAMES_BYTES = 512 * 1024 * 1024  # 15 s at 512 and 224 pixels a side take 150 MB


class FrameCounts(NamedTuple):
    """The number of frames of a clip: all that the scheduler needs to know of it."""

    num_visual: int  # at 8 fps
    num_sync: int  # at 25 fps


def save_frames(frames: "VideoFrames", folder: Path) -> FrameCounts:
    """Write the frames of a clip for the runner, and return how many they are.

    Args:
        frames: of one clip.
        folder: of the request.

    Raises:
        SafetensorError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    facts = {
        "num_picked": frames.num_picked,
        "source_seconds": frames.source_seconds,
        "trimmed": frames.trimmed,
        "notices": frames.notices,
    }
    tensors = {"visual": frames.visual.contiguous(), "sync": frames.sync.contiguous()}
    save_file(tensors, folder / FRAMES, metadata={"facts": json.dumps(facts)})
    return FrameCounts(len(frames.visual), len(frames.sync))


class FrameFile:
    """The file of `save_frames`, for frames that are written before it is known how many they are.

    Between the frames at 8 and at 25 fps there may be a hole, which takes no room on the disk.

    Args:
        folder: of the request.
        sizes: side in pixels of the frames at 8 and at 25 fps.
        most: room for so many.

    Attributes:
        places: for the frames at 8 and at 25 fps.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, sizes: tuple[int, int], most: FrameCounts) -> None:
        self._sizes = sizes
        self._path = folder / FRAMES
        self._file = self._path.open("w+b", buffering=0)
        descriptor = self._file.fileno()
        self._middle = HEADER_BYTES + most.num_visual * self._frame_bytes[0]
        self.places = (
            FramePlace(descriptor, HEADER_BYTES, most.num_visual),
            FramePlace(descriptor, self._middle, most.num_sync),
        )

    @property
    def _frame_bytes(self) -> tuple[int, int]:
        return 3 * self._sizes[0] ** 2, 3 * self._sizes[1] ** 2

    def seal(self, counts: FrameCounts, facts: ClipFacts) -> None:
        """Write the head, which says how many frames there are, and close the file.

        Args:
            counts: of the frames in the places.
            facts: of the clip.

        Raises:
            OSError: the folder cannot be written.
        """
        lengths = [count * size for count, size in zip(counts, self._frame_bytes, strict=True)]
        stops = [lengths[0], self._middle - HEADER_BYTES]
        stops.append(stops[1] + lengths[1])
        visual, sync = (
            [count, size, size, 3] for count, size in zip(counts, self._sizes, strict=True)
        )
        tensors = {
            "visual": (visual, 0, stops[0]),
            "hole": ([stops[1] - stops[0]], stops[0], stops[1]),
            "sync": (sync, stops[1], stops[2]),
        }
        head = {"__metadata__": {"facts": json.dumps(vars(facts))}} | {
            name: {"dtype": "U8", "shape": shape, "data_offsets": [start, stop]}
            for name, (shape, start, stop) in tensors.items()
        }
        content = json.dumps(head).encode().ljust(HEADER_BYTES - 8)
        if len(content) > HEADER_BYTES - 8:
            raise ValueError(f"the facts of the clip take {len(content)} bytes")
        with self._file as file:
            os.pwrite(file.fileno(), len(content).to_bytes(8, "little") + content, 0)
            file.truncate(HEADER_BYTES + stops[2])

    def drop(self) -> None:
        """Remove the file. What is mapped of it stays until it is no longer used."""
        self._file.close()
        self._path.unlink()


def announce_frames(counts: FrameCounts, folder: Path) -> None:
    """Mark the frames in a folder as complete, in one step.

    Args:
        counts: of `save_frames`.
        folder: of the request.

    Raises:
        OSError: the folder cannot be written.
    """
    with atomic_path(folder / FRAME_COUNTS) as partial:
        partial.write_text(json.dumps(counts._asdict()))


def read_announcement(folder: Path) -> FrameCounts | None:
    """Return the number of frames in a folder; None until they are complete.

    Args:
        folder: of the request, in any state; it may be gone.
    """
    try:
        return FrameCounts(**json.loads((folder / FRAME_COUNTS).read_text()))
    except FileNotFoundError:
        return None


def load_frames(folder: Path) -> "VideoFrames":
    """Return the frames that `save_frames` wrote.

    Args:
        folder: of the request.

    Raises:
        OSError: they are not there.
    """
    from safetensors import safe_open

    from foley.types import VideoFrames

    with safe_open(folder / FRAMES, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        facts["notices"] = tuple(facts["notices"])
        return VideoFrames(
            visual=file.get_tensor("visual"),  # [V, H, W, 3]
            sync=file.get_tensor("sync"),  # [n25, H, W, 3]
            **facts,
        )


def save_source(source: "SourceSound", folder: Path) -> None:
    """Write the sound that an edit starts from for the runner.

    Args:
        source: of the edit.
        folder: of the request.

    Raises:
        SafetensorError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    notices = {"notices": json.dumps(source.notices)}
    save_file({"waveform": source.waveform.contiguous()}, folder / SOURCE_SOUND, metadata=notices)


def load_source(folder: Path) -> "SourceSound":
    """Return the sound that `save_source` wrote.

    Args:
        folder: of the request.

    Raises:
        OSError: it is not there.
    """
    from safetensors import safe_open

    from foley.types import SourceSound

    with safe_open(folder / SOURCE_SOUND, framework="pt") as file:
        notices = tuple(json.loads(file.metadata()["notices"]))
        return SourceSound(waveform=file.get_tensor("waveform"), notices=notices)


def hand_on_piece(piece: FramePiece, folder: Path, index: int) -> None:
    """Write a piece of a long clip for the runner, once it has read most of those before.

    A piece that was handed on before is left out.

    Args:
        piece: of the clip.
        folder: of the request.
        index: of the piece, from 0.

    Raises:
        SafetensorError: the folder cannot be written.
        OSError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    path = folder / PIECE.format(index)
    if path.exists():
        return
    if index >= MAX_PIECES:
        oldest = folder / PIECE.format(index - MAX_PIECES)
        while oldest.stat().st_size:
            time.sleep(WAIT_SECONDS)
    if index == 0:
        with atomic_path(folder / EXPECTED) as partial:
            partial.write_text(json.dumps({"seconds": piece.expected_seconds}))
    with atomic_path(path) as partial:
        save_file(
            {"visual": piece.visual.contiguous(), "sync": piece.sync.contiguous()},
            partial,
            metadata={"facts": json.dumps(piece.facts and vars(piece.facts))},
        )


def read_expectation(folder: Path) -> float | None:
    """Return how many seconds a long clip may have; None before its first piece.

    Args:
        folder: of the request, in any state; it may be gone.

    Raises:
        ValueError: it was not written by `hand_on_piece`.
    """
    try:
        return float(json.loads((folder / EXPECTED).read_text())["seconds"])
    except FileNotFoundError:
        return None
    except (TypeError, KeyError) as error:
        raise ValueError(f"{EXPECTED} holds no length") from error


def has_piece(folder: Path, index: int) -> bool:
    """Return whether a piece of a long clip was handed on.

    Args:
        folder: of the request, in any state; it may be gone.
        index: of the piece, from 0.
    """
    return (folder / PIECE.format(index)).exists()


class HandedFrames(FrameStream):
    """The frames of a long clip, as the process that decodes it hands them on.

    Args:
        folder: of the request.

    Attributes:
        num_read: pieces that were read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.num_read = 0
        super().__init__(iter(self._read_next, None))

    def _read_next(self) -> FramePiece:
        from safetensors.torch import load

        path = self._folder / PIECE.format(self.num_read)
        # The process that decodes the clip lives on, and a clip may have taken it over. A file that
        # is cut short while it is mapped would end this process.
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes > MAX_FRAMES_BYTES:
                raise ValueError(f"{path.name} has {num_bytes} bytes, over {MAX_FRAMES_BYTES}")
            content = file.read(num_bytes)
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = json.loads(header["__metadata__"]["facts"])
        piece = FramePiece(
            visual=tensors["visual"],  # [V, H, W, 3]
            sync=tensors["sync"],  # [n25, H, W, 3]
            facts=facts and ClipFacts(**{**facts, "notices": tuple(facts["notices"])}),
        )
        with atomic_path(path) as partial:
            partial.touch()
        self.num_read += 1
        return piece


def name_growing(folder: Path, variation: int) -> Path:
    """Return the file in which a long sound grows.

    Args:
        folder: of the request.
        variation: from 1.
    """
    return folder / GROWING.format(variation)


def name_beginning(folder: Path, variation: int) -> Path:
    """Return the file of the beginning of a short sound.

    Args:
        folder: of the request.
        variation: from 1.
    """
    return folder / BEGINNING.format(variation)


def announce_end(arguments: dict[str, Any], folder: Path) -> None:
    """Mark the long sounds in a folder as complete, in one step.

    Args:
        arguments: of the task that writes the files, as JSON can hold them.
        folder: of the request.

    Raises:
        OSError: the folder cannot be written.
    """
    with atomic_path(folder / WRITE) as partial:
        partial.write_text(json.dumps(arguments))


def read_end(folder: Path) -> dict[str, Any] | None:
    """Return the arguments that `announce_end` wrote; None until then.

    Args:
        folder: of the request.
    """
    try:
        arguments: dict[str, Any] = json.loads((folder / WRITE).read_text())
    except FileNotFoundError:
        return None
    return arguments


def save_waveforms(waveforms: "Tensor", folder: Path, stems: "Tensor | None" = None) -> None:
    """Write the sounds of a clip for the API.

    Args:
        waveforms: float32 [N, C, samples].
        folder: of the request.
        stems: float32 [L, C, samples], of layers; None without them.

    Raises:
        SafetensorError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {"waveforms": waveforms.contiguous()}
    if stems is not None:
        tensors["stems"] = stems.contiguous()
    save_file(tensors, folder / WAVEFORMS)


def load_waveforms(folder: Path) -> "Sequence[Tensor]":
    """Return the sounds that the runner left, float32 [C, samples] each.

    Args:
        folder: of the request.

    Raises:
        OSError: they are not there.
    """
    from safetensors.torch import load_file

    from foley.sound_file import map_samples

    if name_growing(folder, 1).exists():
        # Names with more digits come later.
        paths = sorted(folder.glob(GROWING.format("*")), key=lambda path: (len(path.name), path))
        return [map_samples(path) for path in paths]
    return list(load_file(folder / WAVEFORMS)["waveforms"])


def load_stems(folder: Path) -> "Tensor | None":
    """Return the layers that `save_waveforms` wrote, float32 [L, C, samples]; None without layers.

    Args:
        folder: of the request.

    Raises:
        OSError: there are no sounds.
    """
    from safetensors.torch import load_file

    if name_growing(folder, 1).exists():
        return None
    return load_file(folder / WAVEFORMS).get("stems")
