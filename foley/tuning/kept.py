"""What an adapter must not change: sounds that the model itself makes for other prompts.

Clips of one kind of sound teach a model that everything sounds so. Therefore the training also sees
the clips with prompts that name something else, with the sounds that the model makes for them, and
learns to compute there what the model computes.
"""

# L channels that are learnt, A latent frames

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foley.atomic import atomic_path
from foley.denoise import Denoising
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest, Prompts
from foley.sampling import draw_noise, make_sigmas
from foley.tuning.examples import NEGATIVE_PROMPT, Example
from foley.types import NoPicture

# Sources of sounds, to take the place of what is taught in its prompts.
SOURCES = ("plastic", "wooden", "metal", "glass", "stone", "leather", "steel", "water", "ceramic")
PROMPTS = (
    "plastic",
    "wooden knocks",
    "metal impacts",
    "glass clinks",
    "stone",
    "drum hits",
    "water drops",
    "",
    "vinyl",
    "hitting wood",
    "metal",
    "glass",
    "plastic impacts",
    "rock impacts",
    "drum",
    "splash",
    "impact sounds",
    "rain",
    "wind blowing",
    "engine running",
    "fire crackling",
    "running water",
    "footsteps",
    "a door closes",
    "a crowd",
    "birds",
    "thunder",
)
_AT_ONCE = 4  # more would not fit beside the weights of xxl in 16 GiB


class KeptSound(NamedTuple):
    """A clip with a prompt for something else.

    Attributes:
        example: of the clip.
        prompt: that names something else.
        seed: of the noise.
        path: where the sound is stored.
    """

    example: Example
    prompt: str
    seed: int
    path: Path


def choose_prompts(taught: Sequence[str], count: int) -> list[str]:
    """Return prompts that name nothing of what is taught.

    If all prompts of the clips share words, such as a material, these words are what is taught.
    Every second prompt is then one of a clip with another source in their place: what is nearest to
    the taught is in the greatest danger. Otherwise all words are taught, and only prompts of
    `PROMPTS` come.

    Args:
        taught: the prompts of the clips.
        count: how many to return; none if there is none.
    """
    sentences = [_split(prompt) for prompt in taught]
    shared = set(sentences[0]).intersection(*sentences[1:]) - _SMALL_WORDS if sentences else set()
    words = shared or {word for sentence in sentences for word in sentence}
    free = [
        prompt
        for prompt in PROMPTS
        if (not words.intersection(_split(prompt)) if prompt else "" not in taught)
    ]
    sources = [source for source in SOURCES if source not in words]
    chosen = []
    for i in range(count if free else 0):
        if i % 2 and shared and sources:
            turns, place = divmod(i // 2, len(sentences))
            sentence, source = sentences[place], sources[(place + turns) % len(sources)]
            chosen.append(" ".join(source if word in shared else word for word in sentence))
        else:
            chosen.append(free[(i // 2 if shared else i) % len(free)])
    return chosen


_SMALL_WORDS = {"a", "an", "the", "of", "on", "in", "with", "and", "is", "are", "by", "to"}


def _split(prompt: str) -> list[str]:
    words = (word.strip(".,;:!?\"'()") for word in prompt.lower().split())
    return [word for word in words if word]


def store_kept(
    sounds: Sequence[KeptSound],
    pipeline: FoleyPipeline,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Let the model make the sounds of clips for other prompts, and store them.

    Args:
        sounds: to make.
        pipeline: of the model.
        say: called with a line for people before each few of them.
    """
    for first in range(0, len(sounds), _AT_ONCE):
        say(f"making sounds for other prompts, to be kept: {first} of {len(sounds)} are there")
        _store_together(sounds[first : first + _AT_ONCE], pipeline)


def _store_together(sounds: Sequence[KeptSound], pipeline: FoleyPipeline) -> None:
    words = [_read_words(pipeline, sound.prompt) for sound in sounds]
    sampling, preset = GenerationRequest().choose_sampling(pipeline.preset), pipeline.preset
    with pipeline.use_device(), torch.inference_mode():
        evaluate = pipeline.make_velocity_model()
        ways = []
        for sound, text in zip(sounds, words, strict=True):
            conditions = replace(sound.example.conditions, text_tokens=text.to(pipeline.device))
            noise = draw_noise((sound.seed,), preset.dit.latent_dim, conditions.num_latents)
            way = Denoising(
                pipeline.dit,
                conditions,
                noise.to(pipeline.device),
                make_sigmas(sampling.num_inference_steps, sampling.schedule_shift),
                solver=sampling.solver,
                guidance_scale=preset.default_guidance,
            )
            ways.append(way)
        while ways[0].point is not None:
            for way, velocity in zip(
                ways, evaluate([way.prepare_part() for way in ways]), strict=True
            ):
                way.advance(velocity)
    for sound, text, way in zip(sounds, words, ways, strict=True):
        assert way.latents is not None
        latents = way.latents[0, : len(sound.example.latents)].float().cpu().contiguous()
        sound.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(sound.path) as temporary:
            save_file({"latents": latents, "text_tokens": text.cpu().contiguous()}, temporary)


def load_kept(example: Example, path: Path) -> Example:
    """Return a clip with the prompt and the sound that were stored.

    Args:
        example: of the clip.
        path: file of `store_kept`.
    """
    device = example.latents.device
    tensors = load_file(path)
    words = tensors["text_tokens"].to(device)
    return Example(replace(example.conditions, text_tokens=words), tensors["latents"].to(device))


def _read_words(pipeline: FoleyPipeline, prompt: str) -> Tensor:
    """Return the text tokens [2, T, text_dim], float32."""
    encoding = pipeline.encode(NoPicture(duration_seconds=1.0), [Prompts(prompt, NEGATIVE_PROMPT)])
    with pipeline.use_device(), torch.inference_mode():
        try:
            while True:
                next(encoding)
        except StopIteration as stop:
            words: Tensor = stop.value[0].text_tokens
            return words.float()
