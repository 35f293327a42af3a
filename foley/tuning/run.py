"""From a folder of clips to an adapter with its report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from foley.errors import ParameterError
from foley.media.mux import write_audio
from foley.pipeline import FoleyPipeline
from foley.tuning.clips import TrainingClip, find_clips, mark_duplicates, read_clip
from foley.tuning.examples import level
from foley.tuning.prepare import decode_clip, prepare, require_clips
from foley.tuning.report import ValidationSounds, write_card, write_report
from foley.tuning.team import Team
from foley.tuning.trainer import History, OnTrainingProgress, Recipe, Trainer
from foley.weights.adapters import NAME, write_adapter
from foley.weights.components import Components

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
    team: Team | None = None,
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
        team: the processes that train together; the first one writes the files.
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
    require_clips(clips)
    team = team or Team()
    with team.leader_first():
        ready = prepare(clips, out / "cache", components, device, say)
    pipeline, base = ready.pipeline, ready.pipeline.preset.name
    with pipeline.use_device():
        trainer = Trainer(
            pipeline.dit,
            base,
            ready.examples,
            ready.validation,
            recipe,
            out,
            kept=ready.kept,
            team=team,
            checkpointed=device.type == "cuda",
        )
        layers = trainer.run(on_progress)
    adapter, report = out / f"{out.name}.safetensors", out / "report.html"
    result = Training(adapter, report, trainer.history, len(ready.learnt))
    if not team.leads:
        return result
    prompts = [clip.prompt for clip in ready.learnt if clip.prompt]
    metadata = {
        "about": f"learnt from {len(ready.learnt)} clips",
        "trigger": max(prompts, key=prompts.count, default=""),
    }
    write_adapter(adapter, layers, base=base, rank=recipe.rank, metadata=metadata)
    sounds = _make_sounds(pipeline, adapter, ready.held_out[:_MOST_SOUNDS], out)
    write_report(report, out.name, clips, trainer.history, sounds)
    licence = pipeline.licence.name
    write_card(
        out / "README.md",
        out.name,
        base,
        licence,
        len(ready.learnt),
        recipe,
        trainer.history,
        trigger=metadata["trigger"],
    )
    return result


def _make_sounds(
    pipeline: FoleyPipeline, adapter: Path, clips: Sequence[TrainingClip], out: Path
) -> list[ValidationSounds]:
    """Generate what the report plays: with the adapter and without, beside the clip's own sound."""
    name = pipeline.load_adapter(adapter).name
    folder = out / "sounds"
    folder.mkdir(exist_ok=True)
    made = []
    for number, clip in enumerate(clips, start=1):
        paths, frames = [], decode_clip(pipeline, clip)
        for what, scale in (("without the adapter", 0.0), ("with the adapter", 1.0)):
            path = folder / f"{number}-{'adapter' if scale else 'base'}.wav"
            use = {"name": name, "scale": scale}
            sound = pipeline(frames, clip.prompt, seed=0, adapters=[use])
            sound.save(path)
            paths.append((what, path.relative_to(out)))
        own = folder / f"{number}-own.wav"
        write_audio(torch.from_numpy(np.ascontiguousarray(level(clip)))[None], own)
        paths.append(("the clip's own sound", own.relative_to(out)))
        made.append(ValidationSounds(f"{clip.path.name}: {clip.prompt or 'no prompt'}", (*paths,)))
    return made
