"""SigLIP2's vision tower and CLAP's text tower, thin over transformers."""

import torch
import transformers
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
    """A SigLIP vision tower; its pooled output is the feature. Source: specification, section 7."""
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
    """A CLAP text tower; its last hidden state is the feature, so no pooler.

    Source: specification, section 8.
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

    They are constants that no checkpoint needs to hold; on the meta device they are lost.
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
