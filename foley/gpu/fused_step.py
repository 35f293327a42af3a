"""The transformer's step for a GPU: the same numbers as `FoleyDiT.forward`, in far fewer kernels.

It reads the modules' own weights, re-laid in place where a matrix product wants another order, and
works on packed clips alone. Three things make the difference:

* A convolution of three taps becomes one matrix product. Where the output is the wide side, the
  tokens are laid beside their neighbours first; where the input is, the taps' products are computed
  side by side and summed by the kernel that follows, which also fills more of the chip when there
  are few tokens.
* The products with the gate's and the up weights are one.
* All that lies between two products is one kernel (`foley.gpu.pointwise`).

The modules' forward stays the definition: tests compare the two.
"""

# Of all clips together: N audio tokens, V visual tokens, J = V + N places of the joint sequence,
# T text tokens. K clips, R sync rows, C width, F MLP width, H heads, D head size, L joint blocks

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.gpu.pointwise import Pointwise, Precision, Quantised, plain, quantise
from foley.models.attention import attend
from foley.models.dit import DiTContext, FoleyDiT, TimeModulation
from foley.models.layers import (
    AUDIO_NORM_EPS,
    AUDIO_RMS_EPS,
    JOINT_EPS,
    AudioBlock,
    GatedMLP,
    JointBlock,
    JointStream,
    TokenConv,
)
from foley.models.packing import Segments

_Rows = Tensor | Quantised

# The library has products in 8 bits for some small numbers of rows only.
_FEWEST_ROWS8 = 128
# Sums in eight-bit products: of float32's precision throughout when False.
_FAST_SUMS = True


@dataclass(frozen=True)
class FusedContext:
    """A packed `DiTContext` in the order that the kernels read it.

    Attributes:
        visual: [V, C].
        text_keys: [L, T, H, D].
        text_values: likewise.
        sync_rows: [R, C].
        row_owner: int64 [R], the clip of each row.
        row_index: int64 [N], the row of each audio token.
        audio_owner: int64 [N], the clip of each audio token.
        visual_owner: int64 [V].
        joint: int64 [J], the token at each joint place, visual ones first.
        joint_source: int64 [J], the token whose query and key stand there.
        stream: int64 [J], 0 for visual tokens and 1 for audio tokens.
        visual_place: int64 [V], the joint place of each visual token.
        audio_place: int64 [N].
        first: bool [N, 1], whether a token is its clip's first.
        last: likewise.
        joint_table: cosines and sines [J, D / 2] of the interleaved positions.
        text_table: of each joint place's own index in its stream.
        audio_table: [N, D / 2], of each audio token's own index.
        joint_self: who attends to whom; see `Packing`.
        audio_joint: likewise.
        joint_text: likewise.
        audio_text: likewise.
        audio_self: likewise.
    """

    visual: Tensor
    text_keys: Tensor
    text_values: Tensor
    sync_rows: Tensor
    row_owner: Tensor
    row_index: Tensor
    audio_owner: Tensor
    visual_owner: Tensor
    joint: Tensor
    joint_source: Tensor
    stream: Tensor
    visual_place: Tensor
    audio_place: Tensor
    first: Tensor
    last: Tensor
    joint_table: tuple[Tensor, Tensor]
    text_table: tuple[Tensor, Tensor]
    audio_table: tuple[Tensor, Tensor]
    joint_self: Segments
    audio_joint: Segments
    joint_text: Segments
    audio_text: Segments
    audio_self: Segments

    @classmethod
    def of(cls, context: DiTContext) -> "FusedContext":
        """The same clips."""
        context = context.pack()
        packing, rotary = context.packing, context.rotary
        assert packing is not None
        num_visual = context.visual.shape[1]
        sources = rotary.visual_sources()
        joint = packing.joint
        tokens = torch.arange(len(joint), device=joint.device)
        tokens[:num_visual] = sources

        def in_joint_order(visual: Tensor, audio: Tensor) -> Tensor:
            return torch.cat((visual, audio))[joint]

        return cls(
            visual=context.visual[0],
            text_keys=context.text_keys[:, 0],
            text_values=context.text_values[:, 0],
            sync_rows=context.sync_rows,
            row_owner=context.row_owner,
            row_index=context.row_index[0],
            audio_owner=packing.audio_owner,
            visual_owner=packing.visual_owner,
            joint=joint,
            joint_source=tokens[joint],
            stream=(joint >= num_visual).long(),
            visual_place=packing.visual_place,
            audio_place=packing.audio_place,
            first=packing.borders.first,
            last=packing.borders.last,
            joint_table=(
                in_joint_order(rotary.joint_visual.cos, rotary.joint_audio.cos),
                in_joint_order(rotary.joint_visual.sin, rotary.joint_audio.sin),
            ),
            text_table=(
                in_joint_order(rotary.plain_visual.cos, rotary.plain_audio.cos),
                in_joint_order(rotary.plain_visual.sin, rotary.plain_audio.sin),
            ),
            audio_table=(rotary.plain_audio.cos, rotary.plain_audio.sin),
            joint_self=packing.joint_self,
            audio_joint=packing.audio_joint,
            joint_text=packing.joint_text,
            audio_text=packing.audio_text,
            audio_self=packing.audio_self,
        )


class Matrix:
    """A linear layer's product, with its weights in 16 bits, or in 8 with a scale for each row.

    In 8 bits the tokens come quantised, or are quantised here. Each has a scale of its own: one for
    all would tie a request's sound to the loudest value of those that it shares a pass with.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        precision: Precision,
        quantise_rows: Callable[[Tensor], Quantised],
    ) -> None:
        self.bias, self.scale = bias, None
        self.weight = weight.t()  # [in, out]
        self._dtype = weight.dtype
        if precision == "fp8":
            rows, scale = quantise(weight)
            self.weight, self.scale = rows.t(), scale.t()
        self._quantise = quantise_rows

    def __call__(self, x: Tensor | Quantised, out: Tensor | None = None) -> Tensor:
        """[N, in] -> [N, out], into `out` where given."""
        if self.scale is not None:
            return self._in_eight_bits(x if isinstance(x, tuple) else self._quantise(x), out)
        assert isinstance(x, Tensor)
        if self.bias is None:
            return torch.mm(x, self.weight, out=out)
        return torch.addmm(self.bias, x, self.weight, out=out)

    def followed_by(self, gelu: Callable[[Tensor], Tensor], x: Tensor | Quantised) -> Tensor:
        """`gelu` (the tanh approximation) of the product."""
        if isinstance(x, Tensor) and x.is_cuda and self.scale is None and self.bias is not None:
            return torch._addmm_activation(self.bias, x, self.weight, use_gelu=True)
        return gelu(self(x))

    def new_empty(self, num_tokens: int) -> Tensor:
        """Room for so many products."""
        like = self.weight if self.bias is None else self.bias
        return like.new_empty(num_tokens, self.weight.shape[1], dtype=self._dtype)

    def _in_eight_bits(self, x: Quantised, out: Tensor | None) -> Tensor:
        assert self.scale is not None
        rows, scale = x
        count = len(rows)
        missing = max(0, _FEWEST_ROWS8 - count)
        if missing:
            rows, scale = (F.pad(part, (0, 0, 0, missing)) for part in (rows, scale))
        made = torch._scaled_mm(
            rows,
            self.weight,
            scale_a=scale,
            scale_b=self.scale,
            bias=self.bias,
            out_dtype=self._dtype,
            use_fast_accum=_FAST_SUMS,
            out=None if missing else out,
        )
        if not missing:
            return made
        return made[:count] if out is None else out.copy_(made[:count])


def _num_rows(x: Tensor | Quantised) -> int:
    return len(x[0] if isinstance(x, tuple) else x)


class FusedDiT:
    """Velocities of packed clips, by the weights of a `FoleyDiT`.

    Args:
        dit: on its device, in the dtype of the products; its convolutions' weights are re-laid in
            place, block by block, so that they keep their names and shapes and need no second copy.
        precision: of the products. fp8 quantises the blocks' matrices and drops what it replaces,
            so that the modules' own forward cannot be used any more.
        pointwise: the functions between the products, of the same precision; plain when None.
    """

    def __init__(
        self,
        dit: FoleyDiT,
        precision: Precision = "bf16",
        pointwise: Pointwise | None = None,
    ) -> None:
        pointwise = pointwise or plain(precision)
        self.dit = dit
        self._ops = pointwise

        def matrix(weight: Tensor, bias: Tensor | None = None) -> Matrix:
            return Matrix(weight, bias, precision, pointwise.quantise)

        self._joint_blocks, self._audio_blocks = [], []
        for block in dit.joint_blocks:
            assert isinstance(block, JointBlock)
            self._joint_blocks.append(_JointMatrices(block, matrix))
            _drop_if(precision == "fp8", block)
        for block in dit.audio_blocks:
            assert isinstance(block, AudioBlock)
            self._audio_blocks.append(_AudioMatrices(block, matrix))
            _drop_if(precision == "fp8", block)

    def __call__(self, latents: Tensor, time: TimeModulation, context: FusedContext) -> Tensor:
        """The velocities, float32 [N, latent_dim].

        Args:
            latents: [N, latent_dim], clip after clip.
            time: one row for each clip.
            context: of the same clips.
        """
        ops, dit = self._ops, self.dit
        dtype = context.visual.dtype
        audio = dit.audio_in(latents.to(dtype)).float() + context.sync_rows[context.row_index]
        visual = context.visual
        conditions = ops.row_conditions(context.sync_rows, time.embedding, context.row_owner)
        rows = self._audio_blocks[0].modulation(conditions)

        a, v = time.audio[0].chunk(9, dim=1), time.visual[0].chunk(9, dim=1)
        audio_in = ops.modulate(audio, a[0], a[1], context.audio_owner, JOINT_EPS)
        visual_in = ops.modulate(visual, v[0], v[1], context.visual_owner, JOINT_EPS)
        for i, block in enumerate(self._joint_blocks):
            is_last = i + 1 == len(self._joint_blocks)
            a, v = time.audio[i].chunk(9, dim=1), time.visual[i].chunk(9, dim=1)
            if is_last:
                m = rows.chunk(6, dim=1)
                audio_next = m[0], m[1], context.row_index, AUDIO_NORM_EPS
                visual_next = None
            else:
                b, w = time.audio[i + 1].chunk(9, dim=1), time.visual[i + 1].chunk(9, dim=1)
                audio_next = b[0], b[1], context.audio_owner, JOINT_EPS
                visual_next = w[0], w[1], context.visual_owner, JOINT_EPS
            audio, audio_in, visual, visual_in = self._joint_block(
                i, block, context, audio, audio_in, visual, visual_in, a, v, audio_next, visual_next
            )

        for i, audio_block in enumerate(self._audio_blocks):
            m = rows.chunk(6, dim=1)
            audio, taps = self._audio_block(audio_block, context, audio, audio_in, m)
            ends = context.row_index, context.first, context.last
            if i + 1 < len(self._audio_blocks):
                rows = self._audio_blocks[i + 1].modulation(conditions)
                n = rows.chunk(6, dim=1)
                audio, audio_in = ops.end_block(
                    audio, taps, None, m[5], n[0], n[1], *ends, AUDIO_NORM_EPS
                )
        normed = ops.add_taps_and_norm(audio, taps, m[5], *ends, JOINT_EPS)
        return dit.velocity_out(normed).float()

    def _joint_block(
        self,
        index: int,
        block: "_JointMatrices",
        context: FusedContext,
        audio: Tensor,
        audio_in: _Rows,
        visual: Tensor,
        visual_in: _Rows,
        a: tuple[Tensor, ...],
        v: tuple[Tensor, ...],
        audio_next: tuple[Tensor, Tensor, Tensor, float],
        visual_next: tuple[Tensor, Tensor, Tensor, float] | None,
    ) -> tuple[Tensor, _Rows, Tensor, _Rows]:
        """Both streams after the block, each with the modulated input of what follows.

        The last block (without `visual_next`) leaves out all of the visual stream that nothing
        reads.
        """
        ops, num_visual, dim = self._ops, len(visual), visual.shape[1]
        update_visual = visual_next is not None

        def streams(visual_x: _Rows, audio_x: _Rows, part: str) -> Tensor:
            """Both streams' product, visual tokens first."""
            visual_matrix, audio_matrix = getattr(block.visual, part), getattr(block.audio, part)
            both = audio_matrix.new_empty(num_visual + _num_rows(audio_x))
            visual_matrix(visual_x, both[:num_visual])
            audio_matrix(audio_x, both[num_visual:])
            return both

        def split(x: Tensor) -> tuple[Tensor, Tensor]:
            return x[context.visual_place], x[context.audio_place]

        qkv = streams(visual_in, audio_in, "qkv")
        query, key = (
            ops.norm_and_rotate(
                x, context.joint_source, weight, context.stream, *context.joint_table, JOINT_EPS
            )
            for x, weight in zip(qkv[:, : 2 * dim].chunk(2, dim=1), block.qk_norms, strict=True)
        )
        value = qkv[context.joint, 2 * dim :].view(key.shape)
        if update_visual:
            attended = _attend(query, key, value, context.joint_self)
            visual_part, audio_part = split(attended)
        else:
            audio_part = _attend(query[context.audio_place], key, value, context.audio_joint)
        own = context.audio_owner
        audio, audio_in = ops.add_and_modulate(
            audio, block.audio.out(audio_part), a[2], own, a[3], a[4], own, JOINT_EPS
        )

        if update_visual:
            seen = context.visual_owner
            visual, visual_in = ops.add_and_modulate(
                visual, block.visual.out(visual_part), v[2], seen, v[3], v[4], seen, JOINT_EPS
            )
            query = streams(visual_in, audio_in, "cross_q")
            query = ops.norm_and_rotate(
                query,
                context.joint,
                block.cross_norm,
                context.stream,
                *context.text_table,
                JOINT_EPS,
            )
            segments = context.joint_text
        else:
            query = block.audio.cross_q(audio_in)
            query = ops.norm_and_rotate(
                query, None, block.cross_norm[1], None, *context.audio_table, JOINT_EPS
            )
            segments = context.audio_text
        attended = _attend(query, context.text_keys[index], context.text_values[index], segments)
        if update_visual:
            visual_part, attended = split(attended)
        audio, audio_in = ops.add_and_modulate(
            audio, block.audio.cross_out(attended), a[5], own, a[6], a[7], own, JOINT_EPS
        )
        mlp = block.audio.mlp(audio_in, ops.gelu)
        audio, audio_in = ops.add_and_modulate(audio, mlp, a[8], own, *audio_next)
        if visual_next is not None:
            visual, visual_in = ops.add_and_modulate(
                visual, block.visual.cross_out(visual_part), v[5], seen, v[6], v[7], seen, JOINT_EPS
            )
            mlp = block.visual.mlp(visual_in, ops.gelu)
            visual, visual_in = ops.add_and_modulate(visual, mlp, v[8], seen, *visual_next)
        return audio, audio_in, visual, visual_in

    def _audio_block(
        self,
        block: "_AudioMatrices",
        context: FusedContext,
        audio: Tensor,
        audio_in: _Rows,
        m: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """The stream after the attention, and the taps of the MLP that are still to be added."""
        ops = self._ops
        dim = audio.shape[1]
        qkv = block.qkv(audio_in)
        query, key = (
            ops.norm_and_rotate(x, None, weight, None, *context.audio_table, AUDIO_RMS_EPS)
            for x, weight in zip(qkv[:, : 2 * dim].chunk(2, dim=1), block.qk_norms, strict=True)
        )
        value = qkv[:, 2 * dim :].unflatten(1, key.shape[1:])
        taps = block.out(_attend(query, key, value, context.audio_self))
        ends = context.row_index, context.first, context.last
        audio, audio_in = ops.add_taps_and_modulate(
            audio, taps, block.out_bias, m[2], m[3], m[4], *ends, AUDIO_NORM_EPS
        )
        both = block.gate_up(ops.neighbours(audio_in, context.first, context.last))
        return audio, block.down(ops.gated(both))


def _attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """[N, H, D] each -> [N, H * D]."""
    return attend(query[None], key[None], value[None], segments)[0].flatten(1)


_MakeMatrix = Callable[..., Matrix]


class _Stream:
    def __init__(self, stream: JointStream, matrix: _MakeMatrix) -> None:
        def linear(layer: nn.Module) -> Matrix:
            assert isinstance(layer, nn.Linear)
            return matrix(layer.weight, layer.bias)

        self.qkv, self.out = linear(stream.qkv), linear(stream.out)
        self.cross_q, self.cross_out = linear(stream.cross_q), linear(stream.cross_out)
        self._wide, self._narrow = linear(stream.mlp[0]), linear(stream.mlp[2])

    def mlp(self, x: _Rows, gelu: Callable[[Tensor], Tensor]) -> Tensor:
        return self._narrow(self._wide.followed_by(gelu, x))


class _JointMatrices:
    def __init__(self, block: JointBlock, matrix: _MakeMatrix) -> None:
        self.audio, self.visual = _Stream(block.audio, matrix), _Stream(block.visual, matrix)

        def both(name: str) -> Tensor:  # [2, D], in the order of `FusedContext.stream`
            streams = block.visual, block.audio
            return torch.stack([getattr(stream, name).weight.detach() for stream in streams])

        self.qk_norms = both("q_norm"), both("k_norm")
        self.cross_norm = both("cross_q_norm")


class _AudioMatrices:
    def __init__(self, block: AudioBlock, matrix: _MakeMatrix) -> None:
        self.modulation = matrix(block.modulation.weight, block.modulation.bias)
        self.qkv = matrix(block.qkv.weight, block.qkv.bias)
        self.qk_norms = block.q_norm.weight.detach(), block.k_norm.weight.detach()
        self.out, self.out_bias = matrix(_taps_first(block.out)), block.out.bias
        self.gate_up = matrix(_gate_and_up(block.mlp))
        self.down = matrix(_taps_first(block.mlp.down))


def _taps_first(conv: nn.Module) -> Tensor:
    """The weight as [3 * out, in], and the parameter as a view of it, under its own shape."""
    assert isinstance(conv, TokenConv)
    taps = conv.weight.detach().permute(2, 0, 1).contiguous()  # [3, out, in]
    conv.weight.data = taps.permute(1, 2, 0)
    return taps.flatten(0, 1)


def _gate_and_up(mlp: GatedMLP) -> Tensor:
    """Both weights as [2 * F, 3 * C], and the parameters as views of it, under their own shapes."""
    convs = [conv for conv in (mlp.gate, mlp.up) if isinstance(conv, TokenConv)]
    together = torch.stack([conv.weight.detach().permute(0, 2, 1) for conv in convs])
    for conv, weight in zip(convs, together, strict=True):  # [F, 3, C] each
        conv.weight.data = weight.permute(0, 2, 1)
    return together.flatten(2).flatten(0, 1)


def _drop_if(replaced: bool, block: nn.Module) -> None:
    """Free the matrices of a block that eight-bit ones stand for."""
    for parameter in block.parameters() if replaced else ():
        if parameter.ndim > 1:
            parameter.data = parameter.data.new_empty(0)
