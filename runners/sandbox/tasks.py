"""The tasks that run on untrusted clips, each in a process of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch  # noqa: F401 - imported once for all tasks, not in each
from torch import Tensor

from foley.configs import PRESETS
from foley.media.decode import decode_frames
from foley.media.mux import Written, container_for, write_audio, write_video
from foley.media.source import MediaLimits, decoders
from runners.handoff import load_waveforms, save_frames
from runners.jobs.scratch import CLIP

SOUND_ALONE = ("wav", "flac")


def prepare() -> None:
    """Do what is the same for all tasks, before the first of them."""
    decoders()


def media_limits_of(limits: dict[str, Any]) -> MediaLimits:
    """The limits as they came; JSON has no sets."""
    return MediaLimits(**{**limits, "codecs": frozenset(limits["codecs"])})


def nothing(_folder: Path) -> None:
    """Show that tasks are done."""


def decode(
    folder: Path, *, preset: str, container: str, trim: bool, limits: dict[str, Any]
) -> dict[str, Any]:
    """Leave the clip's frames in the folder, at the sizes that the model's encoders see.

    Returns:
        "trimmed": whether the clip was.
    """
    clip = folder / CLIP
    model = PRESETS[preset]
    media_limits = media_limits_of(limits)
    frames = decode_frames(
        clip,
        visual_size=model.vision.image_size,
        sync_size=model.synchformer.image_size,
        limits=media_limits,
        trim=trim,
        exact_clock=model.exact_clock,
        whole_segments=model.whole_segments,
    )
    if container not in SOUND_ALONE:
        # Refused now, not after minutes of sampling.
        container_for(clip, container, limits=media_limits)  # type: ignore[arg-type]
    save_frames(frames, folder)
    return {"trimmed": frames.trimmed}


def write(
    folder: Path,
    *,
    formats: list[str],
    sample_rate: int,
    stop_seconds: float | None,
    limits: dict[str, Any],
) -> list[list[dict[str, Any]]]:
    """Write the files of each sound that the model left in the folder.

    Returns:
        For each sound the files in the order of `formats`: name, container, notices.
    """
    media_limits = media_limits_of(limits)

    def written(waveform: Tensor, destination: Path) -> Written:
        if destination.suffix[1:] in SOUND_ALONE:
            return write_audio(waveform, destination, sample_rate=sample_rate)
        return write_video(
            folder / CLIP,
            waveform,
            destination,
            sample_rate=sample_rate,
            stop_seconds=stop_seconds,
            limits=media_limits,
        )

    return [
        [_described(written(waveform, folder / f"foley-{index}.{name}")) for name in formats]
        for index, waveform in enumerate(load_waveforms(folder), start=1)
    ]


def _described(file: Written) -> dict[str, Any]:
    return {"name": file.path.name, "container": file.container, "notices": file.notices}


TASKS: dict[str, Callable[..., Any]] = {"nothing": nothing, "decode": decode, "write": write}
