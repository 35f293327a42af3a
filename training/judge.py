"""Measures of sounds: onsets and their match with events, materials, levels, spectra."""

# B sounds, S samples, E hits, t frames

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.models.analysis import SAMPLE_RATE, log_mel, mel_filters
from training.materials import MATERIALS

TOLERANCE_SECONDS = 0.06
_HOP = 96  # 2 ms
_FFT = 512
_BANDS = 40
_LAG = 5  # frames over which a rise is measured: 10 ms
_APART_SECONDS = 0.05
_RISE = 0.4  # decades of power
_BEFORE_ONSET = 0.005  # seconds; an onset is detected where the level rises most
_WINDOW_BEFORE, _WINDOW_AFTER = 0.02, 0.34
_JUDGE_HOP, _JUDGE_FFT, _JUDGE_BANDS = 240, 1024, 64


@dataclass
class Match:
    """Counts of matching and missing onsets, summed over clips.

    Attributes:
        hits: detected onsets that match an event, one to one.
        found: all detected onsets.
        truth: all events.
        errors: signed seconds, detected minus true.
    """

    hits: int = 0
    found: int = 0
    truth: int = 0
    errors: list[float] | None = None

    def add(
        self, found: Sequence[float], truth: Sequence[float], unscored: Sequence[float] = ()
    ) -> None:
        """Add one clip.

        Args:
            found: detected onsets, in seconds.
            truth: events, in seconds.
            unscored: times, in seconds, at which a sound may or may not begin. An onset there that
                matches no event is not counted.
        """
        pairs = match_onsets(found, truth)
        matched = {onset for onset, _ in pairs}
        rest = [onset for onset in found if onset not in matched]
        self.hits += len(pairs)
        self.found += len(found) - len(match_onsets(rest, unscored))
        self.truth += len(truth)
        self.errors = (self.errors or []) + [f - t for f, t in pairs]

    def join(self, other: "Match") -> None:
        """Add the counts of another match."""
        self.hits += other.hits
        self.found += other.found
        self.truth += other.truth
        self.errors = (self.errors or []) + (other.errors or [])

    @property
    def precision(self) -> float:
        """The share of the detected onsets that match an event."""
        return self.hits / max(self.found, 1)

    @property
    def recall(self) -> float:
        """The share of the events that were detected."""
        return self.hits / max(self.truth, 1)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.hits / max(self.found + self.truth, 1)

    @property
    def median_error_ms(self) -> float:
        """The median absolute error of the matches; NaN without a match."""
        if not self.errors:
            return float("nan")
        return 1000 * float(torch.tensor(self.errors).abs().median())


def match_onsets(found: Sequence[float], truth: Sequence[float]) -> list[tuple[float, float]]:
    """Pairs (detected, true) within the tolerance, one to one, the nearest first."""
    candidates = sorted(
        (abs(f - t), i, j)
        for i, f in enumerate(found)
        for j, t in enumerate(truth)
        if abs(f - t) <= TOLERANCE_SECONDS
    )
    used_found: set[int] = set()
    used_truth: set[int] = set()
    pairs = []
    for _, i, j in candidates:
        if i not in used_found and j not in used_truth:
            used_found.add(i)
            used_truth.add(j)
            pairs.append((found[i], truth[j]))
    return pairs


def merge_close_events(truth: Sequence[float]) -> list[float]:
    """The events in order, without those less than 50 ms after the previous one."""
    kept: list[float] = []
    for seconds in sorted(truth):
        if not kept or seconds - kept[-1] >= _APART_SECONDS:
            kept.append(seconds)
    return kept


def detect_onsets(waveform: Tensor) -> list[float]:
    """The times in seconds at which a sound starts in a waveform [S]."""
    filters = mel_filters(_FFT, _BANDS).to(waveform.device)
    count = waveform.shape[-1] // _HOP
    levels = log_mel(waveform[None].float(), _FFT, _HOP, filters, count)[0]  # [bands, t]
    levels = (levels + 5.5).clamp_min(0)  # levels below -55 dB are inaudible
    # Each band is compared with its highest level 10 to 40 ms before. The half of the bands with
    # the largest rise counts.
    past = F.max_pool1d(F.pad(levels, (_LAG + 15, 0))[:, : count + 15], 16, 1)
    rise = (levels - past[:, :count]).clamp_min(0)
    rise = rise.sort(0, descending=True).values[: _BANDS // 2].mean(0)
    rise[:_LAG] = 0
    rise = F.avg_pool1d(rise[None, None], 3, 1, 1)[0, 0]
    apart = int(_APART_SECONDS * SAMPLE_RATE / _HOP)
    highest = F.max_pool1d(rise[None, None], 2 * apart + 1, 1, apart)[0, 0]
    peaks = ((rise == highest) & (rise > _RISE)).nonzero().flatten().tolist()
    return [(peak + 0.5) * _HOP / SAMPLE_RATE for peak in peaks]


def level_db(waveform: Tensor, seconds: float, length_seconds: float = 0.08) -> float:
    """The RMS level of the waveform [S] in the `length_seconds` after a time, in dB."""
    first = int(seconds * SAMPLE_RATE)
    part = waveform[first : first + int(length_seconds * SAMPLE_RATE)]
    return 10 * float(torch.log10(part.float().square().mean() + 1e-9))


def level_to_sones(level_db: float) -> float:
    """The loudness in sones, up to a factor, of a level in dB: it doubles every 10 dB (Stevens)."""
    return float(2 ** (level_db / 10))


def onset_level_db(waveform: Tensor, found: Sequence[float], seconds: float) -> float | None:
    """The level of an event from its detected onset on, in dB; None without a matching onset.

    A hit of stone lasts 20 ms. Measured from the exact time of the event, a hit that sounds 30 ms
    early would be missed.

    Args:
        waveform: [S].
        found: the onsets of the waveform.
        seconds: time of the event.
    """
    pairs = match_onsets(found, [seconds])
    return level_db(waveform, max(0.0, pairs[0][0] - _BEFORE_ONSET)) if pairs else None


def count_clicks(waveform: Tensor) -> int:
    """The number of clicks: moments of 1 ms that stand out by 20 dB above 8 kHz.

    A moment is compared with the 50 ms around it. Grains of rain and fire and short hits count too,
    so the figure is meaningful only beside that of the exact sound.

    Args:
        waveform: [S].
    """
    spectrum = torch.fft.rfft(waveform.float())
    spectrum[: len(spectrum) * 8000 * 2 // SAMPLE_RATE] = 0
    high = torch.fft.irfft(spectrum, len(waveform))
    power = high[: len(high) // 48 * 48].view(-1, 48).square().mean(1) + 1e-9
    around = F.avg_pool1d(power[None, None], 51, 1, 25, count_include_pad=False)[0, 0]
    # The mean includes the moment itself.
    rest = (51 * around - power).clamp_min(0) / 50
    return int((power > 100 * rest).sum())


class MaterialJudge(nn.Module):
    """A classifier of a hit's material by its sound, trained on sounds of the generator.

    Args:
        width: channels of the first layers.
        num_materials: that it tells apart.
    """

    filters: Tensor

    def __init__(self, width: int = 48, num_materials: int = len(MATERIALS)) -> None:
        super().__init__()
        self.register_buffer("filters", mel_filters(_JUDGE_FFT, _JUDGE_BANDS), persistent=False)
        layers: list[nn.Module] = []
        for inner, outer in (
            (1, width),
            (width, width),
            (width, 2 * width),
            (2 * width, 2 * width),
        ):
            layers += [nn.Conv2d(inner, outer, 3, 2, 1), nn.GroupNorm(4, outer), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * width * 4, num_materials)

    def features(self, windows: Tensor) -> Tensor:
        """Log-mel spectra [E, 1, bands, t] of windows [E, S], relative to their loudest band."""
        count = windows.shape[-1] // _JUDGE_HOP
        levels = log_mel(windows, _JUDGE_FFT, _JUDGE_HOP, self.filters, count)
        top = levels.amax((1, 2), keepdim=True)
        return ((levels - top) / 2 + 1.5).clamp_min(0)[:, None]  # 30 dB per unit, a range of 90 dB

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the materials [E, 7]."""
        hidden = self.layers(features).mean(-1)  # [E, channels, bands / 16]
        return self.head(hidden.flatten(1))


def cut_hit_windows(waveforms: Tensor, owner: Tensor, seconds: Tensor) -> Tensor:
    """The windows [E, S'] around hits; a part outside the clip is silent.

    Args:
        waveforms: [B, S].
        owner: int64 [E], the clip of each hit.
        seconds: [E], the time of each hit.
    """
    before = int(_WINDOW_BEFORE * SAMPLE_RATE)
    size = before + int(_WINDOW_AFTER * SAMPLE_RATE)
    padded = F.pad(waveforms, (before, size))
    first = (seconds * SAMPLE_RATE).round().long()
    index = first[:, None] + torch.arange(size, device=waveforms.device)
    return padded[owner[:, None], index]


def silence_db(real: Tensor, generated: Tensor) -> float:
    """The level of a sound's gaps below its events, in dB; NaN if there are no gaps or events.

    Args:
        real: the exact sound [S]; its silent parts define the gaps.
        generated: the sound to measure [S].
    """
    frames = (len(real) // 960, 960)
    truth = real[: frames[0] * 960].view(frames).square().mean(1)
    found = generated[: frames[0] * 960].view(frames).square().mean(1)
    quiet = truth < truth.max() * 10**-5.5
    quiet &= ~F.max_pool1d((~quiet)[None, None].float(), 5, 1, 2)[0, 0].bool()
    loud = truth > truth.max() * 10**-1.5
    if quiet.sum() < 5 or not loud.any():
        return float("nan")
    return float(10 * torch.log10(found[loud].mean() / found[quiet].mean().clamp_min(1e-12)))


def lines_db(waveforms: Tensor, floor: float = 1e-9) -> Tensor:
    """The excess of spectral lines at multiples of 50 Hz, the latent rate, in dB [B].

    Above 200 Hz, each line of the long-term spectrum is compared with the middle between two lines.

    Args:
        waveforms: [B, S].
        floor: power that is added to each bin, so that inaudible lines count little.
    """
    num_samples, device = waveforms.shape[-1], waveforms.device
    window = torch.hann_window(num_samples, device=device)
    power = torch.fft.rfft(waveforms * window).abs().square()  # [B, bins]
    step = 50 * num_samples / SAMPLE_RATE
    count = torch.arange(4, 200, device=device)
    near = torch.arange(-2, 3, device=device)

    def around(centres: Tensor) -> Tensor:
        bins = centres.round().long()[:, None] + near
        return power[:, bins].mean(-1).add(floor).log10()  # [B, lines]

    return 10 * (around(count * step) - around(count * step + step / 2)).mean(-1)


def buzz_db(waveform: Tensor) -> float:
    """`lines_db` of one waveform [S]."""
    return float(lines_db(waveform[None])[0])


def _levels(waveforms: Tensor) -> Tensor:
    """The levels of 48 bands every 10 ms in decades of power, [B, 48, t], of [B, S]."""
    filters = mel_filters(1024, 48).to(waveforms.device)
    return log_mel(waveforms.float(), 1024, 480, filters, waveforms.shape[-1] // 480)


def band_levels(waveforms: Tensor) -> Tensor:
    """The mean and the spread over time of 48 log-mel levels, [B, 2 * 48], of sounds [B, S]."""
    levels = _levels(waveforms)
    return torch.cat((levels.mean(-1), levels.std(-1)), dim=1)


def spectrum_db(waveform: Tensor, range_db: float = 60.0) -> Tensor:
    """The levels of 48 bands every 10 ms in dB, [48, t].

    Args:
        waveform: [S].
        range_db: levels further below the highest one are raised to this limit.
    """
    levels = 10 * _levels(waveform[None])[0]
    return levels.clamp_min(levels.max() - range_db)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """The Frechet distance of two sets of embeddings [B, D]."""
    first, second = first.double().cpu(), second.double().cpu()
    mean = (first.mean(0) - second.mean(0)).square().sum()
    one, two = torch.cov(first.T), torch.cov(second.T)
    values = torch.linalg.eigvals(one @ two).real.clamp_min(0)
    return float(mean + one.trace() + two.trace() - 2 * values.sqrt().sum())
