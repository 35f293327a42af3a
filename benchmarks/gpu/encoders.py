"""The encoders: their kernels, the errors of their GPU form, and other batch sizes."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, drain
from benchmarks.gpu.model import random_frames, random_module
from benchmarks.gpu.profiling import profile_run
from benchmarks.records import percentile
from foley.conditioning import encode_sync, encode_text, encode_visual, tokenize
from foley.gpu.cuda_graphs import CudaCapture, count_free_bytes
from foley.gpu.encoder_batches import Cut, Encoders, Pieces
from foley.gpu.fused_encoders import fuse_encoders, fuse_text_encoder
from foley.gpu.placement import to_dtype
from foley.models.encoders import normalise_frames
from foley.models.synchformer import DividedAttention
from foley.weights.parts import load_tokenizer
from foley.weights.selection import EMBEDDED_WEIGHTS

# Frames and segments per batch.
_PIECES = ((16, 6), (32, 12), (64, 24), (64, 12))
# Queries per program, and warps, of the kernel for attention over space.
_TILES = ((128, 8), (64, 4))


@torch.inference_mode()
def measure_encoders(bench: Bench) -> dict[str, Any]:
    """Seconds, kernels and errors of each encoder on one clip."""
    device = bench.device
    found: dict[str, Any] = {"errors": {}}
    vision: Any = random_module("vision", bench.preset, device, torch.float32)
    sync: Any = random_module("synchformer", bench.preset, device, torch.float32)
    text: Any = random_module("text", bench.preset, device, bench.half)
    frames = random_frames(bench.preset, bench.args.seconds)
    visual_frames, sync_frames = frames.visual.to(device), frames.sync.to(device)

    def samples() -> tuple[Tensor, Tensor]:
        seen = vision(pixel_values=normalise_frames(visual_frames[:4], vision.dtype)).pooler_output
        return seen.float(), sync(normalise_frames(sync_frames[:32], sync.dtype)).float()

    def errors() -> dict[str, float]:
        pairs = zip(("visual", "sync"), samples(), exact, strict=True)
        return {name: ((made - e).norm() / e.norm()).item() for name, made, e in pairs}

    exact = samples()
    to_dtype(vision, bench.half)
    to_dtype(sync, torch.float16 if bench.on_gpu else bench.half)
    found["errors"]["half"] = errors()
    if bench.on_gpu:
        fuse_encoders(vision, sync)
        fuse_text_encoder(text)
    found["errors"]["product"] = errors()
    print(found["errors"])

    words = tokenize(load_tokenizer(EMBEDDED_WEIGHTS / "text"), text, "noisy, harsh", "a dog barks")

    def together(encoders: Encoders) -> None:
        """Run all encoders in the order of the pipeline."""
        drain(encode_visual(encoders, frames.visual))
        tokens = encode_text(encoders, words)
        drain(encode_sync(encoders, frames.sync))
        tokens()

    def runs(encoders: Encoders) -> dict[str, Callable[[], object]]:
        return {
            "visual": lambda: drain(encode_visual(encoders, visual_frames)),
            "sync": lambda: drain(encode_sync(encoders, sync_frames)),
            "text": lambda: encode_text(encoders, words)(),
            "visual_from_host": lambda: drain(encode_visual(encoders, frames.visual)),
            "sync_from_host": lambda: drain(encode_sync(encoders, frames.sync)),
            "together": lambda: together(encoders),
        }

    plain = Encoders(sync, vision, text, device)
    for name, run in runs(plain).items():
        shown = 22 if name in ("visual", "sync", "text") else 0
        found[name] = profile_run(bench, name, run, rows_shown=shown)
    if not bench.on_gpu:
        return found

    for num_frames, num_segments in _PIECES:
        cut = Cut(Pieces(num_frames), Pieces(num_segments))
        cutting = Encoders(sync, vision, text, device, cut=cut)
        pieces = f"{num_frames} frames, {num_segments} segments per batch"
        for name in ("visual", "sync", "together"):
            _time(bench, found, f"{name}, {pieces}", runs(cutting)[name])
    for num_segments in (12, 24):
        cut = Cut(Pieces(32, step=8), Pieces(num_segments, step=4))
        fast = Encoders(sync, vision, text, device, CudaCapture, cut)
        begun, free = time.perf_counter(), count_free_bytes(device)
        fast.prepare()
        bench.wait()
        pool = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        title = f"from graphs, {num_segments} segments per batch"
        found[title] = {"prepare": time.perf_counter() - begun, "pool_bytes": pool}
        print(f"{title}: {found[title]}; {free / 1e9:.1f} GB were free")
        for name, run in runs(fast).items():
            _time(bench, found, f"{name}, {title}", run)
        fast.release()
        bench.reset_peak()
    found["attention"] = _attention(bench, sync)
    return found


def _time(bench: Bench, found: dict[str, Any], name: str, run: Callable[[], object]) -> None:
    try:
        samples = bench.measure_seconds(run, 8, warm_up=3)
    except Exception as error:  # noqa: BLE001 - the other variants are measured nevertheless
        found[name] = {"failed": (str(error) or repr(error)).splitlines()[0]}
        print(f"{name}: failed: {found[name]['failed'][:150]}")
        return
    found[name] = {"median": percentile(samples, 50), "samples": samples}
    print(f"{name}: {1000 * found[name]['median']:.2f} ms", flush=True)


def _attention(bench: Bench, sync: Any) -> dict[str, float]:
    """Seconds of Synchformer's attention kernels for 12 segments, without the projections."""
    from foley.gpu import triton_attention

    attention = next(m for m in sync.modules() if isinstance(m, DividedAttention))
    num_tokens = sync.num_tubelets * (sync.position.shape[1] - 1) + 1
    width = attention.qkv.in_features
    qkv = torch.randn(12, num_tokens, 3 * width, device=bench.device).to(bench.half)
    shape = attention.num_heads, sync.num_tubelets
    found: dict[str, float] = {}

    def measure(name: str, over_time: bool) -> None:
        run = lambda: triton_attention.attend_divided(qkv, *shape, over_time)  # noqa: E731
        try:
            found[name] = bench.measure_kernel_seconds(run)
        except Exception as error:  # noqa: BLE001 - the other kernels are measured nevertheless
            print(f"  {name:38} failed: {(str(error) or repr(error)).splitlines()[0][:100]}")
            return
        rate = 8 * qkv.numel() / 3 / found[name] / 1e12
        print(f"  {name:38}{1e6 * found[name]:9.1f} us {rate:8.2f} TB/s", flush=True)

    measure("attention over time", over_time=True)
    before = triton_attention._QUERIES, triton_attention._QUERY_WARPS
    for tile in _TILES:
        triton_attention._QUERIES, triton_attention._QUERY_WARPS = tile
        measure(f"attention over space {tile}", over_time=False)
    triton_attention._QUERIES, triton_attention._QUERY_WARPS = before
    return found
