"""Music in sounds: whether the tones that are heard keep to a scale."""

# S samples, n frames, f frequencies

import numpy as np
import numpy.typing as npt

from foley.configs import SAMPLE_RATE

_WINDOW = 12_288  # samples: 3.9 Hz between two frequencies
_HOP = 1536
_BLOCK_FRAMES = 15  # about half a second
_LEAST_HZ, _MOST_HZ = 100, 3_200
_NEAR = 15  # frequencies on each side with which one is compared
_LEAST_DB = 6.0  # of a tone above what is near
_RANGE_DB = 60.0  # below the loudest, nothing is heard
_STEADY = 0.7  # share of a block's frames in which a tone is there and its neighbours are not
_HELD_SEMITONES = 0.6  # a tone that is nearer to one of the block before is the same
# Random frequencies give more in e^-6 of all sounds, by Rayleigh's test.
_LEAST_EVIDENCE = 6.0


def has_music(waveform: npt.NDArray[np.float32]) -> bool:
    """Return whether a sound is taken for music.

    Instruments have steady tones that begin at frequencies of one scale of twelve equal steps an
    octave, whatever its pitch. Machines, bells and voices have tones too, but elsewhere. Drums
    without tones are not recognised.

    Args:
        waveform: [S], 48 kHz.
    """
    tones = _find_tones(waveform)
    if not len(tones):
        return False
    deviation = np.exp(2j * np.pi * 12 * np.log2(tones))  # one turn is a semitone
    return bool(abs(deviation.mean()) ** 2 * len(tones) >= _LEAST_EVIDENCE)


def _find_tones(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the frequency in Hz of each tone that begins."""
    padded = np.pad(waveform, (0, max(0, _WINDOW - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    most = round(_MOST_HZ * _WINDOW / SAMPLE_RATE)
    spectra = np.fft.rfft(frames * np.hanning(_WINDOW).astype(np.float32), axis=1)[:, :most]
    levels = 20 * np.log10(np.abs(spectra) + 1e-9)  # [n, f]
    beside = np.cumsum(np.pad(levels, ((0, 0), (_NEAR + 1, _NEAR)), mode="edge"), axis=1)
    width = 2 * _NEAR + 1
    near = (beside[:, width:] - beside[:, :-width]) / width
    is_tone = (levels - near > _LEAST_DB) & (levels > levels.max() - _RANGE_DB)
    begun: list[npt.NDArray[np.float64]] = []
    before = np.zeros(0)
    for start in range(0, max(1, len(levels) - _BLOCK_FRAMES + 1), _BLOCK_FRAMES):
        block = slice(start, start + _BLOCK_FRAMES)
        tones = _find_peaks(is_tone[block].mean(0), levels[block].mean(0))
        distance = 12 * np.abs(np.log2(tones[:, None] / before[None]))
        begun.append(tones[distance.min(1, initial=np.inf) > _HELD_SEMITONES])
        before = tones
    return np.concatenate(begun)


def _find_peaks(
    shares: npt.NDArray[np.floating], levels: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Return the frequencies in Hz of steady tones.

    Args:
        shares: [f], of the frames in which each frequency stands out.
        levels: [f], mean in dB.
    """
    reach = 12
    sides = np.lib.stride_tricks.sliding_window_view(np.pad(shares, reach, mode="edge"), reach)
    around = np.maximum(sides[: len(shares)].min(1), sides[reach + 1 :].min(1))
    lower, middle, upper = levels[:-2], levels[1:-1], levels[2:]
    is_peak = (shares - around > _STEADY)[1:-1] & (middle >= lower) & (middle > upper)
    (places,) = np.nonzero(is_peak)
    # The maximum of a parabola through three levels.
    lower, middle, upper = lower[places], middle[places], upper[places]
    offsets = (lower - upper) / (lower - 2 * middle + upper) / 2
    frequencies = (places + 1 + offsets) * SAMPLE_RATE / _WINDOW
    found: npt.NDArray[np.float64] = frequencies[frequencies > _LEAST_HZ]
    return found
