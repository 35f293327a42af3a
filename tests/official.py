"""A folder of official files at toy width: real names, layouts and formats, random numbers."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from foley.configs import TINY, Preset
from foley.models.encoders import build_text_encoder, build_vision_encoder
from foley.weights.pickles import can_read_pickles
from tests.toys import TOKENIZER

MANIFESTS = Path(__file__).parent / "assets" / "manifests"

# Sizes of the published model -> sizes here; taps and rates stay.
_DIT_SIZES = {1408: 64, 2816: 128, 4224: 192, 5632: 256, 8448: 384, 12672: 576, 3840: 256}
_DIT_SIZES |= {128: 16, 768: 32}
_SYNC_SIZES = {768: 32, 2304: 96, 3072: 128}
_NUM_BLOCKS = {"triple_blocks": 2, "single_blocks": 2, "blocks": 1}

Format = Literal["pth", "fp16", "fp8"]


def official_preset() -> Preset:
    """Return the preset of the folder's files. It has a published name, by which they are found."""
    width = {"hidden_dim": 32, "num_heads": 4, "mlp_dim": 128, "num_layers": 1}
    return Preset(
        name="xl",
        dit=dataclasses.replace(
            TINY.dit,
            latent_dim=16,
            hidden_dim=64,
            num_heads=4,
            num_joint_blocks=2,
            num_audio_blocks=2,
            visual_dim=32,
            sync_dim=32,
            text_dim=32,
        ),
        vae=dataclasses.replace(TINY.vae, latent_dim=16, encoder_dim=16, decoder_dim=256),
        synchformer=dataclasses.replace(TINY.synchformer, **width),
        vision=dataclasses.replace(TINY.vision, **width, image_size=32),
        text=dataclasses.replace(TINY.text, **width),
    )


def write_official_folder(folder: Path, kind: Format = "pth") -> Path:
    """Write the published files, or third-party safetensors in half or fp8 precision.

    A test that needs them is skipped where PyTorch has known holes in reading such files: there,
    only the true published ones are read.
    """
    if not can_read_pickles(torch.__version__):
        pytest.skip(f"PyTorch {torch.__version__} reads no made-up files")
    folder.mkdir(parents=True)
    dit = _from_manifest("dit_xl", lambda size: _DIT_SIZES.get(size, size))
    vae = _from_manifest("dac_vae", lambda size: size // 8 if size > 16 else size)
    sync = _from_manifest("synchformer_full", lambda size: _SYNC_SIZES.get(size, size))
    if kind == "pth":
        torch.save(dit, folder / "hunyuanvideo_foley_xl.pth")
        metadata = json.loads((MANIFESTS / "dac_vae.json").read_text())["kwargs"]
        wrapped = {"state_dict": vae, "metadata": {"kwargs": metadata}}
        torch.save(wrapped, folder / "vae_128d_48k.pth")
        torch.save(sync, folder / "synchformer_state_dict.pth")
    else:
        weight = torch.float8_e4m3fn if kind == "fp8" else torch.float16
        save_file(_cast(dit, weight), folder / "hunyuanvideo_foley_xl.safetensors")
        save_file(_cast(vae, torch.float16), folder / "vae_128d_48k_fp16.safetensors")
        save_file(_cast(sync, torch.float16), folder / "synchformer_state_dict_fp16.safetensors")
    preset = official_preset()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vision, text = build_vision_encoder(preset.vision), build_text_encoder(preset.text)
    _write_vision(vision.state_dict(), folder / "siglip2-base-patch16-512")
    _write_text(text.state_dict(), folder / "larger_clap_general")
    return folder


def _from_manifest(name: str, size: Callable[[int], int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, (shape, dtype) in json.loads((MANIFESTS / f"{name}.json").read_text())[
        "tensors"
    ].items():
        if _is_in_a_block_too_many(key):
            continue
        small = [s if i > 1 else size(s) for i, s in enumerate(shape)]
        if key == "sync_pos_emb" or key.endswith(("pos_embed", "temp_embed", "cls_token")):
            small = [*shape[:-1], size(shape[-1])]
        tensor = torch.randn(small, generator=generator) * 0.05
        weights[key] = tensor.to(getattr(torch, dtype))
    return weights


def _is_in_a_block_too_many(key: str) -> bool:
    parts = key.split(".")
    return any(
        name in _NUM_BLOCKS and index.isdigit() and int(index) >= _NUM_BLOCKS[name]
        for name, index in itertools.pairwise(parts)
    )


def _cast(weights: dict[str, Tensor], matrices: torch.dtype) -> dict[str, Tensor]:
    # Third parties store matrices in the small type and vectors in half precision.
    return {k: w.to(matrices if w.ndim > 1 else torch.float16) for k, w in weights.items()}


def _write_vision(weights: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir()
    both = {f"vision_model.{key}": tensor.contiguous() for key, tensor in weights.items()}
    both |= {"text_model.embeddings.token_embedding.weight": torch.zeros(2, 2)}
    both |= {"logit_scale": torch.zeros(1), "logit_bias": torch.zeros(1)}
    save_file(both, folder / "model.safetensors")


def _write_text(weights: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir()
    both = {f"text_model.{key}": tensor for key, tensor in weights.items()}
    both |= {
        "text_model.embeddings.position_ids": torch.zeros(1, 4),
        "text_model.pooler.dense.weight": torch.zeros(2, 2),
        "text_projection.linear1.weight": torch.zeros(2, 2),
        "audio_model.audio_encoder.norm.weight": torch.zeros(2),
        "logit_scale_a": torch.zeros(1),
    }
    torch.save(both, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    for path in TOKENIZER.glob("tokenizer*"):
        shutil.copy(path, folder)
