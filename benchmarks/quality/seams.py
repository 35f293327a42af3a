"""Measure whether the seams between the windows of long sounds are heard.

    python -m benchmarks.quality.seams [--clips 1] [--seconds 30] [--record]
    python -m benchmarks.quality.seams --parts rain --drift-seconds 600 --drift-seeds 3 [--record]

Long drawn clips of hits, without cuts and of joined shots, are compared with drawn clips of 8 s.
`near` are the events, and the onsets, within 1 s of the middle of an overlap, `overlap` those in
one, and `elsewhere` those that are not near. Textures are long sounds of prompts alone, beside the
exact sounds of the training generator. `dip_db` is the level in the overlaps minus the level
elsewhere, `flux_db` how much the level of a band changes from one tenth of a second to the next,
and `drift_db` the level of the last minute, or of the last fifth of a shorter sound, minus that of
the first. Of several seeds these are means, and `dip_error_db` is the standard error of the dip. Of
long rains `trend_db` is the rise from the first minute to the last of a straight line through the
levels of all minutes, and `trend_error_db` its standard error.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.held_out import HELD_OUT_SEED, HeldOutClip, generate_clips, join_clips
from benchmarks.quality.sync import add_options, add_record_options, report_figures
from foley.configs import LATENT_RATE, SAMPLE_RATE, SYNC_FPS
from foley.cuts import CutDetector
from foley.models.analysis import log_mel, mel_filters
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.types import NoPicture
from foley.windows import plan_windows
from training import judge
from training.scene import MAX_HITS
from training.sound import synthesise_texture

ACTIONS = ("bounce", "tap", "strike")
TEXTURES = {"rain": "steady rain", "wind": "wind", "stream": "a stream"}
PARTS = ("textures", "rain", "short", "long", "long_of_shots")
SHORT_SECONDS = 8.0
SHOT_SECONDS = 4.0
NEAR_SECONDS = 1.0
FIRST_CLIP = 700  # of the generator
_FRAME = SAMPLE_RATE // 10
_FFT = 8192
_BANDS = 24

Spans = list[tuple[float, float]]  # in seconds


def find_seams(num_latents: int, cuts: tuple[int, ...] = ()) -> Spans:
    """Return where windows overlap.

    Args:
        num_latents: of the sound.
        cuts: latent frames at which shots begin.
    """
    windows = plan_windows(num_latents, cuts)
    return [(b.start / LATENT_RATE, a.stop / LATENT_RATE) for a, b in pairwise(windows)]


def find_clip_seams(clip: HeldOutClip) -> Spans:
    """Return where the windows of a clip's sound overlap; none up to 15 s."""
    detector = CutDetector()
    detector.add(clip.frames.sync, is_end=True)
    rate = LATENT_RATE // SYNC_FPS
    return find_seams(rate * len(clip.frames.sync), tuple(rate * cut for cut in detector.cuts))


def draw_joined(
    pipeline: FoleyPipeline, num_clips: int, seconds: float, action: str
) -> Iterator[HeldOutClip]:
    """Yield long clips of shots of 4 s, of which each is another scene.

    Args:
        pipeline: whose encoders decide the frames' sizes.
        num_clips: how many.
        seconds: of each.
        action: of all shots.
    """
    count = round(seconds / SHOT_SECONDS)
    for index in range(num_clips):
        first = FIRST_CLIP + 100 + count * index
        yield join_clips(
            pipeline.preset,
            count,
            SHOT_SECONDS,
            first=first,
            device=pipeline.device,
            action=action,
            quiet=True,
        )


def draw_whole(
    pipeline: FoleyPipeline, num_clips: int, seconds: float, action: str
) -> Iterator[HeldOutClip]:
    """Yield clips of one scene, with arguments as `draw_joined`."""
    return generate_clips(
        pipeline.preset,
        num_clips,
        seconds,
        first=FIRST_CLIP,
        device=pipeline.device,
        action=action,
        quiet=True,
    )


def measure_hits(
    pipeline: FoleyPipeline,
    clips: Iterator[HeldOutClip],
    seed: int,
    **options: Any,
) -> dict[str, Any]:
    """Return the figures of onsets.

    Args:
        pipeline: the model.
        clips: with events.
        seed: of the first clip's noise; the others follow.
        options: of the request.
    """
    places = {name: judge.Match() for name in ("all", "near", "overlap", "elsewhere")}
    seconds = dict.fromkeys(places, 0.0)
    clicks, exact_clicks, number, num_seams = 0, 0, 0, 0
    for clip in clips:
        if len(clip.events) >= MAX_HITS - 1:  # the generator left hits out
            continue
        seams = find_clip_seams(clip)
        middles = [(start + stop) / 2 for start, stop in seams]
        near = [(middle - NEAR_SECONDS, middle + NEAR_SECONDS) for middle in middles]
        request = GenerationRequest.parse(prompt=clip.prompt, seed=seed + number, **options)
        sound = pipeline.generate(clip.frames, request).waveforms[0, 0]
        number += 1
        num_seams += len(seams)
        whole = [(0.0, len(sound) / SAMPLE_RATE)]
        spans: dict[str, tuple[Spans, Spans]] = {
            "all": (whole, []),
            "near": (near, []),
            "overlap": (seams, []),
            "elsewhere": (whole, near),
        }
        found = judge.detect_onsets(sound)
        clicks += judge.count_clicks(sound)
        exact_clicks += judge.count_clicks(clip.sound)
        for name, (inside, outside) in spans.items():
            places[name].add(
                _choose(found, inside, outside),
                _choose(clip.events, inside, outside),
                clip.unscored,
            )
            seconds[name] += _measure(inside) - _measure(outside)
        print(f"{whole[0][1]:g} s, {len(seams)} seams: {places['all']}", flush=True)
    return {
        "f1": {name: round(m.f1, 4) for name, m in places.items() if m.truth},
        "false_onsets": {name: m.found - m.hits for name, m in places.items()},
        "false_onsets_a_second": {
            name: round((m.found - m.hits) / seconds[name], 4)
            for name, m in places.items()
            if seconds[name]
        },
        "num_events": {name: m.truth for name, m in places.items()},
        "clicks_a_clip": round(clicks / max(number, 1), 2),
        "clicks_of_exact_sounds": round(exact_clicks / max(number, 1), 2),
        "num_clips": number,
        "num_seams": num_seams,
    }


def measure_textures(
    pipeline: FoleyPipeline, seconds: float, seeds: range, **options: Any
) -> dict[str, Any]:
    """Return the mean figures of steady sounds, by prompt.

    Args:
        pipeline: the model.
        seconds: length of each, at most 60: a minute is the most of an exact sound.
        seeds: of the noise of each.
        options: of the request.
    """
    seams = find_seams(round(seconds * LATENT_RATE))
    figures = {}
    for kind, prompt in TEXTURES.items():
        made, exact = [], []
        for seed in seeds:
            request = GenerationRequest.parse(prompt=prompt, seed=seed, **options)
            sound = pipeline.generate(NoPicture(duration_seconds=seconds), request).waveforms[0, 0]
            made.append(describe_texture(sound, seams))
            steady = torch.full((round(seconds * LATENT_RATE),), 0.6)
            sound = synthesise_texture(kind, steady, 0.5, HELD_OUT_SEED + seed, len(sound))
            exact.append(describe_texture(0.1 * sound, seams))
        figures[prompt] = {"made": average_textures(made), "exact": average_textures(exact)}
        print(prompt, figures[prompt], flush=True)
    return figures


def average_textures(sounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the means of the figures of sounds, and the standard error of that of the dip.

    Args:
        sounds: of `describe_texture`, at least one.
    """
    means = {name: round(fmean(one[name] for one in sounds), 3) for name in sounds[0]}
    if len(sounds) > 1:
        dips = [one["dip_db"] for one in sounds]
        means["dip_error_db"] = round(stdev(dips) / math.sqrt(len(dips)), 3)
    return means


def describe_texture(waveform: Tensor, seams: Spans) -> dict[str, float]:
    """Return the figures of one steady sound.

    Args:
        waveform: [S], 48 kHz.
        seams: of its windows.
    """
    levels = measure_levels(waveform)
    bands = log_mel(waveform[None], _FFT, _FRAME, mel_filters(_FFT, _BANDS), len(levels))[0]
    flux = 10 * bands.diff(dim=1).abs().mean(0)  # [frames - 1]
    in_overlap = torch.zeros(len(levels), dtype=torch.bool)
    for start, stop in seams:
        in_overlap[round(10 * start) : round(10 * stop)] = True
    moves = in_overlap[1:]
    return {
        "dip_db": _subtract(levels[in_overlap], levels[~in_overlap]),
        "flux_db": round(float(flux[~moves].mean()), 3),
        "flux_at_seams_db": round(float(flux[moves].mean()), 3),
        "drift_db": measure_drift(levels),
        "level_db": round(float(levels.mean()), 1),
        "clicks": judge.count_clicks(waveform),
    }


def measure_drift(levels: Tensor) -> float:
    """Return the level of the last minute minus that of the first, in dB.

    Args:
        levels: of tenths of a second, dB. Of a sound of under 5 min fifths are compared.
    """
    count = min(600, len(levels) // 5)
    return _subtract(levels[-count:], levels[:count])


def measure_rain(
    pipeline: FoleyPipeline, seconds: float, seeds: range, **options: Any
) -> dict[str, Any]:
    """Return the figures of long rains, and what all of them say of the level.

    Args:
        pipeline: the model.
        seconds: length of each, at least 3 min.
        seeds: of the noise of each.
        options: of the request.
    """
    rains: list[dict[str, Any]] = []
    for seed in seeds:
        request = GenerationRequest.parse(prompt=TEXTURES["rain"], seed=seed, **options)
        made = pipeline.generate(NoPicture(duration_seconds=seconds), request).waveforms[0, 0]
        levels = measure_levels(made)
        minutes = levels[: len(levels) // 600 * 600].view(-1, 600).mean(1)
        trend, error = fit_trend(minutes)
        rains.append(
            {
                "seed": seed,
                "drift_db": measure_drift(levels),
                "trend_db": round(trend, 2),
                "trend_error_db": round(error, 2),
                "minutes_db": [round(float(level), 2) for level in minutes],
            }
        )
        print(rains[-1], flush=True)
    trends = [rain["trend_db"] for rain in rains]
    errors = [rain["trend_error_db"] for rain in rains]
    return {
        "seconds": seconds,
        "rains": rains,
        "mean_drift_db": round(sum(rain["drift_db"] for rain in rains) / len(rains), 2),
        "mean_trend_db": round(sum(trends) / len(trends), 2),
        "mean_trend_error_db": round(math.hypot(*errors) / len(errors), 2),
    }


def fit_trend(levels: Tensor) -> tuple[float, float]:
    """Return the rise of a straight line from the first to the last level, and its standard error.

    Args:
        levels: [n] of equal times, n at least 3, each with an error of its own.
    """
    count = len(levels)
    times = torch.arange(count) / (count - 1) - 0.5
    spread = float(times.square().sum())
    rise = float((times * levels).sum()) / spread
    rest = levels - levels.mean() - rise * times
    return rise, math.sqrt(float(rest.square().sum()) / (count - 2) / spread)


def measure_levels(waveform: Tensor) -> Tensor:
    """Return the level of each tenth of a second in dB of full scale.

    Args:
        waveform: [S], 48 kHz.
    """
    frames = waveform[: len(waveform) // _FRAME * _FRAME].view(-1, _FRAME)
    return 10 * frames.square().mean(1).add(1e-9).log10()


def _subtract(levels: Tensor, others: Tensor) -> float:
    return round(float(levels.mean() - others.mean()), 2)


def _measure(spans: Spans) -> float:
    return sum(stop - start for start, stop in spans)


def _choose(times: list[float], inside: Spans, outside: Spans) -> list[float]:
    """Return the times in one of some spans, and in none of others."""

    def lies(time: float, spans: Spans) -> bool:
        return any(start <= time < stop for start, stop in spans)

    return [time for time in times if lies(time, inside) and not lies(time, outside)]


def main() -> None:
    """Measure a preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1, help="of each action")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a long clip, over 15")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=[*PARTS])
    parser.add_argument("--texture-seeds", type=int, default=1, help="how many of each texture")
    parser.add_argument("--drift-seconds", type=float, default=600.0, help="of each long rain")
    parser.add_argument("--drift-seeds", type=int, default=1, help="how many long rains")
    add_record_options(parser)
    add_options(parser, steps=None)
    args = parser.parse_args()

    def measure(pipeline: FoleyPipeline, seed: int, **options: Any) -> dict[str, Any]:
        def draw(seconds: float, *, joined: bool = False) -> Iterator[HeldOutClip]:
            draw_clips = draw_joined if joined else draw_whole
            for action in ACTIONS:
                yield from draw_clips(pipeline, args.clips, seconds, action)

        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "textures": lambda: measure_textures(
                pipeline, args.seconds, range(seed, seed + args.texture_seeds), **options
            ),
            "rain": lambda: measure_rain(
                pipeline, args.drift_seconds, range(seed, seed + args.drift_seeds), **options
            ),
            "short": lambda: measure_hits(pipeline, draw(SHORT_SECONDS), seed, **options),
            "long": lambda: measure_hits(pipeline, draw(args.seconds), seed, **options),
            "long_of_shots": lambda: measure_hits(
                pipeline, draw(args.seconds, joined=True), seed, **options
            ),
        }
        return {name: parts[name]() for name in args.parts}

    report_figures(args, "seams", args.seconds, measure)


if __name__ == "__main__":
    main()
