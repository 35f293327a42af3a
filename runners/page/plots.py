"""Waveforms and spectrograms of sounds, and film strips of clips, without axes or words.

The horizontal axis of each picture is the clip's whole time. The page writes the labels.
"""

# S samples, W columns, F frequency rows

from pathlib import Path

import av
import matplotlib.image
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from foley.media.audio_frames import name_channels
from foley.media.cut import cut_clip
from foley.media.hold import hold_picture
from foley.media.images import set_frame_rate
from foley.media.prepare import to_fraction
from foley.media.source import MediaLimits, open_sound, open_video

NUM_COLUMNS = 640
NUM_ROWS = 128
WINDOW = 2048  # samples: 43 ms at 48 kHz
LOWEST_HZ, HIGHEST_HZ = 40.0, 20_000.0
FLOOR_DB = -90.0
COLOURS = "magma"
NUM_FRAMES = 12
FRAME_HEIGHT = 96  # pixels; twice the height on the page, for high-density screens

# The suffix of a clip's copy, by FFmpeg's name of its format. A browser plays it by this suffix.
_SUFFIXES = {
    "mov,mp4,m4a,3gp,3g2,mj2": ".mp4",
    "matroska,webm": ".webm",
    "ogg": ".ogv",
    "avi": ".avi",
    "gif": ".gif",
}
# The service has checked the clip by its own limits.
_ACCEPTED = MediaLimits(max_pixels=2**40, max_total_pixels=2**62)

Samples = NDArray[np.float32]


def read_sound(path: Path) -> tuple[Samples, int] | None:
    """Return the mono samples [S] in [-1, 1] and their rate in Hz; None without an audio stream.

    Args:
        path: a file of any format that FFmpeg decodes.

    Raises:
        VideoError: the file cannot be decoded.
    """
    with open_sound(path) as opened:
        if opened is None:
            return None
        container, stream = opened
        resampler = av.AudioResampler(format="fltp", layout="mono")
        frames = [
            out
            for frame in container.decode(stream)
            for out in resampler.resample(name_channels(frame))
        ]
        frames += resampler.resample(None)
        parts = [frame.to_ndarray()[0] for frame in frames]
        if not parts:
            return None
        return np.concatenate(parts).astype(np.float32), stream.rate


def trace_waveform(samples: Samples, num_samples: int) -> str:
    """Return an SVG path around the waveform, in a box of `NUM_COLUMNS` x 2 with silence at 1.

    Args:
        samples: [S], in [-1, 1].
        num_samples: length of the whole width, at least 1; a shorter sound ends with silence.
    """
    lower, upper = measure_peaks(samples, num_samples)
    points = [f"{x} {1 - y - 0.006:.3f}" for x, y in enumerate(upper)]
    points += [f"{x} {1 - y + 0.006:.3f}" for x, y in reversed(list(enumerate(lower)))]
    return "M" + "L".join(points) + "Z"


def measure_peaks(samples: Samples, num_samples: int) -> tuple[Samples, Samples]:
    """Return the least and the greatest sample [W] of each column, clipped to [-1, 1].

    Args:
        samples: [S].
        num_samples: length of the whole width, at least 1; a shorter sound ends with silence.
    """
    columns = np.array_split(_fit_length(samples, num_samples), NUM_COLUMNS)
    lower = [max(-1.0, float(column.min(initial=0.0))) for column in columns]
    upper = [min(1.0, float(column.max(initial=0.0))) for column in columns]
    return np.array(lower, np.float32), np.array(upper, np.float32)


def draw_spectrogram(samples: Samples, num_samples: int, rate: int, path: Path) -> None:
    """Write a spectrogram as a PNG of `NUM_COLUMNS` x `NUM_ROWS` pixels.

    Time runs to the right, frequency upwards on a logarithmic scale. Louder is brighter.

    Args:
        samples: [S], in [-1, 1].
        num_samples: length of the whole width, at least 1; a shorter sound ends with silence.
        rate: sample rate in Hz.
        path: where to write the PNG.

    Raises:
        OSError: the file cannot be written.
    """
    levels_db = measure_spectrum(samples, num_samples, rate)
    matplotlib.image.imsave(
        path, levels_db, cmap=COLOURS, vmin=FLOOR_DB, vmax=0, origin="lower", format="png"
    )


def measure_spectrum(samples: Samples, num_samples: int, rate: int) -> Samples:
    """Return levels [F, W] in dB relative to a full-scale sine, the lowest frequency first.

    Args:
        samples: [S], in [-1, 1].
        num_samples: length of the whole width, at least 1; a shorter sound ends with silence.
        rate: sample rate in Hz.
    """
    padded = np.pad(_fit_length(samples, num_samples), WINDOW // 2)
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
    """Write a JPEG of `NUM_FRAMES` frames side by side, evenly spaced in time.

    Args:
        clip: path of the video.
        duration_seconds: length of the whole width; each frame is from the middle of its part.
        path: where to write the JPEG.

    Raises:
        VideoError: the clip cannot be decoded.
        OSError: the file cannot be written.
    """
    wanted = [(index + 0.5) * duration_seconds / NUM_FRAMES for index in range(NUM_FRAMES)]
    frames = pick_frames(clip, wanted)
    width = max(frame.width for frame in frames)
    strip = Image.new("RGB", (width * NUM_FRAMES, FRAME_HEIGHT))
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * width, 0))
    strip.save(path, quality=82)


def pick_frames(clip: Path, wanted_seconds: list[float]) -> list[Image.Image]:
    """Return the frame at each time, `FRAME_HEIGHT` pixels high and upright.

    Args:
        clip: path of the video.
        wanted_seconds: times in ascending order. A time past the end gives the last frame.

    Raises:
        VideoError: the clip cannot be decoded.
    """
    with open_video(clip, _ACCEPTED) as (container, stream):
        return _pick_frames(container, stream, wanted_seconds)


def _pick_frames(
    container: InputContainer, stream: VideoStream, wanted_seconds: list[float]
) -> list[Image.Image]:
    stream.thread_type = "AUTO"
    found: list[Image.Image] = []
    shown: av.VideoFrame | None = None
    for frame in container.decode(stream):
        while (
            shown is not None
            and len(found) < len(wanted_seconds)
            and (frame.time or 0.0) > wanted_seconds[len(found)]
        ):
            found.append(_shrink(shown))
        if len(found) == len(wanted_seconds):
            break
        shown = frame
    if shown is not None:
        found += [_shrink(shown)] * (len(wanted_seconds) - len(found))
    return found


def _shrink(frame: av.VideoFrame) -> Image.Image:
    turned = frame.rotation % 180 != 0
    long, short = frame.width, frame.height
    width = max(2, round(FRAME_HEIGHT * (short / long if turned else long / short)))
    size = (FRAME_HEIGHT, width) if turned else (width, FRAME_HEIGHT)
    image: Image.Image = frame.reformat(width=size[0], height=size[1]).to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _fit_length(samples: Samples, num_samples: int) -> Samples:
    """Return [num_samples]: the samples, cut or extended with silence."""
    return np.pad(samples[:num_samples], (0, max(0, num_samples - len(samples))))


def cut_beginning(clip: Path, start_seconds: float, duration_seconds: float) -> None:
    """Replace a clip by a part of it.

    Args:
        clip: path of the video.
        start_seconds: where the part begins.
        duration_seconds: how long it is.

    Raises:
        VideoError: the clip cannot be read.
    """
    stop_seconds = start_seconds + duration_seconds
    cut_clip(clip, clip, start_seconds, stop_seconds=stop_seconds, limits=_ACCEPTED)


def set_rate(clip: Path, frame_rate: float) -> None:
    """Write the rate of numbered pictures into their zip.

    Args:
        clip: the zip.
        frame_rate: in pictures per second.

    Raises:
        FoleyError: it is no whole zip.
    """
    set_frame_rate(clip, to_fraction(frame_rate))


def hold(picture: Path, seconds: float) -> None:
    """Replace a still picture by a clip that shows it.

    Args:
        picture: the file.
        seconds: how long it is shown.

    Raises:
        FoleyError: it is no still picture.
    """
    hold_picture(picture, picture, seconds)


def copy_picture(source: Path, destination: Path) -> None:
    """Copy the picture of an mp4 to another one.

    Args:
        source: the video.
        destination: of the copy, which ends in .mp4.

    Raises:
        VideoError: the video cannot be read.
    """
    with open_video(source, _ACCEPTED) as (reader, picture), av.open(destination, "w") as writer:
        copy = writer.add_stream_from_template(picture)
        for packet in reader.demux(picture):
            if packet.size:
                packet.stream = copy
                writer.mux(packet)


def recognize_suffix(clip: Path) -> str:
    """Return the suffix for a clip's format, whatever its name says: .bin for a rare one.

    Args:
        clip: any video.

    Raises:
        VideoError: the clip cannot be read.
    """
    with open_video(clip, _ACCEPTED) as (container, _):
        return _SUFFIXES.get(container.format.name, ".bin")
