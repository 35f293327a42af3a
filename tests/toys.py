"""A complete model at toy width, and clips for it: small enough to build in every test."""

import dataclasses
from functools import cache
from pathlib import Path

import torch

from foley.configs import TINY, Preset
from foley.models.dit import build_dit
from foley.models.encoders import build_text_encoder, build_vision_encoder
from foley.models.synchformer import build_synchformer
from foley.models.vae import build_vae
from foley.pipeline import FoleyPipeline
from foley.types import VideoFrames
from foley.weights.components import Components
from foley.weights.parts import load_tokenizer

# One token a byte, so that a test knows how many a prompt has.
TOKENIZER = Path(__file__).parent / "assets" / "tokenizer"


def toy_preset() -> Preset:
    """Two blocks of each kind, 32 wide; the real rates, so that lengths are real."""
    return Preset(
        name="toy",
        dit=dataclasses.replace(
            TINY.dit,
            latent_dim=8,
            hidden_dim=32,
            num_heads=2,
            num_joint_blocks=2,
            num_audio_blocks=2,
            visual_dim=24,
            sync_dim=16,
            text_dim=16,
        ),
        vae=dataclasses.replace(TINY.vae, latent_dim=8, encoder_dim=2, decoder_dim=32),
        synchformer=dataclasses.replace(
            TINY.synchformer, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=32, image_size=32
        ),
        vision=dataclasses.replace(
            TINY.vision, hidden_dim=24, num_layers=1, num_heads=2, mlp_dim=32, image_size=32
        ),
        text=dataclasses.replace(TINY.text, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=32),
    )


def toy_components(seed: int = 0) -> Components:
    """Random weights; fresh modules at each call."""
    preset = toy_preset()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dit, vae = build_dit(preset.dit), build_vae(preset.vae)
        synchformer = build_synchformer(preset.synchformer)
        vision, text = build_vision_encoder(preset.vision), build_text_encoder(preset.text)
        for module in (dit, vae, synchformer, vision, text):
            module.requires_grad_(False).eval()
            for parameter in module.parameters():
                if not parameter.any():  # learned tokens and positions start at zero
                    parameter.normal_(std=0.02)
    return Components(
        preset=preset,
        dit=dit,
        vae=vae,
        synchformer=synchformer,
        vision=vision,
        text=text,
        tokenizer=load_tokenizer(TOKENIZER),
        source=f"random numbers, seed {seed}",
    )


@cache
def toy_pipeline() -> FoleyPipeline:
    """One pipeline for all tests that only read it."""
    return FoleyPipeline(toy_components(), torch.device("cpu"))


def toy_frames(num_sync: int = 40, seed: int = 0) -> VideoFrames:
    """Noise for frames of a clip of num_sync / 25 seconds."""
    generator = torch.Generator().manual_seed(seed)

    def noise(count: int) -> torch.Tensor:
        shape = (count, 32, 32, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    return VideoFrames(
        visual=noise(max(1, num_sync * 8 // 25)),
        sync=noise(num_sync),
        num_picked=num_sync,
        source_seconds=num_sync / 25,
    )
