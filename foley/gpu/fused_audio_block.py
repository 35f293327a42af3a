"""An audio block of the fused step: the numbers of `AudioBlock`, in fewer kernels.

A convolution of three taps becomes one matrix product. Where its output is the wide side, the
tokens are first joined with their neighbours. Where its input is the wide side, the products of the
taps are computed side by side, and the kernel that follows sums them; that also fills more of the
chip when there are few tokens. The products with the gate's and the up weights are one.
"""

# N audio tokens of all clips together, R sync rows, C width, F MLP width, H heads, D head size

from typing import NamedTuple

import torch
from torch import Tensor, nn

from foley.gpu.compilation import Pointwise
from foley.gpu.fused_context import FusedContext
from foley.gpu.fused_joint_block import MakeMatrix
from foley.gpu.fused_streams import StreamState, TokenModulation, attend_packed
from foley.models.audio_block import AudioBlock
from foley.models.layers import AUDIO_NORM_EPS, AUDIO_RMS_EPS, GatedMLP, TokenConv
from foley.models.modulation import AudioModulation


class AudioTokenModulation(NamedTuple):
    """The modulation of an audio block, by sub-block, with a row of it for each sync row."""

    attention: TokenModulation
    mlp: TokenModulation


class FusedAudioBlock:
    """An audio block on packed clips.

    Args:
        block: its convolutions' weights are laid out anew in place, under their names and shapes.
        make_matrix: makes the products.
        ops: the functions between products.
    """

    def __init__(self, block: AudioBlock, make_matrix: MakeMatrix, ops: Pointwise) -> None:
        width, mlp = block.qkv.in_features, block.mlp
        whole, own = slice(None), slice(width, 2 * width)  # `own`: the tap of the token itself
        self._modulation = make_matrix(
            block.modulation.weight, block.modulation.bias, (block.modulation,)
        )
        self._qkv = make_matrix(block.qkv.weight, block.qkv.bias, (block.qkv,))
        self._q_norm, self._k_norm = block.q_norm.weight.detach(), block.k_norm.weight.detach()
        self._out, self._out_bias = (
            make_matrix(_lay_taps_first(block.out), None, (block.out, whole, own)),
            block.out.bias,
        )
        both = _join_gate_and_up(mlp)  # [2 * F, 3 * C]
        hidden = len(both) // 2
        self._gate_up = make_matrix(
            both, None, (mlp.gate, own, slice(hidden)), (mlp.up, own, slice(hidden, None))
        )
        self._down = make_matrix(_lay_taps_first(mlp.down), None, (mlp.down, whole, own))
        self._ops = ops

    def project_modulation(self, conditions: Tensor, context: FusedContext) -> AudioTokenModulation:
        """Return the block's modulation, as views of one product.

        Args:
            conditions: [R, C], see `foley.gpu.pointwise.condition_rows`; quantised in fp8.
            context: of the clips.
        """
        rows = self._modulation(conditions)  # [R, 6C]
        return AudioTokenModulation(
            *(
                TokenModulation(*part, context.row_index, AUDIO_NORM_EPS)
                for part in AudioModulation.of(rows)
            )
        )

    def __call__(
        self, audio: StreamState, modulation: AudioTokenModulation, context: FusedContext
    ) -> tuple[Tensor, Tensor]:
        """Return the residual after the attention [N, C], and the MLP's products [N, 3 * C].

        The products of the last convolution's taps are not summed yet: see `end_block`.

        Args:
            audio: of N tokens.
            modulation: of this block.
            context: of the same clips.
        """
        audio = self._attend(audio, modulation, context)
        return audio.residual, self._multiply_mlp(audio, context)

    def _attend(
        self, audio: StreamState, modulation: AudioTokenModulation, context: FusedContext
    ) -> StreamState:
        query, key, value = self._qkv(audio.inputs).chunk(3, dim=1)
        query, key = (
            self._ops.norm_and_rotate(
                x,
                None,
                weight,
                None,
                context.audio_table.cos,
                context.audio_table.sin,
                AUDIO_RMS_EPS,
            )
            for x, weight in ((query, self._q_norm), (key, self._k_norm))
        )
        value = value.unflatten(1, key.shape[1:])
        taps = self._out(attend_packed(query, key, value, context.audio_self))
        own, following = modulation
        return StreamState(
            *self._ops.add_taps_and_modulate(
                audio.residual,
                taps,
                self._out_bias,
                own.gate,
                following.shift,
                following.scale,
                following.owner,
                context.first,
                context.last,
                following.eps,
            )
        )

    def _multiply_mlp(self, audio: StreamState, context: FusedContext) -> Tensor:
        joined = self._ops.join_neighbours(audio.inputs, context.first, context.last)
        return self._down(self._ops.swiglu(self._gate_up(joined)))


def end_block(
    residual: Tensor,
    taps: Tensor,
    own: TokenModulation,
    following: TokenModulation,
    context: FusedContext,
    ops: Pointwise,
) -> StreamState:
    """Return the state after an audio block.

    Args:
        residual: [N, C], the first result of `FusedAudioBlock`.
        taps: [N, 3 * C], its second result.
        own: of the block's MLP.
        following: of the next block's attention.
        context: of the clips.
        ops: the functions between products.
    """
    return StreamState(
        *ops.end_block(
            residual,
            taps,
            None,
            own.gate,
            following.shift,
            following.scale,
            following.owner,
            context.first,
            context.last,
            following.eps,
        )
    )


def _lay_taps_first(conv: nn.Module) -> Tensor:
    """Return the weight as [3 * out, in]; the parameter becomes a view of it, of its own shape."""
    assert isinstance(conv, TokenConv)
    taps = conv.weight.detach().permute(2, 0, 1).contiguous()  # [3, out, in]
    conv.weight.data = taps.permute(1, 2, 0)
    return taps.flatten(0, 1)


def _join_gate_and_up(mlp: GatedMLP) -> Tensor:
    """Return both weights as [2 * F, 3 * C]; the parameters become views, of their own shapes."""
    convs = [conv for conv in (mlp.gate, mlp.up) if isinstance(conv, TokenConv)]
    both = torch.stack([conv.weight.detach().permute(0, 2, 1) for conv in convs])
    for conv, weight in zip(convs, both, strict=True):  # [F, 3, C] each
        conv.weight.data = weight.permute(0, 2, 1)
    return both.flatten(2).flatten(0, 1)
