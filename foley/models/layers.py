"""The blocks of the flow-matching transformer.

The audio stream is float32, the visual one in the weights' dtype, as the matrix products are. A
modulation comes out of a linear layer, so its dtype is that of the products: `modulate` returns to
it.
"""

# B batch, N tokens, A audio tokens, V visual tokens, T text tokens, C width, F MLP width,
# H heads, D head size, R distinct sync rows

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.models.attention import attend
from foley.models.packing import Borders, Packing, offsets
from foley.models.rope import RotaryTable, rotate

JOINT_EPS = 1e-6
# torch.finfo(float32).eps: what nn.RMSNorm takes when no epsilon is given.
AUDIO_RMS_EPS = 1.1920928955078125e-07
AUDIO_NORM_EPS = 1e-5


class RMSNorm(nn.Module):
    """Root-mean-square norm of the last dimension, in float32, dtype kept."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """The normalised `x` [..., dim]."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class TokenConv(nn.Conv1d):
    """A convolution along tokens, zero-padded to the same length: [B, N, in] -> [B, N, out].

    It is the sum over its taps of a matrix product with the shifted tokens; `weight` keeps the
    checkpoint's layout [out, in, taps].
    """

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int, *, bias: bool) -> None:
        super().__init__(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, tokens: Tensor, borders: Borders | None = None) -> Tensor:
        """The convolved tokens.

        Args:
            tokens: [B, N, in].
            borders: where B is 1 and the row holds several clips, which must not see each other.
        """
        if borders is None:
            return super().forward(tokens.transpose(1, 2)).transpose(1, 2)
        spaced = F.pad(tokens, (0, 0, 0, 1))[:, borders.spaced]  # a zero token between the clips
        return super().forward(spaced.transpose(1, 2)).transpose(1, 2)[:, borders.kept]


class GatedMLP(nn.Module):
    """down(SiLU(gate(x)) * up(x)), token by token, or with neighbours where kernel_size > 1."""

    def __init__(
        self, dim: int, hidden_dim: int, out_dim: int, kernel_size: int, *, bias: bool
    ) -> None:
        super().__init__()

        def layer(inner: int, outer: int) -> nn.Module:
            if kernel_size == 1:
                return nn.Linear(inner, outer, bias=bias)
            return TokenConv(inner, outer, kernel_size, bias=bias)

        self.gate = layer(dim, hidden_dim)
        self.up = layer(dim, hidden_dim)
        self.down = layer(hidden_dim, out_dim)

    def forward(self, x: Tensor, *borders: Borders | None) -> Tensor:
        """[B, N, dim] -> [B, N, out_dim].

        Args:
            x: tokens.
            borders: of the clips on the row, where neighbours are looked at.
        """
        return self.down(F.silu(self.gate(x, *borders)) * self.up(x, *borders), *borders)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """The layer-normed `x`, scaled and shifted in float32, in the dtype of `shift`."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return torch.addcmul(shift, normed, 1 + scale).to(shift.dtype)


def split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """[B, N, parts * C] -> `parts` tensors [B, N, H, D]."""
    return x.unflatten(-1, (parts, num_heads, -1)).unbind(-3)


def spread(modulation: Tensor, owner: Tensor | None) -> Tensor:
    """Rows [K, M], one for each clip, to broadcast over its tokens.

    [K, 1, M] where each clip has a row of the batch; [1, N, M] where `owner` [N] tells the clip of
    each token on the only row.
    """
    return modulation[:, None] if owner is None else modulation[owner][None]


class JointRotary(NamedTuple):
    """Rotary tables of one pair of lengths, or of packed clips, one after another.

    `joint_*` are the interleaved positions of the self-attention; `plain_*` the token's own index.
    `visual_source` is None where every visual token keeps its own query and key.
    """

    joint_audio: RotaryTable
    joint_visual: RotaryTable
    plain_audio: RotaryTable
    plain_visual: RotaryTable
    visual_source: Tensor | None

    @classmethod
    def concatenate(cls, tables: Sequence["JointRotary"]) -> "JointRotary":
        """The tables of clips that lie one after another."""
        sources = None
        if any(t.visual_source is not None for t in tables):
            begins = offsets([len(t.joint_visual.cos) for t in tables])
            sources = torch.cat(
                [t.visual_sources() + n for t, n in zip(tables, begins, strict=False)]
            )
        joint_audio, joint_visual, plain_audio, plain_visual = (
            RotaryTable.concatenate(column) for column in zip(*(t[:4] for t in tables), strict=True)
        )
        return cls(joint_audio, joint_visual, plain_audio, plain_visual, sources)

    def visual_sources(self) -> Tensor:
        """Each visual token's own index, or `visual_source` where there is one."""
        if self.visual_source is not None:
            return self.visual_source
        cos = self.joint_visual.cos
        return torch.arange(len(cos), device=cos.device)


class JointStream(nn.Module):
    """One of the two streams of a joint block: all that it has of its own."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(head_dim, JOINT_EPS)
        self.k_norm = RMSNorm(head_dim, JOINT_EPS)
        self.out = nn.Linear(dim, dim)
        self.cross_q = nn.Linear(dim, dim)
        self.cross_q_norm = RMSNorm(head_dim, JOINT_EPS)
        self.cross_out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.GELU(approximate="tanh"), nn.Linear(mlp_dim, dim)
        )

    def self_attention_inputs(self, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Normed, not yet rotated query and key, and value, [B, N, H, D] each."""
        qkv = self.qkv(modulate(x, shift, scale, JOINT_EPS))
        query, key, value = split_heads(qkv, 3, self.num_heads)
        return self.q_norm(query), self.k_norm(key), value

    def cross_query(self, x: Tensor, shift: Tensor, scale: Tensor, table: RotaryTable) -> Tensor:
        """The query to the text, [B, N, H, D]."""
        (query,) = split_heads(
            self.cross_q(modulate(x, shift, scale, JOINT_EPS)), 1, self.num_heads
        )
        return rotate(self.cross_q_norm(query), table)


class TimeProjection(nn.Module):
    """What one joint block is told about time: shift, scale and gate of three sub-layers a stream.

    It depends on the time alone, so it is computed once for a whole schedule, apart from its block.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.audio = nn.Linear(dim, 9 * dim)
        self.visual = nn.Linear(dim, 9 * dim)

    def forward(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 9C] for each stream, of SiLU(time embedding) [N, C]."""
        return self.audio(active), self.visual(active)


class TextProjection(nn.Module):
    """Keys and values of the text for one joint block.

    They are the same for all steps of a clip, so they are computed once, apart from the block.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kv = nn.Linear(dim, 2 * dim)
        self.k_norm = RMSNorm(dim // num_heads, JOINT_EPS)

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, normed and not yet rotated, and values [B, T, H, D] of projected text [B, T, C]."""
        key, value = split_heads(self.kv(text), 2, self.num_heads)
        return self.k_norm(key), value


class JointBlock(nn.Module):
    """Audio and visual tokens attend to each other, then to the text.

    Source: specification, section 2.4.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.audio = JointStream(dim, num_heads, mlp_dim)
        self.visual = JointStream(dim, num_heads, mlp_dim)

    def forward(
        self,
        audio: Tensor,
        visual: Tensor,
        audio_modulation: Tensor,
        visual_modulation: Tensor,
        text_keys: Tensor,
        text_values: Tensor,
        rotary: JointRotary,
        packing: Packing | None = None,
        *,
        update_visual: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Both streams after the block.

        Args:
            audio: [B, A, C].
            visual: [B, V, C].
            audio_modulation: [K, 9C], from the time of each clip.
            visual_modulation: [K, 9C].
            text_keys: [B, T, H, D], normed and rotated.
            text_values: [B, T, H, D].
            rotary: tables for A and V.
            packing: None where each clip has a row of the batch, K = B; otherwise B = 1.
            update_visual: False in the last block, whose visual result nothing reads.
        """
        audio_owner, visual_owner, to_joint, to_text = None, None, None, None
        if packing is not None:
            audio_owner, visual_owner = packing.audio_owner, packing.visual_owner
            to_joint = packing.joint_self if update_visual else packing.audio_joint
            to_text = packing.joint_text if update_visual else packing.audio_text
        a = spread(audio_modulation, audio_owner).chunk(9, dim=-1)  # [B, 1 or A, C] each
        v = spread(visual_modulation, visual_owner).chunk(9, dim=-1)

        audio_q, audio_k, audio_v = self.audio.self_attention_inputs(audio, a[0], a[1])
        visual_q, visual_k, visual_v = self.visual.self_attention_inputs(visual, v[0], v[1])
        if rotary.visual_source is not None:
            visual_q = visual_q[:, rotary.visual_source]
            visual_k = visual_k[:, rotary.visual_source]
        audio_q, audio_k = (rotate(x, rotary.joint_audio) for x in (audio_q, audio_k))
        visual_q, visual_k = (rotate(x, rotary.joint_visual) for x in (visual_q, visual_k))
        key = _join(visual_k, audio_k, packing)  # [B, V + A, H, D]
        value = _join(visual_v, audio_v, packing)
        query = _join(visual_q, audio_q, packing) if update_visual else audio_q
        attended = attend(query, key, value, to_joint).flatten(-2)
        if update_visual:
            visual_part, attended = _part(attended, visual.shape[1], packing)
            visual = visual + v[2] * self.visual.out(visual_part)
        audio = audio + a[2] * self.audio.out(attended)

        query = self.audio.cross_query(audio, a[3], a[4], rotary.plain_audio)
        if update_visual:
            visual_q = self.visual.cross_query(visual, v[3], v[4], rotary.plain_visual)
            query = _join(visual_q, query, packing)
        attended = attend(query, text_keys, text_values, to_text).flatten(-2)
        if update_visual:
            visual_part, attended = _part(attended, visual.shape[1], packing)
            visual = visual + v[5] * self.visual.cross_out(visual_part)
        audio = audio + a[5] * self.audio.cross_out(attended)

        audio = audio + a[8] * self.audio.mlp(modulate(audio, a[6], a[7], JOINT_EPS))
        if update_visual:
            visual = visual + v[8] * self.visual.mlp(modulate(visual, v[6], v[7], JOINT_EPS))
        return audio, visual


def _join(visual: Tensor, audio: Tensor, packing: Packing | None) -> Tensor:
    """The joint sequence [B, V + A, ...]: visual tokens before audio tokens, clip by clip."""
    joined = torch.cat((visual, audio), dim=1)
    return joined if packing is None else joined[:, packing.joint]


def _part(joined: Tensor, num_visual: int, packing: Packing | None) -> tuple[Tensor, Tensor]:
    """The inverse of `_join`."""
    if packing is None:
        return joined[:, :num_visual], joined[:, num_visual:]
    return joined[:, packing.visual_place], joined[:, packing.audio_place]


class AudioBlock(nn.Module):
    """Audio tokens alone, conditioned token by token on time and sync.

    Source: specification, section 2.5.
    """

    def __init__(self, dim: int, num_heads: int, conv_mlp_dim: int) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.modulation = nn.Linear(dim, 6 * dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(head_dim, AUDIO_RMS_EPS)
        self.k_norm = RMSNorm(head_dim, AUDIO_RMS_EPS)
        self.out = TokenConv(dim, dim, 3, bias=True)
        self.mlp = GatedMLP(dim, conv_mlp_dim, dim, 3, bias=False)

    def forward(
        self,
        audio: Tensor,
        row_conditions: Tensor,
        row_index: Tensor,
        table: RotaryTable,
        packing: Packing | None = None,
    ) -> Tensor:
        """The stream after the block.

        Args:
            audio: [B, A, C].
            row_conditions: SiLU(sync + time) [R, C]. Stretching repeats sync rows, so there are
                fewer distinct rows than tokens, and the modulation is computed once for each.
            row_index: int64 [B, A], the row of each token.
            table: rotary table of positions 0 .. A - 1, of each clip.
            packing: None where each clip has a row of the batch.
        """
        borders, segments = (
            (None, None) if packing is None else (packing.borders, packing.audio_self)
        )
        rows = self.modulation(row_conditions)  # [R, 6C]
        m = rows[row_index].chunk(6, dim=-1)  # [B, A, C] each
        qkv = self.qkv(modulate(audio, m[0], m[1], AUDIO_NORM_EPS))
        query, key, value = split_heads(qkv, 3, self.num_heads)
        query, key = rotate(self.q_norm(query), table), rotate(self.k_norm(key), table)
        attended = attend(query, key, value, segments).flatten(-2)
        audio = audio + m[2] * self.out(attended, borders)
        return audio + m[5] * self.mlp(modulate(audio, m[3], m[4], AUDIO_NORM_EPS), borders)
