"""The DAC-VAE: an encoder from waveforms to latents, and a decoder back.

Weight norm is fused when a checkpoint is loaded.
"""

# B batch, A latent frames, L latent channels, C channels, S samples

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from foley.configs import VAEConfig

_DILATIONS = (1, 3, 9)
_LOGVAR_RANGE = (-30.0, 20.0)


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """Return x + sin(alpha x)^2 / alpha, computed in the dtype of `alpha`, in that of `x`.

    Args:
        x: [B, C, ...].
        alpha: [1, C, ...], with as many dimensions as `x`.

    Source: docs/internals/model-specification.md, section 5.
    """
    wide = x.to(alpha.dtype)
    sine = torch.sin(alpha * wide)
    return torch.addcmul(wide, sine * sine, 1.0 / (alpha + 1e-9)).to(x.dtype)


class Snake(nn.Module):
    """`snake`, with an alpha for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, S] of `x` [B, C, S]."""
        return snake(x, self.alpha)


class ResidualUnit(nn.Module):
    """A dilated convolution and one of a single tap, added to their input."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(dim)
        self.conv1 = nn.Conv1d(dim, dim, 7, dilation=dilation, padding=3 * dilation)
        self.snake2 = Snake(dim)
        self.conv2 = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, S] of `x` [B, C, S]."""
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


def _make_units(dim: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualUnit(dim, dilation) for dilation in _DILATIONS))


class DecoderBlock(nn.Module):
    """Makes `rate` times as many samples, with half the channels."""

    def __init__(self, dim: int, rate: int) -> None:
        super().__init__()
        self.snake = Snake(dim)
        self.upsample = nn.ConvTranspose1d(
            dim,
            dim // 2,
            2 * rate,
            stride=rate,
            padding=math.ceil(rate / 2),
            output_padding=rate % 2,
        )
        self.units = _make_units(dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C / 2, rate * S] of `x` [B, C, S]."""
        return self.units(self.upsample(self.snake(x)))


class EncoderBlock(nn.Module):
    """Makes a `rate`-th of the samples, with twice the channels."""

    def __init__(self, dim: int, rate: int) -> None:
        super().__init__()
        self.units = _make_units(dim)
        self.snake = Snake(dim)
        self.downsample = nn.Conv1d(
            dim, 2 * dim, 2 * rate, stride=rate, padding=math.ceil(rate / 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 2C, S / rate] of `x` [B, C, S]."""
        return self.downsample(self.snake(self.units(x)))


class Decoder(nn.Module):
    """From latents to a waveform."""

    def __init__(self, latent_dim: int, dim: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.conv_in = nn.Conv1d(latent_dim, dim, 7, padding=3)
        self.blocks = nn.Sequential(*(DecoderBlock(dim >> i, rate) for i, rate in enumerate(rates)))
        last_dim = dim >> len(rates)
        self.snake_out = Snake(last_dim)
        self.conv_out = nn.Conv1d(last_dim, 1, 7, padding=3)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the waveform [B, 1, hop * A] of latents [B, L, A]."""
        return self.conv_out(self.snake_out(self.blocks(self.conv_in(latents)))).tanh()


class Encoder(nn.Module):
    """From a waveform to features."""

    def __init__(self, latent_dim: int, dim: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.conv_in = nn.Conv1d(1, dim, 7, padding=3)
        self.blocks = nn.Sequential(*(EncoderBlock(dim << i, rate) for i, rate in enumerate(rates)))
        last_dim = dim << len(rates)
        self.snake_out = Snake(last_dim)
        self.conv_out = nn.Conv1d(last_dim, latent_dim, 3, padding=1)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return features [B, L, S / hop] of a waveform [B, 1, S]."""
        return self.conv_out(self.snake_out(self.blocks(self.conv_in(waveform))))


class FoleyVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]  # both define config_name
    """The autoencoder of 48 kHz mono sound.

    Source: docs/internals/model-specification.md, section 5.
    """

    _supports_gradient_checkpointing = False
    _supports_group_offloading = True
    _group_offload_block_modules = ["encoder", "decoder"]
    _no_split_modules = ["DecoderBlock", "EncoderBlock"]  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        *,
        encoder_dim: int,
        encoder_rates: tuple[int, ...],
        latent_dim: int,
        decoder_dim: int,
        decoder_rates: tuple[int, ...],
        sample_rate: int,
    ) -> None:
        super().__init__()
        config = VAEConfig(
            encoder_dim=encoder_dim,
            encoder_rates=tuple(encoder_rates),
            latent_dim=latent_dim,
            decoder_dim=decoder_dim,
            decoder_rates=tuple(decoder_rates),
            sample_rate=sample_rate,
        )
        self.hop = config.hop
        self.encoder = Encoder(latent_dim, encoder_dim, config.encoder_rates)
        self.quant = nn.Conv1d(latent_dim, 2 * latent_dim, 1)
        self.post_quant = nn.Conv1d(latent_dim, latent_dim, 1)
        self.decoder = Decoder(latent_dim, decoder_dim, config.decoder_rates)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the waveform [B, 1, hop * A] in [-1, 1], in the weights' dtype.

        Args:
            latents: [B, L, A], in any floating dtype.
        """
        return self.decoder(self.post_quant(latents.to(self.post_quant.weight.dtype)))

    def encode(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latents, [B, L, A] each.

        Args:
            waveform: [B, 1, S] in [-1, 1], in any floating dtype. It is padded with zeros on the
                right to a multiple of the hop.
        """
        padded = F.pad(waveform, (0, -waveform.shape[-1] % self.hop)).to(self.quant.weight.dtype)
        mean, logvar = self.quant(self.encoder(padded)).chunk(2, dim=1)
        return mean, logvar.clamp(*_LOGVAR_RANGE)

    def forward(self, x: Tensor, *, encode: bool = False) -> Tensor:
        """Return `decode` of latents; or the mean of `encode` of a waveform.

        Both go through here, because hooks that bring the weights to a device do.

        Args:
            x: latents [B, L, A]; to encode, a waveform [B, 1, S].
            encode: which of the two.
        """
        return self.encode(x)[0] if encode else self.decode(x)


def build_vae(config: VAEConfig) -> FoleyVAE:
    """Return a FoleyVAE of this architecture, with PyTorch's initial weights."""
    return FoleyVAE(**vars(config))
