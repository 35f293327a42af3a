"""Frames and prompts -> the tokens that the transformer is conditioned on."""

# V frames at 8 fps, n frames at 25 fps, S sync tokens, T text tokens

from collections.abc import Callable, Generator
from functools import cache

import torch
from torch import Tensor
from transformers import (
    BatchEncoding,
    ClapTextModel,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)

from foley.configs import MAX_TEXT_TOKENS, SYNC_SEGMENT_FRAMES, SYNC_SEGMENT_STRIDE
from foley.errors import PromptTooLongError
from foley.models.synchformer import Synchformer

# An encoding goes piece by piece, which bounds its memory and lets other work come between. On a
# CPU smaller pieces are no slower: 24 segments of tiny on one core take 1.3, 1.5, 1.2 and 1.4 s in
# ones, twos, fours and eights. On a GPU each piece costs the host the launches of all layers.
_FRAMES_AT_ONCE = {"cpu": 16, "cuda": 32}  # 1024 tokens a frame in the full-size vision tower
_SEGMENTS_AT_ONCE = {"cpu": 4, "cuda": 12}
_POSITION_OFFSET = 2  # RoBERTa keeps its first two positions for padding

# Yields between its pieces, and returns the tokens.
Encoding = Generator[None, None, Tensor]


def normalise_frames(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [n, H, W, 3] -> [n, 3, H, W] in [-1, 1], computed in float32 on the frames' device.

    Source: specification, sections 6 and 7.
    """
    return frames.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5).to(dtype)


def encode_visual(encoder: SiglipVisionModel, frames: Tensor, device: torch.device) -> Encoding:
    """Visual tokens [V, D] of uint8 frames [V, H, W, 3]: the pooled output, not normalised.

    `device` is where the encoder runs; its weights may be elsewhere between its calls.
    """
    features: list[Tensor] = []
    normalise = _normaliser(device.type)
    for chunk in frames.split(_FRAMES_AT_ONCE[device.type]):
        if features:
            yield
        pixels = normalise(_uploaded(chunk, device), encoder.dtype)
        features.append(encoder(pixel_values=pixels).pooler_output)
    return torch.cat(features)


def encode_sync(encoder: Synchformer, frames: Tensor, device: torch.device) -> Encoding:
    """Sync tokens [S, D] of uint8 frames [n, H, W, 3], n at least 16.

    Segments overlap, so do the frames of two pieces.
    """
    tokens: list[Tensor] = []
    normalise, frames = _normaliser(device.type), _uploaded(frames, device)
    at_once = _SEGMENTS_AT_ONCE[device.type]
    for first in range(0, _num_segments(len(frames)), at_once):
        if tokens:
            yield
        start = first * SYNC_SEGMENT_STRIDE
        stop = start + (at_once - 1) * SYNC_SEGMENT_STRIDE + SYNC_SEGMENT_FRAMES
        pixels = normalise(frames[start:stop], encoder.dtype)
        tokens.append(encoder(pixels, segments_at_once=at_once))
    return torch.cat(tokens)


def num_pieces(num_visual: int, num_sync: int, device: torch.device) -> int:
    """In how many pieces so many frames at 8 and at 25 fps are encoded; the text is one more."""
    visual = -(-num_visual // _FRAMES_AT_ONCE[device.type])
    return visual + -(-_num_segments(num_sync) // _SEGMENTS_AT_ONCE[device.type]) + 1


def _num_segments(num_frames: int) -> int:
    return (num_frames - SYNC_SEGMENT_FRAMES) // SYNC_SEGMENT_STRIDE + 1


@cache
def _normaliser(device_type: str) -> Callable[[Tensor, torch.dtype], Tensor]:
    if device_type == "cuda":  # one kernel, for any number of frames
        return torch.compile(normalise_frames, dynamic=True)
    return normalise_frames


def _uploaded(frames: Tensor, device: torch.device) -> Tensor:
    """The frames on the device.

    By way of pinned memory: all cores copy there, and neither the host nor what is queued on a GPU
    waits for the rest of the way.
    """
    if device.type != "cuda" or frames.is_cuda:
        return frames.to(device)
    staged = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True).copy_(frames)
    return _beside(device, lambda: staged.to(device, non_blocking=True))


def _beside(device: torch.device, run: Callable[[], Tensor]) -> Tensor:
    """What `run` makes, beside all that is queued on a GPU."""
    if device.type != "cuda":
        return run()
    stream, current = _side_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        made = run()
    current.wait_stream(stream)
    made.record_stream(current)
    return made


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


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


def encode_text(encoder: ClapTextModel, words: BatchEncoding, device: torch.device) -> Tensor:
    """Text tokens [2, T, D], T at most 77, of what `tokenize` made.

    The pair is padded to the longer one, and padding takes part in what follows, as it did when
    the weights were trained: so the sound for a prompt depends a little on the negative prompt's
    length.
    Source: specification, section 8.
    """

    def run() -> Tensor:
        ids, mask = words.input_ids.to(device), words.attention_mask.to(device)
        output = encoder(input_ids=ids, attention_mask=mask)
        return output.last_hidden_state[:, :MAX_TEXT_TOKENS]

    # Weights that are streamed to a GPU come in the stream of the work.
    return _beside(device, run) if encoder.device == device else run()
