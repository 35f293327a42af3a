"""A packed context in the order in which the fused step's kernels read it."""

# Of all clips together: N audio tokens, V visual tokens, J = V + N places of the joint sequence,
# T text tokens, R sync rows. C width, H heads, D head size, L joint blocks

from dataclasses import dataclass

import torch
from torch import Tensor

from foley.models.context import DiTContext
from foley.models.packing import Segments
from foley.models.rope import RotaryTable


@dataclass(frozen=True)
class FusedContext:
    """What does not change over the steps of some clips; see `DiTContext`.

    Attributes:
        visual: [V, C].
        text_keys: [L, T, H, D], normed and rotated.
        text_values: [L, T, H, D].
        sync_rows: [R, C].
        row_owner: int64 [R], the clip of each row.
        row_index: int64 [N], the row of each audio token.
        audio_owner: int64 [N], the clip of each audio token.
        visual_owner: int64 [V], the clip of each visual token.
        joint: int64 [J], the token at each joint place, visual tokens counted first.
        joint_source: int64 [J], the token whose query and key take that place.
        stream: int64 [J], 0 for visual tokens and 1 for audio tokens.
        visual_place: int64 [V], the joint place of each visual token.
        audio_place: int64 [N], the joint place of each audio token.
        first: bool [N, 1], whether a token is its clip's first.
        last: bool [N, 1], whether a token is its clip's last.
        joint_table: [J, D / 2], of the interleaved positions.
        text_table: [J, D / 2], of each joint place's own index in its stream.
        audio_table: [N, D / 2], of each audio token's own index.
        joint_self: the joint sequence attends to itself; see `Packing`.
        audio_joint: audio tokens alone attend to the joint sequence.
        joint_text: the joint sequence attends to the text.
        audio_text: audio tokens alone attend to the text.
        audio_self: audio tokens attend to audio tokens.
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
    joint_table: RotaryTable
    text_table: RotaryTable
    audio_table: RotaryTable
    joint_self: Segments
    audio_joint: Segments
    joint_text: Segments
    audio_text: Segments
    audio_self: Segments

    @classmethod
    def of(cls, context: DiTContext) -> "FusedContext":
        """Return the same clips.

        Args:
            context: packed, or with a row of the batch for each clip.
        """
        context = context.pack()
        packing, rotary = context.packing, context.rotary
        assert packing is not None
        num_visual = context.visual.shape[1]
        joint = packing.joint
        sources = torch.arange(len(joint), device=joint.device)
        sources[:num_visual] = rotary.visual_sources()

        def join(visual: RotaryTable, audio: RotaryTable) -> RotaryTable:
            both = RotaryTable.concatenate([visual, audio])
            return RotaryTable(both.cos[joint], both.sin[joint])

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
            joint_source=sources[joint],
            stream=(joint >= num_visual).long(),
            visual_place=packing.visual_place,
            audio_place=packing.audio_place,
            first=packing.borders.first,
            last=packing.borders.last,
            joint_table=join(rotary.joint_visual, rotary.joint_audio),
            text_table=join(rotary.plain_visual, rotary.plain_audio),
            audio_table=rotary.plain_audio,
            joint_self=packing.joint_self,
            audio_joint=packing.audio_joint,
            joint_text=packing.joint_text,
            audio_text=packing.audio_text,
            audio_self=packing.audio_self,
        )
