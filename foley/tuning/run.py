"""From a folder of clips to an adapter with its report."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from foley.errors import ParameterError
from foley.media.mux import write_audio
from foley.pipeline import FoleyPipeline
from foley.tuning.clips import Finding, TrainingClip, find_clips, mark_duplicates, read_clip
from foley.tuning.examples import (
    hash_model,
    level,
    load_example,
    make_encoder,
    store_conditions,
    store_latents,
)
from foley.tuning.report import ValidationSounds, write_card, write_report
from foley.tuning.trainer import History, OnTrainingProgress, Recipe, Trainer
from foley.weights.adapters import NAME, write_adapter
from foley.weights.components import Components

MIN_CLIPS = 4
_VALIDATION_SHARE = 0.1
_MOST_VALIDATION = 8
_MOST_SOUNDS = 4


@dataclass(frozen=True)
class Training:
    """A training that has ended.

    Attributes:
        adapter: the file.
        report: the page.
        history: what was done.
        num_clips: that were learnt from.
    """

    adapter: Path
    report: Path
    history: History
    num_clips: int


def check_clips(folder: Path, prompts: Path | None) -> list[TrainingClip]:
    """Read all clips of a folder, and say what is wrong with each.

    Args:
        folder: of the clips.
        prompts: a CSV file; see `foley.tuning.clips.find_clips`.

    Raises:
        ParameterError: there are no clips, or a file cannot be read.
    """
    clips = [read_clip(path, prompt) for path, prompt in find_clips(folder, prompts)]
    mark_duplicates(clips)
    return clips


def train_adapter(
    clips: Sequence[TrainingClip],
    out: Path,
    components: Components,
    device: torch.device,
    recipe: Recipe,
    *,
    say: Callable[[str], None] = lambda text: None,
    on_progress: OnTrainingProgress = lambda progress: None,
) -> Training:
    """Train an adapter; called again with the same arguments after a kill, it goes on.

    Args:
        clips: of `check_clips`; what is found later is added to their findings.
        out: the folder for everything; its name is the adapter's.
        components: of the model, not yet placed.
        device: where the training runs.
        recipe: what it does.
        say: called with a line for people at each stage.
        on_progress: called after each validation.

    Raises:
        ParameterError: there are too few usable clips, or the folder's name cannot be an adapter's.
        ModelError: the loss is not finite.
        DeviceError: the device's memory is too small.
    """
    if not NAME.fullmatch(out.name):
        raise ParameterError(
            f"{out.name!r} cannot be an adapter's name: it has 1 to 64 of A-Z a-z 0-9 . _ - and "
            "begins with a letter or a digit; name another folder with --out"
        )
    _require_clips(clips)
    cache, model = out / "cache", hash_model(components)
    key = {
        id(clip): hashlib.sha256(f"{model} {clip.digest}".encode()).hexdigest()[:32]
        for clip in clips
    }
    licence_preset = components.preset.name
    encode = make_encoder(components, device)
    for clip in _usable(clips):
        path = cache / f"{key[id(clip)]}.latents.safetensors"
        if not path.is_file():
            store_latents(clip, encode, path)
    pipeline = FoleyPipeline(components, device, memory="full" if device.type == "cuda" else "auto")
    say(pipeline.description)
    for number, clip in enumerate(_usable(clips), start=1):
        path = cache / f"{key[id(clip)]}.conditions.safetensors"
        if not path.is_file():
            say(f"watching clip {number}: {clip.path.name}")
            _watch(clip, pipeline, path)
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("sync", "")
            if text:
                clip.findings.append(Finding(text))
    _require_clips(clips)
    learnt, held_out = split_clips(_usable(clips))
    examples, validation = (
        [
            load_example(
                cache / f"{key[id(clip)]}.latents.safetensors",
                cache / f"{key[id(clip)]}.conditions.safetensors",
                device,
            )
            for clip in part
        ]
        for part in (learnt, held_out)
    )
    say(f"{len(learnt)} clips to learn from, {len(held_out)} to measure on")
    with pipeline.use_device():
        trainer = Trainer(
            pipeline.dit,
            licence_preset,
            examples,
            validation,
            recipe,
            out,
            checkpointed=device.type == "cuda",
        )
        layers = trainer.run(on_progress)
    adapter = out / f"{out.name}.safetensors"
    prompts = [clip.prompt for clip in learnt if clip.prompt]
    metadata = {
        "about": f"learnt from {len(learnt)} clips",
        "trigger": max(prompts, key=prompts.count, default=""),
    }
    write_adapter(adapter, layers, base=licence_preset, rank=recipe.rank, metadata=metadata)
    sounds = _make_sounds(pipeline, adapter, held_out[:_MOST_SOUNDS], out)
    report = out / "report.html"
    write_report(report, out.name, clips, trainer.history, sounds)
    licence = pipeline.licence.name
    write_card(
        out / "README.md",
        out.name,
        licence_preset,
        licence,
        len(learnt),
        recipe,
        trainer.history,
    )
    return Training(adapter, report, trainer.history, len(learnt))


def split_clips(
    clips: Sequence[TrainingClip],
) -> tuple[list[TrainingClip], list[TrainingClip]]:
    """Return the clips to learn from, and those to measure on: a tenth, 1 to 8.

    The choice depends on the clips' contents alone, so a clip that is added moves few others.

    Args:
        clips: at least two.
    """
    count = min(_MOST_VALIDATION, max(1, round(_VALIDATION_SHARE * len(clips))))
    chosen = {clip.digest for clip in sorted(clips, key=lambda clip: clip.digest)[:count]}
    return (
        [clip for clip in clips if clip.digest not in chosen],
        [clip for clip in clips if clip.digest in chosen],
    )


def _usable(clips: Sequence[TrainingClip]) -> list[TrainingClip]:
    return [clip for clip in clips if clip.is_usable]


def _require_clips(clips: Sequence[TrainingClip]) -> None:
    count = len(_usable(clips))
    if count < MIN_CLIPS:
        raise ParameterError(
            f"{count} of {len(clips)} clips can be used, at least {MIN_CLIPS} are needed, and some "
            "dozens are better; mend or add clips"
        )


def _watch(clip: TrainingClip, pipeline: FoleyPipeline, path: Path) -> None:
    """Store the conditions of a clip, or exclude it."""
    from foley.errors import RequestError

    try:
        store_conditions(clip, pipeline, path)
    except RequestError as error:
        clip.findings.append(Finding(f"cannot be used: {error}", excludes=True))


def _make_sounds(
    pipeline: FoleyPipeline, adapter: Path, clips: Sequence[TrainingClip], out: Path
) -> list[ValidationSounds]:
    """Generate what the report plays: with the adapter and without, beside the clip's own sound."""
    name = pipeline.load_adapter(adapter).name
    folder = out / "sounds"
    folder.mkdir(exist_ok=True)
    made = []
    for number, clip in enumerate(clips, start=1):
        paths = []
        for what, scale in (("without the adapter", 0.0), ("with the adapter", 1.0)):
            path = folder / f"{number}-{'adapter' if scale else 'base'}.wav"
            use = {"name": name, "scale": scale}
            sound = pipeline(str(clip.path), clip.prompt, seed=0, trim=True, adapters=[use])
            sound.save(path)
            paths.append((what, path.relative_to(out)))
        own = folder / f"{number}-own.wav"
        write_audio(torch.from_numpy(np.ascontiguousarray(level(clip)))[None], own)
        paths.append(("the clip's own sound", own.relative_to(out)))
        made.append(ValidationSounds(f"{clip.path.name}: {clip.prompt or 'no prompt'}", (*paths,)))
    return made
