"""SigLIP2's vision tower and CLAP's text tower, thin over transformers."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    ClapTextConfig,
    ClapTextModel,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip.modeling_siglip import (
    SiglipAttention,
    SiglipMLP,
    SiglipMultiheadAttentionPoolingHead,
    SiglipVisionEmbeddings,
)

from foley.configs import TextConfig, VisionConfig
from foley.errors import CheckpointError
from foley.models.attention import attend


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


def fuse_vision_encoder(encoder: SiglipVisionModel) -> None:
    """In fewer kernels, for a GPU: patches and attentions' inputs as one product each, each MLP's
    activation within its first product, and the frame's pooling without keys and values.

    Weights keep their names and shapes.
    """
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SiglipAttention):
                setattr(module, name, _Attention(child))
            elif isinstance(child, SiglipMultiheadAttentionPoolingHead):
                child.attention = _Pooling(child.attention)
        if isinstance(module, SiglipVisionEmbeddings):
            module.patch_embedding = _PatchProduct(module.patch_embedding)
        elif isinstance(module, SiglipMLP):
            module.fc1, module.activation_fn = LinearGelu(module.fc1), nn.Identity()


def fuse_text_encoder(encoder: ClapTextModel) -> None:
    """Its layers compiled, for a GPU: one kernel in place of six, for all lengths of prompts.

    Attention is spelt out for the compiler: with so few tokens the library's costs more to launch.
    """
    from torch._inductor import config as inductor

    encoder.set_attn_implementation("eager")
    encoder.register_forward_pre_hook(_spell_mask, with_kwargs=True)
    encoder.encoder.register_forward_pre_hook(_mark_tokens, with_kwargs=True)
    # The compiler's softmax in one pass needs a length that is known; it warns, and does without.
    options = {"online_softmax": False} if hasattr(inductor, "online_softmax") else None
    for layer in encoder.encoder.layer:
        layer.compile(options=options)


def _spell_mask(encoder: ClapTextModel, inputs: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """What is added to the scores, [B, 1, 1, T], for the mask [B, T]: one kind for all prompts."""
    unseen = options["attention_mask"][:, None, None] == 0
    added = torch.zeros(unseen.shape, dtype=encoder.dtype, device=unseen.device)
    added = added.masked_fill(unseen, torch.finfo(encoder.dtype).min)
    return inputs, options | {"attention_mask": added}


def _mark_tokens(layers: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
    """The number of tokens may change from call to call."""
    torch._dynamo.maybe_mark_dynamic(inputs[0], 1)
    torch._dynamo.maybe_mark_dynamic(options["attention_mask"], 3)


class _PatchProduct(nn.Module):
    """A convolution whose stride is its size: the library's takes ten times as long."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, h, w]."""
        size = self.weight.shape[-1]
        grid = pixels.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # [B, 3, h, y, w, x]
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class _Attention(nn.Module):
    """A `SiglipAttention` whose queries, keys and values come of one product."""

    weight: Tensor  # [3 * C, C]
    bias: Tensor  # [3 * C]

    def __init__(self, attention: SiglipAttention) -> None:
        super().__init__()
        self.k_proj, self.v_proj = attention.k_proj, attention.v_proj
        self.q_proj, self.out_proj = attention.q_proj, attention.out_proj
        self.num_heads = attention.num_heads
        parts = self.q_proj, self.k_proj, self.v_proj
        for name in ("weight", "bias"):
            together = torch.cat([getattr(part, name).detach() for part in parts])
            self.register_buffer(name, together, persistent=False)
            for part, rows in zip(parts, together.chunk(3), strict=True):
                getattr(part, name).data = rows

    def forward(self, hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
        """[B, N, C] -> [B, N, C]; there is no mask."""
        projected = F.linear(hidden_states, self.weight, self.bias)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return self.out_proj(attend(query, key, value).flatten(-2)), None


class _Pooling(nn.Module):
    """The attention of one constant query: its keys' and values' products are not needed.

    A score is the query's product with the key's weights, times the token; and what is gathered
    of the values is the value of what is gathered of the tokens. The key's bias adds the same to
    all scores.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj, self.num_heads = attention.out_proj, attention.num_heads

    def forward(self, probe: Tensor, tokens: Tensor, _: Tensor) -> tuple[Tensor]:
        """Of the probe [B, 1, C], the same for all, and tokens [B, N, C]: ([B, 1, C],)."""
        heads = self.num_heads, -1
        q_weight, k_weight, v_weight = self.in_proj_weight.chunk(3)
        q_bias, _, v_bias = self.in_proj_bias.chunk(3)
        query = F.linear(probe[0, 0], q_weight, q_bias).unflatten(0, heads)  # [H, D]
        query = query * query.shape[1] ** -0.5
        seen = torch.einsum("hd,hdc->hc", query, k_weight.unflatten(0, heads))
        weights = (tokens @ seen.t()).float().softmax(1).to(tokens.dtype)  # [B, N, H]
        gathered = weights.transpose(1, 2) @ tokens  # [B, H, C]
        values = torch.einsum("bhc,hdc->bhd", gathered, v_weight.unflatten(0, heads))
        return (self.out_proj(values.flatten(1) + v_bias)[:, None],)


class LinearGelu(nn.Module):
    """A linear layer and the tanh approximation of gelu, in one kernel on a GPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return linear_gelu(x, self.weight, self.bias)


@torch.library.custom_op("foley::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu (the tanh approximation) of x [..., in] @ weight [out, in]^T + bias.

    On a GPU one kernel: an operator of its own, as the compiler would take it apart again.
    """
    if not x.is_cuda:
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    made = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return made.unflatten(0, x.shape[:-1])


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))
