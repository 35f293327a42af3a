"""The audio decoder: as the pipeline runs it, and layer by layer."""

# C channels, S samples

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.model import random_module
from benchmarks.records import percentile
from foley.configs import LATENT_RATE
from foley.gpu.fused_vae import FusedSoundDecoder, convolve, upsample
from foley.gpu.placement import halve_sound_decoder
from foley.models.vae import FoleyVAE


def measure_decoder(bench: Bench) -> dict[str, Any]:
    """Seconds of the audio decoder as the pipeline runs it, and its error against float32."""
    vae: Any = random_module("vae", bench.preset, bench.device, torch.float32)
    latents = torch.randn(
        1, bench.preset.vae.latent_dim, round(bench.args.seconds * LATENT_RATE), device=bench.device
    )
    found: dict[str, Any] = {}

    def measure(name: str, decode: Callable[[Tensor], Tensor], exact: Tensor | None) -> None:
        begun = time.perf_counter()
        try:
            with torch.inference_mode():
                made = decode(latents).float()
                first = time.perf_counter() - begun
                samples = bench.measure_seconds(lambda: decode(latents), 10 if bench.on_gpu else 1)
        except Exception as error:  # noqa: BLE001 - the other variants are measured nevertheless
            found[name] = {"failed": (str(error) or repr(error)).splitlines()[0]}
            print(f"{name}: failed: {found[name]['failed'][:150]}")
            return
        found[name] = {"median": percentile(samples, 50), "samples": samples, "first": first}
        if exact is not None:
            found[name]["error"] = ((made - exact).norm() / exact.norm()).item()
        error_text = f", error {found[name]['error']:.1e}" if exact is not None else ""
        text = f"{name}: {1000 * found[name]['median']:.2f} ms{error_text}, first {first:.1f} s"
        print(text, flush=True)

    measure("float32", vae, None)
    exact = vae(latents).float()
    halve_sound_decoder(vae)
    if not bench.on_gpu:
        measure("fp16", vae, exact)
    measure("product", FusedSoundDecoder(vae, compiled=bench.on_gpu), exact)
    return found


def measure_layers(bench: Bench) -> dict[str, float]:
    """Seconds of each convolution in the channels-last layout, by block."""
    vae: Any = random_module("vae", bench.preset, bench.device, torch.float32)
    with torch.inference_mode():
        return _layers(bench, halve_sound_decoder(vae), round(bench.args.seconds * LATENT_RATE))


def _layers(bench: Bench, vae: FoleyVAE, num_latents: int) -> dict[str, float]:
    FusedSoundDecoder(vae, compiled=False)  # converts the weights to that layout
    found: dict[str, float] = {}

    def measure(name: str, run: Callable[[], object], flop: float, num_bytes: float) -> None:
        try:
            found[name] = seconds = bench.measure_kernel_seconds(run, 5)
        except Exception as error:  # noqa: BLE001 - the other layers are measured nevertheless
            print(f"  {name:44} failed: {(str(error) or repr(error)).splitlines()[0][:100]}")
            return
        rates = f"{flop / seconds / 1e12:6.0f} TFLOP/s {num_bytes / seconds / 1e12:6.2f} TB/s"
        print(f"  {name:44}{1e6 * seconds:9.1f} us {rates}", flush=True)

    num_samples = num_latents
    blocks: Any = vae.decoder.blocks
    for index, block in enumerate(blocks):
        wide, c = block.upsample.weight.shape[:2]
        rate = block.upsample.stride[0]
        x = _pixels(bench, wide, num_samples)
        num_samples *= rate
        size = 2.0 * c * num_samples
        run: Callable[[], object] = partial(upsample, block.upsample, x)
        where = f"block {index}, {c} x {num_samples}"
        measure(f"{where}: upsample", run, 4.0 * num_samples * wide * c, size * (1 + 2 / rate))
        x = _pixels(bench, c, num_samples)
        for unit in block.units:
            d = unit.conv1.dilation[0]
            flop = 14.0 * num_samples * c * c
            ways = _WAYS if d > 1 and c <= 128 else {"direct": _convolve_directly}
            for how, convolve_dilated in ways.items():
                run = partial(convolve_dilated, unit.conv1, x)
                measure(f"{where}: 7 taps, {d} apart, {how}", run, flop, 2 * size)
        flop = 2.0 * num_samples * c * c
        measure(f"{where}: 1 tap", partial(convolve, block.units[0].conv2, x), flop, 2 * size)
        del x
        bench.reset_peak()
    return found


def _convolve_directly(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A dilated convolution by the library as it is."""
    padding, dilation = (0, int(conv.padding[0])), (1, conv.dilation[0])
    return F.conv2d(x, conv.weight[:, :, None], conv.bias, padding=padding, dilation=dilation)


def _convolve_by_taps(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A dilated convolution as one product, with all taps laid side by side."""
    reach, dilation, num_samples = int(conv.padding[0]), conv.dilation[0], x.shape[-1]
    padded = F.pad(x[:, :, 0].transpose(1, 2), (0, 0, reach, reach))  # [B, S + .., C]
    starts = range(0, dilation * conv.weight.shape[-1], dilation)
    side_by_side = torch.cat([padded[:, i : i + num_samples] for i in starts], dim=-1)
    made = F.linear(side_by_side, conv.weight.transpose(1, 2).flatten(1), conv.bias)
    return made.transpose(1, 2)[:, :, None]


# How a dilated convolution can be computed; the product uses the phases.
_WAYS = {"direct": _convolve_directly, "phases": convolve, "taps": _convolve_by_taps}


def _pixels(bench: Bench, channels: int, num_samples: int) -> Tensor:
    x = torch.randn(1, channels, 1, num_samples, device=bench.device).half()
    return x.contiguous(memory_format=torch.channels_last)
