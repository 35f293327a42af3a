"""Babble for tests: vowels and hisses of a synthetic voice, which detectors take for speech."""

import numpy as np

RATE = 16_000
# The three lowest resonances of some vowels, Hz.
VOWELS = np.array(
    [
        (700, 1220, 2600),
        (300, 2300, 3000),
        (400, 2000, 2550),
        (500, 900, 2400),
        (320, 800, 2240),
        (660, 1700, 2400),
    ]
)
BANDWIDTHS = (80, 100, 140)


def babble(seconds: float, seed: int = 0, pitch_hz: float = 120) -> np.ndarray:
    """A voice that says syllables of 0.12 to 0.22 s, float32 at 48 kHz."""
    generator = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < seconds * RATE:
        count = int(RATE * generator.uniform(0.12, 0.22))
        times = np.arange(count) / RATE
        melody = np.sin(2 * np.pi * generator.uniform(1, 3) * times + generator.uniform(0, 6))
        phase = np.cumsum(pitch_hz * (1 + 0.15 * melody) * generator.uniform(0.85, 1.2)) / RATE
        pulses = np.diff(np.floor(phase), prepend=0) > 0
        source = np.convolve(pulses, np.exp(-np.arange(40) / 8))[:count]
        source += generator.normal(0, 0.01, count)
        first, second = VOWELS[generator.integers(len(VOWELS), size=2)]
        glide = np.linspace(0, 1, count)
        voiced = (1 - glide) * resonate(source, first) + glide * resonate(source, second)
        voiced *= np.minimum(1, np.minimum(times, times[::-1]) / 0.03)
        hiss = np.diff(generator.normal(0, 1, int(RATE * generator.uniform(0.03, 0.08))))
        hiss *= np.hanning(len(hiss)) * 0.05 * (generator.random() < 0.6)
        parts += [0.5 * voiced / np.abs(voiced).max(), hiss]
    voice = np.concatenate(parts)[: int(seconds * RATE)]
    return np.repeat(voice, 3).astype(np.float32)


def resonate(source: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """The source through three resonances."""
    length = 2 * len(source)
    delay = np.exp(-2j * np.pi * np.fft.rfftfreq(length))
    response = np.ones_like(delay)
    for formant, bandwidth in zip(formants, BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * bandwidth / RATE)
        back = -2 * radius * np.cos(2 * np.pi * formant / RATE)
        response *= (1 + back + radius**2) / (1 + back * delay + (radius * delay) ** 2)
    return np.fft.irfft(np.fft.rfft(source, length) * response, length)[: len(source)]
