"""A result as the page shows it: files to play, pictures of the sounds, and what repeats it."""

import asyncio
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from foley.client import AsyncFoleyClient, RemoteGeneration, RequestOptions
from foley.errors import FoleyError
from foley.request import Layer
from runners.page.plot_server import FILM_STRIP
from runners.page.snippets import ResultSettings
from runners.sandbox.pool import Sandbox

MAX_TITLE_CHARACTERS = 40  # of the prompt, in the list of results
NO_VIDEOS = (".gif", ".bin")
AUDIO_SUFFIXES = (".wav", ".flac")


@dataclass(frozen=True, kw_only=True)
class Track:
    """A sound that the user can select: the original, or a variation.

    Attributes:
        label: the name that the user reads.
        media: the file that the player plays.
        waveform: an SVG path; empty if the file has no sound.
        spectrogram: a PNG; None if the file has no sound.
        files: the files to download.
    """

    label: str
    media: Path
    waveform: str
    spectrogram: Path | None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SoundPieces:
    """The pieces of a sound that are there while the rest is made.

    Attributes:
        files: in order; each begins where the one before it ends.
        start_seconds: where in the clip the sound begins.
    """

    files: tuple[Path, ...]
    start_seconds: float


@dataclass(frozen=True, kw_only=True)
class PageResult:
    """One result of a session.

    Attributes:
        number: its number in the session, counted from 1.
        folder: holds all its files.
        film_strip: a JPEG of frames side by side; None without a clip.
        tracks: the original if there is a clip, then the variations, or the mix and its layers.
        generation: the service's description of the result.
        settings: what repeats the result.
    """

    number: int
    folder: Path
    film_strip: Path | None
    tracks: tuple[Track, ...]
    generation: RemoteGeneration
    settings: ResultSettings

    @property
    def first_new(self) -> int:
        """The place in `tracks` of the first new sound."""
        return 0 if self.film_strip is None else 1

    def measure_bytes(self) -> int:
        """Return the bytes of all its files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    @property
    def title(self) -> str:
        """The line that stands for the result in a list."""
        options = self.settings.options
        layers = map(Layer.model_validate, options.get("layers", ()))
        words = (
            " + ".join(layer.prompt for layer in layers) or str(options["prompt"]) or "no prompt"
        )
        if len(words) > MAX_TITLE_CHARACTERS:
            words = words[: MAX_TITLE_CHARACTERS - 1].rstrip() + "\u2026"
        return f"{self.number}. {words} \u00b7 seed {self.generation.seeds[0]}"


async def collect_result(
    client: AsyncFoleyClient,
    generation: RemoteGeneration,
    settings: ResultSettings,
    *,
    number: int,
    clip: Path | None,
    folder: Path,
    sandbox: Sandbox,
) -> PageResult:
    """Download the files of a result into a folder, draw its pictures and return it.

    Args:
        client: where the files are.
        generation: the service's description of the result. Its files include wav.
        settings: what repeats the result.
        number: its number in the session, counted from 1.
        clip: the video or pictures, which are copied into the folder; None without them.
        folder: created; it must not exist.
        sandbox: draws the pictures; its fork server is `runners.page.plot_server`.

    Raises:
        FoleyError: a file cannot be downloaded, or a picture cannot be drawn.
    """
    folder.mkdir()
    duration_seconds = generation.duration_seconds
    drawing = None
    if clip is not None:
        # Its suffix follows from what it is, not from what it is called.
        original = folder / "original"
        await asyncio.to_thread(shutil.copyfile, clip, original)
        drawing = asyncio.create_task(
            _draw_original(sandbox, original, duration_seconds, settings.options)
        )
    downloads = [
        (file, await client.download(file, folder / file.name)) for file in generation.files
    ]
    tracks = []
    if drawing is not None:
        paths = [path for _, path in downloads]
        tracks.append(await _make_playable(sandbox, await drawing, paths))
    several = len(generation.seeds) > 1
    for variation, layer in dict.fromkeys(
        (file.variation, file.layer) for file in generation.files
    ):
        files = tuple(
            path for file, path in downloads if (file.variation, file.layer) == (variation, layer)
        )
        label = f"Variation {variation}" if several else "New sound"
        label = label if layer is None else f"Layer {layer}"
        tracks.append(await _draw_variation(sandbox, files, label, duration_seconds))
    return PageResult(
        number=number,
        folder=folder,
        film_strip=None if clip is None else folder / FILM_STRIP,
        tracks=tuple(tracks),
        generation=generation,
        settings=settings,
    )


async def _make_playable(sandbox: Sandbox, track: Track, results: list[Path]) -> Track:
    """Return the original with the picture of a result, where it is silent and no video.

    Browsers play neither animations nor zips of pictures nor a still one as a video.
    """
    pictures = [path for path in results if path.suffix == ".mp4"]
    if track.media.suffix not in NO_VIDEOS or track.spectrogram is not None or not pictures:
        return track
    playable = track.media.with_suffix(".mp4")
    await sandbox.run("copy_picture", playable.parent, source=pictures[0].name, copy=playable.name)
    track.media.unlink()
    return replace(track, media=playable)


async def _draw_original(
    sandbox: Sandbox,
    original: Path,
    duration_seconds: float,
    options: RequestOptions,
) -> Track:
    suffix = await sandbox.run(
        "draw_film_strip",
        original.parent,
        clip=original.name,
        duration_seconds=duration_seconds,
        start_seconds=options.get("start_seconds", 0.0),
        frame_rate=options.get("frame_rate"),
        still_seconds=options.get("duration_seconds"),
    )
    original = original.rename(original.with_suffix(suffix))
    try:
        waveform, spectrogram = await _draw_sound(sandbox, original, duration_seconds)
    except FoleyError:  # a broken audio stream does not matter: only the picture was used
        waveform, spectrogram = "", None
    return Track(label="Original", media=original, waveform=waveform, spectrogram=spectrogram)


async def _draw_variation(
    sandbox: Sandbox, files: tuple[Path, ...], label: str, duration_seconds: float
) -> Track:
    wav = next(path for path in files if path.suffix == ".wav")
    videos = [path for path in files if path.suffix not in AUDIO_SUFFIXES]
    waveform, spectrogram = await _draw_sound(sandbox, wav, duration_seconds)
    return Track(
        label=label,
        media=videos[0] if videos else wav,
        waveform=waveform,
        spectrogram=spectrogram,
        files=files,
    )


async def _draw_sound(
    sandbox: Sandbox, file: Path, duration_seconds: float
) -> tuple[str, Path | None]:
    """Return the waveform as an SVG path, and the path of the spectrogram."""
    drawn = await sandbox.run(
        "draw_sound", file.parent, file=file.name, duration_seconds=duration_seconds
    )
    if drawn is None:
        return "", None
    waveform, spectrogram = drawn
    return waveform, file.with_name(spectrogram)
