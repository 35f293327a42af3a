"""Where the parts of a model lie and what runs them: chosen here, in one place.

On the CPU everything is the modules' own forward in float32: the definition, and the fastest there.
On a GPU:

    part            dtype   memory="full"           "balanced"              "low"
    transformer     bf16    resident, fused step    resident, fused step    fused step, some
                                                                            blocks streamed
      projections   bf16    resident                streamed                streamed
    Synchformer     fp16    resident, fused,        streamed                streamed
    other encoders  bf16    from graphs (memory     streamed                streamed
                            permitting)
    sound decoder   fp16    resident, fused         resident, fused         resident, fused
    sound encoder   fp16    resident                streamed                streamed

Streamed weights lie in pinned host memory and are on the GPU only for their turn
(`foley.gpu.offload`, `foley.gpu.matrix_stream`). With fp8 the transformer's blocks take half of the
memory. The projections of times and texts are 0.85 of the 5.1 billion weights of xxl, read once a
sound. bf16 has the range of float32, which encoders with large activations need. Synchformer runs
in fp16 in the published program too, and the steps of fp16 are eight times finer. The sound decoder
ends in tanh and needs them as well: at toy width the error of its waveform is 3.9 % in bf16 and
0.5 % in fp16.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from foley.configs import TINY
from foley.gpu.compilation import compile_pointwise
from foley.gpu.cuda_graphs import CudaCapture, count_free_bytes
from foley.gpu.encoder_batches import WITH_LITTLE_MEMORY, Encoders
from foley.gpu.fused_encoders import fuse_encoders, fuse_text_encoder
from foley.gpu.fused_vae import FusedSoundDecoder
from foley.gpu.matrix import Precision
from foley.gpu.matrix_stream import choose_streamed_blocks
from foley.gpu.memory_modes import (
    LOW_WORKING_BYTES,
    Memory,
    check_options,
    choose_memory,
)
from foley.gpu.offload import list_encoder_parts, list_layers, stream_modules
from foley.gpu.step_graphs import FusedStep
from foley.models.dit import FoleyDiT
from foley.models.vae import FoleyVAE
from foley.weights.analysis import load_analysis
from foley.weights.components import Components

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

# Latent frames whose sound is decoded at once where memory is short: 4 s.
_FRAMES_AT_ONCE = 200
# Encoders run from graphs only with so much free memory beside all weights. The graphs keep the
# intermediate values of the largest pieces (an estimate for xxl: 1.5 GB), which requests then lack
# for other work (2.5 GB, and as much again for each dozen clips at once).
_ENCODER_GRAPHS_FREE_BYTES = 8_000_000_000


@dataclass(frozen=True, kw_only=True)
class PlacedModel:
    """A model's parts on their device, ready to run.

    Attributes:
        dit: the transformer.
        encode_sound: latents float32 [1, L, A] of a waveform [1, S], both on the CPU. The embedded
            model's has fewer channels than its transformer: the others hold noise.
        decode_sound: waveforms [B, 1, hop * A] of latents [B, L, A]; see `FoleyVAE.decode`.
        encoders: run by their modules, or from graphs once these are prepared.
        step: runs in place of the transformer's own forward, where there is something faster.
        memory: full, balanced or low.
        precision: of the transformer's products.
    """

    dit: FoleyDiT
    encode_sound: Callable[[Tensor], Tensor]
    decode_sound: Callable[[Tensor], Tensor]
    encoders: Encoders
    step: FusedStep | None
    memory: Memory
    precision: Precision


def place(
    components: Components,
    device: torch.device,
    *,
    precision: Precision = "bf16",
    memory: Memory = "auto",
) -> PlacedModel:
    """Move the parts of a model to a device, and return what runs them.

    Args:
        components: the modules are moved and converted in place.
        device: where they run.
        precision: of the transformer's products.
        memory: the mode.

    Raises:
        ConfigError: the options exclude each other, see `check_options`.
        torch.OutOfMemoryError: the device has too little memory.
    """
    check_options(device, precision, memory)
    parts = components
    encoders: list[nn.Module] = [parts.synchformer, parts.vision, parts.text]
    modules: list[nn.Module] = [parts.dit, parts.vae, *encoders]
    if device.type != "cuda":
        for module in modules:
            to_dtype(to_device(module, device), torch.float32)
        return PlacedModel(
            dit=parts.dit,
            encode_sound=_make_sound_encoder(parts, device),
            decode_sound=parts.vae,
            encoders=Encoders(parts.synchformer, parts.vision, parts.text, device),
            step=None,
            memory="full",
            precision=precision,
        )

    if memory == "auto":
        free = count_free_bytes(device) + sum(map(_count_resident_bytes, modules))
        balanced = _count_balanced_bytes(parts, precision)
        full = 2 * sum(map(_count_elements, modules))  # all in 16 bits until it is quantised
        memory = choose_memory(full, balanced, free)
        logger.info("memory mode %s: %.1f GB are free", memory, free / 1e9)
    home = device if memory == "full" else torch.device("cpu")
    for encoder in encoders:
        is_sync = encoder is parts.synchformer
        to_dtype(to_device(encoder, home), torch.float16 if is_sync else torch.bfloat16)
    halve_sound_decoder(to_device(parts.vae, home))
    to_dtype(to_device(parts.dit, home), torch.bfloat16)
    if memory == "full":
        fuse_encoders(parts.vision, parts.synchformer)
        fuse_text_encoder(parts.text)
    else:
        for encoder in (parts.synchformer, parts.vision):
            stream_modules(encoder, [list_layers(encoder)], device)
        stream_modules(parts.text, [[parts.text.embeddings], list_layers(parts.text)], device)
        stream_modules(parts.vae, [list_encoder_parts(parts.vae)], device)
        _stream_projections(parts.dit, device)
    streamed: list[nn.Module] = []
    if memory == "low":
        room = int(count_free_bytes(device)) - LOW_WORKING_BYTES
        streamed = choose_streamed_blocks(parts.dit, 1 if precision == "fp8" else 2, room)
    step = FusedStep(parts.dit, precision, compile_pointwise(precision), CudaCapture(), streamed)
    decode_sound = FusedSoundDecoder(
        parts.vae, compiled=True, frames_at_once=None if memory == "full" else _FRAMES_AT_ONCE
    )
    # Copies and conversions of weights may still run, and work in other streams (see
    # `foley.conditioning`) is not ordered after them.
    torch.cuda.synchronize(device)
    if memory != "full":
        torch.cuda.empty_cache()  # what the blocks had in 16 bits, or while they were laid out
    is_roomy = memory == "full" and count_free_bytes(device) >= _ENCODER_GRAPHS_FREE_BYTES
    capture = CudaCapture if is_roomy else None
    return PlacedModel(
        dit=parts.dit,
        encode_sound=_make_sound_encoder(parts, device),
        decode_sound=decode_sound,
        encoders=Encoders(
            parts.synchformer,
            parts.vision,
            parts.text,
            device,
            capture,
            None if memory == "full" else WITH_LITTLE_MEMORY,
        ),
        step=step,
        memory=memory,
        precision=precision,
    )


def _stream_projections(dit: FoleyDiT, device: torch.device) -> None:
    """Stream what projects times and texts; all else but the blocks moves to the device."""
    passes = [[*dit.time_projections], [*dit.text_projections]]
    stream_modules(dit, passes, device, staying=[*dit.joint_blocks, *dit.audio_blocks])


def _make_sound_encoder(parts: Components, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function from waveforms to latents."""
    if parts.preset.name == TINY.name:
        return load_analysis()
    vae = parts.vae
    return lambda waveform: vae(waveform[:, None].to(device), encode=True).float().cpu()


def to_device(module: Module, device: torch.device) -> Module:
    """Move a module, in place, and return it.

    Args:
        module: any.
        device: where its weights go.
    """
    # Not module.to(): diffusers' own warns of modules kept in float32 even where there are none.
    return nn.Module.to(module, device=device)


def to_dtype(module: Module, dtype: torch.dtype) -> Module:
    """Convert a module, in place, and return it.

    Args:
        module: on its device already, so that weights stored in few bits are copied in few bits.
        dtype: of its floating-point weights.
    """
    return nn.Module.to(module, dtype=dtype)


def halve_sound_decoder(vae: FoleyVAE) -> FoleyVAE:
    """Convert the autoencoder's convolutions to fp16, in place, and return it.

    Snakes keep float32, and compute in it.

    Args:
        vae: on any device.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            to_dtype(module, torch.float16)
    return vae


def _count_balanced_bytes(parts: Components, precision: Precision) -> int:
    """Return the bytes of weights that stay on the GPU in the mode balanced."""
    dit = parts.dit
    blocks = sum(map(_count_elements, (dit.joint_blocks, dit.audio_blocks)))
    projections = sum(map(_count_elements, (dit.time_projections, dit.text_projections)))
    others = _count_elements(dit) - blocks - projections + _count_elements(parts.vae.decoder)
    return (1 if precision == "fp8" else 2) * blocks + 2 * others


def _count_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _count_resident_bytes(module: nn.Module) -> int:
    """Return the bytes of weights that are on a GPU already."""
    weights = (p for p in module.parameters() if p.is_cuda)
    return sum(p.numel() * p.element_size() for p in weights)
