"""The meters, by the signals of EBU Tech 3341 that a program can make.

Signals 7 and 8 are programmes, which a program cannot make.
"""

import numpy as np
import pytest

from foley.media.filters import Sound, limit_peaks, measure_loudness, measure_true_peak

RATE = 48_000


def tone(seconds: float, level_db: float, channels: int = 2) -> np.ndarray:
    """A sine of 1 kHz whose peaks have that level."""
    times = np.arange(round(seconds * RATE)) / RATE
    sine = 10 ** (level_db / 20) * np.sin(2 * np.pi * 1000 * times)
    return np.repeat(sine[None].astype(np.float32), channels, axis=0)


def tones(*parts: tuple[float, float]) -> Sound:
    return Sound(np.concatenate([tone(*part) for part in parts], axis=1), "stereo")


def surround() -> Sound:
    left, right = tone(20, -28)
    (centre,) = tone(20, -24, 1)
    back = tone(20, -30)
    return Sound(np.stack([left, right, centre, *back]), "5.0")


@pytest.mark.parametrize(
    ("sound", "lufs"),
    [
        (tones((20, -23)), -23.0),
        (tones((20, -33)), -33.0),
        (tones((10, -36), (60, -23), (10, -36)), -23.0),
        (tones((10, -72), (10, -36), (60, -23), (10, -36), (10, -72)), -23.0),
        (tones((20, -26), (20.1, -20), (20, -26)), -23.0),
        (surround(), -23.0),
    ],
    ids=["1", "2", "3", "4", "5", "6"],
)
def test_integrated_loudness_is_that_of_ebu_tech_3341(sound: Sound, lufs: float) -> None:
    measured = measure_loudness(sound)
    assert measured is not None
    assert abs(measured - lufs) <= 0.1  # the tolerance of the standard


@pytest.mark.parametrize(
    ("divisor", "degrees", "amplitude", "dbtp"),
    [(4, 0, 0.5, -6.0), (4, 45, 0.5, -6.0), (6, 60, 0.5, -6.0), (8, 67.5, 0.5, -6.0),
     (4, 45, 1.41, 3.0)],
    ids=["15", "16", "17", "18", "19"],
)  # fmt: skip
def test_true_peak_is_that_of_ebu_tech_3341(
    divisor: int, degrees: float, amplitude: float, dbtp: float
) -> None:
    phases = 2 * np.pi * np.arange(RATE) / divisor + np.radians(degrees)
    ramp = np.minimum(1, np.minimum(np.arange(RATE), np.arange(RATE)[::-1]) / 4800)
    sine = (amplitude * ramp * np.sin(phases)).astype(np.float32)
    measured = 20 * np.log10(measure_true_peak(Sound(sine[None], "mono")))
    assert -0.4 <= measured - dbtp <= 0.2  # the tolerance of the standard


@pytest.mark.parametrize("offset", [0, 1, 2, 3], ids=["20", "21", "22", "23"])
def test_a_peak_between_samples_is_that_of_ebu_tech_3341(offset: int) -> None:
    # At four times the rate: one period of fs/4 at full scale, within a tone of fs/6.
    tone = 0.5 * np.sin(2 * np.pi * np.arange(24_000) / 24)
    fine = np.concatenate([tone, np.sin(2 * np.pi * np.arange(16) / 16), tone])
    fine *= np.minimum(1, np.minimum(np.arange(len(fine)), np.arange(len(fine))[::-1]) / 4800)
    spectrum = np.fft.rfft(fine)
    spectrum[len(fine) // 8 :] = 0  # what a quarter of the samples cannot hold
    sine = np.fft.irfft(spectrum, len(fine))[offset::4].astype(np.float32)
    measured = 20 * np.log10(measure_true_peak(Sound(sine[None], "mono")))
    assert -0.4 <= measured <= 0.2  # the tolerance of the standard; measured: -0.14 to -0.12


def test_mono_is_as_loud_as_the_same_on_two_channels() -> None:
    mono = measure_loudness(Sound(tone(3, -20, 1), "mono"))
    assert mono == measure_loudness(Sound(tone(3, -20, 2), "stereo"))


def test_silence_and_moments_have_no_loudness() -> None:
    silence = Sound(np.zeros((2, RATE), np.float32), "stereo")
    assert (measure_loudness(silence), measure_true_peak(silence)) == (None, 0)
    moment = Sound(tone(0.3, -6), "stereo")
    assert measure_loudness(moment) is None
    assert 20 * np.log10(measure_true_peak(moment)) == pytest.approx(-6, abs=0.2)


@pytest.mark.parametrize("ceiling", [0.25, 0.9])
def test_the_limiter_holds_the_peaks_between_samples_and_their_times(ceiling: float) -> None:
    rng = np.random.default_rng(0)
    hits = (0.05 * rng.standard_normal((2, RATE))).astype(np.float32)
    hits[:, 24_000:24_200] += rng.standard_normal((2, 200)).astype(np.float32)
    limited, peak = limit_peaks(Sound(hits, "stereo"), ceiling)
    assert limited.samples.shape == hits.shape
    assert measure_true_peak(limited) == pytest.approx(peak, rel=1e-4)
    assert peak <= ceiling * 1.0001
    quiet = slice(1000, 20_000)  # before the hit nothing is limited
    shift = np.correlate(limited.samples[0, quiet], hits[0, 900:20_100], "valid").argmax()
    assert shift == 100
