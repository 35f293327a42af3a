"""The report of a training: a page with curves and players, and a card of the adapter."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from foley.atomic import atomic_path
from foley.tuning.clips import TrainingClip
from foley.tuning.trainer import History, Recipe

_WIDTH, _HEIGHT, _EDGE = 640, 240, 44


@dataclass(frozen=True)
class ValidationSounds:
    """The sounds of a clip that the training did not see.

    Attributes:
        title: name and prompt.
        sounds: what each one is, and its path below the report's folder.
    """

    title: str
    sounds: tuple[tuple[str, Path], ...]


def write_report(
    path: Path,
    name: str,
    clips: Sequence[TrainingClip],
    history: History,
    sounds: Sequence[ValidationSounds] = (),
) -> None:
    """Write the page; it stands alone but for the sounds beside it.

    Args:
        path: of the page.
        name: of the adapter.
        clips: all that were found.
        history: of the training.
        sounds: of clips that it did not see.
    """
    findings = "".join(
        f"<tr><td>{escape(clip.path.name)}</td><td>{'left out: ' if f.excludes else ''}"
        f"{escape(f.text)}</td></tr>"
        for clip in clips
        for f in clip.findings
    )
    players = "".join(
        f"<h3>{escape(item.title)}</h3>"
        + "".join(
            f'<p>{escape(what)}<br><audio controls preload="none" src="{quote(sound.as_posix())}">'
            "</audio></p>"
            for what, sound in item.sounds
        )
        for item in sounds
    )
    first, (step, best) = history.validation[0][1], history.best
    used = sum(clip.is_usable for clip in clips)
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{escape(name)}</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem }}
td {{ padding: .2rem 1rem .2rem 0; vertical-align: top }} svg {{ width: 100% }}</style>
<h1>{escape(name)}</h1>
<p>{used} of {len(clips)} clips were used. The loss on clips that the training did not see fell from
{first:.4f} to {best:.4f} (step {step}), in {history.seconds:.0f} s of work.</p>
<h2>Loss</h2>
{draw_curves(history)}
<p>Blue: clips that the training did not see. Orange: clips that it saw, and sounds that are to
stay as they are. Those are easy, so orange lies lower. Where blue rises while orange falls, more
steps do not help, and more clips would.</p>
<h2>Clips</h2>
<table>{findings or "<tr><td>Nothing was found.</td></tr>"}</table>
<h2>Sounds</h2>
{players or "<p>None were made.</p>"}
</html>
"""
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def draw_curves(history: History) -> str:
    """Return both losses by step, as SVG.

    Args:
        history: with at least one validation.
    """
    points = [*history.training, *history.validation]
    most_steps = max(step for step, _ in points) or 1
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    span = (high - low) or 1.0

    def line(values: Sequence[tuple[int, float]], colour: str) -> str:
        places = " ".join(
            f"{_EDGE + step / most_steps * (_WIDTH - 2 * _EDGE):.1f},"
            f"{_EDGE + (high - loss) / span * (_HEIGHT - 2 * _EDGE):.1f}"
            for step, loss in values
        )
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{places}"/>'

    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Loss by step">'
        f'<text x="0" y="{_EDGE}" font-size="12">{high:.3f}</text>'
        f'<text x="0" y="{_HEIGHT - _EDGE}" font-size="12">{low:.3f}</text>'
        f'<text x="{_WIDTH - _EDGE}" y="{_HEIGHT - 10}" font-size="12">{most_steps}</text>'
        f"{line(history.training, '#d95f02')}{line(history.validation, '#1f77b4')}</svg>"
    )


def write_card(
    path: Path,
    name: str,
    base: str,
    licence: str,
    num_clips: int,
    recipe: Recipe,
    history: History,
    *,
    trigger: str,
) -> None:
    """Write the adapter's card.

    Args:
        path: of the card, in Markdown.
        name: of the adapter.
        base: the preset that it changes.
        licence: of the preset's weights, which also holds for what is made of them.
        num_clips: that it learnt from.
        recipe: of the training.
        history: of the training.
        trigger: the prompt that most clips had; empty if none had one.
    """
    first, (step, best) = history.validation[0][1], history.best
    prompt = f"-p {shlex.quote(trigger)} " if trigger else ""
    text = f"""# {name}

A low-rank adapter (LoRA, rank {recipe.rank}, targets `{recipe.targets}`) of `{base}`.

* Use: `foley generate clip.mp4 {prompt}--adapters {name}.safetensors --adapter {name} -o out.mp4`
* Learnt from: {num_clips} clips. Say here whose they are, and what may be done with them.
* Loss on clips that it did not see: {first:.4f} without it, {best:.4f} with it, at step {step}.
* Training: AdamW, rate {recipe.rate:g}, {recipe.batch_clips} clips a step, seed {recipe.seed}.
* Licence: that of the weights of `{base}` ({licence}) goes on to hold.
"""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
