"""From clips to examples: each part is computed once, and kept in a cache."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from foley.errors import ParameterError, RequestError
from foley.pipeline import FoleyPipeline
from foley.tuning.clips import LIMITS, Finding, TrainingClip
from foley.tuning.examples import (
    Example,
    hash_model,
    load_example,
    make_encoder,
    store_conditions,
    store_latents,
)
from foley.tuning.kept import KeptSound, choose_prompts, load_kept, store_kept
from foley.types import VideoFrames
from foley.weights.components import Components

MIN_CLIPS = 4
_VALIDATION_SHARE = 0.1
_MOST_VALIDATION = 8
_KEPT_PER_CLIP = 3


@dataclass(frozen=True)
class Prepared:
    """What a training reads.

    Attributes:
        pipeline: of the model.
        learnt: the clips to learn from.
        held_out: the clips to measure on.
        examples: of the clips to learn from.
        validation: of the clips to measure on.
        kept: the clips to learn from with other prompts, and the model's sounds for these.
    """

    pipeline: FoleyPipeline
    learnt: list[TrainingClip]
    held_out: list[TrainingClip]
    examples: list[Example]
    validation: list[Example]
    kept: list[Example]


def decode_clip(pipeline: FoleyPipeline, clip: TrainingClip) -> VideoFrames:
    """Return the frames of a clip's file, of its first 15 s.

    Args:
        pipeline: of the model.
        clip: a usable one.

    Raises:
        VideoError: the file cannot be decoded.
    """
    return pipeline.decode_video(clip.path, trim=True, limits=LIMITS)


Watch = Callable[[FoleyPipeline, TrainingClip], VideoFrames]


def prepare(
    clips: Sequence[TrainingClip],
    cache: Path,
    components: Components,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
    *,
    watch: Watch = decode_clip,
) -> Prepared:
    """Compute what a training reads, as far as the cache has it not.

    Args:
        clips: all that were found; what is found later is added to their findings.
        cache: folder.
        components: of the model, not yet placed.
        device: where the training runs.
        say: called with a line for people at each stage.
        watch: returns the frames of a clip.

    Raises:
        ParameterError: there are too few usable clips.
    """
    model = hash_model(components)

    def find(clip: TrainingClip, part: str) -> Path:
        key = hashlib.sha256(f"{model} {clip.digest}".encode()).hexdigest()[:32]
        return cache / f"{key}.{part}.safetensors"

    encode = make_encoder(components, device)
    for clip in _usable(clips):
        path = find(clip, "latents")
        if not path.is_file():
            store_latents(clip, encode, path)
    pipeline = FoleyPipeline(components, device, memory="full" if device.type == "cuda" else "auto")
    say(pipeline.description)
    for number, clip in enumerate(_usable(clips), start=1):
        path = find(clip, "conditions")
        if not path.is_file():
            say(f"watching clip {number}: {clip.path.name}")
            try:
                store_conditions(clip, watch(pipeline, clip), pipeline, path)
            except RequestError as error:
                clip.findings.append(Finding(f"cannot be used: {error}", excludes=True))
                say(f"{clip.path.name} {clip.findings[-1].text} (left out)")
    require_clips(clips)
    learnt, held_out = split_clips(_usable(clips))
    examples, validation = (
        [load_example(find(clip, "latents"), find(clip, "conditions"), device) for clip in part]
        for part in (learnt, held_out)
    )
    say(f"{len(learnt)} clips to learn from, {len(held_out)} to measure on")
    prompts = choose_prompts([clip.prompt for clip in learnt], _KEPT_PER_CLIP * len(learnt))
    sounds = []
    for seed, prompt in enumerate(prompts):
        clip, example = learnt[seed % len(learnt)], examples[seed % len(learnt)]
        name = hashlib.sha256(f"{seed} {prompt}".encode()).hexdigest()[:8]
        sounds.append(KeptSound(example, prompt, seed, find(clip, f"kept-{name}")))
    missing = [sound for sound in sounds if not sound.path.is_file()]
    store_kept(missing, pipeline, say)
    kept = [load_kept(sound.example, sound.path) for sound in sounds]
    return Prepared(pipeline, learnt, held_out, examples, validation, kept)


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


def require_clips(clips: Sequence[TrainingClip]) -> None:
    """Refuse to train on too few clips.

    Args:
        clips: all that were found.

    Raises:
        ParameterError: fewer than `MIN_CLIPS` can be used.
    """
    count = len(_usable(clips))
    if count < MIN_CLIPS:
        raise ParameterError(
            f"{count} of {len(clips)} clips can be used, at least {MIN_CLIPS} are needed, and some "
            "dozens are better; mend or add clips"
        )
