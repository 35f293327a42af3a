"""The clips of a folder with their own sound and prompts, and what is wrong with them."""

# S samples, n frames at 25 fps

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foley.configs import SAMPLE_RATE, SYNC_FPS
from foley.errors import ParameterError, RequestError
from foley.media.decode import decode_frames
from foley.media.filters import Sound, measure_loudness
from foley.media.original import read_original
from foley.media.source import MediaLimits
from foley.speech import measure_speech
from foley.tuning.music import has_music

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
MIN_SECONDS = 1.0
LIMITS = MediaLimits(max_seconds=15.0)  # what comes later in a clip is not used
_CLIPPED = 0.999  # of full scale
_MOST_CLIPPED = 1e-3  # share of the samples
_SILENT_LUFS = -60.0
_MOST_SPEECH_SECONDS = 0.5
_VOICES = frozenset(
    {"voice", "voices", "speech", "speaks", "speaking", "talks", "talking", "says", "saying"}
    | {"conversation", "dialogue", "crowd", "shouts", "shouting", "sings", "singing", "laughing"}
)
_INSTRUMENTS = frozenset(
    {"music", "musical", "song", "sings", "singing", "melody", "tune", "band", "radio", "chimes"}
    | {"guitar", "piano", "violin", "cello", "flute", "trumpet", "organ", "accordion", "saxophone"}
)
_LOOKED_AT = 224  # pixels: side of the pictures that are compared with the sound
# A sound is said to be off by so much, and if the motion fits the moved sound so much better.
_LAG_FRAMES = 3
_LARGEST_LAG = 12
_MUCH_BETTER = 0.15


@dataclass(frozen=True)
class Finding:
    """Something about a clip that a person should know.

    Attributes:
        text: what was found and what to do.
        excludes: whether the clip is left out of the training.
    """

    text: str
    excludes: bool = False


@dataclass
class TrainingClip:
    """A clip, its prompt and its sound.

    Attributes:
        path: of the video.
        prompt: what is heard.
        digest: of the file's content and of the prompt.
        waveform: float32 [S], 48 kHz, of at most 15 s; empty where it could not be read.
        loudness_lufs: integrated; None for silence.
        findings: in order.
    """

    path: Path
    prompt: str
    digest: str
    waveform: npt.NDArray[np.float32]
    loudness_lufs: float | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_usable(self) -> bool:
        """Whether nothing excludes it."""
        return not any(finding.excludes for finding in self.findings)


def find_clips(folder: Path, prompts: Path | None = None) -> list[tuple[Path, str]]:
    """Return the clips of a folder and their prompts, by name.

    Args:
        folder: holds the clips. The prompt of NAME.mp4 is in NAME.txt, or in `prompts`; without
            either it is empty.
        prompts: a CSV file with the columns `clip` (a path in the folder) and `prompt`.

    Raises:
        ParameterError: there is no such folder, it has no clip, or a file cannot be read.
    """
    if not folder.is_dir():
        raise ParameterError(f"{folder} is no folder; name the folder that holds the clips")
    if prompts is not None:
        return _read_table(folder, prompts)
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise ParameterError(
            f"{folder} holds no clip; put videos with their own sound there: {', '.join(SUFFIXES)}"
        )
    return [(path, _read_text(path.with_suffix(".txt"))) for path in paths]


def _read_text(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split()) if path.is_file() else ""
    except (OSError, UnicodeError) as error:
        raise ParameterError(f"{path} is no UTF-8 text ({error}); save it as that") from error


def _read_table(folder: Path, prompts: Path) -> list[tuple[Path, str]]:
    try:
        with prompts.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            # Spreadsheets of many countries write semicolons.
            separator = max(",;\t|", key=header.count)
            names = [
                name.strip().lower() for name in next(csv.reader([header], delimiter=separator))
            ]
            rows = list(csv.DictReader(file, names, delimiter=separator))
    except (OSError, UnicodeError, csv.Error, StopIteration) as error:
        raise ParameterError(f"{prompts} cannot be read as CSV: {error}") from error
    if not rows or not {"clip", "prompt"} <= {*names}:
        raise ParameterError(
            f"{prompts} needs the columns clip and prompt, and a row for each clip; its first line "
            f"names {', '.join(names)}"
        )
    found = []
    for number, row in enumerate(rows, start=2):
        path = folder / (row["clip"] or "").strip()
        if not path.is_file():
            raise ParameterError(f"{prompts}, line {number}: there is no {path}; mend the name")
        found.append((path, " ".join((row["prompt"] or "").split())))
    return found


def read_clip(path: Path, prompt: str) -> TrainingClip:
    """Read the sound of a clip, and check it and its picture.

    Args:
        path: of the video.
        prompt: what is heard.
    """
    content = hashlib.sha256(path.read_bytes())
    content.update(prompt.encode())
    clip = TrainingClip(path, prompt, content.hexdigest(), np.zeros(0, np.float32))
    if not prompt:
        clip.findings.append(
            Finding("has no prompt, so it teaches what is heard without one; write NAME.txt")
        )
    try:
        track = read_original(path, fit=lambda layout: "mono", limits=LIMITS)
    except (RequestError, OSError) as error:
        clip.findings.append(Finding(f"cannot be read: {error}", excludes=True))
        return clip
    if track is None:
        clip.findings.append(Finding("has no sound; record one, or leave it out", excludes=True))
        return clip
    clip.waveform = track.sound.samples[0]
    clip.findings += _check_sound(clip)
    if clip.is_usable:
        clip.findings += _check_picture(clip)
    return clip


def _check_sound(clip: TrainingClip) -> list[Finding]:
    findings = []
    seconds = len(clip.waveform) / SAMPLE_RATE
    if seconds < MIN_SECONDS:
        text = f"lasts {seconds:.2f} s, at least {MIN_SECONDS:g} s are needed; cut a longer one"
        return [Finding(text, excludes=True)]
    clip.loudness_lufs = measure_loudness(Sound(clip.waveform[None], "mono"))
    if clip.loudness_lufs is None or clip.loudness_lufs < _SILENT_LUFS:
        return [Finding("is silent; leave it out, or record it louder", excludes=True)]
    clipped = float((np.abs(clip.waveform) >= _CLIPPED).mean())
    if clipped > _MOST_CLIPPED:
        findings.append(Finding(f"clips in {clipped:.1%} of its samples; record it more softly"))
    spoken = measure_speech(torch.from_numpy(clip.waveform)[None], SAMPLE_RATE)
    words = set(clip.prompt.lower().replace(",", " ").split())
    if spoken > _MOST_SPEECH_SECONDS and not _VOICES & words:
        text = (
            f"seems to have {spoken:.1f} s of speech, which its prompt does not name; listen to "
            "it, and leave the clip out or say in the prompt whose voice is heard"
        )
        findings.append(Finding(text))
    if has_music(clip.waveform) and not _INSTRUMENTS & words:
        text = (
            "seems to have music, which its prompt does not name; listen to it, and leave the clip "
            "out or name the music"
        )
        findings.append(Finding(text))
    spectrum = np.abs(np.fft.rfft(clip.waveform)) ** 2
    high = spectrum[round(9_000 / SAMPLE_RATE * len(clip.waveform)) :].sum() / spectrum.sum()
    if high < 1e-7:
        text = (
            "has nothing above 9 kHz; if the thing itself does not sound so dull, the clip was "
            "recorded or stored at a low sample rate: take the original"
        )
        findings.append(Finding(text))
    return findings


def _check_picture(clip: TrainingClip) -> list[Finding]:
    try:
        frames = decode_frames(
            clip.path,
            visual_size=16,
            sync_size=_LOOKED_AT,
            limits=LIMITS,
            trim=True,
            exact_clock=True,
        )
    except RequestError as error:
        return [Finding(f"cannot be used: {error}", excludes=True)]
    finding = check_sync(clip.waveform, frames.sync)
    return [finding] if finding else []


def mark_duplicates(clips: Sequence[TrainingClip]) -> None:
    """Exclude clips whose sound another one has, but for the first of them.

    Args:
        clips: in order.
    """
    seen: dict[bytes, Path] = {}
    for clip in clips:
        if not clip.is_usable:
            continue
        key = hashlib.sha256(np.round(clip.waveform, 3).tobytes()).digest()
        if key in seen:
            text = f"has the sound of {seen[key].name}; leave one of them out"
            clip.findings.append(Finding(text, excludes=True))
        seen.setdefault(key, clip.path)


def check_sync(waveform: npt.NDArray[np.float32], frames: Tensor) -> Finding | None:
    """Return a finding if the sound seems to come before or after the motion.

    The onsets of the sound are correlated with the changes of the picture. It is a hint: a camera
    that moves, or a sound from outside the picture, looks the same.

    Args:
        waveform: [S], 48 kHz.
        frames: uint8 [n, H, W, 3] at 25 fps.
    """
    gray = frames[:, ::8, ::8].float().mean(-1)
    motion = (gray[1:] - gray[:-1]).abs().mean((1, 2)).numpy()
    hop = SAMPLE_RATE // SYNC_FPS
    count = min(len(motion), len(waveform) // hop - 1)
    if count < 4 * _LAG_FRAMES:
        return None
    power = (waveform[: (count + 1) * hop].reshape(-1, hop) ** 2).mean(1)
    rises = np.maximum(np.diff(np.log(power + 1e-8)), 0)
    changes = np.maximum(np.diff(motion[:count], prepend=motion[0]), 0)
    if rises.std() < 1e-3 or changes.std() < 1e-6:
        return None
    fits = {
        lag: _correlate(rises, changes, lag)
        for lag in range(-min(_LARGEST_LAG, count // 3), min(_LARGEST_LAG, count // 3) + 1)
    }
    best = max(fits, key=lambda lag: fits[lag])
    near = max(fits[lag] for lag in (-1, 0, 1))
    if abs(best) < _LAG_FRAMES or fits[best] < near + _MUCH_BETTER or fits[best] < 0.4:
        return None
    side = "after" if best > 0 else "before"
    return Finding(
        f"may be out of sync: its sound fits best {abs(best) * 1000 // SYNC_FPS} ms {side} the "
        "motion; look at it, and move the sound"
    )


def _correlate(
    sound: npt.NDArray[np.floating], motion: npt.NDArray[np.floating], lag: int
) -> float:
    """Return the correlation of the sound, `lag` frames later, with the motion."""
    first = sound[max(lag, 0) : len(sound) + min(lag, 0)]
    second = motion[max(-lag, 0) : len(motion) + min(-lag, 0)]
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
