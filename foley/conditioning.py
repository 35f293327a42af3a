"""Frames and prompts -> the tokens that the transformer is conditioned on."""

# V frames at 8 fps, n frames at 25 fps, S sync tokens, T text tokens

import torch
from torch import Tensor
from transformers import ClapTextModel, PreTrainedTokenizerBase, SiglipVisionModel

from foley.configs import MAX_TEXT_TOKENS
from foley.errors import PromptTooLongError
from foley.models.synchformer import Synchformer

_FRAMES_AT_ONCE = 16  # bounds the memory of the vision tower: 1024 tokens a frame
_POSITION_OFFSET = 2  # RoBERTa keeps its first two positions for padding


def normalise_frames(frames: Tensor) -> Tensor:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W] in [-1, 1].

    Source: specification, sections 6 and 7.
    """
    return frames.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)


def encode_visual(encoder: SiglipVisionModel, frames: Tensor) -> Tensor:
    """Visual tokens [V, D] of uint8 frames [V, H, W, 3]: the pooled output, not normalised."""
    features = [
        encoder(pixel_values=normalise_frames(chunk).to(encoder.dtype)).pooler_output
        for chunk in frames.split(_FRAMES_AT_ONCE)
    ]
    return torch.cat(features)


def encode_sync(encoder: Synchformer, frames: Tensor) -> Tensor:
    """Sync tokens [S, D] of uint8 frames [n, H, W, 3], n at least 16."""
    return encoder(normalise_frames(frames).to(encoder.dtype))


def encode_text(
    encoder: ClapTextModel, tokenizer: PreTrainedTokenizerBase, negative_prompt: str, prompt: str
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
        input_ids=batch.input_ids.to(encoder.device),
        attention_mask=batch.attention_mask.to(encoder.device),
    )
    return output.last_hidden_state[:, :MAX_TEXT_TOKENS], batch.input_ids.shape[1]
