"""What the transformer knows of the clips of a batch, the same in all steps."""

# B batch, A audio tokens, V visual tokens, T text tokens, C width, H heads, D head size,
# R distinct sync rows, L joint blocks, K clips of a batch

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foley.models.packing import Lengths, Packing, Regions, sum_offsets
from foley.models.rope import JointRotary


@dataclass(frozen=True)
class DiTContext:
    """What does not change over the steps of K clips; with guidance, both halves count as clips.

    Clips of one length have a row of the batch each: B = K. Packed clips, of any lengths, lie one
    after another on a single row: B = 1, and A, V and T are those of all clips together.

    Attributes:
        visual: projected visual tokens [B, V, C].
        text_keys: for each joint block, normed and rotated [L, B, T, H, D].
        text_values: for each joint block [L, B, T, H, D].
        sync_rows: the distinct projected sync tokens of all clips [R, C].
        row_owner: int64 [R], the clip of each row.
        row_index: int64 [B, A], the row of each audio token.
        rotary: tables of these lengths.
        lengths: of each clip, in order; with regions, T counts the text of all of them.
        packing: None where each clip has a row of the batch.
        regions: of each clip, each with a text of its own, one after another; empty where no clip
            has several. Only a packed context with regions can be evaluated.
    """

    visual: Tensor
    text_keys: Tensor
    text_values: Tensor
    sync_rows: Tensor
    row_owner: Tensor
    row_index: Tensor
    rotary: JointRotary
    lengths: tuple[Lengths, ...]
    packing: Packing | None = None
    regions: tuple[Regions, ...] = ()

    def split(self, regions: Regions, text_keys: Tensor, text_values: Tensor) -> "DiTContext":
        """Return the context of its only clip, with a text for each of its regions.

        Args:
            regions: with this clip's lengths as the sums of A and V.
            text_keys: for each joint block and region, normed and rotated [L, regions, T, H, D].
            text_values: [L, regions, T, H, D].
        """
        ((num_audio, num_visual, _),) = self.lengths
        assert sum(part.audio for part in regions.parts) == num_audio
        assert sum(part.visual for part in regions.parts) == num_visual
        num_text = text_keys.shape[1] * text_keys.shape[2]
        return replace(
            self,
            text_keys=text_keys.flatten(1, 2)[:, None],
            text_values=text_values.flatten(1, 2)[:, None],
            lengths=(Lengths(num_audio, num_visual, num_text),),
            regions=(regions,),
        )

    def list_regions(self) -> tuple[Regions, ...]:
        """Return the regions of each clip, which is a single one where it has no cues."""
        return self.regions or tuple(Regions((clip,)) for clip in self.lengths)

    @classmethod
    def concatenate(cls, contexts: Sequence["DiTContext"], *, packed: bool = False) -> "DiTContext":
        """Return the clips of several contexts, in order.

        Args:
            contexts: at least one, with clips of any lengths.
            packed: put all clips on one row, also where each could have its own.
        """
        packed = packed or any(c.packing is not None for c in contexts)
        if packed or len({c.lengths[0] for c in contexts}) > 1:
            contexts = [c.pack() for c in contexts]
        if len(contexts) == 1:
            return contexts[0]
        first = contexts[0]
        lengths = tuple(itertools.chain.from_iterable(c.lengths for c in contexts))
        owners = sum_offsets([len(c.lengths) for c in contexts])
        rows = sum_offsets([len(c.sync_rows) for c in contexts])
        # A batch grows by rows, packed clips grow by tokens of their only row.
        axis = 0 if first.packing is None else 1

        def join(tensor: Callable[[DiTContext], Tensor], dim: int) -> Tensor:
            return torch.cat([tensor(c) for c in contexts], dim)

        regions: tuple[Regions, ...] = ()
        if any(c.regions for c in contexts):
            regions = tuple(itertools.chain.from_iterable(c.list_regions() for c in contexts))
        row_index = [c.row_index + n for c, n in zip(contexts, rows, strict=False)]
        row_owner = [c.row_owner + n for c, n in zip(contexts, owners, strict=False)]
        return cls(
            visual=join(lambda c: c.visual, axis),
            text_keys=join(lambda c: c.text_keys, 1 + axis),
            text_values=join(lambda c: c.text_values, 1 + axis),
            sync_rows=join(lambda c: c.sync_rows, 0),
            row_owner=torch.cat(row_owner),
            row_index=torch.cat(row_index, axis),
            rotary=JointRotary.concatenate([c.rotary for c in contexts]) if axis else first.rotary,
            lengths=lengths,
            packing=Packing.of(lengths, first.visual.device, regions) if axis else None,
            regions=regions,
        )

    def select_last(self, num_clips: int) -> "DiTContext":
        """Return the last clips, without the memory of the others.

        Args:
            num_clips: at least 1; each clip must have its own row of the batch.
        """
        assert self.packing is None
        first_clip = len(self.lengths) - num_clips
        first_row = int((self.row_owner < first_clip).sum())
        return DiTContext(
            visual=self.visual[first_clip:].clone(),
            text_keys=self.text_keys[:, first_clip:].clone(),
            text_values=self.text_values[:, first_clip:].clone(),
            sync_rows=self.sync_rows[first_row:].clone(),
            row_owner=self.row_owner[first_row:] - first_clip,
            row_index=self.row_index[first_clip:] - first_row,
            rotary=self.rotary,
            lengths=self.lengths[first_clip:],
            regions=self.regions[first_clip:],
        )

    def pack(self) -> "DiTContext":
        """Return the same clips on one row."""
        if self.packing is not None:
            return self
        return DiTContext(
            visual=self.visual.flatten(0, 1)[None],
            text_keys=self.text_keys.flatten(1, 2)[:, None],
            text_values=self.text_values.flatten(1, 2)[:, None],
            sync_rows=self.sync_rows,
            row_owner=self.row_owner,
            row_index=self.row_index.flatten()[None],
            rotary=JointRotary.concatenate([self.rotary] * len(self.lengths)),
            lengths=self.lengths,
            packing=Packing.of(self.lengths, self.visual.device, self.regions),
            regions=self.regions,
        )
