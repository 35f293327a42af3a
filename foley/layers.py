"""Layers: the sounds that were made for one clip, and their mix."""

# L layers, C channels, S samples

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foley.mix import MAX_PEAK_DBTP
from foley.request import Layer

_OVERSAMPLING = 4  # of the true peak, as ITU-R BS.1770 has it
_PIECE = 2**20  # samples that are interpolated at once, 22 s
_MARGIN = 1024


class LayerMix(NamedTuple):
    """The mix of layers.

    Attributes:
        mix: float32 [C, S], C 2 where a layer has a pan, else 1.
        stems: float32 [L, C, S], each layer as it is in the mix, or would be without its mute.
        notices: sentences for the caller about a mix that was lowered.
    """

    mix: Tensor
    stems: Tensor
    notices: tuple[str, ...]


def mix_layers(waveforms: Tensor, layers: Sequence[Layer]) -> LayerMix:
    """Return the mix of layers, which is the sum of the stems of those that are heard.

    No true peak of the mix or of a stem is above `MAX_PEAK_DBTP`. All layers that are heard are
    lowered together, so that their balance stays. One that is not heard is lowered by itself.

    Args:
        waveforms: of each layer, float32 [L, 1, S].
        layers: their gains and places.
    """
    is_stereo = any(layer.pan for layer in layers)
    stems = torch.stack([_place(*pair, is_stereo) for pair in zip(waveforms, layers, strict=True)])
    heard = list_heard(layers)
    ceiling = 10 ** (MAX_PEAK_DBTP / 20)
    mix = stems[heard].sum(0)
    peak = max(measure_true_peak(sound) for sound in (mix, *stems[heard]))
    notices: tuple[str, ...] = ()
    common = min(1.0, ceiling / peak) if peak else 1.0
    for index, stem in enumerate(stems):
        gain = common
        if index not in heard and (alone := measure_true_peak(stem) * common) > ceiling:
            gain = common * ceiling / alone
        stems[index] *= gain
    if common < 1:
        lowered_db = -20 * torch.tensor(common).log10().item()
        notices = (
            f"The layers were lowered together by {lowered_db:.1f} dB, to a true peak of "
            f"{MAX_PEAK_DBTP:g} dBTP.",
        )
    return LayerMix(stems[heard].sum(0), stems, notices)


def list_heard(layers: Sequence[Layer]) -> list[int]:
    """Return the indices of the layers that are in the mix, in order.

    Args:
        layers: of which at least one has no mute.
    """
    solo = [index for index, layer in enumerate(layers) if layer.solo]
    return solo or [index for index, layer in enumerate(layers) if not layer.mute]


def measure_true_peak(sound: Tensor) -> float:
    """Return the highest level between and at the samples; 1 is full scale.

    The sound is interpolated by its spectrum, in pieces of which each sees a little of the others.

    Args:
        sound: float32 [C, S], on the CPU.
    """
    peak = float(sound.abs().max())
    for start in range(0, sound.shape[-1], _PIECE):
        first = max(0, start - _MARGIN)
        piece = sound[:, first : start + _PIECE + _MARGIN]
        num_samples = piece.shape[-1]
        spectrum = torch.fft.rfft(piece, dim=-1)
        finer = torch.fft.irfft(spectrum, n=_OVERSAMPLING * num_samples, dim=-1) * _OVERSAMPLING
        inside = slice(_OVERSAMPLING * (start - first), _OVERSAMPLING * (start - first + _PIECE))
        peak = max(peak, float(finer[:, inside].abs().max()))
    return peak


def _place(waveform: Tensor, layer: Layer, is_stereo: bool) -> Tensor:
    """Return a layer [C, S] with its gain, and its place among the channels."""
    sides = [1.0]
    if is_stereo:
        sides = [min(1.0, 1.0 - layer.pan), min(1.0, 1.0 + layer.pan)]
    return waveform * torch.tensor(sides)[:, None] * 10 ** (layer.gain_db / 20)
