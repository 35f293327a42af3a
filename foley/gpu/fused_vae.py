"""The sound decoder for a GPU: the same numbers as `FoleyVAE.decode`, laid out channels last.

The convolutions' kernels want their channels last; asked otherwise they turn every tensor round
before and after. One row of pixels in that layout is the same convolution, and between two of them
the compiler makes one kernel of bias, snake and residual sum. Dilated convolutions have no fast
kernel in either layout: they run as plain ones over their phases. The last convolution, to one
channel, is a matrix product for all taps.

The module's forward stays the definition: tests compare the two.
"""

# B batch, A latent frames, L latent channels, C channels, S samples, K taps

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.gpu import pointwise
from foley.models.vae import DecoderBlock, FoleyVAE, ResidualUnit, Snake

# How a dilated convolution is computed: by the library as it is; by the library without dilation,
# over the phases; or as one product with all taps laid side by side.
Dilated = Literal["direct", "phases", "taps"]


class FusedSoundDecoder:
    """Waveforms of latents, by the weights of a `FoleyVAE`.

    Args:
        vae: on its device, in its dtypes. Its decoder's weights are re-laid in place, so that they
            keep their names and shapes and need no second copy.
        compiled: make few kernels of what lies between the convolutions, for all lengths.
        dilated: how dilated convolutions are computed.
    """

    def __init__(self, vae: FoleyVAE, *, compiled: bool, dilated: Dilated = "phases") -> None:
        self._vae, self._dilated = vae, dilated
        for module in vae.decoder.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                wide = module.weight.detach()[:, :, None]
                wide = wide.contiguous(memory_format=torch.channels_last)
                module.weight.data = wide[:, :, 0]
        self._run = torch.compile(self._decode, fullgraph=True) if compiled else self._decode

    def __call__(self, latents: Tensor) -> Tensor:
        """The waveform [B, 1, hop * A] in [-1, 1] of latents [B, L, A], in the weights' dtype."""
        # One after another: one fills a GPU, and what is compiled for one need not know of more.
        made = []
        for one in latents.to(self._vae.post_quant.weight.dtype).contiguous().split(1):
            torch._dynamo.maybe_mark_dynamic(one, 2)
            made.append(self._run(one))
        return torch.cat(made)

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self._vae
        x = vae.post_quant(latents)[:, :, None]  # [B, L, 1, A]
        x = convolve(vae.decoder.conv_in, x.contiguous(memory_format=torch.channels_last))
        blocks = [block for block in vae.decoder.blocks if isinstance(block, DecoderBlock)]
        snakes = [*(block.snake for block in blocks), vae.decoder.snake_out]
        y = snaked(snakes[0], x)
        for block, following in zip(blocks, snakes[1:], strict=True):
            y = self._units(block, upsample(block.upsample, y), following)
        return _to_one_channel(vae.decoder.conv_out, y).tanh()

    def _units(self, block: DecoderBlock, x: Tensor, following: Snake) -> Tensor:
        """The snake that follows the units of a block, of their result: nothing else reads it."""
        units = [unit for unit in block.units if isinstance(unit, ResidualUnit)]
        snakes = [*(unit.snake1 for unit in units), following]
        y = snaked(snakes[0], x)
        for unit, after in zip(units, snakes[1:], strict=True):
            z = snaked(unit.snake2, convolve(unit.conv1, y, self._dilated))
            x = x + convolve(unit.conv2, z)
            y = snaked(after, x)
        return y


def snaked(snake: Snake, x: Tensor) -> Tensor:
    """[B, C, 1, S] -> [B, C, 1, S]."""
    return pointwise.snake(x, snake.alpha[..., None])


def convolve(conv: nn.Conv1d, x: Tensor, dilated: Dilated = "direct") -> Tensor:
    """[B, C, 1, S] -> [B, C', 1, S]."""
    reach, phases = int(conv.padding[0]), conv.dilation[0]
    weight, num_samples = conv.weight, x.shape[-1]
    if phases == 1 or dilated == "direct":
        return F.conv2d(x, weight[:, :, None], conv.bias, padding=(0, reach), dilation=(1, phases))
    if dilated == "taps":
        padded = F.pad(x[:, :, 0].transpose(1, 2), (0, 0, reach, reach))  # [B, S + .., C]
        taps = [padded[:, phases * k : phases * k + num_samples] for k in range(weight.shape[-1])]
        side_by_side = torch.cat(taps, dim=-1)  # [B, S, K * C]
        made = F.linear(side_by_side, weight.transpose(1, 2).flatten(1), conv.bias)
        return made.transpose(1, 2)[:, :, None]
    # Samples `phases` apart see each other alone: as columns of a picture they need no dilation.
    # At least one sample more: padding that may be none would be compiled once with and once not.
    rows = num_samples // phases + 1
    x = F.pad(x, (0, rows * phases - num_samples))
    columns = x[:, :, 0].unflatten(-1, (rows, phases))  # [B, C, S / d, d]
    columns = F.conv2d(columns, weight[..., None], conv.bias, padding=(reach // phases, 0))
    return columns.flatten(2)[:, :, None, :num_samples]


def upsample(conv: nn.ConvTranspose1d, x: Tensor) -> Tensor:
    """[B, C, 1, S] -> [B, C / 2, 1, rate * S]."""
    return F.conv_transpose2d(
        x,
        conv.weight[:, :, None],
        conv.bias,
        stride=(1, conv.stride[0]),
        padding=(0, int(conv.padding[0])),
        output_padding=(0, conv.output_padding[0]),
    )


def _to_one_channel(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """[B, C, 1, S] -> [B, 1, S]."""
    num_taps, padding, num_samples = conv.weight.shape[-1], int(conv.padding[0]), x.shape[-1]
    taps = F.linear(x[:, :, 0].transpose(1, 2), conv.weight[0].t())  # [B, S, K]
    taps = F.pad(taps, (0, 0, padding, padding)).float()
    total = taps[:, :num_samples, 0]
    for tap in range(1, num_taps):
        total = total + taps[:, tap : tap + num_samples, tap]
    assert conv.bias is not None
    return (total + conv.bias.float())[:, None].to(x.dtype)
