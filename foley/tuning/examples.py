"""What the training reads of each clip, computed once: its conditions and the latents of its sound.

An example is a file in a cache, under the digest of the clip and of the model.
"""

# S samples, A latent frames, L channels that are learnt

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foley.atomic import atomic_path
from foley.configs import TINY
from foley.media.clock import num_latents
from foley.models.vae import FoleyVAE
from foley.pipeline import FoleyPipeline
from foley.tuning.clips import TrainingClip
from foley.types import Conditions, VideoFrames
from foley.weights.analysis import load_analysis
from foley.weights.components import Components

TARGET_LUFS = -23.0
_CEILING = 0.9
NEGATIVE_PROMPT = "noisy, harsh"
_VERSION = "2"  # of the cache

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Example:
    """One clip, as the training sees it.

    Attributes:
        conditions: of the clip, its prompt and the usual negative prompt.
        latents: float32 [L, A] of its sound. The transformer's channels from L on hold noise, whose
            velocity is zero.
    """

    conditions: Conditions
    latents: Tensor


def make_encoder(components: Components, device: torch.device) -> Encode:
    """Return the function from a waveform [1, S] to latents [1, L, A] of a model.

    Call it before a pipeline takes the components: that converts the autoencoder to fp16.

    Args:
        components: of the model.
        device: where it runs.
    """
    if components.preset.name == TINY.name:
        return torch.no_grad()(load_analysis())
    vae: FoleyVAE = components.vae
    torch.nn.Module.to(vae, device=device, dtype=torch.float32)

    def encode(waveform: Tensor) -> Tensor:
        with torch.no_grad():
            return vae.encode(waveform[:, None].to(device))[0].cpu()

    return encode


def hash_model(components: Components) -> str:
    """Return a digest of what the examples depend on in a model.

    Args:
        components: of the model.
    """
    digest = hashlib.sha256(f"{_VERSION} {components.preset} {components.revision}".encode())
    for module in (components.vision, components.synchformer, components.text, components.vae):
        for name, tensor in sorted(module.state_dict().items()):
            part = tensor.flatten()[:: max(1, tensor.numel() // 64)].float().cpu()
            digest.update(name.encode() + part.numpy().tobytes())
    return digest.hexdigest()


def level(clip: TrainingClip) -> np.ndarray:
    """Return the waveform at the usual loudness, as far as its peaks allow; float32 [S].

    Args:
        clip: with a loudness.
    """
    assert clip.loudness_lufs is not None
    gain = 10 ** ((TARGET_LUFS - clip.loudness_lufs) / 20)
    peak = float(np.abs(clip.waveform).max())
    return (min(gain, _CEILING / peak) * clip.waveform).astype(np.float32)


def store_latents(clip: TrainingClip, encode: Encode, path: Path) -> None:
    """Compute the latents of a clip's sound, and store them.

    Args:
        clip: a usable one.
        encode: of `make_encoder`.
        path: of the file, which is replaced.
    """
    waveform = torch.from_numpy(level(clip))[None]
    waveform = torch.nn.functional.pad(waveform, (0, -waveform.shape[-1] % 960))
    _save({"latents": encode(waveform)[0].contiguous()}, path)


def store_conditions(
    clip: TrainingClip, frames: VideoFrames, pipeline: FoleyPipeline, path: Path
) -> None:
    """Compute the conditions of a clip, and store them.

    Args:
        clip: a usable one.
        frames: of the clip.
        pipeline: of the model.
        path: of the file, which is replaced.

    Raises:
        PromptTooLongError: its prompt has too many tokens.
    """
    made = pipeline.condition(frames, clip.prompt, NEGATIVE_PROMPT)
    tensors = {
        name: getattr(made, name) for name in ("visual_tokens", "sync_tokens", "text_tokens")
    }
    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    tensors["num_latents"] = torch.tensor(num_latents(frames.num_sync))
    _save(tensors, path)


def load_example(latents: Path, conditions: Path, device: torch.device) -> Example:
    """Return a stored example; sound and picture are cut to the shorter of the two.

    Args:
        latents: file of `store_latents`.
        conditions: file of `store_conditions`.
        device: of the tensors.
    """
    sound, tensors = load_file(latents)["latents"].to(device), load_file(conditions)
    count = int(tensors["num_latents"])
    if sound.shape[1] < count:  # silence where the sound ends before the picture
        last = sound[:, -1:].expand(-1, count - sound.shape[1])
        sound = torch.cat((sound, last), dim=1)
    made = Conditions(
        visual_tokens=tensors["visual_tokens"].to(device),
        sync_tokens=tensors["sync_tokens"].to(device),
        text_tokens=tensors["text_tokens"].to(device),
        num_latents=count,
    )
    return Example(made, sound[:, :count])


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
