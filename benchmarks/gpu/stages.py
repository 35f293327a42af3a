"""A whole generation on the device by its stages, and the steps of the short stages."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, drain, freeze_collector
from benchmarks.gpu.model import random_components, random_frames
from benchmarks.records import percentile
from foley.conditioning import encode_sync, encode_text, encode_visual, tokenize
from foley.configs import LATENT_RATE
from foley.denoise import Denoising, make_clip_context
from foley.gpu.matrix import Precision
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.sampling import make_sigmas
from foley.types import Conditions, Stage, VideoFrames

_STAGES = (Stage.ENCODE, Stage.SAMPLE, Stage.DECODE_AUDIO)


def measure_stages(bench: Bench) -> dict[str, Any]:
    """Seconds of each stage of a generation, from frames to a waveform, both in host memory.

    Only the first precision of the command is measured.
    """
    args = bench.args
    precision: Precision = args.precision[0] if bench.on_gpu else "bf16"
    components = random_components(bench, bench.device)
    pipeline = FoleyPipeline(
        components, bench.device, precision=precision, memory="full" if bench.on_gpu else "auto"
    )
    pipeline.warm_up()
    frames = random_frames(bench.preset, args.seconds)
    request = GenerationRequest(seed=1, num_inference_steps=args.steps)
    bench.reset_peak()
    rows: dict[str, list[float]] = {stage: [] for stage in _STAGES} | {"total": []}
    with freeze_collector(bench) as pauses:
        for _ in range(11 if bench.on_gpu else 2):
            begun = time.perf_counter()
            result = pipeline.generate(frames, request)
            rows["total"].append(time.perf_counter() - begun)
            for name, seconds in result.timings.items():
                rows[name].append(seconds)
        again = pipeline.generate(frames, request)
        repeats = _repeats(bench, pipeline, frames, request)
        pieces = _decode_pieces(bench, pipeline)
    medians = {name: percentile(values[1:], 50) for name, values in rows.items()}
    found: dict[str, Any] = {
        precision: {
            "first": {name: values[0] for name, values in rows.items()},
            "median": medians,
            "samples": rows,
            "peak_bytes": bench.peak_bytes(),
            "peak_reserved_bytes": bench.peak_reserved_bytes(),
            "repeats_bit_for_bit": bool(torch.equal(result.waveforms, again.waveforms)),
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
    """The number of 20 runs of each stage whose result differs from the first, for equal inputs."""
    encoders, prompts = pipeline._encoders, (request.prompt, request.negative_prompt)
    words = tokenize(pipeline._tokenizer, encoders.text_model, *reversed(prompts))
    shape = 1, bench.preset.vae.latent_dim, round(bench.args.seconds * LATENT_RATE)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(bench.device)
    known = pipeline.condition(frames, *prompts)

    def sample(conditions: Conditions, num_steps: int) -> Tensor:
        sigmas, scale = make_sigmas(num_steps), request.choose_guidance(bench.preset)
        model = pipeline.make_velocity_model()
        path = Denoising(pipeline.dit, conditions, latents, sigmas, guidance_scale=scale)
        while path.point is not None:
            path.advance(*model([path.prepare_part()]))
        assert path.latents is not None
        return path.latents

    def text() -> Tensor:
        return encode_text(encoders, words)()

    runs_of: dict[str, Callable[[], Tensor]] = {
        "visual": lambda: drain(encode_visual(encoders, frames.visual)),
        "sync": lambda: drain(encode_sync(encoders, frames.sync)),
        "text": text,
        "text_beside_frames": lambda: pipeline.condition(frames, *prompts).text_tokens,
        "steps": lambda: sample(known, 4),
        "conditions_and_steps": lambda: sample(pipeline.condition(frames, *prompts), 50),
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
    """Seconds of each step of the stage `decode_audio`."""
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
    """Seconds of each encoder alone, of all together, and of the frames' transfer."""

    def run(function: Callable[[], object]) -> dict[str, Any]:
        with torch.inference_mode():
            samples = bench.measure_seconds(function, 10 if bench.on_gpu else 1)
        return {"median": percentile(samples, 50), "samples": samples}

    device, encoders = bench.device, pipeline._encoders
    prompts = "a dog barks twice", "noisy, harsh"
    words = tokenize(pipeline._tokenizer, encoders.text_model, *reversed(prompts))
    near = frames.visual.to(device), frames.sync.to(device)
    with torch.inference_mode():
        conditions = pipeline.condition(frames, *prompts)
    found = {
        "copy": run(lambda: (frames.visual.to(device), frames.sync.to(device))),
        "visual": run(lambda: drain(encode_visual(encoders, near[0]))),
        "sync": run(lambda: drain(encode_sync(encoders, near[1]))),
        "text": run(lambda: encode_text(encoders, words)()),
        "encoders": run(lambda: pipeline.condition(frames, *prompts)),
        "context": run(lambda: make_clip_context(pipeline.dit, conditions, 1, guided=True)),
    }
    print(", ".join(f"{name} {1000 * value['median']:.1f} ms" for name, value in found.items()))
    return found
