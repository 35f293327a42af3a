"""A fixed encoder of waveforms to latents: log-mel frames at two resolutions, rotated by PCA.

A learned encoder collapsed the latents into few directions, which a fixed one cannot do. The
channels from `ACTIVE` on hold unit noise. The decoder uses it for the grain of rain or wind, and
the velocity that the transformer has to predict there is zero.
"""

# B clips, S samples, A latent frames, D features of a frame, C active channels

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLE_RATE = 48_000
HOP = 960
ACTIVE = 64
LATENT_DIM = 128
_LONG_FFT, _LONG_BANDS = 4096, 96
_SHORT_FFT, _SHORT_BANDS, _SHORT_HOP = 512, 48, 240
_FLOOR = 1e-7  # of the power of a full-scale sine


def mel_filters(
    num_fft: int, bands: int, low_hz: float = 40.0, high_hz: float = 20_000.0
) -> Tensor:
    """Triangular filters of unit sum on the mel scale, [num_fft / 2 + 1, bands].

    Args:
        num_fft: samples of a frame.
        bands: number of filters.
        low_hz: lower edge of the first filter.
        high_hz: upper edge of the last filter.
    """
    hz = torch.linspace(0, SAMPLE_RATE / 2, num_fft // 2 + 1)

    def mel(value: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + value / 700)

    low, high = mel(torch.tensor([low_hz, high_hz])).tolist()
    edges = torch.linspace(low, high, bands + 2)
    width = mel(hz[1:2]).item() + 1e-6  # at least one bin wide
    rise = (mel(hz)[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2]).clamp_min(width)
    fall = (edges[2:] - mel(hz)[:, None]) / (edges[2:] - edges[1:-1]).clamp_min(width)
    filters = torch.minimum(rise, fall).clamp(0, 1)
    return filters / filters.sum(0, keepdim=True).clamp_min(1e-6)


def log_mel(waveform: Tensor, num_fft: int, hop: int, filters: Tensor, frames: int) -> Tensor:
    """log10 of the band power [B, bands, frames]; frame i is centred at (i + 0.5) * hop.

    Args:
        waveform: [B, S].
        num_fft: samples of a frame.
        hop: samples from frame to frame.
        filters: of `mel_filters` for the same `num_fft`.
        frames: their number.
    """
    window = torch.hann_window(num_fft, device=waveform.device)
    before = num_fft // 2 - hop // 2
    padded = F.pad(waveform, (before, num_fft))
    spectrum = torch.stft(padded, num_fft, hop, window=window, center=False, return_complex=True)[
        ..., :frames
    ]
    power = spectrum.abs().square() / (window.sum() / 2) ** 2
    return torch.log10(filters.T @ power + _FLOOR)


class Analysis(nn.Module):
    """The fixed encoder. Call `fit` or load a state before `forward`."""

    long_filters: Tensor
    short_filters: Tensor
    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        dim = _LONG_BANDS + _SHORT_BANDS * (HOP // _SHORT_HOP)
        self.register_buffer("long_filters", mel_filters(_LONG_FFT, _LONG_BANDS), persistent=False)
        self.register_buffer(
            "short_filters", mel_filters(_SHORT_FFT, _SHORT_BANDS), persistent=False
        )
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.zeros(dim, ACTIVE))
        self.register_buffer("scale", torch.ones(ACTIVE))

    def features(self, waveform: Tensor) -> Tensor:
        """Features [B, D, A] of waveforms [B, S], S a multiple of the hop."""
        count = waveform.shape[-1] // HOP
        parts = HOP // _SHORT_HOP
        long = log_mel(waveform, _LONG_FFT, HOP, self.long_filters, count)
        short = log_mel(waveform, _SHORT_FFT, _SHORT_HOP, self.short_filters, count * parts)
        short = short.unflatten(-1, (count, parts)).permute(0, 1, 3, 2).flatten(1, 2)
        return torch.cat((long, short), dim=1)

    def fit(self, waveforms: list[Tensor]) -> float:
        """Set the mean and the principal directions; returns the share of the variance kept.

        Channels are scaled by eigenvalue ** -1/4, which is half way to whitening: what is loud in
        the spectrum stays loud in the latents, and details are not lost in the noise.

        Args:
            waveforms: sounds [B, S], S a multiple of the hop.
        """
        frames = torch.cat([self.features(w).transpose(1, 2).flatten(0, 1) for w in waveforms])
        self.mean = frames.mean(0)
        covariance = torch.cov((frames - self.mean).T.double())
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0)[:ACTIVE], vectors.flip(1)[:, :ACTIVE]
        scale = values.clamp_min(1e-12) ** -0.25
        scale = scale / (scale**2 * values).mean().sqrt()  # mean variance 1
        self.basis, self.scale = vectors.float(), scale.float()
        return float(values.sum() / covariance.trace())

    def forward(self, waveform: Tensor) -> Tensor:
        """Active channels [B, C, A] of waveforms [B, S]."""
        centred = self.features(waveform) - self.mean[:, None]
        return (self.basis * self.scale).T @ centred


def append_noise(active: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """All 128 channels [B, 128, A]: the active ones, then unit noise.

    Args:
        active: [B, C, A].
        generator: of the noise, on the device of `active`; the default one when None.
    """
    batch, _, count = active.shape
    size = (batch, LATENT_DIM - ACTIVE, count)
    noise = torch.randn(size, generator=generator, device=active.device)
    return torch.cat((active, noise), dim=1)
