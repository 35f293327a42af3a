"""What sounds are judged by: onsets, their match, materials, levels; no picture is seen."""

# B sounds, S samples, E hits, t frames

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.analysis import SAMPLE_RATE, log_mel, mel_filters
from training.materials import MATERIALS

TOLERANCE_SECONDS = 0.06
_HOP = 96  # 2 ms
_FFT = 512
_BANDS = 40
_LAG = 5  # frames over which a rise is measured: 10 ms
_APART_SECONDS = 0.05
_RISE = 0.4  # decades of power
_BEFORE_ONSET = 0.005  # seconds: an onset is told where it rises most
_WINDOW_BEFORE, _WINDOW_AFTER = 0.02, 0.34
_JUDGE_HOP, _JUDGE_FFT, _JUDGE_BANDS = 240, 1024, 64


@dataclass
class Match:
    """Onsets found and missed, summed over clips.

    Attributes:
        hits: found onsets that match an event, one to one.
        found: all found onsets.
        truth: all events.
        errors: signed seconds, found minus true.
    """

    hits: int = 0
    found: int = 0
    truth: int = 0
    errors: list[float] | None = None

    def add(
        self, found: Sequence[float], truth: Sequence[float], unscored: Sequence[float] = ()
    ) -> None:
        """Count one clip.

        Args:
            found: onsets.
            truth: events.
            unscored: times at which something may begin to sound, or not: an onset there that
                matches no event counts neither way.
        """
        pairs = match_onsets(found, truth)
        matched = {onset for onset, _ in pairs}
        rest = [onset for onset in found if onset not in matched]
        self.hits += len(pairs)
        self.found += len(found) - len(match_onsets(rest, unscored))
        self.truth += len(truth)
        self.errors = (self.errors or []) + [f - t for f, t in pairs]

    @property
    def precision(self) -> float:
        """Share of the found onsets that match."""
        return self.hits / max(self.found, 1)

    @property
    def recall(self) -> float:
        """Share of the events that were found."""
        return self.hits / max(self.truth, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two."""
        return 2 * self.hits / max(self.found + self.truth, 1)

    @property
    def median_error_ms(self) -> float:
        """Median absolute error of the matches; NaN without any."""
        if not self.errors:
            return float("nan")
        return 1000 * float(torch.tensor(self.errors).abs().median())


def match_onsets(found: Sequence[float], truth: Sequence[float]) -> list[tuple[float, float]]:
    """Pairs (found, true) within the tolerance, one to one, nearest first."""
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
    """Events that a listener can tell apart: those closer than 50 ms count once."""
    kept: list[float] = []
    for seconds in sorted(truth):
        if not kept or seconds - kept[-1] >= _APART_SECONDS:
            kept.append(seconds)
    return kept


def detect_onsets(waveform: Tensor) -> list[float]:
    """Times in seconds at which something starts to sound in a waveform [S]."""
    filters = mel_filters(_FFT, _BANDS).to(waveform.device)
    count = waveform.shape[-1] // _HOP
    levels = log_mel(waveform[None].float(), _FFT, _HOP, filters, count)[0]  # [bands, t]
    levels = (levels + 5.5).clamp_min(0)  # what is below -55 dB is not heard
    # Each band against its highest level 10 to 40 ms before; the clearest half of the bands count.
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
    """RMS level in dB of the waveform [S] just after a time."""
    first = int(seconds * SAMPLE_RATE)
    part = waveform[first : first + int(length_seconds * SAMPLE_RATE)]
    return 10 * float(torch.log10(part.float().square().mean() + 1e-9))


def level_to_sones(level_db: float) -> float:
    """Loudness of a level, in sones but for a factor: twice as loud for 10 dB (Stevens)."""
    return float(2 ** (level_db / 10))


def onset_level_db(waveform: Tensor, found: Sequence[float], seconds: float) -> float | None:
    """The level of an event as it is heard: from its onset on; None if none is heard.

    A hit of stone is over in 20 ms: from the exact time on, one that came 30 ms early is missed.

    Args:
        waveform: [S].
        found: the onsets of the waveform.
        seconds: when the event was.
    """
    pairs = match_onsets(found, [seconds])
    return level_db(waveform, max(0.0, pairs[0][0] - _BEFORE_ONSET)) if pairs else None


def count_clicks(waveform: Tensor) -> int:
    """Moments of 1 ms at which a waveform [S] has 20 dB more above 8 kHz than in the 50 ms around.

    Grains of rain and fire and short hits have such too: a figure to hold beside the exact sound's.
    """
    spectrum = torch.fft.rfft(waveform.float())
    spectrum[: len(spectrum) * 8000 * 2 // SAMPLE_RATE] = 0
    high = torch.fft.irfft(spectrum, len(waveform))
    power = high[: len(high) // 48 * 48].view(-1, 48).square().mean(1) + 1e-9
    around = F.avg_pool1d(power[None, None], 51, 1, 25, count_include_pad=False)[0, 0]
    # The mean holds the moment itself.
    rest = (51 * around - power).clamp_min(0) / 50
    return int((power > 100 * rest).sum())


class MaterialJudge(nn.Module):
    """Says of which material a hit sounds. Trained on the generator's sounds alone."""

    def __init__(self, width: int = 48) -> None:
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
        self.head = nn.Linear(2 * width * 4, len(MATERIALS))

    def features(self, windows: Tensor) -> Tensor:
        """Log-mel pictures [E, 1, bands, t] of windows [E, S], loudness taken out."""
        count = windows.shape[-1] // _JUDGE_HOP
        levels = log_mel(windows, _JUDGE_FFT, _JUDGE_HOP, self.filters, count)
        top = levels.amax((1, 2), keepdim=True)
        return ((levels - top) / 2 + 1.5).clamp_min(0)[:, None]  # 30 dB a unit, 90 dB deep

    def forward(self, features: Tensor) -> Tensor:
        """Logits [E, 7]."""
        hidden = self.layers(features).mean(-1)  # [E, channels, bands / 16]
        return self.head(hidden.flatten(1))


def cut_hit_windows(waveforms: Tensor, owner: Tensor, seconds: Tensor) -> Tensor:
    """The windows [E, S'] around hits; what lies outside a clip is silence."""
    before = int(_WINDOW_BEFORE * SAMPLE_RATE)
    size = before + int(_WINDOW_AFTER * SAMPLE_RATE)
    padded = F.pad(waveforms, (before, size))
    first = (seconds * SAMPLE_RATE).round().long()
    index = first[:, None] + torch.arange(size, device=waveforms.device)
    return padded[owner[:, None], index]


def silence_db(real: Tensor, generated: Tensor) -> float:
    """How many dB the gaps of a clip lie below its events, gaps being where the truth is silent."""
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
    """How far multiples of the latent rate, 50 Hz, stand out of long-term spectra, dB [B].

    Above 200 Hz, each line against what lies half-way to the next.

    Args:
        waveforms: [B, S].
        floor: power that is added to each bin, so that what is hardly heard counts little.
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
    """Levels of 48 bands every 10 ms, decades of power, [B, 48, t] of [B, S]."""
    filters = mel_filters(1024, 48).to(waveforms.device)
    return log_mel(waveforms.float(), 1024, 480, filters, waveforms.shape[-1] // 480)


def band_levels(waveforms: Tensor) -> Tensor:
    """Mean and spread over time of log-mel levels, a fixed embedding [B, 2 * 48] of sounds."""
    levels = _levels(waveforms)
    return torch.cat((levels.mean(-1), levels.std(-1)), dim=1)


def spectrum_db(waveform: Tensor, range_db: float = 60.0) -> Tensor:
    """Levels of 48 bands every 10 ms, dB, [48, t] of [S], down to `range_db` below the highest."""
    levels = 10 * _levels(waveform[None])[0]
    return levels.clamp_min(levels.max() - range_db)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance of two sets of embeddings [B, D]."""
    first, second = first.double().cpu(), second.double().cpu()
    mean = (first.mean(0) - second.mean(0)).square().sum()
    one, two = torch.cov(first.T), torch.cov(second.T)
    values = torch.linalg.eigvals(one @ two).real.clamp_min(0)
    return float(mean + one.trace() + two.trace() - 2 * values.sqrt().sum())
