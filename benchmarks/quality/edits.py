"""Measure edits: a range made anew, variations of a sound, and a sound that is continued.

    python -m benchmarks.quality.edits [--clips 4] [--record]

Held-out drawn clips of hits. A first sound is made with one material asked for.

`range`: its seconds `RANGE` are made anew with a second material, and the same is made whole.
`asked_inside` is the share of the hits in the range with the second material, `kept_outside` that
of the others with the first. `f1_inside` counts the onsets in the range of the edit, and of the
sound made whole. `flux_db` is the change of the spectrum over a seam, of the edit and of the first
sound at the same places; its excess is what an ear could find. `ringing` are ranges that begin 100
ms after a hit, `textures` ranges of steady sounds without a clip.

`strength`: for each strength, with the clip and without it, how much of the first sound's timing is
kept (`f1_with_source`), how many hits have the second material (`asked`), and how far the levels of
48 bands are from those of the first sound (`distance_db`).

`continued`: the first `KEPT_SECONDS` of the first sound, with its prompt.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.held_out import HELD_OUT_SEED, make_frames
from benchmarks.quality.sync import add_options, add_record_options, report_figures
from foley.configs import SAMPLE_RATE
from foley.models.analysis import mel_filters
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.types import NoPicture, SourceSound, VideoFrames
from training import clips, judge, labels, text
from training.materials import MATERIALS
from training.scene import PLAIN
from training.settings import load_state
from training.unpack import CHECKPOINTS

SECONDS = 4.0
RANGE = (1.2, 2.8)
RINGING_SECONDS = 0.1  # after a hit
KEPT_SECONDS = 2.0
STRENGTHS = (0.0, 0.1, 0.25, 0.5, 0.6, 0.75, 0.9, 1.0)
FIRST_CLIP = 900  # of the generator
ACTIONS = ("bounce", "tap", "strike")
TEXTURES = ("steady rain", "wind", "a stream")
_FLUX_SAMPLES = SAMPLE_RATE // 50  # on each side of a seam
_CROSSFADE_SAMPLES = SAMPLE_RATE // 100


class Judge:
    """Says which material hits have."""

    def __init__(self) -> None:
        self._materials = judge.MaterialJudge().eval()
        self._materials.load_state_dict(load_state(CHECKPOINTS / "judge.safetensors"))

    @torch.inference_mode()
    def hear(self, sound: Tensor, hits: Sequence[float]) -> list[int]:
        """Return the material of each hit.

        Args:
            sound: [S], 48 kHz.
            hits: their seconds.
        """
        if not hits:
            return []
        owner = torch.zeros(len(hits), dtype=torch.long)
        windows = judge.cut_hit_windows(sound[None], owner, torch.tensor(hits))
        heard: list[int] = self._materials(self._materials.features(windows)).argmax(1).tolist()
        return heard


def measure_flux(sound: Tensor, at_sample: int) -> float:
    """Return the mean change of the level in 48 bands, in dB, from before a crossfade to after it.

    Args:
        sound: [S], 48 kHz.
        at_sample: first sample of the crossfade.
    """
    filters = mel_filters(_FLUX_SAMPLES, 48)
    window = torch.hann_window(_FLUX_SAMPLES)
    after = at_sample + _CROSSFADE_SAMPLES
    parts = torch.stack(
        [sound[at_sample - _FLUX_SAMPLES : at_sample], sound[after : after + _FLUX_SAMPLES]]
    )
    power = torch.fft.rfft(parts * window).abs().square() / (window.sum() / 2) ** 2
    levels = 10 * torch.log10(power @ filters + 1e-6)  # what is below -60 dB is inaudible
    return float((levels[1] - levels[0]).abs().mean())


def measure(pipeline: FoleyPipeline, num_clips: int, seed: int, **options: Any) -> dict[str, Any]:
    """Return the figures.

    Args:
        pipeline: the model.
        num_clips: of each action.
        seed: of the first clip's noise; the others follow.
        options: of the request.
    """
    materials, rng = Judge(), np.random.default_rng(seed + FIRST_CLIP)
    asked: dict[str, list[bool]] = defaultdict(list)
    flux: dict[str, list[tuple[float, float]]] = defaultdict(list)  # of the edit and of the source
    matches: dict[str, judge.Match] = defaultdict(judge.Match)
    distances: dict[str, list[float]] = defaultdict(list)

    def make(
        picture: VideoFrames | NoPicture,
        prompt: str,
        number: int,
        source: Tensor | None,
        **edit: Any,
    ) -> Tensor:
        request = GenerationRequest.parse(
            prompt=prompt,
            seed=seed + number,
            edit=None if source is None else {"source": "file", **edit},
            **options,
        )
        given = None if source is None else SourceSound(waveform=source[None])
        return pipeline.generate(picture, request, source=given).waveforms[0, 0]

    def note_seams(name: str, edited: Tensor, source: Tensor, start: float, stop: float) -> None:
        for at in (round(start * SAMPLE_RATE), round(stop * SAMPLE_RATE) - _CROSSFADE_SAMPLES):
            flux[name].append((measure_flux(edited, at), measure_flux(source, at)))

    numbers = [(action, i) for i in range(num_clips) for action in ACTIONS]
    for number, (action, index) in enumerate(numbers):
        batch = clips.make_batch(
            HELD_OUT_SEED, FIRST_CLIP + index, 1, SECONDS, PLAIN, action=action, quiet=True
        )
        hits, shoves = batch.hits["seconds"].tolist(), labels.find_shoves(batch)[0]
        frames = make_frames(batch.pictures()[0], pipeline.preset)
        seen = {int(m) for m in batch.hits["material"]}
        pair = rng.choice([m for m in range(len(MATERIALS)) if m not in seen], 2, replace=False)
        one, other = (text.name_material(rng, MATERIALS[m]) for m in pair)
        source = make(frames, one, 2 * number, None)
        whole = make(frames, other, 2 * number + 1, None)
        inside = [h for h in hits if RANGE[0] + 0.02 <= h < RANGE[1] - 0.05]
        outside = [h for h in hits if h < RANGE[0] - 0.3 or h >= RANGE[1]]
        part = {"start_seconds": RANGE[0], "stop_seconds": RANGE[1]}
        edited = make(frames, other, 2 * number + 1, source, ranges=[part])
        asked["inside"] += [m == pair[1] for m in materials.hear(edited, inside)]
        asked["whole"] += [m == pair[1] for m in materials.hear(whole, inside)]
        asked["outside"] += [m == pair[0] for m in materials.hear(edited, outside)]
        asked["source"] += [m == pair[0] for m in materials.hear(source, outside)]
        for name, sound in (("edit", edited), ("whole", whole)):
            found = [t for t in judge.detect_onsets(sound) if RANGE[0] <= t < RANGE[1]]
            truth = [t for t in judge.merge_close_events(hits) if RANGE[0] <= t < RANGE[1]]
            matches[name].add(found, truth, shoves)
        note_seams("hits", edited, source, *RANGE)
        ring = next((h + RINGING_SECONDS for h in hits if 0.2 < h < SECONDS - 1.5), None)
        if ring is not None:
            part = {"start_seconds": ring, "stop_seconds": ring + 1.0}
            ringing = make(frames, other, 2 * number + 1, source, ranges=[part])
            at = round(ring * SAMPLE_RATE)
            flux["ringing"].append((measure_flux(ringing, at), measure_flux(source, at)))
        _vary(make, materials, asked, matches, distances, frames, hits, other, pair, number, source)
        kept = source[: round(KEPT_SECONDS * SAMPLE_RATE)]
        continued = make(frames, one, 2 * number + 1, kept)
        later = [h for h in hits if h >= KEPT_SECONDS + 0.02]
        asked["continued"] += [m == pair[0] for m in materials.hear(continued, later)]
        found = [t for t in judge.detect_onsets(continued) if t >= KEPT_SECONDS]
        truth = [t for t in judge.merge_close_events(hits) if t >= KEPT_SECONDS]
        matches["continued"].add(found, truth, shoves)
        at = len(kept) - _CROSSFADE_SAMPLES
        flux["continued"].append((measure_flux(continued, at), measure_flux(source, at)))
        print(number + 1, _describe(asked, flux, matches, distances), flush=True)
    for number, prompt in enumerate(TEXTURES * num_clips):
        nothing = NoPicture(duration_seconds=SECONDS)
        source = make(nothing, prompt, number, None)
        part = {"start_seconds": RANGE[0], "stop_seconds": RANGE[1]}
        edited = make(nothing, prompt, number + 1000, source, ranges=[part])
        note_seams("textures", edited, source, *RANGE)
    return _describe(asked, flux, matches, distances) | {
        "num_clips": len(numbers),
        "chance": round(1 / len(MATERIALS), 4),
    }


def _vary(
    make: Any,
    materials: Judge,
    asked: dict[str, list[bool]],
    matches: dict[str, judge.Match],
    distances: dict[str, list[float]],
    frames: VideoFrames,
    hits: list[float],
    prompt: str,
    pair: Any,
    number: int,
    source: Tensor,
) -> None:
    """Make a variation of each strength, with the clip and without it."""
    onsets, levels = judge.detect_onsets(source), judge.spectrum_db(source)
    for name, picture in (("clip", frames), ("alone", NoPicture(duration_seconds=SECONDS))):
        for strength in STRENGTHS:
            varied = make(picture, prompt, 2 * number + 1, source, strength=strength)
            key = f"{name}_{strength:g}"
            matches[key].add(judge.detect_onsets(varied), onsets)
            asked[key] += [m == pair[1] for m in materials.hear(varied, hits)]
            distances[key].append(float((judge.spectrum_db(varied) - levels).abs().mean()))


def _describe(
    asked: dict[str, list[bool]],
    flux: dict[str, list[tuple[float, float]]],
    matches: dict[str, judge.Match],
    distances: dict[str, list[float]],
) -> dict[str, Any]:
    def share(name: str) -> float:
        return round(sum(asked[name]) / max(len(asked[name]), 1), 4)

    curves = {
        name: {
            f"{strength:g}": {
                "f1_with_source": round(matches[f"{name}_{strength:g}"].f1, 4),
                "asked": share(f"{name}_{strength:g}"),
                "distance_db": round(float(np.mean(distances[f"{name}_{strength:g}"])), 2),
            }
            for strength in STRENGTHS
        }
        for name in ("clip", "alone")
    }
    return {
        "range": {
            "asked_inside": share("inside"),
            "asked_whole": share("whole"),
            "kept_outside": share("outside"),
            "kept_source": share("source"),
            "f1_inside": round(matches["edit"].f1, 4),
            "f1_whole": round(matches["whole"].f1, 4),
            "num_hits": len(asked["inside"]),
        },
        "flux_db": {name: _compare(pairs) for name, pairs in flux.items()},
        "strength": curves,
        "continued": {
            "f1": round(matches["continued"].f1, 4),
            "asked": share("continued"),
            "num_hits": len(asked["continued"]),
        },
    }


def _compare(pairs: list[tuple[float, float]]) -> dict[str, float]:
    edit, source = np.array(pairs).T
    return {
        "edit": round(float(np.median(edit)), 2),
        "source": round(float(np.median(source)), 2),
        "excess": round(float(np.median(edit - source)), 2),
        "edit_nine_in_ten": round(float(np.quantile(edit, 0.9)), 2),
        "source_nine_in_ten": round(float(np.quantile(source, 0.9)), 2),
        "num_seams": len(pairs),
    }


def main() -> None:
    """Measure a preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=4, help="of each action")
    add_record_options(parser)
    add_options(parser, steps=None)
    args = parser.parse_args()
    report_figures(args, "edits", SECONDS, partial(measure, num_clips=args.clips))


if __name__ == "__main__":
    main()
