"""Encode frames and prompts into the tokens that condition the transformer."""

# V frames at 8 fps, n frames at 25 fps, S sync tokens, T text tokens

from collections.abc import Callable, Generator
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foley.configs import MAX_TEXT_TOKENS, SYNC_SEGMENT_STRIDE
from foley.errors import PromptTooLongError
from foley.gpu.encoder_batches import TEXT_PRIORITY, Encoders
from foley.models.synchformer import count_segment_frames, count_segments
from foley.models.transfer import upload

if TYPE_CHECKING:
    from transformers import BatchEncoding, ClapTextModel, PreTrainedTokenizerBase

_POSITION_OFFSET = 2  # RoBERTa keeps its first two positions for padding

# Yields between its pieces, and returns the tokens.
Encoding = Generator[None, None, Tensor]
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
            yield
        features.append(encoders.visual(_upload(chunk, device)))
    return torch.cat(features)


def encode_sync(encoders: Encoders, frames: Tensor) -> Encoding:
    """Encode frames at 25 fps into sync tokens [S, D], 8 for each segment.

    Segments of 16 frames start every 8 frames. Frames after the last whole segment are dropped.

    Args:
        encoders: on their device.
        frames: uint8 [n, H, W, 3], n at least 16, at the image size of the sync encoder.

    Source: specification, section 6.
    """
    device, tokens = encoders.device, list[Tensor]()
    frames, start = _upload(frames, device), 0
    for count in encoders.cut.segments.split(count_segments(len(frames))):
        if tokens:
            yield
        tokens.append(encoders.sync(frames[start : start + count_segment_frames(count)]))
        start += count * SYNC_SEGMENT_STRIDE
    return torch.cat(tokens)


def count_pieces(encoders: Encoders, num_visual: int, num_sync: int) -> int:
    """Return the number of pieces in which a clip and its prompts are encoded.

    Args:
        encoders: on their device, which decides how large a piece is.
        num_visual: frames at 8 fps, at least 1.
        num_sync: frames at 25 fps, at least 16.
    """
    frames, segments = encoders.cut
    return frames.count(num_visual) + segments.count(count_segments(num_sync)) + 1


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
    negative_prompt: str,
    prompt: str,
    *cues: str,
) -> "BatchEncoding":
    """Return the token ids of all prompts [2 + cues, T], the negative one first, of one length.

    Args:
        tokenizer: not used by another thread during the call: padding is part of its state.
        encoder: has the limit on T.
        negative_prompt: may be empty.
        prompt: may be empty.
        *cues: prompts of cues.

    Raises:
        PromptTooLongError: more tokens than the encoder has positions for.
    """
    limit = encoder.config.max_position_embeddings - _POSITION_OFFSET
    prompts = [negative_prompt, prompt, *cues]
    batch = tokenizer(prompts, padding=True, return_tensors="pt", verbose=False)
    if batch.input_ids.shape[1] > limit:
        counts = batch.attention_mask.sum(dim=1).tolist()
        names = ("negative_prompt", "prompt", *(f"cue {i + 1}" for i in range(len(cues))))
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
