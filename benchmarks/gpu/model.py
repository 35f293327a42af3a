"""Full-size models of random numbers, inputs for them, and their numbers of operations."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.gpu.bench import Bench
from foley.configs import LATENT_RATE, SYNC_FPS, VISUAL_FPS, DiTConfig, Preset
from foley.denoise import Denoising, EvaluationPart
from foley.models.dit import FoleyDiT
from foley.models.encoders import restore_buffers
from foley.models.synchformer import count_segments
from foley.sampling import draw_noise, make_sigmas
from foley.types import Conditions, VideoFrames
from foley.weights.components import Components, build_on_meta
from foley.weights.parts import load_tokenizer
from foley.weights.selection import EMBEDDED_WEIGHTS

SEED = 0
PARTS = ("dit", "vae", "synchformer", "vision", "text")
NUM_TEXT = 16


def random_module(part: str, preset: Preset, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A part of the model with random weights of an untrained model's scale.

    Args:
        part: one of `PARTS`.
        preset: the model's size.
        device: on which the weights are drawn, with a fixed seed.
        dtype: of the weights.
    """
    module = build_on_meta(part, preset)
    module = nn.Module.to_empty(nn.Module.to(module, dtype=dtype), device=device)
    if isinstance(module, PreTrainedModel):
        restore_buffers(module)
        nn.Module.to(module, device)
    generator = torch.Generator(device).manual_seed(SEED)
    for name, weight in module.named_parameters():
        if (weight.ndim == 1 and name.endswith("weight")) or name.endswith("alpha"):  # scales
            weight.data.normal_(1.0, 0.1, generator=generator)
        elif weight.ndim == 1:
            weight.data.normal_(0.0, 0.02, generator=generator)
        else:
            fan_in = weight[0].numel()
            weight.data.normal_(0.0, (3 * fan_in) ** -0.5, generator=generator)
    return module.requires_grad_(False).eval()


def random_dit(bench: Bench) -> FoleyDiT:
    """The transformer of the bench's preset, on its device, with random weights."""
    module = random_module("dit", bench.preset, bench.device, bench.half)
    assert isinstance(module, FoleyDiT)
    return module


def random_components(bench: Bench, home: torch.device) -> Components:
    """A whole model, drawn on the bench's device and then moved to `home`."""
    dtypes = dict.fromkeys(PARTS, bench.half) | {"vae": torch.float32}
    return random_model(bench.preset, bench.device, dtypes, home)


def random_model(
    preset: Preset, device: torch.device, dtypes: Mapping[str, torch.dtype], home: torch.device
) -> Components:
    """A whole model of random numbers.

    Args:
        preset: the model's size.
        device: on which the weights are drawn.
        dtypes: of each part.
        home: to which each part is moved.
    """
    parts: dict[str, Any] = {}
    for part in PARTS:
        module = random_module(part, preset, device, dtypes[part])
        parts[part] = nn.Module.to(module, home)
    return Components(
        preset=preset,
        tokenizer=load_tokenizer(EMBEDDED_WEIGHTS / "text"),
        source=f"random numbers, seed {SEED}",
        **parts,
    )


def random_frames(preset: Preset, seconds: float) -> VideoFrames:
    """Frames of noise for a clip of that many seconds, in host memory."""
    generator = torch.Generator().manual_seed(SEED)

    def noise(count: int, size: int) -> Tensor:
        shape = (count, size, size, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    num_sync = round(seconds * SYNC_FPS)
    return VideoFrames(
        visual=noise(round(seconds * VISUAL_FPS), preset.vision.image_size),
        sync=noise(num_sync, preset.synchformer.image_size),
        num_picked=num_sync,
        source_seconds=seconds,
    )


def _num_sync(seconds: float) -> int:
    return 8 * max(1, count_segments(round(seconds * SYNC_FPS)))


def random_conditions(bench: Bench, seconds: float, seed: int) -> Conditions:
    """The conditions of a clip and its prompts, drawn at random.

    Args:
        bench: the shared state.
        seconds: length of the clip.
        seed: of the conditions.
    """
    config, generator = bench.preset.dit, torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(bench.device)

    return Conditions(
        visual_tokens=draw(max(1, round(seconds * VISUAL_FPS)), config.visual_dim),
        sync_tokens=draw(_num_sync(seconds), config.sync_dim),
        text_tokens=draw(2, NUM_TEXT, config.text_dim),
        num_latents=round(seconds * LATENT_RATE),
    )


def random_part(
    bench: Bench, dit: FoleyDiT, seconds: float, seed: int, guidance: float = 4.5
) -> EvaluationPart:
    """One request's part of an evaluation, with random conditions.

    Args:
        bench: the shared state.
        dit: the transformer.
        seconds: length of the clip.
        seed: of the conditions and the noise.
        guidance: scale of the guidance; above 1, the part has an unconditional half.
    """
    conditions = random_conditions(bench, seconds, seed)
    noise = draw_noise((seed,), bench.preset.dit.latent_dim, conditions.num_latents)
    with torch.inference_mode():
        path = Denoising(
            dit, conditions, noise.to(bench.device), make_sigmas(3), guidance_scale=guidance
        )
        return path.prepare_part()


def step_flop(config: DiTConfig, seconds: float) -> float:
    """The operations of one guided evaluation of one clip, without any savings.

    Args:
        config: of the transformer.
        seconds: length of the clip.

    Source: specification, section 14.
    """
    c, f = config.hidden_dim, config.conv_mlp_dim
    a, v = round(seconds * LATENT_RATE), max(1, round(seconds * VISUAL_FPS))
    s, t = _num_sync(seconds), NUM_TEXT
    joint = 14 * c**2 * (a + v) + 2 * c**2 * t + 18 * c**2 + 2 * c * (a + v) ** 2
    joint += 2 * c * (a + v) * t
    single = a * (12 * c**2 + 9 * c * f) + 2 * c * a**2
    pre = 256 * c + c**2 + s * (768 * c + 3 * c * f) + t * (768 * c + c**2)
    pre += v * (1536 * c + c**2) + 128 * a * c
    final = a * (2 * c**2 + 128 * c)
    blocks = config.num_joint_blocks * joint + config.num_audio_blocks * single
    return 2.0 * 2 * (blocks + pre + final)


def computed_flop(config: DiTConfig, seconds: float) -> float:
    """The operations that this implementation computes in the same evaluation.

    It leaves out what is constant over the steps, what has no effect on the result, and what is
    equal for several tokens.

    Args:
        config: of the transformer.
        seconds: length of the clip.
    """
    c, f = config.hidden_dim, config.conv_mlp_dim
    a, v = round(seconds * LATENT_RATE), max(1, round(seconds * VISUAL_FPS))
    s, t = _num_sync(seconds), NUM_TEXT
    full = 14 * c**2 * (a + v) + 2 * c * (a + v) ** 2 + 2 * c * (a + v) * t
    last = 14 * c**2 * a + 2 * c**2 * v + 2 * c * a * (a + v) + 2 * c * a * t
    joint = 2 * ((config.num_joint_blocks - 1) * full + last)
    rows = min(s, a) + 8  # of both halves of the guidance
    single = 2 * (a * (6 * c**2 + 9 * c * f) + 2 * c * a**2) + 6 * c**2 * rows
    return 2.0 * (joint + config.num_audio_blocks * single + 2 * 2 * 128 * a * c)


def mixed_lengths(seconds: float, count: int) -> list[float]:
    """Lengths from half of `seconds` to nearly twice as much, with the mean `seconds`.

    Args:
        seconds: the mean.
        count: number of lengths, at least 2.
    """
    shares = [0.5, 1.6, 0.8, 1.1, 0.65, 1.35, 0.9, 1.1]
    lengths = [round(seconds * shares[i % len(shares)] * 25) / 25 for i in range(count)]
    lengths[-1] = round((seconds * count - sum(lengths[:-1])) * 25) / 25
    return lengths
