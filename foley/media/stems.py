"""Files of layers, beside the file of their mix."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from foley.marks.mark import Mark
from foley.media.mux import MediaFile, write_audio
from foley.media.source import MediaLimits
from foley.mix import MixOptions


def write_stem(
    stem: Tensor,
    destination: Path,
    *,
    number: int,
    sample_rate: int,
    mix: MixOptions,
    clip: Path | None,
    limits: MediaLimits | None = None,
    mark: Mark | None = None,
) -> MediaFile:
    """Write a layer as it is in the mix of layers, before the options of the finished sound.

    Of these, only `broadcast_wave` holds for a layer.

    Args:
        stem: float [1, S] or [2, S], in [-1, 1].
        destination: a path that ends in .wav or .flac; replaced if it exists.
        number: of the layer, from 1.
        sample_rate: in Hz.
        mix: the options of the finished sound.
        clip: for its timecode; None without one.
        limits: on what is read of the clip; the defaults when None.
        mark: of the mix; None for no mark.

    Raises:
        ModelError: a waveform with values that are not finite.
        OutputError: `destination` cannot be written.
        VideoError: the clip cannot be read.
    """
    is_broadcast = mix.broadcast_wave and destination.suffix.lower() == ".wav"
    return write_audio(
        stem,
        destination,
        sample_rate=sample_rate,
        mix=MixOptions(broadcast_wave=True) if is_broadcast else None,
        source=clip,
        limits=limits,
        mark=mark and replace(mark, settings={**mark.settings, "layer": number}),
    )
