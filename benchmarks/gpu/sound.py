"""A sound decoder that may be faster than the product's: the same numbers, laid out channels last.

The convolutions' kernels want their channels last; asked otherwise they turn every tensor round
before and after. One row of pixels in that layout is the same convolution, and between two of them
the compiler makes one kernel of bias, snake and residual sum. Two convolutions have no fast
kernel in either layout, by their number the dilated ones of the last block; so dilated ones run as
plain ones over their phases. The last one, to one channel, is a matrix product for all taps.

Nothing imports this but `bench_gpu`, as `benchmarks.gpu.candidates`.
"""

# B batch, A latent frames, L latent channels, C channels, S samples, K taps

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.models import pointwise
from foley.models.vae import DecoderBlock, FoleyVAE, ResidualUnit, Snake


class FusedVAE:
    """Waveforms of latents, by the weights of a `FoleyVAE`.

    Args:
        vae: on its device, in its dtypes. Its convolutions' weights are re-laid in place, so that
            they keep their names and shapes and need no second copy.
        compiled: make few kernels of what lies between the convolutions, for all lengths.
    """

    def __init__(self, vae: FoleyVAE, *, compiled: bool) -> None:
        self._vae = vae
        for module in vae.decoder.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                wide = module.weight.detach()[:, :, None]
                wide = wide.contiguous(memory_format=torch.channels_last)
                module.weight.data = wide[:, :, 0]
        self._run = torch.compile(self._decode) if compiled else self._decode

    def __call__(self, latents: Tensor) -> Tensor:
        """The waveform [B, 1, hop * A] in [-1, 1] of latents [B, L, A], in the weights' dtype."""
        torch._dynamo.maybe_mark_dynamic(latents, 2)
        return self._run(latents)

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self._vae
        x = vae.post_quant(latents.to(vae.post_quant.weight.dtype))[:, :, None]  # [B, L, 1, A]
        x = _convolve(vae.decoder.conv_in, x.contiguous(memory_format=torch.channels_last))
        for block in vae.decoder.blocks:
            assert isinstance(block, DecoderBlock)
            x = _upsample(block.upsample, _snake(block.snake, x))
            for unit in block.units:
                assert isinstance(unit, ResidualUnit)
                y = _convolve(unit.conv1, _snake(unit.snake1, x))
                x = x + _convolve(unit.conv2, _snake(unit.snake2, y))
        return _to_one_channel(vae.decoder.conv_out, _snake(vae.decoder.snake_out, x)).tanh()


def _snake(snake: Snake, x: Tensor) -> Tensor:
    return pointwise.snake(x, snake.alpha[..., None])


def _convolve(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """[B, C, 1, S] -> [B, C', 1, S]."""
    reach, phases = int(conv.padding[0]), conv.dilation[0]
    if phases == 1:
        return F.conv2d(x, conv.weight[:, :, None], conv.bias, padding=(0, reach))
    # Samples `phases` apart see each other alone: as columns of a picture they need no dilation.
    num_samples = x.shape[-1]
    x = F.pad(x, (0, -num_samples % phases))
    columns = x[:, :, 0].unflatten(-1, (-1, phases))  # [B, C, S / d, d]
    columns = F.conv2d(columns, conv.weight[..., None], conv.bias, padding=(reach // phases, 0))
    return columns.flatten(2)[:, :, None, :num_samples]


def _upsample(conv: nn.ConvTranspose1d, x: Tensor) -> Tensor:
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
