"""Samples in FFmpeg's frames, and out of them, around two faults of PyAV (up to 19.0).

It looks for the end of a frame's list of planes, and reads past the list where it has eight: 7.1 in
planes ends the process. So sounds of so many channels pass in packed frames.

And it copies the list of a frame's channels without copying what the list points to, where they are
not in FFmpeg's own order: that is freed twice then. It is so for 7.1 in mov.
"""

# C channels, S samples

from __future__ import annotations

import ctypes
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from av import AudioFrame, AudioLayout, AudioResampler

# Layouts with a left and a right front channel, or a single one, that encoders of results take.
KEPT_LAYOUTS = frozenset(
    {"mono", "stereo", "3.0", "4.0", "quad", "5.0", "5.0(side)", "5.1", "5.1(side)", "7.1"}
)
# Where a file states how many channels there are, and not which.
_GUESSED_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
_MOST_PLANES = 7


def has_planes(num_channels: int) -> bool:
    """Whether a sound of so many channels may be in planes."""
    return num_channels <= _MOST_PLANES


def make_frame(
    samples: npt.NDArray[Any], layout: str, sample_format: str, *, is_planar: bool
) -> AudioFrame:
    """Return a frame.

    Args:
        samples: [C, S].
        layout: FFmpeg's name of the channels.
        sample_format: packed, such as flt, of the type of the samples.
        is_planar: whether the samples lie in planes, where `has_planes` allows it.
    """
    if is_planar and has_planes(len(samples)):
        samples, sample_format = np.ascontiguousarray(samples), f"{sample_format}p"
    else:
        samples = np.ascontiguousarray(samples.T.reshape(1, -1))
    return AudioFrame.from_ndarray(samples, format=sample_format, layout=layout)


def read_samples(frame: AudioFrame) -> npt.NDArray[Any]:
    """Return the samples of a frame, [C, S], in their own type."""
    num_channels = frame.layout.nb_channels
    if not frame.format.is_planar:
        return frame.to_ndarray().reshape(-1, num_channels).T
    if has_planes(num_channels):
        return frame.to_ndarray()
    packer = AudioResampler(format=frame.format.packed, layout=frame.layout, rate=frame.sample_rate)
    packed = [*packer.resample(frame), *packer.resample(None)]
    return np.concatenate([read_samples(part) for part in packed], axis=1)


def name_channels(frame: AudioFrame) -> AudioFrame:
    """Return a frame that was decoded, with its channels by FFmpeg's names and in its order.

    Every frame of a caller's file must pass here at once, since another one may end the process.
    Where the file does not say which channels they are, they are the usual ones of that number. Of
    channels that make no usual layout those in front are kept, or the first one.
    """
    layout = frame.layout
    match = re.fullmatch(r"\d+ channels(?P<named> \(.*\))?", layout.name)
    if match is None:
        return frame
    if match["named"]:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))  # never freed; some 100 bytes
        wanted, order = _find_order([channel.name for channel in layout.channels])
    else:
        wanted = _GUESSED_LAYOUTS.get(layout.nb_channels, "mono")
        order = list(range(AudioLayout(wanted).nb_channels))
    named = make_frame(
        read_samples(frame)[order], wanted, frame.format.packed.name, is_planar=False
    )
    named.sample_rate, named.pts, named.time_base = (
        frame.sample_rate,
        frame.pts,
        frame.time_base,
    )
    return named


def _find_order(names: list[str]) -> tuple[str, list[int]]:
    """Return the layout that these channels make, and where each of its channels is among them."""
    for layout in sorted(KEPT_LAYOUTS):
        wanted = [channel.name for channel in AudioLayout(layout).channels]
        if sorted(wanted) == sorted(names):
            return layout, [names.index(name) for name in wanted]
    if "FL" in names and "FR" in names:
        return "stereo", [names.index("FL"), names.index("FR")]
    return "mono", [0]
