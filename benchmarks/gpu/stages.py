"""A whole generation on the device by its stages, and what the short ones consist of."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, drained, settled
from benchmarks.gpu.model import random_components, random_frames
from benchmarks.records import percentile
from foley.conditioning import encode_sync, encode_text, encode_visual, tokenize
from foley.configs import LATENT_RATE
from foley.denoise import clip_context, denoise
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.sampling import make_sigmas
from foley.types import Conditions, VideoFrames


def stages(bench: Bench) -> dict[str, Any]:
    """A generation from frames in host memory to a waveform in host memory, by its stages.

    In the first of the precisions.
    """
    args = bench.args
    precision = args.precision[0] if bench.on_gpu else "bf16"
    components = random_components(bench, bench.device)
    pipeline = FoleyPipeline(
        components, bench.device, precision=precision, memory="full" if bench.on_gpu else "auto"
    )
    pipeline.warm_up()
    frames = random_frames(bench.preset, args.seconds)
    request = GenerationRequest(seed=1, num_inference_steps=args.steps)
    bench.reset_peak()
    rows: dict[str, list[float]] = {"condition": [], "sample": [], "decode": [], "total": []}
    with settled(bench) as pauses:
        for _ in range(11 if bench.on_gpu else 2):
            begun = time.perf_counter()
            made = pipeline.generate(frames, request)
            rows["total"].append(time.perf_counter() - begun)
            for name, seconds in made.timings.items():
                rows[name].append(seconds)
        again = pipeline.generate(frames, request)
        repeats = _repeats(bench, pipeline, frames, request)
        pieces = _decode_pieces(bench, pipeline)
    medians = {name: percentile(values[1:], 50) for name, values in rows.items()}
    found = {
        precision: {
            "first": {name: values[0] for name, values in rows.items()},
            "median": medians,
            "samples": rows,
            "peak_bytes": bench.peak(),
            "peak_reserved_bytes": bench.peak_reserved(),
            "repeats_bit_for_bit": bool(torch.equal(made.waveforms, again.waveforms)),
            "different_of_20": repeats,
            "decode_pieces": pieces,
            "collector": pauses,
        },
    }
    if precision == "bf16":
        found["conditions"] = _condition_parts(bench, pipeline, frames)
    for title, seconds_of in ((precision, medians), ("decode", pieces["median"])):
        texts = (f"{name} {1000 * value:.1f} ms" for name, value in seconds_of.items())
        print(f"{title}: {', '.join(texts)}")
    print(f"collector: {pauses}")
    print(f"of 20 runs differ from the first: {repeats}")
    return found


def _repeats(
    bench: Bench, pipeline: FoleyPipeline, frames: VideoFrames, request: GenerationRequest
) -> dict[str, int]:
    """How many of 20 runs of each stage differ from the first, given the same input bit for bit."""
    encoders, prompts = pipeline._encoders, (request.prompt, request.negative_prompt)
    words = tokenize(pipeline._tokenizer, encoders.text_model, *reversed(prompts))
    shape = 1, bench.preset.vae.latent_dim, round(bench.args.seconds * LATENT_RATE)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(bench.device)
    told = pipeline.condition(frames, *prompts)

    def sampled(conditions: Conditions, num_steps: int) -> Tensor:
        sigmas, scale = make_sigmas(num_steps), request.guidance(bench.preset)
        model = pipeline.velocity_model()
        return denoise(model, conditions, latents, sigmas, guidance_scale=scale)

    def text() -> Tensor:
        return encode_text(encoders, words)()

    runs_of: dict[str, Callable[[], Tensor]] = {
        "visual": lambda: drained(encode_visual(encoders, frames.visual)),
        "sync": lambda: drained(encode_sync(encoders, frames.sync)),
        "text": text,
        "text_beside_frames": lambda: pipeline.condition(frames, *prompts).text_tokens,
        "steps": lambda: sampled(told, 4),
        "conditions_and_steps": lambda: sampled(pipeline.condition(frames, *prompts), 50),
        "sound": lambda: pipeline.decode(latents),
    }
    runs = 20 if bench.on_gpu else 2
    found = {}
    for name, run in runs_of.items():
        with torch.inference_mode():
            first = run().cpu()
            found[name] = sum(not torch.equal(run().cpu(), first) for _ in range(runs))
    return found


def _decode_pieces(bench: Bench, pipeline: FoleyPipeline) -> dict[str, Any]:
    """What the decode stage consists of, each piece waited for."""
    num_latents = round(bench.args.seconds * LATENT_RATE)
    latents = torch.randn(1, bench.preset.vae.latent_dim, num_latents, device=bench.device)
    rows: dict[str, list[float]] = {"decoder": [], "check": [], "to_host": []}
    for _ in range(21 if bench.on_gpu else 2):
        bench.wait()
        times = [time.perf_counter()]
        waveform = pipeline.decode(latents)
        bench.wait()
        times.append(time.perf_counter())
        bool(waveform.isfinite().all())
        times.append(time.perf_counter())
        waveform.cpu()
        times.append(time.perf_counter())
        for values, (begin, end) in zip(rows.values(), itertools.pairwise(times), strict=True):
            values.append(end - begin)
    medians = {name: percentile(values[1:], 50) for name, values in rows.items()}
    return {"median": medians, "samples": rows}


def _condition_parts(bench: Bench, pipeline: FoleyPipeline, frames: VideoFrames) -> dict[str, Any]:
    """Each encoder alone, all of them, and the frames' way to the device."""

    def run(function: Callable[[], object]) -> dict[str, Any]:
        with torch.inference_mode():
            samples = bench.timed(function, 10 if bench.on_gpu else 1)
        return {"median": percentile(samples, 50), "samples": samples}

    device, encoders = bench.device, pipeline._encoders
    prompts = "a dog barks twice", "noisy, harsh"
    words = tokenize(pipeline._tokenizer, encoders.text_model, *reversed(prompts))
    near = frames.visual.to(device), frames.sync.to(device)
    with torch.inference_mode():
        conditions = pipeline.condition(frames, *prompts)
    found = {
        "copy": run(lambda: (frames.visual.to(device), frames.sync.to(device))),
        "visual": run(lambda: drained(encode_visual(encoders, near[0]))),
        "sync": run(lambda: drained(encode_sync(encoders, near[1]))),
        "text": run(lambda: encode_text(encoders, words)()),
        "encoders": run(lambda: pipeline.condition(frames, *prompts)),
        "context": run(lambda: clip_context(pipeline.dit, conditions, 1, guided=True)),
    }
    print(", ".join(f"{name} {1000 * value['median']:.1f} ms" for name, value in found.items()))
    return found
