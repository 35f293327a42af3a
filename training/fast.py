"""The transformer's training steps on a GPU, where launching thousands of kernels is what costs.

A step of one shape, forward and backward, is recorded as a CUDA graph and replayed: one launch.
Nothing is compiled, so training starts at once. Two parts run as fewer kernels than the product's
modules, which are the definition (and have fast twins of their own, without gradients).
"""

# B clips, A latent frames, C width, T text tokens

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from foley.models import audio_block, joint_block
from foley.models.layers import TokenConv
from foley.models.rope import RotaryTable
from training.flow import FlowModel, Losses, compute_losses

_WARM_UP = 2  # runs before the recording: libraries choose their kernels


def convolve_as_product(conv: TokenConv, tokens: Tensor, borders: None = None) -> Tensor:
    """`TokenConv` as one product: each token beside its neighbours, [B, N, taps * in]."""
    taps = conv.kernel_size[0]
    if taps > 1:
        num_tokens = tokens.shape[1]
        padded = F.pad(tokens, (0, 0, taps // 2, taps // 2))
        tokens = torch.cat([padded[:, i : i + num_tokens] for i in range(taps)], dim=-1)
    return F.linear(tokens, conv.weight.transpose(1, 2).flatten(1), conv.bias)


def rotate_as_complex(tokens: Tensor, table: RotaryTable) -> Tensor:
    """`foley.models.rope.rotate` by complex numbers: 4 kernels for 12."""
    pairs = torch.view_as_complex(tokens.float().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.complex(table.cos, table.sin)[:, None]
    return torch.view_as_real(turned).flatten(-2).to(tokens.dtype)


def use_fast_kernels(model: FlowModel) -> None:
    """Have a model's convolutions and rotations run as above, for the rest of the process."""
    for module in model.dit.modules():
        if isinstance(module, TokenConv):
            module.forward = partial(convolve_as_product, module)  # type: ignore[method-assign]
    for blocks in (audio_block, joint_block):
        blocks.rotate = rotate_as_complex  # type: ignore[attr-defined]


class RecordedSteps:
    """Losses and gradients of batches, recorded for each shape and replayed.

    All share one piece of memory, since one runs at a time. Gradients are added to buffers that
    stay: each run zeroes them first.
    """

    def __init__(self, model: FlowModel, negative: Tensor) -> None:
        self._model, self._negative = model, negative
        self._gradients: list[Tensor] = []
        self._pool = torch.cuda.graph_pool_handle()
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Losses]] = {}

    def record(self, key: int, example: dict[str, Tensor], num_tokens: int) -> None:
        """Prepare batches of this shape.

        Args:
            key: names the shape.
            example: an entry of the cache.
            num_tokens: T, of the text.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._run(example, num_tokens)
        torch.cuda.current_stream().wait_stream(side)
        self._gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            losses = self._run(example, num_tokens)
        self._recorded[key] = graph, example, losses

    def _run(self, entry: dict[str, Tensor], num_tokens: int) -> Losses:
        if self._gradients:
            torch._foreach_zero_(self._gradients)
        with torch.autocast("cuda", torch.bfloat16):
            losses = compute_losses(self._model, entry, self._negative, num_tokens)
        losses.total.backward()
        return losses.detach()

    def __call__(self, key: int, rows: Tensor, store: dict[str, Tensor]) -> Losses:
        """Gradients in the parameters, and the losses, of these rows [B] of a shelf."""
        graph, inputs, losses = self._recorded[key]
        for name, value in inputs.items():
            torch.index_select(store[name], 0, rows, out=value)
        graph.replay()
        return losses

    @property
    def keys(self) -> Sequence[int]:
        """The shapes that are prepared."""
        return list(self._recorded)
