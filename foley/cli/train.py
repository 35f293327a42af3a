"""`foley train`: teach the model the sounds of a folder of clips."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from foley.cli.whole import WHOLE
from foley.errors import ParameterError
from foley.quiet import silence_imports

if TYPE_CHECKING:
    from foley.tuning.clips import TrainingClip
    from foley.tuning.trainer import TrainingProgress


def train(
    folder: Annotated[
        Path, Parameter(help="Folder of clips with their own sound, and NAME.txt with its prompt.")
    ],
    *,
    out: Annotated[
        Path,
        Parameter(
            help="Folder for the adapter, which has its name. A training that was "
            "ended goes on there."
        ),
    ],
    prompts: Annotated[
        Path | None, Parameter(help="CSV file with the columns clip and prompt, for NAME.txt.")
    ] = None,
    rank: Annotated[int, WHOLE, Parameter(help="Size of the adapter; 1 to 512.")] = 16,
    targets: Annotated[
        Literal["all", "attention"],
        Parameter(help="Layers that change. attention is smaller, and changes the timbre less."),
    ] = "all",
    steps: Annotated[int, WHOLE, Parameter(help="Steps at most; 1 to 100000.")] = 1000,
    batch: Annotated[int, WHOLE, Parameter(help="Clips of a step; 1 to 64.")] = 4,
    seed: Annotated[
        int, WHOLE, Parameter(help="Of everything that is drawn; 0 to 2147483647.")
    ] = 0,
    preset: Annotated[str, Parameter(help="The model: tiny, xl, xxl or auto.")] = "auto",
    weights: Annotated[
        Path | None, Parameter(env_var="FOLEY_WEIGHTS", help="Folder of the weights.")
    ] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
    check: Annotated[
        bool, Parameter(help="Only say what is wrong with the clips.", negative=())
    ] = False,
) -> None:
    """Learn an adapter (LoRA) from clips with their own sound."""
    for name, value, least, most in (
        ("--rank", rank, 1, 512),
        ("--steps", steps, 1, 100_000),
        ("--batch", batch, 1, 64),
        ("--seed", seed, 0, 2**31 - 1),
    ):
        if not least <= value <= most:
            raise ParameterError(f"{name}: must be {least} to {most}, got {value}")
    with silence_imports():
        from foley.tuning.run import check_clips, train_adapter
        from foley.tuning.team import join_team
        from foley.tuning.trainer import Recipe
        from foley.weights.selection import choose_device, load_preset

    clips = check_clips(folder, prompts)
    with join_team(choose_device(device)) as (team, chosen):
        say = _say if team.leads else _say_nothing
        for clip in clips:
            _say_findings(clip, say)
        usable = sum(clip.is_usable for clip in clips)
        say(f"{usable} of {len(clips)} clips can be used")
        if check:
            return
        training = train_adapter(
            clips,
            out.resolve(),
            load_preset(preset, weights, chosen),
            chosen,
            Recipe(
                rank=rank,
                targets=targets,
                steps=steps,
                batch_clips=batch,
                seed=seed,
                validate_every=max(1, min(50, steps // 10)),
            ),
            team=team,
            say=say,
            on_progress=lambda progress: _say_progress(progress, say),
        )
        before, (step, after) = training.history.validation[0][1], training.history.best
        why = "it no longer got better" if training.history.ended_early else "all steps are done"
        say(f"loss on unseen clips: {before:.4f} before, {after:.4f} at step {step}; {why}")
        say(f"report: {training.report}")
        if team.leads:
            print(training.adapter)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say_nothing(text: str) -> None:
    pass


def _say_findings(clip: "TrainingClip", say: Callable[[str], None]) -> None:
    for finding in clip.findings:
        say(f"{clip.path.name} {finding.text}{' (left out)' if finding.excludes else ''}")


def _say_progress(progress: "TrainingProgress", say: Callable[[str], None]) -> None:
    left = progress.seconds_left
    time_left = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    say(
        f"step {progress.step} of {progress.num_steps}: loss {progress.loss:.4f}, "
        f"unseen clips {progress.validation_loss:.4f}, at most {time_left} left"
    )
