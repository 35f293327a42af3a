"""A complete model: its networks, tokenizer and preset."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import ClapTextModel, PreTrainedTokenizerBase, SiglipVisionModel

from foley.configs import Preset
from foley.models.dit import FoleyDiT, build_dit
from foley.models.encoders import build_text_encoder, build_vision_encoder, restore_buffers
from foley.models.synchformer import Synchformer, build_synchformer
from foley.models.vae import FoleyVAE, build_vae

_BUILDERS: dict[str, Callable[[Preset], nn.Module]] = {
    "dit": lambda preset: build_dit(preset.dit),
    "vae": lambda preset: build_vae(preset.vae),
    "synchformer": lambda preset: build_synchformer(preset.synchformer),
    "vision": lambda preset: build_vision_encoder(preset.vision),
    "text": lambda preset: build_text_encoder(preset.text),
}
# The networks that hold weights, in the order in which they are loaded.
PARTS = tuple(_BUILDERS)


@dataclass(frozen=True, kw_only=True)
class Components:
    """A complete model.

    Attributes:
        preset: the architecture.
        source: where the weights came from, for people.
        revision: of the repository that they came from; empty if it is not known.
    """

    preset: Preset
    dit: FoleyDiT
    vae: FoleyVAE
    synchformer: Synchformer
    vision: SiglipVisionModel
    text: ClapTextModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    revision: str = ""

    def modules(self) -> dict[str, nn.Module]:
        """Return the networks by the names in `PARTS`."""
        return {part: getattr(self, part) for part in PARTS}


def build_on_meta(part: str, preset: Preset) -> nn.Module:
    """Build a network on the meta device, where its weights take no memory.

    Args:
        part: a name in `PARTS`.
        preset: the architecture.
    """
    with torch.device("meta"):
        module = _BUILDERS[part](preset)
    if isinstance(module, SiglipVisionModel | ClapTextModel):
        restore_buffers(module)
    return module
