"""The sound decoder for a GPU: the numbers of `FoleyVAE.decode`, with the channels last in memory.

The convolutions' kernels want their channels last, and otherwise transpose every tensor before and
after. One row of pixels in that layout is the same convolution, and between two convolutions the
compiler makes one kernel of bias, snake and residual sum. Dilated convolutions have no fast kernel
in either layout: they run as plain ones over their phases. The last convolution, to one channel, is
a matrix product for all taps.

The module's forward is the definition: tests compare the two.
"""

# B batch, A latent frames, L latent channels, C channels, S samples, K taps, d dilation

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.models.vae import DecoderBlock, FoleyVAE, ResidualUnit, Snake, snake

# The sound of a frame depends on fewer frames than this on each side.
_MARGIN = 16


class FusedSoundDecoder:
    """Waveforms of latents, by the weights of a `FoleyVAE`.

    Args:
        vae: on its device, in its dtypes. Its decoder's weights are laid out anew in place, so that
            they keep their names and shapes and need no second copy.
        compiled: compile what lies between the convolutions, for all lengths.
        frames_at_once: latent frames, at least 1, whose sound is decoded together, to bound the
            memory; None decodes a sound whole.
    """

    def __init__(self, vae: FoleyVAE, *, compiled: bool, frames_at_once: int | None = None) -> None:
        self._vae, self._frames_at_once = vae, frames_at_once
        for module in vae.decoder.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                wide = module.weight.detach()[:, :, None]
                wide = wide.contiguous(memory_format=torch.channels_last)
                module.weight.data = wide[:, :, 0]
        self._run = torch.compile(self._decode, fullgraph=True) if compiled else self._decode

    def __call__(self, latents: Tensor) -> Tensor:
        """Return the waveform [B, 1, hop * A] in [-1, 1], in the weights' dtype.

        Args:
            latents: [B, L, A], in any floating dtype.
        """
        # One by one: a single clip fills a GPU, and nothing needs to be compiled for other batches.
        waveforms = []
        for one in latents.to(self._vae.post_quant.weight.dtype).split(1):
            waveforms.append(torch.cat([*self._decode_pieces(one)], dim=2))
        return torch.cat(waveforms)

    def _decode_pieces(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the pieces of one waveform in order."""
        total, hop = latents.shape[2], self._vae.hop
        count = -(-total // (self._frames_at_once or total))
        borders = [total * i // count for i in range(count + 1)]
        for start, stop in pairwise(borders):
            first = max(0, start - _MARGIN)
            piece = latents[:, :, first : stop + _MARGIN].contiguous()
            torch._dynamo.maybe_mark_dynamic(piece, 2)
            yield self._run(piece)[:, :, hop * (start - first) : hop * (stop - first)]

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self._vae
        x = vae.post_quant(latents)[:, :, None]  # [B, L, 1, A]
        x = convolve(vae.decoder.conv_in, x.contiguous(memory_format=torch.channels_last))
        blocks = [block for block in vae.decoder.blocks if isinstance(block, DecoderBlock)]
        snakes = [*(block.snake for block in blocks), vae.decoder.snake_out]
        y = _apply_snake(snakes[0], x)
        for block, following in zip(blocks, snakes[1:], strict=True):
            y = self._run_units(block, upsample(block.upsample, y), following)
        return _convolve_to_one_channel(vae.decoder.conv_out, y).tanh()

    def _run_units(self, block: DecoderBlock, x: Tensor, following: Snake) -> Tensor:
        """Return the snake after a block's units, of their result: nothing else reads it."""
        units = [unit for unit in block.units if isinstance(unit, ResidualUnit)]
        snakes = [*(unit.snake1 for unit in units), following]
        y = _apply_snake(snakes[0], x)
        for unit, after in zip(units, snakes[1:], strict=True):
            z = _apply_snake(unit.snake2, convolve(unit.conv1, y))
            x = x + convolve(unit.conv2, z)
            y = _apply_snake(after, x)
        return y


def _apply_snake(module: Snake, x: Tensor) -> Tensor:
    """Return [B, C, 1, S] of `x` [B, C, 1, S]."""
    return snake(x, module.alpha[..., None])


def convolve(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Return the convolution [B, C', 1, S] of a row of pixels, padded to the same length.

    Args:
        conv: with an odd number of taps, and padding to the same length.
        x: [B, C, 1, S], channels last in memory.
    """
    reach, phases = int(conv.padding[0]), conv.dilation[0]
    weight, num_samples = conv.weight, x.shape[-1]
    if phases == 1:
        return F.conv2d(x, weight[:, :, None], conv.bias, padding=(0, reach))
    # Only samples `phases` apart see each other: as columns of an image they need no dilation.
    # There is at least one sample of padding: with padding that may be none, the function would be
    # compiled once with it and once without.
    rows = num_samples // phases + 1
    x = F.pad(x, (0, rows * phases - num_samples))
    columns = x[:, :, 0].unflatten(-1, (rows, phases))  # [B, C, S / d, d]
    columns = F.conv2d(columns, weight[..., None], conv.bias, padding=(reach // phases, 0))
    return columns.flatten(2)[:, :, None, :num_samples]


def upsample(conv: nn.ConvTranspose1d, x: Tensor) -> Tensor:
    """Return the transposed convolution [B, C', 1, rate * S] of a row of pixels.

    Args:
        conv: of a `DecoderBlock`.
        x: [B, C, 1, S], channels last in memory.
    """
    return F.conv_transpose2d(
        x,
        conv.weight[:, :, None],
        conv.bias,
        stride=(1, conv.stride[0]),
        padding=(0, int(conv.padding[0])),
        output_padding=(0, conv.output_padding[0]),
    )


def _convolve_to_one_channel(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Return the convolution [B, 1, S] of `x` [B, C, 1, S]."""
    num_taps, padding, num_samples = conv.weight.shape[-1], int(conv.padding[0]), x.shape[-1]
    taps = F.linear(x[:, :, 0].transpose(1, 2), conv.weight[0].t())  # [B, S, K]
    taps = F.pad(taps, (0, 0, padding, padding)).float()
    total = taps[:, :num_samples, 0]
    for tap in range(1, num_taps):
        total = total + taps[:, tap : tap + num_samples, tap]
    assert conv.bias is not None
    return (total + conv.bias.float())[:, None].to(x.dtype)
