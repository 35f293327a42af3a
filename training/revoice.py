"""Takes of clips that sound as their prompt asks, whatever the picture shows.

In rendered clips things look as what they are: hands that clap are always of skin. In drawn clips
rain is heard where it is seen. A model that sees no others does what the picture says, and not what
the prompt says.
"""

# B clips, E hits of the whole batch, M modes, A latent frames

from dataclasses import dataclass, replace

import numpy as np
import torch

from training import motion, text
from training.clips import Batch
from training.materials import MATERIALS, draw_voice
from training.scene import LATENT_RATE, LAYERS, describe_hit

_TEXTURES = [name for name in LAYERS if name in text.TEXTURES]
# How often a material is chosen, relative to others: more often where prompts are obeyed less.
_WEIGHTS = {"water": 2.0, "glass": 1.5, "plastic": 1.5, "stone": 1.25}
_CHOICES = np.array([_WEIGHTS.get(name, 1.0) for name in MATERIALS])
_CHOICES /= _CHOICES.sum()


@dataclass(frozen=True)
class Shares:
    """How many clips sound as something else.

    Attributes:
        voices: of the clips with hits sound as another material.
        textures: of the clips without a hum have a continuous sound instead of hits.
    """

    voices: float
    textures: float


RENDERED, DRAWN = Shares(0.4, 0.3), Shares(0.0, 0.1)  # materials of drawn clips are any, anyway


def revoice(batch: Batch, rng: np.random.Generator, shares: Shares = RENDERED) -> Batch:
    """The same pictures; some clips sound as another material, or as rain or an engine.

    The prompt of such a clip names what it sounds as. The times, forces and levels of its hits
    stay, unless a continuous sound replaces them.

    Args:
        batch: of clips.
        rng: of the choices.
        shares: how many clips are changed.
    """
    hits = {name: value.cpu().numpy().copy() for name, value in batch.hits.items()}
    owner, prompts = batch.owner.cpu().numpy(), list(batch.prompts)
    layers = {name: value.cpu().numpy().copy() for name, value in batch.layers.items()}
    kept = np.ones(len(owner), bool)
    chances = rng.random(len(batch))
    for clip, chance in enumerate(chances):
        mine = np.flatnonzero(owner == clip)
        if chance < shares.voices and len(mine):
            material = int(rng.choice(len(MATERIALS), p=_CHOICES))
            _sound_as(hits, mine, material, rng)
            prompts[clip] = text.name_material(rng, MATERIALS[material])
        elif chance > 1 - shares.textures and (layers["kind"][clip] < 0).all():
            name = str(rng.choice(_TEXTURES))
            times = np.arange(layers["level"].shape[-1]) / LATENT_RATE
            layers["kind"][clip, 0] = LAYERS.index(name)
            layers["level"][clip, 0] = motion.envelope(rng, times)
            layers["pitch"][clip, 0] = rng.uniform()
            kept[mine] = False
            prompts[clip] = text.name_texture(rng, name)
    there = torch.from_numpy(kept).to(batch.owner.device)
    return replace(
        batch,
        hits={
            name: torch.from_numpy(value).to(batch.hits[name])[there]
            for name, value in hits.items()
        },
        owner=batch.owner[there],
        layers={
            name: torch.from_numpy(value).to(batch.layers[name]) for name, value in layers.items()
        },
        prompts=prompts,
    )


def _sound_as(
    hits: dict[str, np.ndarray], mine: np.ndarray, material: int, rng: np.random.Generator
) -> None:
    """Change the hits [E'] of one clip; things of one size have one voice."""
    voices = {
        size: draw_voice(rng, material, float(size)) for size in np.unique(hits["size"][mine])
    }
    for index in mine:
        values = describe_hit(voices[hits["size"][index]], float(hits["force"][index]), rng)
        del values["level"]  # the softer one of two things that meet stays softer
        for name, value in values.items():
            hits[name][index] = value
