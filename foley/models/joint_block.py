"""The joint block: audio and visual tokens attend to each other, then to the text.

The audio stream is float32. The visual stream is in the weights' dtype, as the matrix products are.
"""

# B batch, N tokens, A audio tokens, V visual tokens, T text tokens, C width, H heads, D head size,
# K clips

import torch
from torch import Tensor, nn

from foley.models.attention import attend
from foley.models.layers import JOINT_EPS, RMSNorm, modulate, split_heads
from foley.models.modulation import JointModulation, Modulation, expand_rows
from foley.models.packing import Packing
from foley.models.rope import JointRotary, RotaryTable, rotate


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
        """Return keys, normed and not yet rotated, and values, [B, T, H, D] each.

        Args:
            text: [B, T, C], projected to the transformer's width.
        """
        key, value = split_heads(self.kv(text), 2, self.num_heads)
        return self.k_norm(key), value


class JointStream(nn.Module):
    """One of the two streams of a joint block: the layers that it does not share."""

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

    def project_qkv(self, x: Tensor, modulation: Modulation) -> tuple[Tensor, Tensor, Tensor]:
        """Return query and key, normed and not yet rotated, and value, [B, N, H, D] each.

        Args:
            x: [B, N, C].
            modulation: of the self-attention.
        """
        qkv = self.qkv(modulate(x, modulation, JOINT_EPS))
        query, key, value = split_heads(qkv, 3, self.num_heads)
        return self.q_norm(query), self.k_norm(key), value

    def project_cross_query(self, x: Tensor, modulation: Modulation, table: RotaryTable) -> Tensor:
        """Return the query to the text, normed and rotated, [B, N, H, D].

        Args:
            x: [B, N, C].
            modulation: of the cross-attention.
            table: of each token's own index.
        """
        projected = self.cross_q(modulate(x, modulation, JOINT_EPS))
        (query,) = split_heads(projected, 1, self.num_heads)
        return rotate(self.cross_q_norm(query), table)

    def add_mlp(self, x: Tensor, modulation: Modulation) -> Tensor:
        """Return the stream [B, N, C] after the MLP.

        Args:
            x: [B, N, C].
            modulation: of the MLP.
        """
        return x + modulation.gate * self.mlp(modulate(x, modulation, JOINT_EPS))


class JointBlock(nn.Module):
    """Joint self-attention of audio and visual tokens, cross-attention to the text, MLPs.

    Source: docs/internals/model-specification.md, section 2.4.
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
        """Return both streams after the block.

        Args:
            audio: [B, A, C].
            visual: [B, V, C].
            audio_modulation: [K, 9C], from the time of each clip, see `JointModulation`.
            visual_modulation: [K, 9C].
            text_keys: [B, T, H, D], normed and rotated.
            text_values: [B, T, H, D].
            rotary: tables for A and V.
            packing: None where each clip has a row of the batch, K = B; otherwise B = 1.
            update_visual: False in the last block, whose visual result nothing reads.
        """
        audio_owner = None if packing is None else packing.audio_owner
        visual_owner = None if packing is None else packing.visual_owner
        a = JointModulation.of(expand_rows(audio_modulation, audio_owner))
        v = JointModulation.of(expand_rows(visual_modulation, visual_owner))
        audio, visual = self._attend_jointly(
            audio, visual, a.attention, v.attention, rotary, packing, update_visual
        )
        audio, visual = self._attend_to_text(
            audio, visual, a.cross, v.cross, text_keys, text_values, rotary, packing, update_visual
        )
        audio = self.audio.add_mlp(audio, a.mlp)
        if update_visual:
            visual = self.visual.add_mlp(visual, v.mlp)
        return audio, visual

    def _attend_jointly(
        self,
        audio: Tensor,
        visual: Tensor,
        audio_modulation: Modulation,
        visual_modulation: Modulation,
        rotary: JointRotary,
        packing: Packing | None,
        update_visual: bool,
    ) -> tuple[Tensor, Tensor]:
        audio_q, audio_k, audio_v = self.audio.project_qkv(audio, audio_modulation)
        visual_q, visual_k, visual_v = self.visual.project_qkv(visual, visual_modulation)
        if rotary.visual_source is not None:
            visual_q = visual_q[:, rotary.visual_source]
            visual_k = visual_k[:, rotary.visual_source]
        audio_q, audio_k = (rotate(x, rotary.joint_audio) for x in (audio_q, audio_k))
        visual_q, visual_k = (rotate(x, rotary.joint_visual) for x in (visual_q, visual_k))
        key = _join_streams(visual_k, audio_k, packing)  # [B, V + A, H, D]
        value = _join_streams(visual_v, audio_v, packing)
        query = _join_streams(visual_q, audio_q, packing) if update_visual else audio_q
        segments = None
        if packing is not None:
            segments = packing.joint_self if update_visual else packing.audio_joint
        attended = attend(query, key, value, segments).flatten(-2)
        if update_visual:
            visual_part, attended = _split_streams(attended, visual.shape[1], packing)
            visual = visual + visual_modulation.gate * self.visual.out(visual_part)
        return audio + audio_modulation.gate * self.audio.out(attended), visual

    def _attend_to_text(
        self,
        audio: Tensor,
        visual: Tensor,
        audio_modulation: Modulation,
        visual_modulation: Modulation,
        text_keys: Tensor,
        text_values: Tensor,
        rotary: JointRotary,
        packing: Packing | None,
        update_visual: bool,
    ) -> tuple[Tensor, Tensor]:
        query = self.audio.project_cross_query(audio, audio_modulation, rotary.plain_audio)
        if update_visual:
            visual_q = self.visual.project_cross_query(
                visual, visual_modulation, rotary.plain_visual
            )
            query = _join_streams(visual_q, query, packing)
        segments = None
        if packing is not None:
            segments = packing.joint_text if update_visual else packing.audio_text
        attended = attend(query, text_keys, text_values, segments).flatten(-2)
        if update_visual:
            visual_part, attended = _split_streams(attended, visual.shape[1], packing)
            visual = visual + visual_modulation.gate * self.visual.cross_out(visual_part)
        return audio + audio_modulation.gate * self.audio.cross_out(attended), visual


def _join_streams(visual: Tensor, audio: Tensor, packing: Packing | None) -> Tensor:
    """Return the joint sequence [B, V + A, ...], clip by clip, visual before audio tokens."""
    both = torch.cat((visual, audio), dim=1)
    return both if packing is None else both[:, packing.joint]


def _split_streams(both: Tensor, num_visual: int, packing: Packing | None) -> tuple[Tensor, Tensor]:
    """Return the visual and the audio tokens of a joint sequence, undoing `_join_streams`."""
    if packing is None:
        return both[:, :num_visual], both[:, num_visual:]
    return both[:, packing.visual_place], both[:, packing.audio_place]
