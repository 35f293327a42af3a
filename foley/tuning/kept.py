"""What an adapter must not change: sounds that the model itself makes for other prompts.

Clips of one kind of sound teach a model that everything sounds so. Therefore the training also sees
the clips with prompts that name something else, with the sounds that the model makes for them, and
learns to compute there what the model computes.
"""

# L channels that are learnt, A latent frames

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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

PROMPTS = (
    "wooden knocks",
    "metal impacts",
    "glass clinks",
    "plastic",
    "stone",
    "drum hits",
    "water drops",
    "",
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


def choose_prompts(taught: Sequence[str], count: int) -> list[str]:
    """Return prompts that name nothing of what is taught, of those of `PROMPTS` in turn.

    Args:
        taught: the prompts of the clips.
        count: how many to return; none if all share a word with a prompt.
    """
    words = {word for prompt in taught for word in _split(prompt)}
    free = [
        prompt
        for prompt in PROMPTS
        if (not words.intersection(_split(prompt)) if prompt else "" not in taught)
    ]
    return [free[i % len(free)] for i in range(count)] if free else []


def _split(prompt: str) -> set[str]:
    return {word.strip(".,;:!?\"'()") for word in prompt.lower().split()} - {""}


def store_kept(
    example: Example, prompt: str, pipeline: FoleyPipeline, seed: int, path: Path
) -> None:
    """Let the model make the sound of a clip for another prompt, and store it.

    Args:
        example: of the clip.
        prompt: that names something else.
        pipeline: of the model.
        seed: of the noise.
        path: of the file, which is replaced.
    """
    words = _read_words(pipeline, prompt)
    conditions = replace(example.conditions, text_tokens=words.to(pipeline.device))
    sampling = GenerationRequest().choose_sampling(pipeline.preset)
    noise = draw_noise((seed,), pipeline.preset.dit.latent_dim, conditions.num_latents)
    with pipeline.use_device(), torch.inference_mode():
        evaluate = pipeline.make_velocity_model()
        path_of_noise = Denoising(
            pipeline.dit,
            conditions,
            noise.to(pipeline.device),
            make_sigmas(sampling.num_inference_steps, sampling.schedule_shift),
            solver=sampling.solver,
            guidance_scale=pipeline.preset.default_guidance,
        )
        while path_of_noise.point is not None:
            path_of_noise.advance(*evaluate([path_of_noise.prepare_part()]))
        assert path_of_noise.latents is not None
        latents = path_of_noise.latents[0, : len(example.latents)].float().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file({"latents": latents, "text_tokens": words.cpu().contiguous()}, temporary)


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
