"""The encoders for a GPU: the numbers of their modules, in fewer kernels.

Weights keep their names and shapes. Where a module computes an approximation here, its function
says so.
"""

# B batch, N tokens, T text tokens, C width, H heads, D head size

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ClapTextModel, SiglipVisionModel
from transformers.models.siglip.modeling_siglip import (
    SiglipAttention,
    SiglipMLP,
    SiglipMultiheadAttentionPoolingHead,
    SiglipVisionEmbeddings,
)

from foley.models.attention import attend
from foley.models.synchformer import (
    DividedAttention,
    FrameAggregation,
    Synchformer,
    SynchformerBlock,
)

try:
    from foley.gpu import triton_attention, triton_pointwise
except ImportError:  # PyTorch for the CPU has no Triton
    triton_attention = None  # type: ignore[assignment]


def fuse_encoders(vision: SiglipVisionModel, synchformer: Synchformer) -> None:
    """Have both visual encoders run in fewer kernels, with their layers compiled.

    Args:
        vision: on a GPU, in 16 bits.
        synchformer: on a GPU, in 16 bits.
    """
    fuse_vision_encoder(vision)
    fuse_synchformer(synchformer)
    compile_layers(vision)
    compile_layers(synchformer)


def compile_layers(module: nn.Module) -> None:
    """Compile the layers of a transformer; all layers share what is compiled for one of them.

    Args:
        module: its layers are the members of its `nn.ModuleList`s.
    """
    for child in module.modules():
        if isinstance(child, nn.ModuleList):
            for layer in child:
                layer.compile()


def fuse_synchformer(synchformer: Synchformer) -> None:
    """Have attentions run by Triton kernels that suit them, and activations within products.

    The activations are the tanh approximation of GELU. It differs from GELU by 0.01 % at toy width,
    where bf16 is off by 0.45 % with either.

    Args:
        synchformer: on a GPU; elsewhere only the activations change.
    """
    num_patches = synchformer.position.shape[1] - 1
    for module in synchformer.modules():
        if isinstance(module, SynchformerBlock | FrameAggregation):
            wide = module.mlp[0]
            assert isinstance(wide, nn.Linear)
            module.mlp[0], module.mlp[1] = LinearGelu(wide), nn.Identity()
        if not isinstance(module, DividedAttention | FrameAggregation):
            continue
        if not module.qkv.weight.is_cuda or triton_attention is None:
            continue
        head_dim = module.qkv.in_features // module.num_heads
        if isinstance(module, FrameAggregation):
            if triton_pointwise.supports_head_size(head_dim):
                module.function = triton_attention.attend_first
        elif triton_attention.supports_divided_attention(
            head_dim, synchformer.num_tubelets, num_patches
        ):
            module.function = triton_attention.attend_divided


def fuse_vision_encoder(encoder: SiglipVisionModel) -> None:
    """Have patches and attentions' inputs computed by one product each, and activations within one.

    The pooling of a frame needs no keys and values.

    Args:
        encoder: on any device.
    """
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SiglipAttention):
                setattr(module, name, _JoinedAttention(child))
            elif isinstance(child, SiglipMultiheadAttentionPoolingHead):
                child.attention = _ProbePooling(child.attention)  # type: ignore[assignment]
        if isinstance(module, SiglipVisionEmbeddings):
            module.patch_embedding = _PatchProduct(  # type: ignore[assignment]
                module.patch_embedding
            )
        elif isinstance(module, SiglipMLP):
            module.fc1 = LinearGelu(module.fc1)  # type: ignore[assignment]
            module.activation_fn = nn.Identity()


def fuse_text_encoder(encoder: ClapTextModel) -> None:
    """Have the layers compiled, one kernel in place of six, for all lengths of prompts.

    Attention is plain PyTorch for the compiler: with so few tokens the library's kernel costs more
    to launch.

    Args:
        encoder: on any device.
    """
    from torch._inductor import config as inductor

    encoder.set_attn_implementation("eager")
    encoder.register_forward_pre_hook(_make_additive_mask, with_kwargs=True)
    encoder.encoder.register_forward_pre_hook(_mark_tokens_dynamic, with_kwargs=True)
    # The compiler's one-pass softmax needs a known length. It would warn, and do without.
    options = {"online_softmax": False} if hasattr(inductor, "online_softmax") else None
    for layer in encoder.encoder.layer:
        layer.compile(options=options)


def _make_additive_mask(
    encoder: ClapTextModel, inputs: Any, options: dict[str, Any]
) -> tuple[Any, Any]:
    """Return the inputs with the mask [B, T] as a term of the scores [B, 1, 1, T].

    transformers makes one kind of mask for padded prompts and none for others, and each kind would
    be compiled.
    """
    hidden = options["attention_mask"][:, None, None] == 0
    mask = torch.zeros(hidden.shape, dtype=encoder.dtype, device=hidden.device)
    mask = mask.masked_fill(hidden, torch.finfo(encoder.dtype).min)
    return inputs, options | {"attention_mask": mask}


def _mark_tokens_dynamic(layers: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
    """Tell the compiler that the number of tokens changes from call to call."""
    torch._dynamo.maybe_mark_dynamic(inputs[0], 1)
    torch._dynamo.maybe_mark_dynamic(options["attention_mask"], 3)


class _PatchProduct(nn.Module):
    """A convolution whose stride is its size, as a product: in a tenth of the library's time."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, pixels: Tensor) -> Tensor:
        """Return patches [B, C, h, w] of pixels [B, 3, H, W]."""
        size = self.weight.shape[-1]
        grid = pixels.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # [B, 3, h, y, w, x]
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class _JoinedAttention(nn.Module):
    """A `SiglipAttention` whose queries, keys and values come from one product."""

    weight: Tensor  # [3 * C, C]
    bias: Tensor  # [3 * C]

    def __init__(self, attention: SiglipAttention) -> None:
        super().__init__()
        self.k_proj, self.v_proj = attention.k_proj, attention.v_proj
        self.q_proj, self.out_proj = attention.q_proj, attention.out_proj
        self.num_heads = attention.num_heads
        parts = self.q_proj, self.k_proj, self.v_proj
        for name in ("weight", "bias"):
            joined = torch.cat([getattr(part, name).detach() for part in parts])
            self.register_buffer(name, joined, persistent=False)
            for part, rows in zip(parts, joined.chunk(3), strict=True):
                getattr(part, name).data = rows

    def forward(self, hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
        """Return [B, N, C] of tokens [B, N, C]; there is no mask."""
        projected = F.linear(hidden_states, self.weight, self.bias)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return self.out_proj(attend(query, key, value).flatten(-2)), None


class _ProbePooling(nn.Module):
    """The attention of one constant query, without the products for its keys and values.

    A score is the query's product with the key's weights, times the token. The weighted sum of the
    values is the value of the weighted sum of the tokens. The key's bias adds the same to all
    scores, so it is left out.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj, self.num_heads = attention.out_proj, attention.num_heads

    def forward(self, probe: Tensor, tokens: Tensor, _: Tensor) -> tuple[Tensor]:
        """Return ([B, 1, C],) of tokens [B, N, C] and a probe [B, 1, C], the same in all rows."""
        heads = self.num_heads, -1
        q_weight, k_weight, v_weight = self.in_proj_weight.chunk(3)
        q_bias, _, v_bias = self.in_proj_bias.chunk(3)
        query = F.linear(probe[0, 0], q_weight, q_bias).unflatten(0, heads)  # [H, D]
        query = query * query.shape[1] ** -0.5
        score_weight = torch.einsum("hd,hdc->hc", query, k_weight.unflatten(0, heads))
        weights = (tokens @ score_weight.t()).float().softmax(1).to(tokens.dtype)  # [B, N, H]
        pooled = weights.transpose(1, 2) @ tokens  # [B, H, C]
        values = torch.einsum("bhc,hdc->bhd", pooled, v_weight.unflatten(0, heads))
        return (self.out_proj(values.flatten(1) + v_bias)[:, None],)


class LinearGelu(nn.Module):
    """A linear layer and the tanh approximation of GELU, in one kernel on a GPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] of `x` [..., in]."""
        return linear_gelu(x, self.weight, self.bias)


@torch.library.custom_op("foley::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return GELU (the tanh approximation) of a linear layer, [..., out].

    On a GPU it is one kernel. It is an operator of its own, because the compiler would split that
    kernel again.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out].
    """
    if not x.is_cuda:
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    product = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return product.unflatten(0, x.shape[:-1])


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))
