"""The trained encoder of sounds of the embedded model."""

from pathlib import Path

from safetensors.torch import load_file

from foley.models.analysis import Analysis

_WEIGHTS = Path(__file__).with_name("analysis.safetensors")


def load_analysis() -> Analysis:
    """Return the encoder from waveforms to the latents that `tiny` was trained on."""
    analysis = Analysis()
    analysis.load_state_dict(load_file(_WEIGHTS))
    return analysis.eval()
