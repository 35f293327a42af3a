"""Frames and prompts -> the tokens that the transformer is conditioned on."""

# V frames at 8 fps, n frames at 25 fps, S sync tokens, T text tokens

from collections.abc import Callable, Generator
from functools import cache

import torch
from torch import Tensor
from transformers import BatchEncoding, ClapTextModel, PreTrainedTokenizerBase

from foley.configs import MAX_TEXT_TOKENS, SYNC_SEGMENT_STRIDE
from foley.errors import PromptTooLongError
from foley.gpu.encoder_batches import TEXT_PRIORITY, Encoders, num_frames, num_segments
from foley.models.transfer import uploaded

_POSITION_OFFSET = 2  # RoBERTa keeps its first two positions for padding

# Yields between its pieces, and returns the tokens.
Encoding = Generator[None, None, Tensor]
# Gives what was begun elsewhere.
Ready = Callable[[], Tensor]


def encode_visual(encoders: Encoders, frames: Tensor) -> Encoding:
    """Visual tokens [V, D] of uint8 frames [V, H, W, 3]: the pooled output, not normalised."""
    device, features = encoders.device, list[Tensor]()
    for chunk in frames.split(encoders.cut.frames.split(len(frames))):
        if features:
            yield
        features.append(encoders.visual(_uploaded(chunk, device)))
    return torch.cat(features)


def encode_sync(encoders: Encoders, frames: Tensor) -> Encoding:
    """Sync tokens [S, D] of uint8 frames [n, H, W, 3], n at least 16.

    Segments overlap, so do the frames of two pieces. Frames that fill no segment are dropped.
    """
    device, tokens = encoders.device, list[Tensor]()
    frames, start = _uploaded(frames, device), 0
    for count in encoders.cut.segments.split(num_segments(len(frames))):
        if tokens:
            yield
        tokens.append(encoders.sync(frames[start : start + num_frames(count)]))
        start += count * SYNC_SEGMENT_STRIDE
    return torch.cat(tokens)


def num_pieces(encoders: Encoders, num_visual: int, num_sync: int) -> int:
    """In how many pieces so many frames at 8 and at 25 fps are encoded; the text is one more."""
    frames, segments = encoders.cut
    return frames.count(num_visual) + segments.count(num_segments(num_sync)) + 1


def _uploaded(frames: Tensor, device: torch.device) -> Tensor:
    """The frames on the device.

    By way of pinned memory: all cores copy there, and neither the host nor what is queued on a GPU
    waits for the rest of the way.
    """
    if device.type != "cuda" or frames.is_cuda:
        return frames.to(device)
    staged = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True).copy_(frames)
    return _beside(device, lambda: staged.to(device, non_blocking=True))()


def _beside(device: torch.device, run: Callable[[], Tensor], priority: int = 0) -> Ready:
    """Begin what `run` makes, beside all that is queued on a GPU; what follows the call of the
    result there waits for it.
    """
    stream = _side_stream(device, priority)
    with torch.cuda.stream(stream):
        made = run()
        done = stream.record_event()

    def ready() -> Tensor:
        current = torch.cuda.current_stream(device)
        current.wait_event(done)
        made.record_stream(current)
        return made

    return ready


@cache
def _side_stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=priority)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, encoder: ClapTextModel, negative_prompt: str, prompt: str
) -> BatchEncoding:
    """The ids of both prompts [2, T], the negative one first, padded to the longer one.

    Raises:
        PromptTooLongError: more tokens than the encoder has positions for.
    """
    limit = encoder.config.max_position_embeddings - _POSITION_OFFSET
    batch = tokenizer([negative_prompt, prompt], padding=True, return_tensors="pt", verbose=False)
    if batch.input_ids.shape[1] > limit:
        counts = batch.attention_mask.sum(dim=1).tolist()
        which, count = max(
            zip(("negative_prompt", "prompt"), counts, strict=True), key=lambda x: x[1]
        )
        raise PromptTooLongError(f"{which} has {count} tokens, the limit is {limit}; shorten it")
    return batch


def encode_text(encoders: Encoders, words: BatchEncoding) -> Ready:
    """Begin the text tokens [2, T, D], T at most 77, of what `tokenize` made.

    The pair is padded to the longer one, and padding takes part in what follows, as it did when
    the weights were trained: so the sound for a prompt depends a little on the negative prompt's
    length.
    Source: specification, section 8.
    """
    device = encoders.device

    def run() -> Tensor:
        ids, mask = (uploaded(words[name], device) for name in ("input_ids", "attention_mask"))
        return encoders.text(ids, mask)[:, :MAX_TEXT_TOKENS]

    if device.type == "cuda" and encoders.text_is_there:
        return _beside(device, run, TEXT_PRIORITY)
    tokens = run()  # weights that are streamed to a GPU come in the stream of the work
    return lambda: tokens
