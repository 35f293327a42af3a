"""The stages of a generation, and the data that passes between them."""

# V frames at 8 fps, n25 frames at 25 fps, S sync tokens, T text tokens, A latent frames

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from foley.configs import (
    PIECE_FRAMES,
    SYNC_FPS,
    SYNC_SEGMENT_FRAMES,
    SYNC_SEGMENT_STRIDE,
    VISUAL_FPS,
    WHOLE_CLIP_FRAMES,
)

if TYPE_CHECKING:  # the API's processes need `Stage` and must not load torch
    from collections.abc import Callable, Generator, Iterator

    from torch import Tensor


class Stage(StrEnum):
    """The stages of one request, in order.

    Progress, events, timings, headers, metrics, the scheduler, the command line and the page all
    use these names. The library itself runs `DECODE_VIDEO`, and `ENCODE` to `DECODE_AUDIO`.
    """

    UPLOAD = "upload"  # receive the clip
    DECODE_VIDEO = "decode_video"  # pick and scale the frames
    QUEUE = "queue"  # wait for a device
    ENCODE = "encode"  # frames and prompts -> conditions
    SAMPLE = "sample"  # noise -> latents
    DECODE_AUDIO = "decode_audio"  # latents -> waveform
    MUX = "mux"  # write the files


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """The frames of a clip, scaled to the sizes of the encoders.

    Attributes:
        visual: uint8 [V, H, W, 3], RGB, picked at 8 fps.
        sync: uint8 [n25, H, W, 3], RGB, picked at 25 fps.
        num_picked: frames that the 25 fps clock picked. It is less than n25 where the last frame
            was repeated to fill whole segments, or the shortest clip that the sync encoder takes.
        source_seconds: the clip's duration by its container or its last frame.
        trimmed: whether frames past the limit were left out.
        notices: sentences for the caller about changes to the clip.
    """

    visual: Tensor
    sync: Tensor
    num_picked: int
    source_seconds: float
    trimmed: bool = False
    notices: tuple[str, ...] = ()

    @property
    def num_sync(self) -> int:
        """Frames at 25 fps: n25."""
        return len(self.sync)

    @property
    def num_visual(self) -> int:
        """Frames at 8 fps: V."""
        return len(self.visual)


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """What is known of a clip's frames once all of them are decoded.

    Attributes:
        num_picked: as in `VideoFrames`, and so are the others.
        source_seconds: the clip's duration.
        trimmed: whether frames past the limit were left out.
        notices: sentences for the caller about changes to the clip.
    """

    num_picked: int
    source_seconds: float
    trimmed: bool = False
    notices: tuple[str, ...] = ()


class FramePlace(NamedTuple):
    """Room in a file for the frames of a clip at one rate, one after the other.

    Attributes:
        descriptor: of the file, open for reading and writing.
        start: byte at which the first frame begins.
        capacity: how many frames it is for.
    """

    descriptor: int
    start: int
    capacity: int


@dataclass(frozen=True, kw_only=True)
class FramePiece:
    """Frames of a clip that follow those of the piece before.

    Attributes:
        visual: uint8 [V, H, W, 3], RGB, at 8 fps; V may be 0.
        sync: uint8 [n25, H, W, 3], RGB, at 25 fps.
        expected_seconds: how long the clip may be, by what it states; 0 where nobody asks.
        facts: of the clip; set in the last piece alone.
        is_placed: whether all frames lie in the places that were given for them, of which these
            tensors are mappings.
    """

    visual: Tensor
    sync: Tensor
    expected_seconds: float = 0.0
    facts: ClipFacts | None = None
    is_placed: bool = False


class FrameStream:
    """The frames of a clip of over 15 s, in pieces that are read while it is still decoded.

    Args:
        pieces: in order; the last one has the facts of the clip.
        total: frames at 8 and at 25 fps of all pieces, where that is known before they are read.

    Attributes:
        total: as given.
        expected_seconds: how long the clip may be, by what it states; 0 until a piece was read.
        num_visual: frames at 8 fps of the pieces that were read.
        num_sync: frames at 25 fps of the pieces that were read.
        facts: of the clip; None until the last piece was read.
    """

    def __init__(self, pieces: Iterator[FramePiece], total: tuple[int, int] | None = None) -> None:
        self._pieces = pieces
        self.total = total
        self.num_visual = self.num_sync = 0
        self.expected_seconds = 0.0
        self.facts: ClipFacts | None = None

    def read(self) -> FramePiece:
        """Return the next piece; call until there are facts."""
        piece = next(self._pieces)
        self.num_visual += len(piece.visual)
        self.num_sync += len(piece.sync)
        self.facts = piece.facts
        self.expected_seconds = self.expected_seconds or piece.expected_seconds
        if piece.facts is not None:
            self._pieces = iter(())  # it may hold frames
        return piece


def count_visual(num_sync: int) -> int:
    """Return how many frames at 8 fps are shown while so many are at 25 fps.

    Args:
        num_sync: at least 1.
    """
    return VISUAL_FPS * (num_sync - 1) // SYNC_FPS + 1


def plan_pieces(num_visual: int, num_sync: int) -> list[tuple[int, int]]:
    """Return how many frames at 8 and at 25 fps a clip has up to the end of each of its pieces.

    Args:
        num_visual: frames at 8 fps of the clip.
        num_sync: frames at 25 fps of the clip, at least 1.
    """
    stops = range(WHOLE_CLIP_FRAMES, num_sync, PIECE_FRAMES)
    return [*((count_visual(stop), stop) for stop in stops), (num_visual, num_sync)]


def split_frames(frames: VideoFrames) -> FrameStream:
    """Return the frames of a clip as pieces, as `foley.media.decode.decode_pieces` cuts them.

    Args:
        frames: of a clip of any length. The stream holds them until it was read.
    """
    facts = ClipFacts(
        num_picked=frames.num_picked,
        source_seconds=frames.source_seconds,
        trimmed=frames.trimmed,
        notices=frames.notices,
    )

    def cut() -> Iterator[FramePiece]:
        visual_start = sync_start = 0
        for visual_stop, sync_stop in plan_pieces(frames.num_visual, frames.num_sync):
            yield FramePiece(
                visual=frames.visual[visual_start:visual_stop],
                sync=frames.sync[sync_start:sync_stop],
                facts=facts if sync_stop == frames.num_sync else None,
            )
            visual_start, sync_start = visual_stop, sync_stop

    return FrameStream(cut(), (frames.num_visual, frames.num_sync))


@dataclass(frozen=True, kw_only=True)
class NoPicture:
    """Stands for the frames of a clip where there is no clip, and the prompt alone decides.

    The numbers are those of a black clip of this length. A black clip would be silent; the
    transformer gets its learned empty features instead.

    Attributes:
        duration_seconds: length of the sound, from `MIN_SOUND_SECONDS` to `MAX_CLIP_SECONDS`.
    """

    duration_seconds: float

    @property
    def num_sync(self) -> int:
        """Frames at 25 fps: whole segments of the sync encoder."""
        num_frames = max(math.ceil(self.duration_seconds * SYNC_FPS), SYNC_SEGMENT_FRAMES)
        return num_frames + -num_frames % SYNC_SEGMENT_STRIDE

    @property
    def num_visual(self) -> int:
        """Frames at 8 fps."""
        return math.ceil(self.num_sync / SYNC_FPS * VISUAL_FPS)

    @property
    def notices(self) -> tuple[str, ...]:
        """Nothing was done to a clip."""
        return ()

    @property
    def trimmed(self) -> bool:
        """Nothing was left out."""
        return False


@dataclass(frozen=True, kw_only=True)
class SourceSound:
    """A sound that an edit starts from.

    Attributes:
        waveform: float32 [C, S] at 48 kHz from the clip's time zero on, C 1 or 2, on the CPU.
        notices: sentences for the caller about what was changed.
    """

    waveform: Tensor
    notices: tuple[str, ...] = ()


class Region(NamedTuple):
    """A part of a sound that hears one prompt: tokens that follow one another.

    Attributes:
        num_latents: latent frames, at 50 Hz; at least 1.
        num_visual: visual tokens, at 8 fps; may be 0.
        text_row: of the conditions' text tokens, from 1.
        negative_row: of the text tokens, for the unconditional half.
    """

    num_latents: int
    num_visual: int
    text_row: int
    negative_row: int = 0


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The tokens that condition the transformer on one clip and its prompts.

    Attributes:
        visual_tokens: [V, visual_dim].
        sync_tokens: [S, sync_dim], S a multiple of 8.
        text_tokens: [2 + cues, T, text_dim]; row 0 the negative prompt, row 1 the prompt, then
            those of the cues and their negative ones, padded to one length.
        num_latents: A, latent frames of the sound at 50 Hz; of one that is not encoded to its end,
            those that are known.
        regions: of all A and V tokens, in order; empty without cues.
        notices: sentences for the caller about changes to the prompts.
        cuts: latent frames at which shots begin, rising; looked for in sounds of over 15 s.
        num_encoded: latent frames whose tokens are known, where those are not all.
    """

    visual_tokens: Tensor
    sync_tokens: Tensor
    text_tokens: Tensor
    num_latents: int
    regions: tuple[Region, ...] = ()
    notices: tuple[str, ...] = ()
    cuts: tuple[int, ...] = ()
    num_encoded: int | None = None


@dataclass(frozen=True, kw_only=True)
class TextConditions:
    """The tokens of prompts without a clip. Both halves of guidance have the empty features.

    Attributes:
        num_visual: V.
        num_sync: S, a multiple of 8.
        text_tokens: [2 + cues, T, text_dim], as in `Conditions`.
        num_latents: A, latent frames of the sound at 50 Hz.
        regions: of all A and V tokens, in order; empty without cues.
        notices: sentences for the caller about changes to the prompts.
    """

    num_visual: int
    num_sync: int
    text_tokens: Tensor
    num_latents: int
    regions: tuple[Region, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def cuts(self) -> tuple[int, ...]:
        """There is no picture."""
        return ()

    @property
    def num_encoded(self) -> None:
        """There is nothing to wait for."""


if TYPE_CHECKING:
    # The conditions of each layer. Between the pieces of the work it yields whether the next one
    # begins with reading frames from a stream, and a function that returns the conditions of those
    # before, or None.
    Encoding = Generator[
        tuple[bool, Callable[[], list[Conditions]] | None],
        None,
        list[Conditions] | list[TextConditions],
    ]
