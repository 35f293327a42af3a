"""Encode frames and prompts into the tokens that condition the transformer."""

# V frames at 8 fps, n frames at 25 fps, S sync tokens, T text tokens

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from foley.configs import MAX_TEXT_TOKENS, SYNC_SEGMENT_FRAMES, SYNC_SEGMENT_STRIDE
from foley.cuts import CutDetector
from foley.errors import PromptTooLongError
from foley.gpu.encoder_batches import TEXT_PRIORITY, Cut, Encoders
from foley.models.embeddings import SYNC_POSITIONS
from foley.models.synchformer import count_segment_frames, count_segments
from foley.models.transfer import upload
from foley.types import FramePiece, FrameStream, plan_pieces

if TYPE_CHECKING:
    from transformers import BatchEncoding, ClapTextModel, PreTrainedTokenizerBase

# Frames at 8 and at 25 fps of a long clip that are encoded first: a little more than a window.
_FIRST_PART = (64, 200)
_POSITION_OFFSET = 2  # RoBERTa keeps its first two positions for padding

# Yields between its pieces, and returns the tokens.
Encoding = Generator["EncodingPause", None, Tensor]
# Returns a tensor whose computation was started earlier.
Ready = Callable[[], Tensor]


def encode_visual(encoders: Encoders, frames: Tensor) -> Encoding:
    """Encode frames at 8 fps into visual tokens [V, D]: the pooled output, not normalised.

    Args:
        encoders: on their device.
        frames: uint8 [V, H, W, 3], at the image size of the vision encoder.

    Source: specification, section 7.
    """
    device, features = encoders.device, list[Tensor]()
    for chunk in frames.split(encoders.cut.frames.split(len(frames))):
        if features:
            yield EncodingPause()
        features.append(encoders.visual(_upload(chunk, device)))
    return torch.cat(features)


def encode_sync(encoders: Encoders, frames: Tensor, cuts: Sequence[int] = ()) -> Encoding:
    """Encode frames at 25 fps into sync tokens [S, D], 8 for each segment.

    Segments of 16 frames start every 8 frames. Frames after the last whole segment are dropped.

    Args:
        encoders: on their device.
        frames: uint8 [n, H, W, 3], n at least 16, at the image size of the sync encoder.
        cuts: frames at which shots begin, rising; those outside of `frames` say nothing.

    Source: specification, section 6.
    """
    device, tokens = encoders.device, list[Tensor]()
    frames, start = _upload(frames, device), 0
    for count in encoders.cut.segments.split(count_segments(len(frames))):
        if tokens:
            yield EncodingPause()
        part = frames[start : start + count_segment_frames(count)]
        tokens.append(encoders.sync(part))
        _separate_shots(encoders, part, tokens[-1], [cut - start for cut in cuts])
        start += count * SYNC_SEGMENT_STRIDE
    return torch.cat(tokens)


def _separate_shots(encoders: Encoders, frames: Tensor, tokens: Tensor, cuts: list[int]) -> None:
    """Put new tokens in place of those of segments that see several shots.

    A cut in a segment looks like a hit. Such a segment sees the shot of which it has the most
    frames, and the nearest of these in place of the others. The segment beside it has the others.

    Args:
        encoders: on their device.
        frames: of whole segments.
        tokens: [S, D] of these; changed in place.
        cuts: frames at which shots begin, counted as `frames`.
    """
    for index in range(count_segments(len(frames))):
        start = index * SYNC_SEGMENT_STRIDE
        inside = [cut - start for cut in cuts if 0 < cut - start < SYNC_SEGMENT_FRAMES]
        if not inside:
            continue
        shots = pairwise([0, *inside, SYNC_SEGMENT_FRAMES])
        first, end = max(shots, key=lambda shot: shot[1] - shot[0])
        shown = torch.arange(SYNC_SEGMENT_FRAMES, device=frames.device).clamp(first, end - 1)
        place = slice(index * SYNC_POSITIONS, (index + 1) * SYNC_POSITIONS)
        tokens[place] = encoders.sync(frames[start + shown])


class ClipTokens(NamedTuple):
    """What the encoders say of a clip, or of its first frames.

    Attributes:
        visual: [V, D].
        sync: [S, D].
        texts: of the prompts of each layer.
        num_sync: frames at 25 fps of which it is known where shots begin.
        num_encoded: frames at 25 fps whose tokens these are.
        cuts: frames of `num_sync` at which a shot begins; looked for where a clip lasts over 15 s.
    """

    visual: Tensor
    sync: Tensor
    texts: list[Tensor]
    num_sync: int
    num_encoded: int
    cuts: tuple[int, ...]


class EncodingPause(NamedTuple):
    """A place between two pieces of the work at which something else may run.

    Attributes:
        awaits_frames: whether the next piece of work begins with reading frames of the clip.
        collect: returns the tokens so far, where all frames up to some one are encoded; else None.
    """

    awaits_frames: bool = False
    collect: Callable[[], ClipTokens] | None = None


def encode_clip(
    encoders: Encoders, stream: FrameStream, start_texts: Callable[[], list[Ready]]
) -> Generator[EncodingPause, None, ClipTokens]:
    """Encode a clip and its prompts; yields between the pieces of the work.

    Frames are let go when they are encoded. Only tokens are kept, and the frames at 25 fps that
    belong to segments which are not complete.

    Args:
        encoders: on their device.
        stream: of the clip, not read yet.
        start_texts: starts to encode the prompts of each layer. It is called after the first
            frames at 8 fps.
    """
    visual, sync = list[Tensor](), list[Tensor]()
    texts: list[Ready] | None = None
    rest: Tensor | None = None
    num_encoded = 0
    detector = CutDetector()

    def collect() -> ClipTokens:
        assert texts is not None
        # Joined tokens take the place of their parts, so that no token is copied often.
        visual[:], sync[:] = [torch.cat(visual)], [torch.cat(sync)]
        return ClipTokens(
            visual[0],
            sync[0],
            [text() for text in texts],
            stream.num_sync if stream.facts is not None else detector.num_judged,
            num_encoded,
            tuple(detector.cuts),
        )

    while stream.facts is None:
        if texts is not None:
            yield EncodingPause(awaits_frames=True, collect=collect)
        piece = stream.read()
        if texts is not None or piece.facts is None:
            detector.add(piece.sync, is_end=piece.facts is not None)
        for index, part in enumerate(_split_piece(piece, is_first=texts is None)):
            if index:
                yield EncodingPause(collect=collect)
            frames = part.sync if rest is None else torch.cat([rest, part.sync])
            first = num_encoded + len(part.sync) - len(frames)
            if len(part.visual):
                visual.append((yield from encode_visual(encoders, part.visual)))
            if texts is None:
                yield EncodingPause()
                # A GPU is still busy with the frames at this point, and encodes the text beside
                # them.
                texts = start_texts()
            num_segments = max(0, count_segments(len(frames)))
            if num_segments:
                if len(part.visual):
                    yield EncodingPause()
                span = count_segment_frames(num_segments)
                # A cut in the last two frames that were read is not known yet. The segment that
                # ends with them sees it.
                cuts = [cut - first for cut in detector.cuts]
                sync.append((yield from encode_sync(encoders, frames[:span], cuts)))
            rest = frames[num_segments * SYNC_SEGMENT_STRIDE :].clone()
            num_encoded += len(part.sync)
            del part, frames
        del piece
    return collect()


def _split_piece(piece: FramePiece, *, is_first: bool) -> Iterator[FramePiece]:
    """Yield the parts in which a piece of a clip is encoded.

    The first 8 s of a long clip are one, so that its first seconds are heard soon.
    """
    if not is_first or piece.facts is not None:
        yield piece
        return
    num_visual, num_sync = _FIRST_PART
    yield replace(piece, visual=piece.visual[:num_visual], sync=piece.sync[:num_sync])
    yield replace(piece, visual=piece.visual[num_visual:], sync=piece.sync[num_sync:])


def count_pieces(cut: Cut, num_visual: int, num_sync: int) -> int:
    """Return the number of pieces of work in which a clip and its prompts are encoded.

    Args:
        cut: of the encoders, which decides how large a piece is.
        num_visual: frames at 8 fps, at least 1.
        num_sync: frames at 25 fps, at least 16.
    """
    frames, segments = cut
    count, num_encoded, previous = 1, 0, (0, 0)  # the prompts
    stops = plan_pieces(num_visual, num_sync)
    for stop in stops if len(stops) == 1 else [_FIRST_PART, *stops]:
        num_segments = count_segments(stop[1]) - num_encoded
        # A piece of a clip's last few frames may have nothing to encode, and is read all the same.
        count += max(1, frames.count(stop[0] - previous[0]) + segments.count(num_segments))
        num_encoded += num_segments
        previous = stop
    return count


def _upload(frames: Tensor, device: torch.device) -> Tensor:
    """Copy frames to the device through pinned memory.

    All cores copy into pinned memory. The copy from there to a GPU holds up neither the host nor
    the work that is queued on the GPU.
    """
    if device.type != "cuda" or frames.is_cuda:
        return frames.to(device)
    staged = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True).copy_(frames)
    return _start_beside(device, lambda: staged.to(device, non_blocking=True))()


def _start_beside(device: torch.device, run: Callable[[], Tensor], priority: int = 0) -> Ready:
    """Run work on a GPU in a stream of its own, beside the work that is queued already.

    Work that is queued after the returned function was called waits for the result.
    """
    stream = _get_side_stream(device, priority)
    with torch.cuda.stream(stream):
        result = run()
        done = stream.record_event()

    def ready() -> Tensor:
        current = torch.cuda.current_stream(device)
        current.wait_event(done)
        result.record_stream(current)
        return result

    return ready


@cache
def _get_side_stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=priority)


def tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    encoder: "ClapTextModel",
    *prompts: str,
    names: Sequence[str] = ("negative_prompt", "prompt"),
) -> "BatchEncoding":
    """Return the token ids of all prompts [N, T], of one length.

    Args:
        tokenizer: not used by another thread during the call: padding is part of its state.
        encoder: has the limit on T.
        *prompts: at least two, the negative one first; they may be empty.
        names: what an error calls each of them.

    Raises:
        PromptTooLongError: more tokens than the encoder has positions for.
    """
    limit = encoder.config.max_position_embeddings - _POSITION_OFFSET
    batch = tokenizer([*prompts], padding=True, return_tensors="pt", verbose=False)
    if batch.input_ids.shape[1] > limit:
        counts = batch.attention_mask.sum(dim=1).tolist()
        which, count = max(zip(names, counts, strict=True), key=lambda x: x[1])
        raise PromptTooLongError(f"{which} has {count} tokens, the limit is {limit}; shorten it")
    return batch


def encode_text(encoders: Encoders, words: "BatchEncoding") -> Ready:
    """Start to encode the text tokens [2 + cues, T, D], T at most 77.

    The prompts are padded to the longest one, and padding is attended to, as it was when the
    weights were trained. So the sound for a prompt depends a little on the others' length.

    Args:
        encoders: on their device.
        words: of `tokenize`.

    Source: specification, section 8.
    """
    device = encoders.device

    def run() -> Tensor:
        ids, mask = (upload(words[name], device) for name in ("input_ids", "attention_mask"))
        # In pairs, as the encoder's graphs take them. Of an odd number the last one but one is
        # encoded twice.
        starts = [min(start, len(ids) - 2) for start in range(0, len(ids), 2)]
        pairs = [encoders.text(ids[i : i + 2], mask[i : i + 2]) for i in starts]
        pairs[-1] = pairs[-1][len(ids) % 2 :]
        tokens = pairs[0] if len(pairs) == 1 else torch.cat(pairs)
        return tokens[:, :MAX_TEXT_TOKENS]

    if device.type == "cuda" and encoders.text_is_resident:
        return _start_beside(device, run, TEXT_PRIORITY)
    tokens = run()  # streamed weights arrive in the current stream, so the work must run there
    return lambda: tokens
