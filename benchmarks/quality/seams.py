"""Measure whether the seams between the windows of long sounds are heard.

    python -m benchmarks.quality.seams [--clips 1] [--seconds 30] [--drift-seconds 600] [--record]

Long drawn clips of hits, without cuts and of joined shots, are compared with drawn clips of 8 s.
`near` are the events, and the onsets, within 1 s of the middle of an overlap, `overlap` those in
one, and `elsewhere` those that are not near. Textures are long sounds of prompts alone, beside the
exact sounds of the training generator. `dip_db` is the level in the overlaps minus the level
elsewhere, `flux_db` how much the level of a band changes from one tenth of a second to the next,
and `drift_db` the level of the last minute, or of the last fifth of a shorter sound, minus that of
the first.
"""

import argparse
from collections.abc import Iterator
from itertools import pairwise
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
    pipeline: FoleyPipeline, seconds: float, seed: int, **options: Any
) -> dict[str, Any]:
    """Return the figures of steady sounds, by prompt.

    Args:
        pipeline: the model.
        seconds: length of each.
        seed: of the noise.
        options: of the request.
    """
    seams = find_seams(round(seconds * LATENT_RATE))
    figures = {}
    for kind, prompt in TEXTURES.items():
        request = GenerationRequest.parse(prompt=prompt, seed=seed, **options)
        made = pipeline.generate(NoPicture(duration_seconds=seconds), request).waveforms[0, 0]
        steady = torch.full((round(seconds * LATENT_RATE),), 0.6)
        exact = synthesise_texture(kind, steady, 0.5, HELD_OUT_SEED, len(made))
        figures[prompt] = {
            "made": describe_texture(made, seams),
            "exact": describe_texture(0.1 * exact, seams),
        }
        print(prompt, figures[prompt], flush=True)
    return figures


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
    parser.add_argument(
        "--drift-seconds", type=float, default=0.0, help="of a long rain; 0 for none"
    )
    add_record_options(parser)
    add_options(parser, steps=None)
    args = parser.parse_args()

    def measure(pipeline: FoleyPipeline, seed: int, **options: Any) -> dict[str, Any]:
        def draw(seconds: float, *, joined: bool = False) -> Iterator[HeldOutClip]:
            draw_clips = draw_joined if joined else draw_whole
            for action in ACTIONS:
                yield from draw_clips(pipeline, args.clips, seconds, action)

        figures = {"textures": measure_textures(pipeline, args.seconds, seed, **options)}
        if args.drift_seconds:
            request = GenerationRequest.parse(prompt=TEXTURES["rain"], seed=seed, **options)
            rain = NoPicture(duration_seconds=args.drift_seconds)
            made = pipeline.generate(rain, request).waveforms[0, 0]
            figures["rain"] = {
                "seconds": args.drift_seconds,
                "drift_db": measure_drift(measure_levels(made)),
            }
            print(figures["rain"], flush=True)
        short = measure_hits(pipeline, draw(SHORT_SECONDS), seed, **options)
        whole = measure_hits(pipeline, draw(args.seconds), seed, **options)
        joined = measure_hits(pipeline, draw(args.seconds, joined=True), seed, **options)
        return figures | {"short": short, "long": whole, "long_of_shots": joined}

    report_figures(args, "seams", args.seconds, measure)


if __name__ == "__main__":
    main()
