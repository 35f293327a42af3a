"""How the parts of a model lie on a device and what runs them: chosen here, in one place.

On the CPU everything is the modules' own forward in float32: the definition, and the fastest there.
On a GPU:

    part            dtype   memory="full"           "balanced"              "low"
    transformer     bf16    resident, fused step    resident, fused step    some blocks streamed
    encoders        bf16    resident, fused,        streamed                streamed
                            from graphs (memory
                            permitting)
    sound decoder   fp16    resident, fused         streamed                streamed

What is streamed lies in pinned host memory and is on the GPU only for its turn
(`foley.gpu.offload`). bf16 has the range of float32, which encoders with large activations
need; the sound decoder ends in tanh and needs the finer steps of fp16 (at toy width the error of
its waveform is 3.9 % in bf16 and 0.5 % in fp16).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import SiglipVisionModel

from foley.errors import ConfigError
from foley.gpu.encoder_batches import Encoders
from foley.gpu.fused_step import FusedContext, FusedDiT
from foley.gpu.fused_vae import FusedSoundDecoder
from foley.gpu.offload import Streamed, split_by_bytes
from foley.gpu.pointwise import Pointwise, Precision, compiled, kernels
from foley.gpu.step_graphs import Capture, CudaCapture, StepGraphs, free_bytes
from foley.models.dit import DiTContext, FoleyDiT, TimeModulation
from foley.models.encoders import LinearGelu, fuse_text_encoder, fuse_vision_encoder
from foley.models.synchformer import Block, DividedAttention, FrameAggregation, Synchformer
from foley.models.vae import FoleyVAE
from foley.weights.components import Components

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)
Memory = Literal["auto", "full", "balanced", "low"]

# What a request of one 15 s clip needs beside the weights, with room to spare.
_WORKING_BYTES = 2_500_000_000
# With so much free memory, any preset is loaded straight to the GPU.
_ROOMY_BYTES = 24_000_000_000
# Blocks of the transformer that stay in memory="low": with the rest of it (1.8 GB of xxl), the
# largest other part (0.8 GB) and the working memory, within 8 GB.
_RESIDENT_BLOCK_BYTES = 3_000_000_000
# Free beside all weights, or encoders run without graphs: those keep what lies between the layers
# of the largest pieces (an estimate for xxl: 1.5 GB), which requests then lack for other work
# (`_WORKING_BYTES`, and as much again for each dozen clips at once).
_ENCODER_GRAPHS_FREE_BYTES = 8_000_000_000


class FusedStep:
    """`FusedDiT` behind graphs, for `foley.denoise.VelocityModel`.

    Args:
        dit: see `FusedDiT`.
        precision: likewise.
        pointwise: likewise.
        capture: see `StepGraphs`.
    """

    def __init__(
        self, dit: FoleyDiT, precision: Precision, pointwise: Pointwise, capture: Capture
    ) -> None:
        self.fused = FusedDiT(dit, precision, pointwise)
        self._graphs = StepGraphs(self.fused, capture)
        self._context: DiTContext | None = None
        self._fused_context: FusedContext | None = None

    def __call__(self, latents: Tensor, time: TimeModulation, context: DiTContext) -> Tensor:
        """The velocities [sum of A, L] of packed clips."""
        if self._fused_context is None or context is not self._context:
            self._context, self._fused_context = context, FusedContext.of(context)
        return self._graphs(latents, time, self._fused_context)

    def forget(self) -> None:
        """Let go of the last batch."""
        self._context, self._fused_context = None, None

    def release(self) -> None:
        """Let go of all that earlier steps left in memory, the graphs too."""
        self.forget()
        self._graphs.forget()


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A model's parts on their device, ready to run.

    Attributes:
        decode_sound: `FoleyVAE.decode`, or something faster.
        encoders: by their modules, or from graphs once they are prepared.
        step: in place of the transformer's own forward, where there is something faster.
        memory: full, balanced or low.
        precision: of the transformer's products.
    """

    dit: FoleyDiT
    decode_sound: Callable[[Tensor], Tensor]
    encoders: Encoders
    step: FusedStep | None
    memory: Memory
    precision: Precision


def check_options(device: torch.device, precision: Precision, memory: Memory) -> None:
    """Refuse what contradicts itself.

    Raises:
        ConfigError: says what, and what to choose instead.
    """
    if device.type != "cuda" and (precision != "bf16" or memory not in ("auto", "full")):
        raise ConfigError(
            f"precision {precision} and memory {memory} are for GPUs, and the model runs on "
            f"{device}, in float32; leave them at bf16 and auto"
        )
    if precision == "fp8" and memory == "low":
        raise ConfigError(
            "precision fp8 needs the transformer resident, and memory low streams it; "
            "use memory balanced or precision bf16"
        )
    if precision == "fp8" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(
            f"precision fp8 needs a GPU of compute capability 8.9 or more, and {device} has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}; use bf16"
        )


def loading_device(device: torch.device, memory: Memory) -> torch.device:
    """Where a model is loaded before it is placed: on the GPU only if all of it may stay there."""
    if device.type != "cuda" or memory == "full":
        return device
    if memory == "auto" and torch.cuda.mem_get_info(device)[0] >= _ROOMY_BYTES:
        return device
    return torch.device("cpu")


def choose_memory(dit_bytes: int, other_bytes: int, free_bytes: int) -> Memory:
    """The mode that fits, for memory="auto".

    Args:
        dit_bytes: of the transformer as it will lie on the device.
        other_bytes: of the other parts.
        free_bytes: on the device.
    """
    if free_bytes >= dit_bytes + other_bytes + _WORKING_BYTES:
        return "full"
    # What is streamed is present a layer at a time.
    return "balanced" if free_bytes >= dit_bytes + _WORKING_BYTES else "low"


def place(
    components: Components,
    device: torch.device,
    *,
    precision: Precision = "bf16",
    memory: Memory = "auto",
) -> Placed:
    """The parts of a model on a device. The given modules are the ones that are moved.

    Raises:
        ConfigError: see `check_options`.
    """
    check_options(device, precision, memory)
    parts = components
    encoders: list[nn.Module] = [parts.synchformer, parts.vision, parts.text]
    modules: list[nn.Module] = [parts.dit, parts.vae, *encoders]
    if device.type != "cuda":
        for module in modules:
            to_dtype(to_device(module, device), torch.float32)
        return Placed(
            dit=parts.dit,
            decode_sound=parts.vae,
            encoders=Encoders(parts.synchformer, parts.vision, parts.text, device),
            step=None,
            memory="full",
            precision=precision,
        )

    if memory == "auto":
        dit, *others = (2 * _num_elements(module) for module in modules)  # all in 16 bits
        free = torch.cuda.mem_get_info(device)[0] + sum(map(_resident_bytes, modules))
        memory = choose_memory(dit, sum(others), free)
        logger.info("memory mode %s: %.1f GB are free", memory, free / 1e9)
    home = device if memory == "full" else torch.device("cpu")
    for encoder in encoders:
        to_dtype(to_device(encoder, home), torch.bfloat16)
    halve_sound_decoder(to_device(parts.vae, home))
    step: FusedStep | None = None
    decode_sound: Callable[[Tensor], Tensor] = parts.vae
    if memory == "low":
        to_dtype(to_device(parts.dit, home), torch.bfloat16)
        stream_blocks(parts.dit, device, _RESIDENT_BLOCK_BYTES)
    else:
        to_dtype(to_device(parts.dit, device), torch.bfloat16)
        step = FusedStep(parts.dit, precision, compiled(precision), CudaCapture())
    if memory == "full":
        fuse_encoders(parts.vision, parts.synchformer)
        fuse_text_encoder(parts.text)
        decode_sound = FusedSoundDecoder(parts.vae, compiled=True)
    else:
        for module in modules[1:]:
            Streamed([module], device)
    # Weights may still be on their way or converted, and not all that reads them runs in order
    # with that: see `foley.conditioning`.
    torch.cuda.synchronize(device)
    is_roomy = memory == "full" and free_bytes(device) >= _ENCODER_GRAPHS_FREE_BYTES
    capture = CudaCapture if is_roomy else None
    return Placed(
        dit=parts.dit,
        decode_sound=decode_sound,
        encoders=Encoders(parts.synchformer, parts.vision, parts.text, device, capture),
        step=step,
        memory=memory,
        precision=precision,
    )


def to_device(module: Module, device: torch.device) -> Module:
    """The module, moved."""
    # Not module.to(): diffusers' own warns of modules kept in float32 even where there are none.
    return nn.Module.to(module, device=device)


def to_dtype(module: Module, dtype: torch.dtype) -> Module:
    """The module, converted, in place."""
    # After it was moved: what is stored in few bits travels in few.
    return nn.Module.to(module, dtype=dtype)


def halve_sound_decoder(vae: FoleyVAE) -> FoleyVAE:
    """The autoencoder with its convolutions in fp16; snakes keep float32, and compute in it."""
    for module in vae.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            to_dtype(module, torch.float16)
    return vae


def fuse_encoders(vision: SiglipVisionModel, synchformer: Synchformer) -> None:
    """Both visual encoders in fewer kernels, on a GPU."""
    fuse_vision_encoder(vision)
    fuse_synchformer(synchformer)
    compile_layers(vision)
    compile_layers(synchformer)


def fuse_synchformer(synchformer: Synchformer) -> None:
    """Its attentions by kernels of their own, where these suit it; its activations in products.

    Those are of gelu's tanh approximation: 0.01 % from gelu itself at toy width, where bf16 is at
    0.45 % with either.
    """
    num_patches = synchformer.position.shape[1] - 1
    for module in synchformer.modules():
        if isinstance(module, Block | FrameAggregation):
            wide = module.mlp[0]
            assert isinstance(wide, nn.Linear)
            module.mlp[0], module.mlp[1] = LinearGelu(wide), nn.Identity()
        if not isinstance(module, DividedAttention | FrameAggregation):
            continue
        if not module.qkv.weight.is_cuda or kernels is None:
            continue
        width = module.qkv.in_features // module.num_heads
        if isinstance(module, FrameAggregation):
            if kernels.serves(width):
                module.function = kernels.attend_first
        elif kernels.serves_divided(width, synchformer.num_tubelets, num_patches):
            module.function = kernels.attend_divided


def compile_layers(module: nn.Module) -> None:
    """The layers of a transformer compiled, which all share what was compiled for one of them."""
    for child in module.modules():
        if isinstance(child, nn.ModuleList):
            for layer in child:
                layer.compile()


def stream_blocks(dit: FoleyDiT, device: torch.device, resident_bytes: int) -> None:
    """Stream the blocks beyond `resident_bytes`; all else of a transformer stays on the device."""
    blocks = [*dit.joint_blocks, *dit.audio_blocks]
    _, streamed = split_by_bytes(blocks, resident_bytes)
    if streamed:
        Streamed(streamed, device)
    away = {id(weight) for block in streamed for weight in block.parameters()}
    for weight in dit.parameters():
        if id(weight) not in away:
            weight.data = weight.data.to(device)


def _num_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _resident_bytes(module: nn.Module) -> int:
    """On a GPU already."""
    weights = (p for p in module.parameters() if p.is_cuda)
    return sum(p.numel() * p.element_size() for p in weights)
