"""A joint block of the fused step: the numbers of `JointBlock`, in fewer kernels.

Where both streams need the same kind of product, both are written into one tensor, visual tokens
first. The kernel that reads it also gathers the tokens of the joint places.
"""

# Of all clips together: N audio tokens, V visual tokens, J = V + N places of the joint sequence,
# T text tokens. C width, H heads, D head size

from typing import Protocol

import torch
from torch import Tensor, nn

from foley.gpu.compilation import Pointwise
from foley.gpu.fused_context import FusedContext
from foley.gpu.fused_streams import (
    StreamModulation,
    StreamState,
    TokenModulation,
    attend_packed,
)
from foley.gpu.matrix import Matrix, multiply_side_by_side
from foley.models.joint_block import JointBlock, JointStream
from foley.models.layers import JOINT_EPS, RMSNorm

# A layer, and the columns of its inputs and outputs, see `foley.gpu.matrix.MatrixLayer`.
LayerPlace = tuple[nn.Module] | tuple[nn.Module, slice, slice]


class MakeMatrix(Protocol):
    """Makes the product of a weight and a bias, which is that of some layers."""

    def __call__(self, weight: Tensor, bias: Tensor | None, *places: LayerPlace) -> Matrix: ...  # noqa: D102


class FusedJointBlock:
    """A joint block on packed clips.

    Args:
        block: its weights are used as they are.
        make_matrix: makes the products.
        ops: the functions between products.
    """

    def __init__(self, block: JointBlock, make_matrix: MakeMatrix, ops: Pointwise) -> None:
        self._audio = _StreamMatrices(block.audio, make_matrix)
        self._visual = _StreamMatrices(block.visual, make_matrix)
        self._q_norm = _stack_norms(block.visual.q_norm, block.audio.q_norm)
        self._k_norm = _stack_norms(block.visual.k_norm, block.audio.k_norm)
        self._cross_norm = _stack_norms(block.visual.cross_q_norm, block.audio.cross_q_norm)
        self._ops = ops

    def __call__(
        self,
        audio: StreamState,
        visual: StreamState,
        text_keys: Tensor,
        text_values: Tensor,
        audio_modulation: StreamModulation,
        visual_modulation: StreamModulation,
        context: FusedContext,
    ) -> tuple[StreamState, StreamState]:
        """Return both streams after the block.

        Args:
            audio: of N tokens.
            visual: of V tokens. The block leaves it as it is where nothing reads it afterwards:
                where `visual_modulation.following` is None.
            text_keys: [T, H, D], of this block.
            text_values: [T, H, D], of this block.
            audio_modulation: of this block; something always follows it.
            visual_modulation: of this block.
            context: of the same clips.
        """
        a, v = audio_modulation, visual_modulation
        assert a.following is not None
        if v.following is None:
            audio = self._attend_jointly_audio(audio, visual, a, context)
            audio = self._attend_to_text_audio(audio, text_keys, text_values, a, context)
            return self._add_mlp(self._audio, audio, a.mlp, a.following), visual
        audio, visual = self._attend_jointly(audio, visual, a, v, context)
        audio, visual = self._attend_to_text(audio, visual, text_keys, text_values, a, v, context)
        audio = self._add_mlp(self._audio, audio, a.mlp, a.following)
        visual = self._add_mlp(self._visual, visual, v.mlp, v.following)
        return audio, visual

    def _attend_jointly(
        self,
        audio: StreamState,
        visual: StreamState,
        a: StreamModulation,
        v: StreamModulation,
        context: FusedContext,
    ) -> tuple[StreamState, StreamState]:
        query, key, value = self._project_qkv(audio, visual, context)
        attended = attend_packed(query, key, value, context.joint_self)
        branch = self._audio.out(attended[context.audio_place])
        audio = audio.add(branch, a.attention, a.cross, self._ops)
        branch = self._visual.out(attended[context.visual_place])
        return audio, visual.add(branch, v.attention, v.cross, self._ops)

    def _attend_jointly_audio(
        self, audio: StreamState, visual: StreamState, a: StreamModulation, context: FusedContext
    ) -> StreamState:
        """Return the audio stream alone; it attends to both."""
        query, key, value = self._project_qkv(audio, visual, context)
        attended = attend_packed(query[context.audio_place], key, value, context.audio_joint)
        return audio.add(self._audio.out(attended), a.attention, a.cross, self._ops)

    def _project_qkv(
        self, audio: StreamState, visual: StreamState, context: FusedContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value [J, H, D] of the joint sequence."""
        qkv = multiply_side_by_side(
            self._visual.qkv, self._audio.qkv, visual.inputs, audio.inputs
        )  # [V + N, 3C]
        query, key, _ = qkv.chunk(3, dim=1)
        query, key = (
            self._ops.norm_and_rotate(
                x,
                context.joint_source,
                weight,
                context.stream,
                context.joint_table.cos,
                context.joint_table.sin,
                JOINT_EPS,
            )
            for x, weight in ((query, self._q_norm), (key, self._k_norm))
        )
        value = qkv[context.joint, 2 * qkv.shape[1] // 3 :].view(key.shape)
        return query, key, value

    def _attend_to_text(
        self,
        audio: StreamState,
        visual: StreamState,
        text_keys: Tensor,
        text_values: Tensor,
        a: StreamModulation,
        v: StreamModulation,
        context: FusedContext,
    ) -> tuple[StreamState, StreamState]:
        query = multiply_side_by_side(
            self._visual.cross_q, self._audio.cross_q, visual.inputs, audio.inputs
        )  # [V + N, C]
        query = self._ops.norm_and_rotate(
            query,
            context.joint,
            self._cross_norm,
            context.stream,
            context.text_table.cos,
            context.text_table.sin,
            JOINT_EPS,
        )
        attended = attend_packed(query, text_keys, text_values, context.joint_text)
        branch = self._audio.cross_out(attended[context.audio_place])
        audio = audio.add(branch, a.cross, a.mlp, self._ops)
        branch = self._visual.cross_out(attended[context.visual_place])
        return audio, visual.add(branch, v.cross, v.mlp, self._ops)

    def _attend_to_text_audio(
        self,
        audio: StreamState,
        text_keys: Tensor,
        text_values: Tensor,
        a: StreamModulation,
        context: FusedContext,
    ) -> StreamState:
        """Return the audio stream alone."""
        query = self._ops.norm_and_rotate(
            self._audio.cross_q(audio.inputs),
            None,
            self._cross_norm[1],
            None,
            context.audio_table.cos,
            context.audio_table.sin,
            JOINT_EPS,
        )
        attended = attend_packed(query, text_keys, text_values, context.audio_text)
        return audio.add(self._audio.cross_out(attended), a.cross, a.mlp, self._ops)

    def _add_mlp(
        self,
        matrices: "_StreamMatrices",
        state: StreamState,
        own: TokenModulation,
        following: TokenModulation,
    ) -> StreamState:
        hidden = matrices.wide.multiply_and_activate(state.inputs, self._ops.gelu)
        return state.add(matrices.narrow(hidden), own, following, self._ops)


class _StreamMatrices:
    """The products of one stream."""

    def __init__(self, stream: JointStream, make_matrix: MakeMatrix) -> None:
        def linear(layer: nn.Module) -> Matrix:
            assert isinstance(layer, nn.Linear)
            return make_matrix(layer.weight, layer.bias, (layer,))

        self.qkv, self.out = linear(stream.qkv), linear(stream.out)
        self.cross_q, self.cross_out = linear(stream.cross_q), linear(stream.cross_out)
        self.wide, self.narrow = linear(stream.mlp[0]), linear(stream.mlp[2])


def _stack_norms(visual: RMSNorm, audio: RMSNorm) -> Tensor:
    """Return both weights [2, D], in the order of `FusedContext.stream`."""
    return torch.stack([visual.weight.detach(), audio.weight.detach()])
