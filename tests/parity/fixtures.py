"""Golden files: their weights, inputs, outputs and settings, and models built to their sizes."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from foley.configs import TINY as ANY_PRESET
from foley.configs import (
    DiTConfig,
    Preset,
    SynchformerConfig,
    TextConfig,
    VAEConfig,
    VisionConfig,
)
from foley.models.dit import FoleyDiT
from foley.models.synchformer import Synchformer
from foley.models.vae import FoleyVAE
from foley.weights.parts import load_official


class Fixture:
    """One golden file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, framework="pt") as file:
            self.metadata: dict[str, str] = file.metadata() or {}
            self.tensors: dict[str, Tensor] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the model that made the file."""
        return json.loads(self.metadata["config"])

    @property
    def weights(self) -> dict[str, Tensor]:
        """Official names -> float32; they are stored as float16, exactly."""
        prefix = "weights."
        return {
            key.removeprefix(prefix): tensor.float()
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }

    def names(self, prefix: str) -> list[str]:
        """Names of the tensors under `prefix`, without it."""
        return [key.removeprefix(prefix) for key in self.tensors if key.startswith(prefix)]

    def sibling(self, name: str) -> "Fixture":
        """The file of that name (its suffix may be left out) beside this one."""
        stem = name.strip().removesuffix(".safetensors")
        return load(self.path.with_name(f"{stem}.safetensors"))


@cache
def load(path: Path) -> Fixture:
    """The fixture at `path`."""
    return Fixture(path)


def _preset(**parts: Any) -> Preset:
    """A preset with the parts that a fixture has; the others only have to fit."""
    dit = parts.get("dit", ANY_PRESET.dit)
    fillers = {
        "dit": dit,
        "vae": _filler(ANY_PRESET.vae, latent_dim=dit.latent_dim),
        "synchformer": _filler(ANY_PRESET.synchformer, hidden_dim=dit.sync_dim),
        "vision": _filler(ANY_PRESET.vision, hidden_dim=dit.visual_dim),
        "text": _filler(ANY_PRESET.text, hidden_dim=dit.text_dim),
    }
    return Preset(name="fixture", **(fillers | parts))


def _filler(config: Any, **changes: int) -> Any:
    return type(config)(**(vars(config) | changes))


def _fitting_dit(**widths: int) -> DiTConfig:
    return _filler(ANY_PRESET.dit, **widths)


def dit_config(fixture: Fixture) -> DiTConfig:
    """The architecture of a `dit_*` file."""
    settings = fixture.config
    return DiTConfig(
        latent_dim=settings["audio_vae_latent_dim"],
        hidden_dim=settings["hidden_size"],
        num_heads=settings["num_heads"],
        num_joint_blocks=settings["depth_triple_blocks"],
        num_audio_blocks=settings["depth_single_blocks"],
        visual_dim=settings["clip_dim"],
        sync_dim=settings["sync_feat_dim"],
        text_dim=settings["condition_dim"],
    )


@cache
def dit(fixture: Fixture) -> FoleyDiT:
    """The transformer of a `dit_*` file."""
    preset = _preset(dit=dit_config(fixture))
    return load_official("dit", fixture.weights, preset, origin=fixture.path.name)


@cache
def vae(fixture: Fixture) -> FoleyVAE:
    """The autoencoder of a `dac_*` file."""
    settings = fixture.config
    config = VAEConfig(
        encoder_dim=settings["encoder_dim"],
        encoder_rates=tuple(settings["encoder_rates"]),
        latent_dim=settings["latent_dim"],
        decoder_dim=settings["decoder_dim"],
        decoder_rates=tuple(settings["decoder_rates"]),
        sample_rate=settings["sample_rate"],
    )
    preset = _preset(vae=config, dit=_fitting_dit(latent_dim=config.latent_dim))
    return load_official("vae", fixture.weights, preset, origin=fixture.path.name)


@cache
def synchformer(fixture: Fixture) -> Synchformer:
    """The visual branch of a `synchformer_*` file."""
    settings = fixture.config
    config = SynchformerConfig(
        hidden_dim=settings["embed_dim"],
        num_layers=settings["depth"],
        num_heads=settings["num_heads"],
        mlp_dim=settings["mlp_ratio"] * settings["embed_dim"],
        image_size=settings["image"],
        patch_size=settings["patch"],
        tubelet_frames=settings["tubelet"],
        segment_frames=settings["frames"],
    )
    preset = _preset(synchformer=config, dit=_fitting_dit(sync_dim=config.hidden_dim))
    return load_official("synchformer", fixture.weights, preset, origin=fixture.path.name)


@cache
def vision_encoder(fixture: Fixture) -> Any:
    """The vision tower of a `siglip_*` file."""
    settings = fixture.config
    config = VisionConfig(
        hidden_dim=settings["hidden_size"],
        num_layers=settings["num_hidden_layers"],
        num_heads=settings["num_attention_heads"],
        mlp_dim=settings["intermediate_size"],
        image_size=settings["image_size"],
        patch_size=settings["patch_size"],
    )
    preset = _preset(vision=config, dit=_fitting_dit(visual_dim=config.hidden_dim))
    return load_official("vision", fixture.weights, preset, origin=fixture.path.name)


@cache
def text_encoder(fixture: Fixture) -> Any:
    """The text tower of a `clap_text_*` file."""
    settings = fixture.config
    config = TextConfig(
        vocab_size=settings["vocab_size"],
        hidden_dim=settings["hidden_size"],
        num_layers=settings["num_hidden_layers"],
        num_heads=settings["num_attention_heads"],
        mlp_dim=settings["intermediate_size"],
        num_positions=settings["max_position_embeddings"],
    )
    preset = _preset(text=config, dit=_fitting_dit(text_dim=config.hidden_dim))
    return load_official("text", fixture.weights, preset, origin=fixture.path.name)


def pattern(num_frames: int, height: int, width: int, phase: float) -> Tensor:
    """The synthetic frames [n, 3, H, W] that the Synchformer files were made with."""
    t = torch.arange(num_frames, dtype=torch.float64)[:, None, None, None]
    c = torch.arange(3, dtype=torch.float64)[:, None, None]
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)
    values = torch.sin(0.11 * t + 0.7 * c + 0.05 * y + phase) * torch.cos(
        0.031 * x - 0.13 * t * (1 + c) + 0.002 * x * y / (1 + c)
    )
    return values.float()
