"""Synthesis of the sound of a batch of scenes: modal hits, noise layers, and reverberation.

All randomness comes from the scenes and from one fixed table of noise, so a clip has the same sound
in any batch.
"""

# B clips, S samples, E hits of the whole batch, L samples of a hit, M modes, A latent frames

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from training.materials import LOUDNESS_SECONDS, MAX_HIT_SECONDS
from training.scene import LAYERS

SAMPLE_RATE = 48_000
_NOISE_SAMPLES = 1 << 22
_BURST_SAMPLES = 4096
_FLOOR_RMS = 2e-5  # of noise in every clip, so that there is no digital silence
_HITS_AT_ONCE = 256
_LAYER_RMS = {
    "rain": 0.07,
    "wind": 0.09,
    "engine": 0.09,
    "fire": 0.06,
    "stream": 0.07,
    "friction": 0.07,
    "whoosh": 0.1,
}


@cache
def noise_table(device: torch.device) -> Tensor:
    """White noise of unit variance, float32 [2^22], the same on every machine."""
    generator = torch.Generator().manual_seed(20)
    return torch.randn(_NOISE_SAMPLES, generator=generator).to(device)


def synthesise(
    hits: dict[str, Tensor], owner: Tensor, layers: dict[str, Tensor], reverb: Tensor, length: int
) -> Tensor:
    """The waveforms of a batch, [B, S].

    Args:
        hits: arrays of all hits of the batch, [E] or [E, M].
        owner: int64 [E], the clip of each hit.
        layers: kind [B, 3], level [B, 3, A], pitch [B, 3], offset [B, 3].
        reverb: seconds and gain of the reverberation, [B, 2].
        length: S.
    """
    batch, device = len(reverb), reverb.device
    tail = int(MAX_HIT_SECONDS * SAMPLE_RATE)
    waveform = torch.zeros(batch, length + tail, device=device)
    for start in range(0, len(owner), _HITS_AT_ONCE):
        part = slice(start, start + _HITS_AT_ONCE)
        sounds = synthesise_hits({name: value[part] for name, value in hits.items()})  # [E, L]
        onsets = (hits["seconds"][part] * SAMPLE_RATE).round().long()
        first = owner[part] * (length + tail) + onsets
        index = first[:, None] + torch.arange(sounds.shape[1], device=device)
        waveform.view(-1).index_add_(0, index.flatten(), sounds.flatten())
    waveform = waveform[:, :length]
    for clip, slot in (layers["kind"] >= 0).nonzero().tolist():
        name = LAYERS[int(layers["kind"][clip, slot])]
        level = layers["level"][clip, slot]
        pitch, offset = float(layers["pitch"][clip, slot]), int(layers["offset"][clip, slot])
        waveform[clip] += _LAYER_RMS[name] * synthesise_texture(name, level, pitch, offset, length)
    waveform = _add_reverb(waveform, reverb)
    waveform = waveform + _FLOOR_RMS * noise_table(device)[:length]
    return soft_limit(waveform)


def soft_limit(waveform: Tensor) -> Tensor:
    """The waveform, smoothly limited above 0.8 so that it stays within -1 to 1."""
    size = waveform.abs()
    bent = 0.8 + 0.2 * torch.tanh((size - 0.8) / 0.2)
    return torch.where(size > 0.8, waveform.sign() * bent, waveform)


def synthesise_hits(hits: dict[str, Tensor]) -> Tensor:
    """The sound of each hit at its level, [E, L].

    Args:
        hits: see `synthesise`.
    """
    device = hits["level"].device
    seconds = torch.arange(int(MAX_HIT_SECONDS * SAMPLE_RATE), device=device) / SAMPLE_RATE
    sound = torch.zeros(len(hits["level"]), len(seconds), device=device)
    warped = seconds + 0.5 * hits["chirp"][:, None] * seconds.clamp(max=0.08) ** 2
    for mode in range(hits["hz"].shape[1]):
        hz, rate, gain = (hits[name][:, mode, None] for name in ("hz", "rates", "gains"))
        sound += gain * torch.exp(-rate * seconds) * torch.sin(2 * math.pi * hz * warped)
    sound *= 1 - torch.exp(-seconds / hits["attack"][:, None])
    sound /= sound.abs().amax(1, keepdim=True).clamp_min(1e-6)
    burst = _bursts(hits)
    sound[:, : burst.shape[1]] += hits["noise"][:, None] * burst
    heard = sound[:, : int(LOUDNESS_SECONDS * SAMPLE_RATE)]
    sound /= heard.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
    fade = ((seconds[-1] - seconds) / 0.05).clamp(max=1.0)
    return hits["level"][:, None] * sound * fade


def _bursts(hits: dict[str, Tensor]) -> Tensor:
    """Contact noise [E, L'] with a peak of about 1: decaying noise around a centre frequency."""
    device = hits["level"].device
    samples = torch.arange(2 * _BURST_SAMPLES, device=device)
    noise = noise_table(device)[hits["offset"].long()[:, None] + samples]
    hz = torch.fft.rfftfreq(2 * _BURST_SAMPLES, 1 / SAMPLE_RATE, device=device)
    octaves = torch.log2(hz.clamp_min(1.0) / hits["noise_hz"][:, None])
    shaped = torch.fft.irfft(torch.fft.rfft(noise) * torch.exp(-0.5 * (octaves / 0.9) ** 2))
    shaped = shaped * torch.exp(-samples / SAMPLE_RATE * hits["noise_rate"][:, None])
    return shaped / shaped.abs().amax(1, keepdim=True).clamp_min(1e-6)


def synthesise_texture(name: str, level: Tensor, pitch: float, offset: int, length: int) -> Tensor:
    """A continuous sound [S] with an RMS of about 1 at level 1.

    Args:
        name: one of `LAYERS`.
        level: 0 to 1 at 50 Hz, [A].
        pitch: 0 to 1.
        offset: in the noise table.
        length: S.
    """
    gain = F.interpolate(level[None, None], size=length, mode="linear", align_corners=False)[0, 0]
    noise = noise_table(level.device)[offset : offset + length]
    other = noise_table(level.device)[offset + 700_001 : offset + 700_001 + length]
    if name == "rain":
        drops = _grains(other, 0.0012 + 0.002 * pitch, 4000 + 3000 * pitch, 350)
        return gain * (0.75 * _band(noise, 3500 + 2500 * pitch, 1.2) + 0.6 * drops)
    if name == "wind":
        low, high = _band(noise, 180 + 120 * pitch, 0.8), _band(other, 700 + 300 * pitch, 0.6)
        return gain * (0.9 * low + 1.2 * gain * high)
    if name == "engine":
        base_hz = 28 + 30 * pitch
        phase = torch.cumsum((base_hz * (0.6 + 0.8 * gain)).double(), 0) / SAMPLE_RATE
        harmonics = sum(
            torch.sin(2 * math.pi * (k * phase % 1.0).float()) / k**0.9 for k in range(1, 16)
        )
        return gain * (0.75 * harmonics + 0.35 * _band(noise, 500, 1.0))
    if name == "fire":
        crackle = _grains(other, 0.0004, 3500, 700)
        return gain * (0.9 * _band(noise, 120, 1.0) + 0.25 * _band(noise, 900, 1.0) + 0.9 * crackle)
    if name == "stream":
        swirl = 1 + 0.5 * _band(other, 6, 1.0).clamp(-1.5, 2.0)
        return gain * _band(noise, 900 + 700 * pitch, 1.0) * swirl
    if name == "friction":
        return gain * _band(noise, 900 + 2200 * pitch, 0.8)
    return gain * _band(noise, 500 + 500 * pitch, 0.7)  # whoosh


def _band(noise: Tensor, centre_hz: float, octaves: float) -> Tensor:
    """The noise filtered to a band around a centre frequency, with unit RMS."""
    hz = torch.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE, device=noise.device)
    shape = torch.exp(-0.5 * (torch.log2(hz.clamp_min(0.05) / centre_hz) / octaves) ** 2)
    shape[0] = 0.0
    band = torch.fft.irfft(torch.fft.rfft(noise) * shape, n=len(noise))
    return band / band.square().mean().sqrt().clamp_min(1e-9)


def _grains(noise: Tensor, density: float, centre_hz: float, decay_samples: int) -> Tensor:
    """Short bands of noise at random times and of random size, with an RMS of about 1."""
    threshold = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 2 * density)).item()
    clicks = torch.where(noise > threshold, (noise - threshold) * noise.roll(77), 0.0)
    size = len(noise) + decay_samples * 8
    decay = torch.exp(-torch.arange(decay_samples * 8, device=noise.device) / decay_samples)
    grain = _band(noise[: decay_samples * 8], centre_hz, 0.7) * decay
    wet = torch.fft.irfft(torch.fft.rfft(clicks, n=size) * torch.fft.rfft(grain, n=size), n=size)
    wet = wet[: len(noise)]
    return wet / wet.square().mean().sqrt().clamp_min(1e-9)


def _add_reverb(waveform: Tensor, reverb: Tensor) -> Tensor:
    """The waveforms [B, S] with the reverberation of a small room, where `reverb` has a gain."""
    samples = torch.arange(int(0.4 * SAMPLE_RATE), device=waveform.device)
    decay = torch.exp(-6.9 * samples / (SAMPLE_RATE * reverb[:, :1]))
    tail = noise_table(waveform.device)[1_000_003 : 1_000_003 + len(samples)] * decay
    tail[:, :240] = 0.0
    tail = tail / tail.square().sum(1, keepdim=True).sqrt()
    size = waveform.shape[1] + len(samples)
    wet = torch.fft.irfft(torch.fft.rfft(waveform, n=size) * torch.fft.rfft(tail, n=size), n=size)
    return waveform + 4 * reverb[:, 1:] * wet[:, : waveform.shape[1]]
