"""The encoders: their kernels, the errors of their GPU form, and ways that may be faster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.model import random_frames, random_module
from benchmarks.gpu.profiling import profiled
from benchmarks.records import percentile
from foley import conditioning
from foley.acceleration import fuse_encoders, to_dtype
from foley.checkpoints import load_tokenizer
from foley.conditioning import encode_sync, encode_text, encode_visual, normalise_frames, tokenize
from foley.models.graphs import CudaCapture
from foley.models.synchformer import DividedAttention
from foley.selection import EMBEDDED_WEIGHTS

# Frames and segments at a time.
_PIECES = ((16, 6), (32, 12), (64, 24))
# Of the kernel that attends over space: queries of a program, warps.
_TILES = ((128, 8), (64, 4), (64, 8), (128, 4))


@torch.inference_mode()
def encoders(bench: Bench) -> dict[str, Any]:
    """What the conditions of a clip cost, encoder by encoder."""
    device, found = bench.device, {"errors": {}}
    vision: Any = random_module("vision", bench.preset, device, torch.float32)
    sync: Any = random_module("synchformer", bench.preset, device, torch.float32)
    text: Any = random_module("text", bench.preset, device, bench.half)
    frames = random_frames(bench.preset, bench.args.seconds)
    visual_frames, sync_frames = frames.visual.to(device), frames.sync.to(device)

    def samples() -> tuple[Tensor, Tensor]:
        dtype = vision.dtype
        seen = vision(pixel_values=normalise_frames(visual_frames[:4], dtype)).pooler_output
        return seen.float(), sync(normalise_frames(sync_frames[:32], dtype)).float()

    def errors() -> dict[str, float]:
        pairs = zip(("visual", "sync"), samples(), exact, strict=True)
        return {name: ((made - e).norm() / e.norm()).item() for name, made, e in pairs}

    exact = samples()
    for part in (vision, sync):
        to_dtype(part, bench.half)
    found["errors"]["half"] = errors()
    if bench.on_gpu:
        fuse_encoders(vision, sync)
    found["errors"]["product"] = errors()
    print(found["errors"])

    words = tokenize(load_tokenizer(EMBEDDED_WEIGHTS / "text"), text, "noisy, harsh", "a dog barks")
    runs: dict[str, Callable[[], object]] = {
        "visual": lambda: _drained(encode_visual(vision, visual_frames, device)),
        "sync": lambda: _drained(encode_sync(sync, sync_frames, device)),
        "text": lambda: encode_text(text, words, device),
        "visual_from_host": lambda: _drained(encode_visual(vision, frames.visual, device)),
        "sync_from_host": lambda: _drained(encode_sync(sync, frames.sync, device)),
    }
    for name, run in runs.items():
        found[name] = profiled(bench, name, run, rows_shown=0 if "host" in name else 22)
    if not bench.on_gpu:
        return found

    for num_frames, num_segments in _PIECES:
        with _pieces(num_frames, num_segments):
            for name, count in (("visual", num_frames), ("sync", num_segments)):
                _time(bench, found, f"{name}, {count} at a time", runs[name])
    _graphed(bench, found, vision, sync, visual_frames, sync_frames)
    found["attention"] = _attention(bench, sync)
    return found


def _drained(encoding: Iterator[None]) -> None:
    for _ in encoding:
        pass


@contextmanager
def _pieces(num_frames: int, num_segments: int) -> Iterator[None]:
    """Encodings in pieces of other sizes."""
    sizes = conditioning._FRAMES_AT_ONCE, conditioning._SEGMENTS_AT_ONCE
    before = [size["cuda"] for size in sizes]
    for size, value in zip(sizes, (num_frames, num_segments), strict=True):
        size["cuda"] = value
    try:
        yield
    finally:
        for size, value in zip(sizes, before, strict=True):
            size["cuda"] = value


def _time(bench: Bench, found: dict[str, Any], name: str, run: Callable[[], object]) -> None:
    try:
        samples = bench.timed(run, 8, warm_up=3)
    except Exception as error:  # noqa: BLE001 - one way must not lose the others
        found[name] = {"failed": (str(error) or repr(error)).splitlines()[0]}
        print(f"{name}: failed: {found[name]['failed'][:150]}")
        return
    found[name] = {"median": percentile(samples, 50), "samples": samples}
    print(f"{name}: {1000 * found[name]['median']:.2f} ms", flush=True)


def _graphed(
    bench: Bench,
    found: dict[str, Any],
    vision: Any,
    sync: Any,
    visual_frames: Tensor,
    sync_frames: Tensor,
) -> None:
    """One piece of each encoder as it is, and from a graph: what the launches cost."""
    pixels = normalise_frames(visual_frames[:32], vision.dtype)
    clip = normalise_frames(sync_frames[: 11 * 8 + 16], sync.dtype)
    pieces: dict[str, Callable[[], Tensor]] = {
        "32 frames": lambda: vision(pixel_values=pixels).pooler_output,
        "12 segments": lambda: sync(clip, segments_at_once=12),
    }
    for name, run in pieces.items():
        _time(bench, found, name, run)
        try:
            replay, _ = CudaCapture()(run)
        except Exception as error:  # noqa: BLE001 - likewise
            print(f"{name}: no graph: {(str(error) or repr(error)).splitlines()[0][:150]}")
            continue
        _time(bench, found, f"{name}, from a graph", replay)


def _attention(bench: Bench, sync: Any) -> dict[str, float]:
    """Synchformer's attentions of 12 segments, between their two products."""
    from foley.models import kernels

    attention = next(m for m in sync.modules() if isinstance(m, DividedAttention))
    num_tokens = sync.num_tubelets * (sync.position.shape[1] - 1) + 1
    width = attention.qkv.in_features
    qkv = torch.randn(12, num_tokens, 3 * width, device=bench.device).to(bench.half)
    shape = attention.num_heads, sync.num_tubelets
    found: dict[str, float] = {}

    def measure(name: str, over_time: bool) -> None:
        run = lambda: kernels.attend_divided(qkv, *shape, over_time)  # noqa: E731
        try:
            found[name] = bench.kernel_seconds(run)
        except Exception as error:  # noqa: BLE001 - likewise
            print(f"  {name:38} failed: {(str(error) or repr(error)).splitlines()[0][:100]}")
            return
        rate = 8 * qkv.numel() / 3 / found[name] / 1e12
        print(f"  {name:38}{1e6 * found[name]:9.1f} us {rate:8.2f} TB/s", flush=True)

    measure("attention over time", over_time=True)
    before = kernels._QUERIES, kernels._QUERY_WARPS
    for tile in _TILES:
        kernels._QUERIES, kernels._QUERY_WARPS = tile
        measure(f"attention over space {tile}", over_time=False)
    kernels._QUERIES, kernels._QUERY_WARPS = before
    return found
