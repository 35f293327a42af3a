"""Pictures of a sound and of the clip it belongs to, as wide as its time is long.

Drawn without axes or words: the page writes those, in its own type and colours.
"""

# S samples, W columns, F frequency rows

from pathlib import Path

import av
import matplotlib.image
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray
from PIL import Image

NUM_COLUMNS = 640
NUM_ROWS = 128
WINDOW = 2048  # samples: 43 ms at 48 kHz
LOWEST_HZ, HIGHEST_HZ = 40.0, 20_000.0
FLOOR_DB = -90.0
COLOURS = "magma"
NUM_FRAMES = 12
FRAME_HEIGHT = 96  # pixels; twice what is shown, for dense screens

Samples = NDArray[np.float32]


def read_sound(path: Path) -> tuple[Samples, int] | None:
    """Samples [S], all channels averaged, and their rate in Hz; None where the file has no sound.

    Raises:
        av.FFmpegError: the file cannot be read.
    """
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout="mono")
        frames = [out for frame in container.decode(stream) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
        parts = [frame.to_ndarray()[0] for frame in frames]
        if not parts:
            return None
        return np.concatenate(parts).astype(np.float32), stream.rate


def waveform_path(samples: Samples, num_samples: int) -> str:
    """An SVG path in a box of NUM_COLUMNS x 2, its middle at 1: the outline of least and greatest.

    Args:
        samples: [S]
        num_samples: how many the whole width stands for; what is missing is silence.
    """
    lower, upper = outline(samples, num_samples)
    points = [f"{x} {1 - y - 0.006:.3f}" for x, y in enumerate(upper)]
    points += [f"{x} {1 - y + 0.006:.3f}" for x, y in reversed(list(enumerate(lower)))]
    return "M" + "L".join(points) + "Z"


def outline(samples: Samples, num_samples: int) -> tuple[Samples, Samples]:
    """Least and greatest values [W] over the width, at most full scale; see `waveform_path`."""
    columns = np.array_split(_fitted(samples, num_samples), NUM_COLUMNS)
    lower = [max(-1.0, float(column.min(initial=0.0))) for column in columns]
    upper = [min(1.0, float(column.max(initial=0.0))) for column in columns]
    return np.array(lower, np.float32), np.array(upper, np.float32)


def draw_spectrogram(samples: Samples, num_samples: int, rate: int, path: Path) -> None:
    """Write a PNG: time to the right, frequency upwards on a logarithmic scale, loudness as light.

    Args:
        samples: [S]
        num_samples: how many the whole width stands for.
        rate: Hz
        path: of the PNG.
    """
    loudness_db = spectrogram_db(samples, num_samples, rate)
    matplotlib.image.imsave(
        path, loudness_db, cmap=COLOURS, vmin=FLOOR_DB, vmax=0, origin="lower", format="png"
    )


def spectrogram_db(samples: Samples, num_samples: int, rate: int) -> Samples:
    """Levels [F, W] in dB of full scale, the lowest frequency first; see `draw_spectrogram`."""
    padded = np.pad(_fitted(samples, num_samples), WINDOW // 2)
    starts = np.linspace(0, len(padded) - WINDOW, NUM_COLUMNS).astype(int)
    windows = padded[starts[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)  # [W, WINDOW]
    amplitude = np.abs(np.fft.rfft(windows)) / (WINDOW / 4)  # a full-scale sine is 1
    edges = np.geomspace(LOWEST_HZ, min(HIGHEST_HZ, rate / 2), NUM_ROWS + 1) * WINDOW / rate
    below = edges[:-1].astype(int)
    above = np.maximum(below + 1, np.ceil(edges[1:]).astype(int))
    rows = [amplitude[:, i:j].max(axis=1) for i, j in zip(below, above, strict=True)]  # F of [W]
    levels: Samples = 20 * np.log10(np.maximum(np.stack(rows), 1e-9))  # [F, W]
    return levels


def draw_film_strip(clip: Path, duration_seconds: float, path: Path) -> None:
    """Write a JPEG of frames side by side, each from the middle of its share of the duration.

    Raises:
        av.FFmpegError: the clip cannot be read.
    """
    wanted = [(index + 0.5) * duration_seconds / NUM_FRAMES for index in range(NUM_FRAMES)]
    frames = frames_at(clip, wanted)
    width = max(frame.width for frame in frames)
    strip = Image.new("RGB", (width * NUM_FRAMES, FRAME_HEIGHT))
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * width, 0))
    strip.save(path, quality=82)


def frames_at(clip: Path, wanted_seconds: list[float]) -> list[Image.Image]:
    """The frame shown at each of the times, which rise; the last one where the picture ends.

    They are FRAME_HEIGHT pixels high.

    Raises:
        av.FFmpegError: the clip cannot be read.
    """
    with av.open(str(clip)) as container:
        return _frames_at(container, wanted_seconds)


def _frames_at(container: InputContainer, wanted_seconds: list[float]) -> list[Image.Image]:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    found: list[Image.Image] = []
    shown: av.VideoFrame | None = None
    for frame in container.decode(stream):
        while (
            shown is not None
            and len(found) < len(wanted_seconds)
            and (frame.time or 0.0) > wanted_seconds[len(found)]
        ):
            found.append(_small(shown))
        if len(found) == len(wanted_seconds):
            break
        shown = frame
    if shown is not None:
        found += [_small(shown)] * (len(wanted_seconds) - len(found))
    return found


def _small(frame: av.VideoFrame) -> Image.Image:
    turned = frame.rotation % 180 != 0
    long, short = frame.width, frame.height
    width = max(2, round(FRAME_HEIGHT * (short / long if turned else long / short)))
    size = (FRAME_HEIGHT, width) if turned else (width, FRAME_HEIGHT)
    image: Image.Image = frame.reformat(width=size[0], height=size[1]).to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _fitted(samples: Samples, num_samples: int) -> Samples:
    """The samples, cut or filled with silence."""
    return np.pad(samples[:num_samples], (0, max(0, num_samples - len(samples))))
