"""Low-rank adapters beside the transformer's layers, also different ones in one batch.

An adapter adds up(down(x)) to a layer's product, with few channels R between the two. Layers are
changed by no call's signature: `use_adapters` names the adapters of what a thread computes, forward
hooks add their products to the modules' own, and the fused step (`foley.gpu.matrix`) asks for the
same products. Without adapters nothing is added.

A batch is ordered so that the tokens of one set of adapters follow one another: a group. Products
of groups of equal length are one batched product, those of other lengths one grouped product on a
GPU, and a loop, the definition, elsewhere.
"""

# N tokens, G groups, R channels between down and up, C inputs, F outputs, K taps of a convolution

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.models.layers import TokenConv

# Which tokens a layer sees: those of a clip's context, of noise levels, the sync rows, or the
# tokens of a stream.
Kind = Literal["context", "time", "rows", "visual", "audio"]
STEP_KINDS: tuple[Kind, ...] = ("rows", "visual", "audio")
# Grouped products need rows of whole 16 bytes.
_RANK_STEP = 16
_WHOLE_KINDS: tuple[Kind, ...] = ("context", "time")

_state = threading.local()


class LowRank(NamedTuple):
    """An adapter's matrices for one layer.

    Attributes:
        down: [C, K, R]; K is 1 but for convolutions.
        up: [R, F], with the adapter's own factor (alpha / rank) in it.
    """

    down: Tensor
    up: Tensor


# Contents and scales of adapters.
SetKey = tuple[tuple[int, float], ...]
_contents = itertools.count()


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter on one device.

    Attributes:
        name: by which requests ask for it.
        layers: by the layer's name in `FoleyDiT`.
        content: a number that adapters with the same matrices share, on all devices.
    """

    name: str
    layers: Mapping[str, LowRank]
    content: int = field(default_factory=lambda: next(_contents))

    @property
    def rank(self) -> int:
        """The largest R of its layers."""
        return max(layer.up.shape[0] for layer in self.layers.values())

    @property
    def num_bytes(self) -> int:
        """Of all matrices."""
        return sum(t.numel() * t.element_size() for layer in self.layers.values() for t in layer)


@dataclass(frozen=True, eq=False)
class AdapterSet:
    """The adapters of one request, each with its scale: their products are added.

    Attributes:
        members: adapters and scales, none of them 0; at least one.
    """

    members: tuple[tuple[Adapter, float], ...]

    @property
    def key(self) -> SetKey:
        """Equal for sets that do the same."""
        return tuple((adapter.content, scale) for adapter, scale in self.members)

    @property
    def rank(self) -> int:
        """R of all members side by side."""
        return sum(adapter.rank for adapter, _ in self.members)

    def list_layers(self) -> list[str]:
        """Return the names of the layers that it changes, sorted."""
        return sorted({name for adapter, _ in self.members for name in adapter.layers})


class Groups(NamedTuple):
    """The tokens of each group, of one kind of tokens.

    Attributes:
        start: the first token that has adapters; those before it have none.
        lengths: tokens of each group, in order; None where one group has all tokens.
        stops: int32 [G], where each group ends, counted from `start`.
    """

    start: int
    lengths: tuple[int, ...] | None
    stops: Tensor | None


def find_kind(name: str) -> Kind:
    """Return which tokens the layer of this name sees."""
    top = name.split(".")[0]
    if top in ("clip_in", "text_projections"):
        return "context"
    if top in ("time_in", "time_projections"):
        return "time"
    if top == "audio_blocks" and name.endswith(".modulation"):
        return "rows"
    if top == "joint_blocks" and ".visual." in name:
        return "visual"
    return "audio"


def list_layers(dit: nn.Module) -> dict[str, tuple[int, int, int]]:
    """Return inputs C, outputs F and taps K of each layer that an adapter can change, by its name.

    Args:
        dit: a `FoleyDiT`.
    """
    layers: dict[str, tuple[int, int, int]] = {}
    for name, module in dit.named_modules():
        if isinstance(module, TokenConv):
            layers[name] = (module.in_channels, module.out_channels, module.kernel_size[0])
        elif isinstance(module, nn.Linear):
            layers[name] = (module.in_features, module.out_features, 1)
    return layers


class AdapterBatch:
    """The adapters of all requests of a batch, as stacks with a place for each group.

    A stack's memory stays where it is when other sets come, so that CUDA graphs can read it.

    Args:
        stacks: of each layer, with a leading G.
        groups: of each kind of tokens that these layers see.
        borders: bool [N, 1] each, whether an audio token is its clip's first or last, from the
            first one with adapters on; None without convolutions.
    """

    def __init__(
        self,
        stacks: Mapping[str, LowRank],
        groups: Mapping[Kind, Groups],
        borders: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._stacks, self._groups, self._borders = stacks, groups, borders
        num_groups = max(len(stack.up) for stack in stacks.values())
        self._keys: list[SetKey | None] = [None] * num_groups

    @classmethod
    def whole(cls, adapters: AdapterSet, dit: nn.Module, like: Tensor) -> "AdapterBatch | None":
        """Return the batch for a clip's context and its noise levels; None if they do not change.

        Args:
            adapters: of the only request.
            dit: a `FoleyDiT`.
            like: a tensor on the device and in the dtype of the layers.
        """
        shapes = list_layers(dit)
        wanted = [name for name in adapters.list_layers() if find_kind(name) in _WHOLE_KINDS]
        if not wanted:
            return None
        stacks = allocate_stacks([adapters], {name: shapes[name] for name in wanted}, like)
        batch = cls(stacks, dict.fromkeys(_WHOLE_KINDS, Groups(0, None, None)), None)
        batch.fill([adapters])
        return batch

    def fill(self, sets: Sequence[AdapterSet]) -> None:
        """Put other sets into the places; a place whose set stays is left alone.

        Args:
            sets: as many as the batch was made with, of no larger rank, for the same layers.
        """
        for place, adapters in enumerate(sets):
            if self._keys[place] != adapters.key:
                self._write(place, adapters)
                self._keys[place] = adapters.key

    def _write(self, place: int, adapters: AdapterSet) -> None:
        was_used = self._keys[place] is not None
        targets, sources, ups, scales = [], [], [], []
        for name, stack in self._stacks.items():
            if was_used:
                stack.down[place].zero_()
                stack.up[place].zero_()
            first = 0
            for adapter, scale in adapters.members:
                layer = adapter.layers.get(name)
                if layer is None:
                    continue
                last = first + layer.up.shape[0]
                up = stack.up[place, first:last]
                targets += [stack.down[place, ..., first:last], up]
                sources += [layer.down, layer.up]
                ups.append(up)
                scales.append(scale)
                first = last
        torch._foreach_copy_(targets, sources)
        torch._foreach_mul_(ups, scales)

    def has(self, name: str) -> bool:
        """Return whether some group changes this layer."""
        return name in self._stacks

    def compute(self, name: str, x: Tensor) -> Tensor:
        """Return what the adapters add to the layer's product, for the tokens that have adapters.

        Args:
            name: of the layer.
            x: [N, C], the layer's inputs, of all tokens of the batch.

        Returns:
            [M, F], of the last M tokens.
        """
        groups = self._groups[find_kind(name)]
        return multiply_groups(self._compute_hidden(name, x), self._stacks[name].up, groups)

    def add_to(self, product: Tensor, name: str, x: Tensor) -> None:
        """Add to a layer's product in place.

        Args:
            product: [N, F].
            name: of the layer.
            x: [N, C], its inputs.
        """
        groups = self._groups[find_kind(name)]
        hidden = self._compute_hidden(name, x)
        add_products(product[groups.start :], hidden, self._stacks[name].up, groups)

    def _compute_hidden(self, name: str, x: Tensor) -> Tensor:
        """Return what lies between down and up, [M, R]."""
        down = self._stacks[name].down
        groups = self._groups[find_kind(name)]
        hidden = multiply_groups(x[groups.start :], down.flatten(2), groups)  # [M, K * R]
        if down.shape[2] > 1:
            assert self._borders is not None
            hidden = sum_taps(hidden, *self._borders)
        return hidden


def allocate_stacks(
    sets: Sequence[AdapterSet], layers: Mapping[str, tuple[int, int, int]], like: Tensor
) -> dict[str, LowRank]:
    """Return stacks of zeros with a place for each set, by the layer's name.

    Args:
        sets: of each group, in order.
        layers: that are changed; the inputs, outputs and taps of each, see `list_layers`.
        like: a tensor on the device and in the dtype of the layers.
    """
    rank = round_rank(max(s.rank for s in sets))
    return {
        name: LowRank(
            like.new_zeros(len(sets), inputs, taps, rank), like.new_zeros(len(sets), rank, out)
        )
        for name, (inputs, out, taps) in layers.items()
    }


def round_rank(rank: int) -> int:
    """Return R with the zeros that fill it up."""
    return -(-rank // _RANK_STEP) * _RANK_STEP


def multiply_groups(x: Tensor, matrices: Tensor, groups: Groups) -> Tensor:
    """Return the products [M, F] of each group's tokens and its own matrix.

    Args:
        x: [M, C], group after group.
        matrices: [G, C, F].
        groups: of these tokens.
    """
    lengths = groups.lengths
    if lengths is None or len(lengths) == 1:
        return x @ matrices[0]
    if len(set(lengths)) == 1:
        return torch.bmm(x.unflatten(0, (len(lengths), -1)), matrices).flatten(0, 1)
    if _has_grouped_product(x):
        return F.grouped_mm(x.contiguous(), matrices, offs=groups.stops)
    parts = zip(x.split(lengths), matrices, strict=True)
    return torch.cat([tokens @ matrix for tokens, matrix in parts])


def add_products(sums: Tensor, x: Tensor, matrices: Tensor, groups: Groups) -> None:
    """Add the products of `multiply_groups` in place.

    The sums are read and written once, where a product of its own would be written and read too:
    few channels go in and many come out, so memory is what takes the time.

    Args:
        sums: [M, F]; its rows may lie apart.
        x: [M, C], group after group.
        matrices: [G, C, F].
        groups: of these tokens.
    """
    lengths = groups.lengths
    if lengths is None or len(lengths) == 1:
        sums.addmm_(x, matrices[0])
    elif len(set(lengths)) == 1:
        count = len(lengths)
        sums.unflatten(0, (count, -1)).baddbmm_(x.unflatten(0, (count, -1)), matrices)
    elif _has_grouped_product(x):
        sums += F.grouped_mm(x.contiguous(), matrices, offs=groups.stops)
    else:
        for part, tokens, matrix in zip(
            sums.split(lengths), x.split(lengths), matrices, strict=True
        ):
            part.addmm_(tokens, matrix)


def _has_grouped_product(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16 and hasattr(F, "grouped_mm")  # PyTorch 2.10


def sum_taps(hidden: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return the sums [M, R] of the products of three taps, each with its own neighbour.

    Args:
        hidden: [M, 3 * R], of each token with the taps for the one after, itself and before.
        first: bool [M, 1], whether a token is its clip's first.
        last: bool [M, 1], whether a token is its clip's last.
    """
    before, own, after = hidden.chunk(3, dim=1)
    before = F.pad(before[:-1], (0, 0, 1, 0)).masked_fill(first, 0)
    after = F.pad(after[1:], (0, 0, 0, 1)).masked_fill(last, 0)
    return before + own + after


@contextmanager
def use_adapters(batch: AdapterBatch | None) -> Iterator[None]:
    """Let what this thread computes in the context have these adapters.

    Args:
        batch: of the tokens that the layers see; None for none.
    """
    before = find_adapters()
    _state.batch = batch
    try:
        yield
    finally:
        _state.batch = before


def find_adapters() -> AdapterBatch | None:
    """Return the adapters of what this thread computes."""
    return getattr(_state, "batch", None)


def add_hooks(dit: nn.Module) -> None:
    """Let the layers of a transformer ask for adapters when they are called; once for each.

    Args:
        dit: a `FoleyDiT`.
    """
    if getattr(dit, "_has_adapter_hooks", False):
        return
    for name in list_layers(dit):
        dit.get_submodule(name).register_forward_hook(_Hook(name))
    dit._has_adapter_hooks = True  # type: ignore[assignment]


class _Hook:
    """Adds the products of adapters to those of a layer."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], product: Tensor) -> Tensor | None:
        batch = find_adapters()
        if batch is None or not batch.has(self._name):
            return None
        x = inputs[0]
        added = batch.compute(self._name, x.flatten(0, -2))
        missing = x.shape[:-1].numel() - len(added)
        if missing:
            added = F.pad(added, (0, 0, missing, 0))
        return product + added.view(product.shape)
