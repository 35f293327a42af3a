"""Frames and prompts -> the tokens that the transformer is conditioned on."""

# V frames at 8 fps, n frames at 25 fps, S sync tokens, T text tokens

from collections.abc import Generator

import torch
from torch import Tensor
from transformers import ClapTextModel, PreTrainedTokenizerBase, SiglipVisionModel

from foley.configs import MAX_TEXT_TOKENS, SYNC_SEGMENT_FRAMES, SYNC_SEGMENT_STRIDE
from foley.errors import PromptTooLongError
from foley.models.synchformer import Synchformer

# An encoding goes piece by piece, which bounds its memory and lets other work come between. Smaller
# pieces are no slower: 24 segments of tiny on one core take 1.3, 1.5, 1.2 and 1.4 s in ones, twos,
# fours and eights.
_FRAMES_AT_ONCE = 16  # 1024 tokens a frame in the full-size vision tower
_SEGMENTS_AT_ONCE = 4
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
    for chunk in frames.split(_FRAMES_AT_ONCE):
        if features:
            yield
        pixels = normalise_frames(chunk.to(device), encoder.dtype)
        features.append(encoder(pixel_values=pixels).pooler_output)
    return torch.cat(features)


def encode_sync(encoder: Synchformer, frames: Tensor, device: torch.device) -> Encoding:
    """Sync tokens [S, D] of uint8 frames [n, H, W, 3], n at least 16.

    Segments overlap, so do the frames of two pieces.
    """
    tokens: list[Tensor] = []
    for first in range(0, _num_segments(len(frames)), _SEGMENTS_AT_ONCE):
        if tokens:
            yield
        start = first * SYNC_SEGMENT_STRIDE
        stop = start + (_SEGMENTS_AT_ONCE - 1) * SYNC_SEGMENT_STRIDE + SYNC_SEGMENT_FRAMES
        chunk = frames[start:stop].to(device)
        tokens.append(encoder(normalise_frames(chunk, encoder.dtype)))
    return torch.cat(tokens)


def num_pieces(num_visual: int, num_sync: int) -> int:
    """In how many pieces so many frames at 8 and at 25 fps are encoded; the text is one more."""
    visual = -(-num_visual // _FRAMES_AT_ONCE)
    return visual + -(-_num_segments(num_sync) // _SEGMENTS_AT_ONCE) + 1


def _num_segments(num_frames: int) -> int:
    return (num_frames - SYNC_SEGMENT_FRAMES) // SYNC_SEGMENT_STRIDE + 1


def encode_text(
    encoder: ClapTextModel,
    tokenizer: PreTrainedTokenizerBase,
    negative_prompt: str,
    prompt: str,
    device: torch.device,
) -> tuple[Tensor, int]:
    """Text tokens [2, T, D], T at most 77, and how many the longer prompt has before that cut.

    Row 0 is the negative prompt, row 1 the prompt.

    The pair is padded to the longer one, and padding takes part in what follows, as it did when
    the weights were trained: so the sound for a prompt depends a little on the negative prompt's
    length.
    Source: specification, section 8.

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
    output = encoder(
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
    )
    return output.last_hidden_state[:, :MAX_TEXT_TOKENS], batch.input_ids.shape[1]
