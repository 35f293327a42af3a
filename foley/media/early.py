"""A sound that is encoded while it is made, before the file exists that will hold it.

The picture's packets can be copied only when the sound is complete, since both are interleaved.
Encoding takes longer than copying: what is encoded early need not be waited for at the end.
"""

# C channels, S samples

from __future__ import annotations  # PyAV's packets are generic for the type checker only

import io
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av import Packet

from foley.media.audio import CHUNK_SAMPLES, SampleEncoder, as_24_bit
from foley.media.filters import Samples
from foley.media.tracks import SoundOutput, add_sound_stream, choose_bitrate


@dataclass(frozen=True, kw_only=True)
class EncodedSound:
    """The packets of a whole sound.

    Attributes:
        output: how it was encoded.
        layout: FFmpeg's name of the channels.
        num_samples: of the sound.
        packets: in order.
    """

    output: SoundOutput
    layout: str
    num_samples: int
    packets: tuple[Packet[Any], ...]


class EarlySound:
    """Encodes a sound of one channel as it comes.

    The packets are those that `foley.media.audio.encode_packets` gives of the whole sound.

    Args:
        output: how it is encoded.
        layout: stereo shows the channel twice; mono is the other.
    """

    def __init__(self, output: SoundOutput, layout: str) -> None:
        self._output = output
        self._layout = layout
        # An encoder needs a container that says which of its forms fits. Nothing is written to it.
        self._container = av.open(io.BytesIO(), "w", format=output.ffmpeg_format)
        stream = add_sound_stream(self._container, output.codec, output.sample_rate, layout)
        num_channels = 2 if layout == "stereo" else 1
        if output.bitrate:
            stream.bit_rate = choose_bitrate(output, num_channels)
        self._container.start_encoding()
        convert = as_24_bit if output.codec == "flac" else None
        self._encoder = SampleEncoder(stream, output.sample_rate, layout, convert)
        self._num_channels = num_channels
        self._rest = np.empty(0, np.float32)
        self._num_samples = 0
        self._packets: list[Packet[Any]] = []

    def add(self, samples: Samples) -> None:
        """Encode the samples that follow.

        Args:
            samples: float32 [S]; clamped to [-1, 1].
        """
        self._num_samples += len(samples)
        waiting = np.concatenate([self._rest, samples.clip(-1, 1)])
        num_whole = len(waiting) // CHUNK_SAMPLES * CHUNK_SAMPLES
        self._rest = waiting[num_whole:].copy()
        self._encode(waiting[:num_whole])

    def end(self) -> EncodedSound:
        """Return the packets, after the last samples."""
        self._encode(self._rest)
        self._packets.extend(self._encoder.end())
        self._container.close()
        return EncodedSound(
            output=self._output,
            layout=self._layout,
            num_samples=self._num_samples,
            packets=tuple(self._packets),
        )

    def _encode(self, samples: Samples) -> None:
        channels = np.broadcast_to(samples, (self._num_channels, len(samples)))
        self._packets.extend(self._encoder.encode(channels))
