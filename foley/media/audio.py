"""Conversion of waveforms to the sample formats of encoders, and encoding to packets."""

# C channels, S samples

from __future__ import annotations  # PyAV's packets are generic for the type checker only

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av import Packet
from av.audio.stream import AudioStream
from torch import Tensor

from foley.errors import ModelError, ParameterError
from foley.media.audio_frames import make_frame

CHUNK_SAMPLES = 1024  # an AAC frame; encoders of other frame sizes regroup the samples
_LAYOUTS = {1: "mono", 2: "stereo"}


def validate_waveform(waveform: Tensor, sample_rate: int) -> npt.NDArray[np.float32]:
    """The waveform as float32 [C, S] on the CPU, clamped to [-1, 1].

    The result may share the waveform's memory, and is only read.

    Args:
        waveform: float [1, S] or [2, S], S at least 1.
        sample_rate: in Hz, at least 1.

    Raises:
        ParameterError: another shape, no samples, or a sample rate below 1.
        ModelError: values that are not finite. Only a model can produce them, so this is an error
            of the server and not of the request.
    """
    if waveform.ndim != 2 or waveform.shape[0] not in _LAYOUTS or waveform.shape[1] == 0:
        raise ParameterError(
            f"waveform has shape {list(waveform.shape)}, wanted [1, samples] or [2, samples]; "
            "write each variation by itself"
        )
    if sample_rate < 1:
        raise ParameterError(f"sample_rate is {sample_rate} Hz, wanted at least 1")
    samples = waveform.detach().cpu().float()
    # These pass on a value that is not a number. None of them takes memory beside the sound.
    lowest, highest = (float(value) for value in samples.aminmax())
    if not math.isfinite(lowest + highest):
        raise ModelError(
            f"waveform has {int((~samples.isfinite()).sum())} values that are not finite; "
            "check the weights and the dtype of the model that made it"
        )
    if lowest >= -1 and highest <= 1:
        return samples.numpy()
    return samples.clamp(-1, 1).numpy()


def as_stereo(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The samples as two channels [2, S]; a single channel is shown twice, without a copy.

    Args:
        samples: [1, S] or [2, S].
    """
    return np.broadcast_to(samples, (2, samples.shape[1]))


def as_24_bit(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """The samples as 24-bit integers in the upper bits of int32, as FFmpeg's encoders need them.

    Args:
        samples: [C, S], in [-1, 1]. The value 1.0 becomes the largest integer, 2^23 - 1.
    """
    levels = np.rint(samples.astype(np.float64) * 2**23)
    return np.minimum(levels, 2**23 - 1).astype(np.int32) << 8


class SampleEncoder:
    """Encodes samples as they come; the first one has the timestamp zero.

    Args:
        stream: an audio stream of an open output container.
        sample_rate: of the samples, in Hz. They are resampled if the stream's rate differs.
        layout: FFmpeg's name of the channels; None for mono and stereo.
        convert: returns a chunk of the samples as int32; None for encoders that take floats.
    """

    def __init__(
        self,
        stream: AudioStream,
        sample_rate: int,
        layout: str | None = None,
        convert: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int32]] | None = None,
    ) -> None:
        self._stream = stream
        self._sample_rate = sample_rate
        self._layout = layout
        self._convert = convert
        self._is_planar = stream.codec_context.format.is_planar
        self._num_samples = 0

    def encode(self, samples: npt.NDArray[np.float32]) -> Iterator[Packet[AudioStream]]:
        """Yield the packets that are complete with these samples.

        They are converted and encoded as the iterator advances, so that a long sound is not held
        twice. Where the samples are cut into several calls does not show in the packets, if each
        call but the last has a multiple of `CHUNK_SAMPLES`.

        Args:
            samples: float32 in [-1, 1], [C, S].
        """
        for start in range(0, samples.shape[1], CHUNK_SAMPLES):
            chunk = samples[:, start : start + CHUNK_SAMPLES]
            levels: npt.NDArray[Any] = chunk if self._convert is None else self._convert(chunk)
            frame = make_frame(
                levels,
                self._layout or _LAYOUTS[len(chunk)],
                "flt" if self._convert is None else "s32",
                is_planar=self._is_planar,
            )
            frame.sample_rate = self._sample_rate
            frame.time_base = Fraction(1, self._sample_rate)
            frame.pts = self._num_samples
            self._num_samples += chunk.shape[1]
            yield from self._stream.encode(frame)

    def end(self) -> Iterator[Packet[AudioStream]]:
        """Yield the last packets."""
        yield from self._stream.encode(None)


def encode_packets(
    stream: AudioStream,
    samples: npt.NDArray[np.float32],
    sample_rate: int,
    layout: str | None = None,
    convert: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int32]] | None = None,
) -> Iterator[Packet[AudioStream]]:
    """Yield the stream's packets of a whole sound, in order, with arguments as `SampleEncoder`.

    Args:
        stream: an audio stream of an open output container.
        samples: float32 in [-1, 1], [C, S].
        sample_rate: of `samples`, in Hz.
        layout: FFmpeg's name of the channels.
        convert: returns a chunk of the samples as int32.
    """
    encoder = SampleEncoder(stream, sample_rate, layout, convert)
    yield from encoder.encode(samples)
    yield from encoder.end()
