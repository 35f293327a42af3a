"""A finished generation as the page shows it: files to play, pictures of them, and its words."""

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

import av

from foley.client import AsyncFoleyClient, RemoteGeneration
from runners.page import plots
from runners.page.snippets import Recipe


@dataclass(frozen=True, kw_only=True)
class Track:
    """One thing to listen to: the original, or a variation.

    Attributes:
        label: as the visitor chooses it.
        media: what the player plays.
        outline: of its waveform, an SVG path; empty where it has no sound.
        spectrogram: PNG; None where it has no sound.
        files: what there is to download.
    """

    label: str
    media: Path
    outline: str
    spectrogram: Path | None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Take:
    """One result of a visit.

    Attributes:
        number: which one of this visit, counted from 1.
        duration_seconds: of every variation, and of the time line.
        film_strip: JPEG of frames side by side.
        tracks: the original first.
        made: what the service told.
        recipe: what repeats it.
    """

    number: int
    duration_seconds: float
    film_strip: Path
    tracks: tuple[Track, ...]
    made: RemoteGeneration
    recipe: Recipe

    @property
    def title(self) -> str:
        """Short enough for a list."""
        words = str(self.recipe.options["prompt"]) or "without words"
        words = words if len(words) <= 40 else words[:39].rstrip() + "\u2026"
        return f"{self.number}. {words} \u00b7 seed {self.made.seeds[0]}"


async def gather_take(
    client: AsyncFoleyClient,
    made: RemoteGeneration,
    recipe: Recipe,
    *,
    number: int,
    clip: Path,
    folder: Path,
) -> Take:
    """Fetch the files of a result into a folder of its own, and draw them.

    Raises:
        FoleyError: a file cannot be fetched.
        av.FFmpegError: the clip's picture, or a sound, cannot be read.
    """
    folder.mkdir()
    original = folder / f"original{clip.suffix}"
    await asyncio.to_thread(shutil.copyfile, clip, original)
    drawing = asyncio.create_task(asyncio.to_thread(_draw_clip, original, made, folder))
    fetched = [
        (file, await client.download(file, folder / f"foley-{file.variation}.{file.format}"))
        for file in made.files
    ]
    tracks = [await drawing]
    for index in range(1, len(made.seeds) + 1):
        files = tuple(path for file, path in fetched if file.variation == index)
        label = f"Variation {index}" if len(made.seeds) > 1 else "New sound"
        tracks.append(await asyncio.to_thread(_draw_sound, files, label, made))
    return Take(
        number=number,
        duration_seconds=made.duration_seconds,
        film_strip=folder / "strip.jpg",
        tracks=tuple(tracks),
        made=made,
        recipe=recipe,
    )


def _draw_clip(original: Path, made: RemoteGeneration, folder: Path) -> Track:
    plots.draw_film_strip(original, made.duration_seconds, folder / "strip.jpg")
    try:
        outline, spectrogram = _draw(original, made.duration_seconds)
    except av.FFmpegError:  # the service needs the clip's picture alone
        outline, spectrogram = "", None
    return Track(label="Original", media=original, outline=outline, spectrogram=spectrogram)


def _draw_sound(files: tuple[Path, ...], label: str, made: RemoteGeneration) -> Track:
    wav = next(path for path in files if path.suffix == ".wav")
    videos = [path for path in files if path.suffix not in (".wav", ".flac")]
    outline, spectrogram = _draw(wav, made.duration_seconds)
    return Track(
        label=label,
        media=videos[0] if videos else wav,
        outline=outline,
        spectrogram=spectrogram,
        files=files,
    )


def _draw(sound: Path, duration_seconds: float) -> tuple[str, Path | None]:
    read = plots.read_sound(sound)
    if read is None:
        return "", None
    samples, rate = read
    num_samples = max(1, round(duration_seconds * rate))
    picture = sound.with_name(f"{sound.stem}-spectrogram.png")
    plots.draw_spectrogram(samples, num_samples, rate, picture)
    return plots.waveform_path(samples, num_samples), picture
