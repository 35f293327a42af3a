"""FFmpeg's audio filters, run over whole sounds, and the meters among them."""

# C channels, S samples

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from av import AudioFrame
from av.filter import Graph
from av.filter.context import FilterContext

from foley.configs import SAMPLE_RATE
from foley.media.audio_frames import has_planes, make_frame, read_samples

Samples = npt.NDArray[np.float32]
Filter = tuple[str, str]  # name and arguments, as FFmpeg's command line has them

_CHUNK_SAMPLES = 48_000
_GATE_LUFS = -70.0  # the meter's reading where no block passed its absolute gate
_OVERSAMPLING = 4  # of the true peak, as ITU-R BS.1770 has it


class Sound(NamedTuple):
    """Samples and what their channels are.

    Attributes:
        samples: float32 [C, S], full scale is 1.
        layout: FFmpeg's name of the channels, such as stereo or 5.1.
    """

    samples: Samples
    layout: str


def run_filters(
    inputs: Sequence[Sound], filters: Sequence[Filter], layout: str, sample_rate: int = SAMPLE_RATE
) -> Sound:
    """Return what a chain of filters makes of sounds.

    Args:
        inputs: of the first filter, one for each of its inputs, equally long.
        filters: in order. The last one's rate is that of the result.
        layout: of the result; other channels are mixed into it.
        sample_rate: of the inputs, Hz.
    """
    form = ("aformat", f"sample_fmts=fltp:channel_layouts={layout}")
    frames = filter_frames(inputs, [*filters, form], sample_rate)
    parts = [read_samples(frame).astype(np.float32, copy=False) for frame in frames]
    channels = len(inputs[0].samples) if not parts else len(parts[0])
    empty = np.zeros((channels, 0), np.float32)
    return Sound(np.concatenate([empty, *parts], axis=1), layout)


def filter_frames(
    inputs: Sequence[Sound], filters: Sequence[Filter], sample_rate: int
) -> Iterator[AudioFrame]:
    """Yield the frames that a chain of filters makes of sounds, in order.

    Args:
        inputs: of the first filter, one for each of its inputs, equally long.
        filters: in order, at least one.
        sample_rate: of the inputs, Hz.
    """
    graph = Graph()
    time_base = Fraction(1, sample_rate)
    sources = [
        graph.add_abuffer(
            sample_rate=sample_rate,
            format="fltp" if has_planes(len(sound.samples)) else "flt",
            layout=sound.layout,
            time_base=time_base,
        )
        for sound in inputs
    ]
    nodes = [graph.add(name, arguments or None) for name, arguments in filters]
    for index, source in enumerate(sources):
        source.link_to(nodes[0], 0, index)
    sink = graph.add("abuffersink")
    graph.link_nodes(*nodes, sink)
    graph.configure()
    for start in range(0, inputs[0].samples.shape[1], _CHUNK_SAMPLES):
        for source, sound in zip(sources, inputs, strict=True):
            source.push(cut_frame(sound, start, start + _CHUNK_SAMPLES, sample_rate))
        yield from drain(sink)
    for source in sources:
        source.push(None)
    yield from drain(sink)


def cut_frame(sound: Sound, start: int, stop: int, sample_rate: int) -> AudioFrame:
    """Return a part of a sound as FFmpeg takes it.

    Args:
        sound: the whole.
        start: its first sample.
        stop: the sample after its last.
        sample_rate: Hz.
    """
    samples = sound.samples[:, start:stop].astype(np.float32, copy=False)
    frame = make_frame(samples, sound.layout, "flt", is_planar=True)
    frame.sample_rate = sample_rate
    frame.time_base = Fraction(1, sample_rate)
    frame.pts = start
    return frame


def drain(sink: FilterContext) -> Iterator[AudioFrame]:
    """Yield the frames that a filter graph has ready.

    Args:
        sink: the graph's end.
    """
    with suppress(BlockingIOError, EOFError):
        while True:
            frame = sink.pull()
            assert isinstance(frame, AudioFrame)
            yield frame


def measure_loudness(sound: Sound, sample_rate: int = SAMPLE_RATE) -> float | None:
    """Return the integrated loudness of a sound in LUFS; None under -70, and for less than 0.4 s.

    A mono sound is measured as it is heard, on two loudspeakers.

    Args:
        sound: of any length.
        sample_rate: Hz.

    Source: EBU R 128 and EBU Tech 3341, by FFmpeg's ebur128.
    """
    meter = ("ebur128", "metadata=1:dualmono=true:framelog=quiet")
    integrated = _GATE_LUFS
    for frame in filter_frames([sound], [meter], sample_rate):
        integrated = float(frame.metadata.get("lavfi.r128.I", integrated))
    return integrated if integrated > _GATE_LUFS else None


def measure_true_peak(sound: Sound, sample_rate: int = SAMPLE_RATE) -> float:
    """Return the highest level between and at the samples; 1 is full scale.

    Args:
        sound: of any length.
        sample_rate: Hz.

    Source: ITU-R BS.1770, annex 2, with FFmpeg's resampler.
    """
    peak = float(np.abs(sound.samples).max(initial=0.0))
    finer = [
        ("aresample", str(_OVERSAMPLING * sample_rate)),
        ("aformat", "sample_fmts=fltp"),
    ]
    for frame in filter_frames([sound], finer, sample_rate):
        peak = max(peak, float(np.abs(read_samples(frame)).max(initial=0.0)))
    return peak


def limit_peaks(
    sound: Sound, ceiling: float, sample_rate: int = SAMPLE_RATE
) -> tuple[Sound, float]:
    """Return a sound whose true peaks are limited, and its true peak.

    The limiter works on four times as many samples, where it sees the peaks between them. What
    its filters leave over the ceiling is taken away by lowering the whole.

    Args:
        sound: of any length.
        ceiling: the highest true peak, 0.1 to 1.
        sample_rate: Hz.
    """
    num_samples = sound.samples.shape[1]
    chain = [
        ("aresample", str(_OVERSAMPLING * sample_rate)),
        ("alimiter", f"limit={ceiling:.6f}:attack=5:release=20:level=false:latency=true"),
        ("aresample", str(sample_rate)),
    ]
    limited = run_filters([sound], chain, sound.layout, sample_rate).samples[:, :num_samples]
    missing = num_samples - limited.shape[1]
    limited = np.pad(limited, ((0, 0), (0, missing)))
    peak = measure_true_peak(Sound(limited, sound.layout), sample_rate)
    factor = min(1.0, ceiling / peak) if peak else 1.0
    return Sound(limited * np.float32(factor), sound.layout), peak * factor
