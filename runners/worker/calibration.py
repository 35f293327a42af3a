"""Measure a device: the best size of an evaluation, and the seconds of each piece of work."""

# N variations, L latent channels, A latent frames

import time
from collections.abc import Mapping

import structlog
import torch

from foley.configs import LATENT_RATE, SYNC_FPS, VISUAL_FPS, WHOLE_CLIP_FRAMES
from foley.denoise import Denoising
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.sampling import draw_noise, make_sigmas
from foley.types import Conditions, Stage
from runners.worker.engine import compute_size
from runners.worker.scheduler import Budget, Kind

log = structlog.get_logger(__name__)

CPU_LANES = 2
# An evaluation is large enough at this share of the best rate of tokens. A larger one delays all
# requests and gains little.
SUFFICIENT_RATE = 0.9
# Requests join, leave and are cancelled between evaluations, so none may last longer.
MAX_EVALUATION_SECONDS = 1.0
MAX_TRIAL_CLIPS = 64
# No piece of work is longer: longer sounds are made in windows.
LONGEST_WINDOW_SECONDS = WHOLE_CLIP_FRAMES // SYNC_FPS
# Larger evaluations are not tried once a doubling gains less than this in the rate of tokens.
MIN_GAIN = 1.05
# Of one size of an evaluation, no more is measured after this.
TRIAL_SECONDS = 0.15
# The states of requests get this share of the memory that the model and the largest piece of work
# leave free.
STATE_SHARE = 0.9


def measure(pipeline: FoleyPipeline) -> tuple[Budget, dict[Kind, float]]:
    """Warm a device up, and measure it.

    Args:
        pipeline: on the device.

    Returns:
        Its budget, and the seconds for each unit of an action; see `JobSize.count_units`.
    """
    lanes = count_cpu_lanes() if pipeline.device.type == "cpu" else 1
    all_threads = torch.get_num_threads()
    if lanes > 1:
        torch.set_num_threads(all_threads // lanes)
    try:
        with pipeline.use_device(), torch.inference_mode():
            pipeline.warm_up()
            rates = _time_pieces(pipeline)
            seconds = _time_evaluations(pipeline)
            tokens = _find_sufficient(seconds)
            rates[Stage.SAMPLE] = seconds[tokens] / tokens
            memory = _measure_memory(pipeline, tokens) if pipeline.device.type == "cuda" else {}
    finally:
        torch.set_num_threads(all_threads)
    budget = Budget(tokens=tokens, lanes=lanes, **memory)
    log.info(
        "budget_measured",
        device=str(pipeline.device),
        lanes=lanes,
        tokens=tokens,
        evaluation_seconds={str(n): round(s, 4) for n, s in seconds.items()},
        state_bytes=budget.state_bytes if memory else None,
        bytes_per_request=round(budget.bytes_per_request),
        bytes_per_token=round(budget.bytes_per_token),
    )
    return budget, rates


def count_cpu_lanes() -> int:
    """Return the number of engines that share the CPU."""
    return min(CPU_LANES, torch.get_num_threads())


def _time_pieces(pipeline: FoleyPipeline) -> dict[Kind, float]:
    """Return the seconds of a piece of encoding, and of a decoded latent frame."""
    frames = pipeline.make_blank_frames(VISUAL_FPS, SYNC_FPS)  # of one second
    request = GenerationRequest(num_inference_steps=1, seed=0)
    size = compute_size(
        request, len(frames.visual), len(frames.sync), pipeline.preset, pipeline.cut
    )
    timings = pipeline.generate(frames, request).timings
    return {
        Stage.ENCODE: timings[Stage.ENCODE] / size.num_pieces,
        Stage.DECODE_AUDIO: timings[Stage.DECODE_AUDIO] / size.num_latents,
    }


def _make_state(pipeline: FoleyPipeline, seconds: float, num_variations: int) -> Denoising:
    """Return the state of a guided request of a blank clip."""
    dit, device = pipeline.preset.dit, pipeline.device
    frames = int(seconds * LATENT_RATE)
    segments = max(1, int(seconds * SYNC_FPS / 8) - 1)
    conditions = Conditions(
        visual_tokens=torch.zeros(int(seconds * VISUAL_FPS), dit.visual_dim, device=device),
        sync_tokens=torch.zeros(8 * segments, dit.sync_dim, device=device),
        text_tokens=torch.zeros(2, 16, dit.text_dim, device=device),
        num_latents=frames,
    )
    noise = draw_noise(range(num_variations), dit.latent_dim, frames).to(device)
    return Denoising(pipeline.dit, conditions, noise, make_sigmas(50), guidance_scale=4.5)


def _time_evaluations(pipeline: FoleyPipeline) -> dict[int, float]:
    """Return the seconds of evaluations by their tokens, up to those that are too large or slow.

    The clips are short on the CPU, where a single clip of 8 s makes a large evaluation.
    """
    clip_seconds = 1 if pipeline.device.type == "cpu" else 8
    seconds: dict[int, float] = {}
    num_clips = 1
    while num_clips <= MAX_TRIAL_CLIPS:
        try:
            tokens, took = _time_evaluation(pipeline, clip_seconds, num_clips)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if seconds and took > MAX_EVALUATION_SECONDS:
            break
        best = max((n / s for n, s in seconds.items()), default=0.0)
        seconds[tokens] = took
        if tokens / took < MIN_GAIN * best:
            break
        num_clips *= 2
    return seconds


def _time_evaluation(
    pipeline: FoleyPipeline, clip_seconds: float, num_clips: int
) -> tuple[int, float]:
    """Return the tokens of an evaluation, and the seconds of the fastest of several."""
    velocities = pipeline.make_velocity_model()
    parts = [_make_state(pipeline, clip_seconds, 1).prepare_part() for _ in range(num_clips)]
    times: list[float] = []
    # The first one is a warm-up. On a CPU, where one lasts long, fewer are enough.
    while len(times) < 3 or (len(times) < 6 and sum(times) < TRIAL_SECONDS):
        started = time.perf_counter()
        velocities(parts)
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize(pipeline.device)
        times.append(time.perf_counter() - started)
    return 2 * num_clips * int(clip_seconds * LATENT_RATE), min(times[1:])


def _find_sufficient(seconds: Mapping[int, float]) -> int:
    """Return the smallest number of tokens at which an evaluation has nearly the best rate."""
    best = max(tokens / took for tokens, took in seconds.items())
    return min(
        tokens for tokens, took in seconds.items() if tokens / took >= SUFFICIENT_RATE * best
    )


def _measure_memory(pipeline: FoleyPipeline, tokens: int) -> dict[str, float]:
    """Return the bytes that all states may take on a GPU, and that each of them takes."""
    device = pipeline.device

    def state_bytes(seconds: float) -> tuple[int, int]:
        before = torch.cuda.memory_allocated(device)
        state = _make_state(pipeline, seconds, 1)
        state.prepare_part()  # allocates the time modulations
        taken = torch.cuda.memory_allocated(device) - before
        return 2 * int(seconds * LATENT_RATE), taken

    (few, less), (many, more) = state_bytes(1), state_bytes(LONGEST_WINDOW_SECONDS)
    per_token = max(0.0, (more - less) / (many - few))
    base = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    longest = pipeline.make_blank_frames(
        int(LONGEST_WINDOW_SECONDS * VISUAL_FPS), int(LONGEST_WINDOW_SECONDS * SYNC_FPS)
    )
    pipeline.generate(longest, GenerationRequest(num_inference_steps=1, seed=0))
    clip_tokens = 2 * 8 * LATENT_RATE
    _time_evaluation(pipeline, 8, -(-tokens // clip_tokens))
    largest = torch.cuda.max_memory_allocated(device) - base
    torch.cuda.empty_cache()
    # The memory that PyTorch still holds belongs to CUDA graphs, which keep it.
    free, _ = torch.cuda.mem_get_info(device)
    return {
        "state_bytes": STATE_SHARE * max(0, free - largest),
        "bytes_per_request": max(0.0, less - per_token * few),
        "bytes_per_token": per_token,
    }
