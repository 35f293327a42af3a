"""SigLIP2's vision tower and CLAP's text tower, thin over transformers."""

# n frames, H height, W width

import torch
import transformers
from torch import Tensor
from transformers import (
    ClapTextConfig,
    ClapTextModel,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from foley.configs import TextConfig, VisionConfig
from foley.errors import CheckpointError


def build_vision_encoder(config: VisionConfig) -> SiglipVisionModel:
    """Return a SigLIP vision tower, with initial weights; its pooled output is the feature.

    Source: docs/internals/model-specification.md, section 7.
    """
    encoder = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config.hidden_dim,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-6,
        )
    )
    restore_buffers(encoder)
    return encoder.eval()


def build_text_encoder(config: TextConfig) -> ClapTextModel:
    """Return a CLAP text tower, with initial weights; its last hidden state is the feature.

    Source: docs/internals/model-specification.md, section 8.
    """
    encoder = ClapTextModel(
        ClapTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_dim,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.num_positions,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            layer_norm_eps=1e-12,
            hidden_act="gelu",
        ),
        add_pooling_layer=False,
    )
    restore_buffers(encoder)
    return encoder.eval()


def restore_buffers(encoder: PreTrainedModel) -> None:
    """Compute the index buffers of an encoder again, and keep them out of its state dict.

    They are constants that no checkpoint needs to hold. On the meta device they are lost.

    Args:
        encoder: on any device; the buffers are made on PyTorch's default device.

    Raises:
        CheckpointError: the installed transformers has a buffer that is not known here.
    """
    for module in encoder.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name == "position_ids":
                value = torch.arange(buffer.shape[-1]).expand(1, -1)
            elif name == "token_type_ids":
                value = torch.zeros(buffer.shape, dtype=torch.long)
            else:
                raise CheckpointError(
                    f"{type(encoder).__name__} of transformers {transformers.__version__} has a "
                    f"buffer that is not known here: {name}; install a version from the lock file"
                )
            module.register_buffer(name, value, persistent=False)


def normalise_frames(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return frames as the visual encoders take them, [n, 3, H, W] with values in [-1, 1].

    Args:
        frames: uint8 [n, H, W, 3].
        dtype: of the result; it is computed in float32 on the frames' device.

    Source: docs/internals/model-specification.md, sections 6 and 7.
    """
    return frames.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5).to(dtype)
