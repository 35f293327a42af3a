"""Fast training steps of the transformer on a GPU.

The cost of a step is the launch of thousands of kernels. The forward and backward pass of one shape
are therefore recorded as a CUDA graph and replayed with one launch. Nothing is compiled, so
training starts at once. Convolutions and rotations are replaced by versions with fewer kernels.
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

_WARM_UP = 2  # runs before the recording, in which libraries choose their kernels


def convolve_as_product(conv: TokenConv, tokens: Tensor, borders: None = None) -> Tensor:
    """The result of a `TokenConv` by one matrix product, [B, N, out].

    Args:
        conv: with an odd number of taps.
        tokens: [B, N, in].
        borders: unused; every row of the batch is one clip.
    """
    taps = conv.kernel_size[0]
    if taps > 1:
        num_tokens = tokens.shape[1]
        padded = F.pad(tokens, (0, 0, taps // 2, taps // 2))
        tokens = torch.cat([padded[:, i : i + num_tokens] for i in range(taps)], dim=-1)
    return F.linear(tokens, conv.weight.transpose(1, 2).flatten(1), conv.bias)


def rotate_as_complex(tokens: Tensor, table: RotaryTable) -> Tensor:
    """The result of `foley.models.rope.rotate` by complex numbers: 4 kernels instead of 12."""
    pairs = torch.view_as_complex(tokens.float().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.complex(table.cos, table.sin)[:, None]
    return torch.view_as_real(turned).flatten(-2).to(tokens.dtype)


def use_fast_kernels(model: FlowModel) -> None:
    """Replace a model's convolutions and rotations in this process by the faster functions."""
    for module in model.dit.modules():
        if isinstance(module, TokenConv):
            module.forward = partial(convolve_as_product, module)  # type: ignore[method-assign]
    for blocks in (audio_block, joint_block):
        blocks.rotate = rotate_as_complex  # type: ignore[attr-defined]


class RecordedSteps:
    """Training steps, recorded as a CUDA graph for each shape.

    All graphs share one memory pool, because only one runs at a time. The gradients are accumulated
    in fixed buffers, which each run sets to zero first.

    Args:
        model: whose gradients are computed.
        negative: int64 [N, T'], ids of negative prompts.
    """

    def __init__(self, model: FlowModel, negative: Tensor) -> None:
        self._model, self._negative = model, negative
        self._gradients: list[Tensor] = []
        self._pool = torch.cuda.graph_pool_handle()
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Losses]] = {}

    def record(self, key: int, example: dict[str, Tensor], num_tokens: int) -> None:
        """Record the step for batches of a shape.

        Args:
            key: of the shape.
            example: an entry of the cache with this shape.
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
        """Compute the gradients of the parameters; returns the losses.

        Args:
            key: of a recorded shape.
            rows: int64 [B], the clips of the buffer.
            store: of a `ClipBuffer`.
        """
        graph, inputs, losses = self._recorded[key]
        for name, value in inputs.items():
            torch.index_select(store[name], 0, rows, out=value)
        graph.replay()
        return losses

    @property
    def keys(self) -> Sequence[int]:
        """The keys of the recorded shapes."""
        return list(self._recorded)
