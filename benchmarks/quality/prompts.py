"""Measure whether prompts are heard: one clip, a prompt for each class of sounds, and a judge.

    python -m benchmarks.quality.prompts [--rendered 12] [--clips CLIP ...] [--seeds 3] [--record]

The classes are all that the generator can sound: seven materials that are hit, and five lasting
sounds. The judge is a classifier of whole sounds, trained here on exact sounds of these classes in
drawn clips. It has never heard a model, and for each sound it must choose one class, so a model
that ignores its prompts gets 1 in 12. Its own accuracy is measured on exact sounds of other drawn
clips, and on the exact sound of each class in the very rendered clips that are measured.
"""

# B sounds, S samples, N classes, E hits

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.quality.held_out import make_frames
from benchmarks.quality.sync import (
    add_options,
    add_record_options,
    collect_options,
    load_pipeline,
)
from benchmarks.records import ROOT, environment, finish
from foley.media.source import MediaLimits
from foley.pipeline import FoleyPipeline
from foley.types import VideoFrames
from training import clips, motion
from training.clips import Batch
from training.judge import MaterialJudge
from training.materials import MATERIALS, TABLE, Voice, draw_hit_gains, draw_voice
from training.rendered.evaluate import make_clips
from training.rendered.stream import collate
from training.scene import LATENT_RATE, LAYERS
from training.settings import learning_rate

PROMPTS = {
    "wood": "hitting wood",
    "metal": "hitting metal",
    "glass": "hitting glass",
    "plastic": "hitting plastic",
    "stone": "hitting stone",
    "skin": "drum hits",
    "water": "water drops",
    "rain": "heavy rain",
    "wind": "wind blowing",
    "engine": "engine noise",
    "fire": "fire crackling",
    "stream": "running water",
}
CLASSES = tuple(PROMPTS)
SECONDS = 4.0
SILENT_DB = -55.0  # the loudest 20 ms of a sound that says nothing
_JUDGE_SEED, _CONTROL_SEED = 4646, 4747
_MIXED_SHARE = 0.5  # of lasting sounds have hits as well
_LEAST_LEVEL = 0.3  # of a lasting sound
_HITTING = ("bounce", "roam", "strike", "tap", "clap", "drip", "pendulum")  # always hit something
_POOL = 2  # frames of the judge's features, 5 ms each, that are averaged
_WIDTH = 24
_EXAMPLES = ROOT / "examples"
_CPU = torch.device("cpu")


def voice_clips(batch: Batch, name: str, rng: np.random.Generator) -> Batch:
    """The clips with the exact sound of a class in place of their own.

    Hits keep their times, forces and sizes, and nothing rubs. Where the class is a lasting sound,
    its level is drawn, and hits of some material stay in half of the calls, half as loud.

    Args:
        batch: on the CPU.
        name: of `CLASSES`.
        rng: of the voices and of the level.
    """
    kinds = torch.full_like(batch.layers["kind"], -1)
    layers = batch.layers | {"kind": kinds}
    if name in MATERIALS:
        hits = _voice_hits(batch, MATERIALS.index(name), rng)
        return replace(batch, hits=hits, layers=layers)
    kinds[:, 0] = LAYERS.index(name)
    levels = torch.zeros_like(batch.layers["level"])
    times = np.arange(levels.shape[2]) / LATENT_RATE
    for clip in range(len(batch)):
        drawn = torch.from_numpy(motion.envelope(rng, times)).float()
        levels[clip, 0] = _LEAST_LEVEL + (1 - _LEAST_LEVEL) * drawn
    layers["level"] = levels
    layers["pitch"] = torch.from_numpy(rng.uniform(0, 1, kinds.shape)).float()
    mixed = rng.random() < _MIXED_SHARE
    kept = torch.full((len(batch.owner),), mixed)
    hits = _voice_hits(batch, int(rng.integers(len(MATERIALS))), rng)
    hits = {key: value[kept] for key, value in hits.items()}
    hits["level"] *= 0.5
    return replace(batch, hits=hits, owner=batch.owner[kept], layers=layers)


def _voice_hits(batch: Batch, material: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """The hits of a batch with the sound of one material; each object has a voice."""
    hits = {key: value.clone() for key, value in batch.hits.items()}
    spec, voices = TABLE[material], dict[tuple[int, float], Voice]()
    for row, clip in enumerate(batch.owner.tolist()):
        size, force = float(hits["size"][row]), float(hits["force"][row])
        voice = voices.setdefault((clip, round(size, 4)), draw_voice(rng, material, size))
        values: dict[str, Any] = {
            "hz": voice.hz,
            "rates": voice.decay_rates,
            "gains": draw_hit_gains(voice, force, rng),
            "material": material,
            "noise": voice.noise * (0.6 + 0.8 * force),
            "noise_hz": spec.noise_hz * (0.7 + 0.6 * force),
            "noise_rate": 1 / spec.noise_seconds,
            "chirp": spec.chirp,
            "attack": spec.attack_seconds,
        }
        for key, value in values.items():
            hits[key][row] = torch.as_tensor(value)
    return hits


def make_exact(
    batches: Sequence[Batch], rng: np.random.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Exact sounds of all classes in each batch, [B, S], and the class of each, [B]."""
    sounds, classes = [], []
    for batch in batches:
        for index, name in enumerate(CLASSES):
            made = voice_clips(batch, name, rng).to(device).waveform()
            sounds.append(made)
            classes.append(torch.full((len(made),), index, device=device))
    return torch.cat(sounds), torch.cat(classes)


def draw_batches(seed: int, count: int, seconds: float) -> list[Batch]:
    """Batches of up to eight drawn clips with hits, as numbers."""
    return [
        clips.make_batch(
            seed,
            first,
            min(8, count - first),
            seconds,
            action=_HITTING[first // 8 % len(_HITTING)],
            quiet=True,
        )
        for first in range(0, count, 8)
    ]


class SoundJudge:
    """Says which class a sound is of.

    Args:
        device: where it is trained and used.
        count: drawn clips, each of which it hears in every class.
        steps: of its training.
    """

    def __init__(self, device: torch.device, count: int, steps: int) -> None:
        torch.manual_seed(0)
        self._model = MaterialJudge(_WIDTH, len(CLASSES)).to(device)
        rng = np.random.default_rng(_JUDGE_SEED)
        sounds, classes = make_exact(draw_batches(_JUDGE_SEED, count, SECONDS), rng, device)
        features = self._features(sounds)
        optimizer = torch.optim.AdamW(self._model.parameters(), 3e-3, weight_decay=0.02)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step / steps, 3e-3, step, warm_up=20)
            rows = torch.randint(len(features), (64,), device=device)
            # Noise, tilts of the spectrum and floors make it robust against a decoder's errors.
            heard = features[rows]
            band = torch.linspace(-1, 1, heard.shape[2], device=device)[:, None]
            heard = heard + 0.15 * torch.randn(64, 1, 1, 1, device=device) * band
            floor = torch.empty(64, 1, 1, 1, device=device).uniform_(0, 0.5)
            heard = torch.maximum(heard, floor) + 0.1 * torch.randn_like(heard)
            heard = heard.roll(int(torch.randint(heard.shape[3], ())), 3)
            loss = F.cross_entropy(self._model(heard), classes[rows], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self._model.eval()

    def _features(self, sounds: Tensor) -> Tensor:
        parts = [self._model.features(part) for part in sounds.split(32)]
        return F.avg_pool2d(torch.cat(parts), (1, _POOL))

    @torch.no_grad()
    def __call__(self, sounds: Tensor) -> list[str]:
        """The class of each sound [B, S]; "silent" where nothing is heard."""
        device = self._model.head.weight.device
        names = []
        for sound in sounds.to(device).float():
            moments = sound[: len(sound) // 960 * 960].view(-1, 960)
            loudest = 10 * torch.log10(moments.square().mean(1).max() + 1e-12)
            index = int(self._model(self._features(sound[None])).argmax())
            names.append(CLASSES[index] if loudest > SILENT_DB else "silent")
        return names


def count_right(heard: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """The share of sounds of the class that was wanted, in all and by class, and the confusions."""
    pairs = list(zip(wanted, heard, strict=True))

    def share(names: Sequence[str]) -> float:
        own = [asked == found for asked, found in pairs if asked in names]
        return round(sum(own) / max(len(own), 1), 4)

    wrong = Counter(f"{asked}: {found}" for asked, found in pairs if asked != found)
    return {
        "sounds": len(pairs),
        "right": share(CLASSES),
        "materials": share(MATERIALS),
        "lasting": share([name for name in CLASSES if name not in MATERIALS]),
        "silent": round(sum(found == "silent" for _, found in pairs) / max(len(pairs), 1), 4),
        "by_class": {name: share((name,)) for name in CLASSES},
        "heard_instead": dict(wrong.most_common(12)),
    }


def measure_model(
    pipeline: FoleyPipeline,
    sound_judge: SoundJudge,
    shown: Mapping[str, VideoFrames],
    seeds: int,
    **options: Any,
) -> dict[str, Any]:
    """The figures of a set of clips, each asked for every class with every seed.

    Args:
        pipeline: the model.
        sound_judge: says what is heard.
        shown: frames, by the clip's name.
        seeds: noises, counted up from the first, 1 to 8.
        options: of the pipeline's call.
    """
    heard: list[str] = []
    wanted: list[str] = []
    by_clip: dict[str, float] = {}
    for clip, frames in shown.items():
        own: list[str] = []
        for name, prompt in PROMPTS.items():
            made = pipeline(frames, prompt, num_variations=seeds, **options)
            own += sound_judge(made.waveforms[:, 0])
            wanted += [name] * seeds
        heard += own
        by_clip[clip] = count_right(own, wanted[-len(own) :])["right"]
        print(clip, by_clip[clip], Counter(own).most_common(4), flush=True)
    each = [count_right(heard[i::seeds], wanted[i::seeds])["right"] for i in range(seeds)]
    return {"each_seed": each, **count_right(heard, wanted), "by_clip": by_clip}


def main() -> None:
    """Measure a model on rendered and on real clips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rendered", type=int, default=12, help="held-out rendered clips")
    parser.add_argument(
        "--clips",
        type=Path,
        nargs="*",
        default=[_EXAMPLES / "bigbuckbunny.mp4", _EXAMPLES / "bikes.mp4"],
        help="real clips, of which the first seconds are shown",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--judge-clips", type=int, default=96, help="that the judge learns from")
    parser.add_argument("--judge-steps", type=int, default=600)
    parser.add_argument("--processes", type=int, default=2, help="that draw")
    add_record_options(parser)
    add_options(parser, steps=None)
    args = parser.parse_args()
    pipeline, options = load_pipeline(args), collect_options(args)
    device = pipeline.device
    sound_judge = SoundJudge(device, args.judge_clips, args.judge_steps)
    rng = np.random.default_rng(_CONTROL_SEED)

    def control(batches: Sequence[Batch]) -> dict[str, Any]:
        sounds, classes = make_exact(batches, rng, device)
        return count_right(sound_judge(sounds), [CLASSES[index] for index in classes.tolist()])

    figures = {"exact_drawn": control(draw_batches(_CONTROL_SEED, 24, SECONDS))}
    print("exact sounds:", figures["exact_drawn"], flush=True)
    if args.rendered:
        made = make_clips(args.rendered, SECONDS, unseen=False, processes=args.processes)
        figures["exact_rendered"] = control([collate([clip]) for clip in made])
        print("exact sounds of the rendered clips:", figures["exact_rendered"], flush=True)
        shown = {
            f"{index}_{clip.kind}": make_frames(drawn[0], pipeline.preset)
            for index, clip in enumerate(made)
            if (drawn := collate([clip]).drawn) is not None
        }
        figures["rendered"] = measure_model(pipeline, sound_judge, shown, args.seeds, **options)
    if args.clips:
        limits = MediaLimits(max_seconds=SECONDS)
        shown = {
            clip.name: pipeline.decode_video(clip, trim=True, limits=limits) for clip in args.clips
        }
        figures["real"] = measure_model(pipeline, sound_judge, shown, args.seeds, **options)
    record = environment() | {
        "what": "prompts",
        "weights": pipeline.source,
        "seconds": SECONDS,
        "chance": round(1 / len(CLASSES), 4),
        **options,
        **figures,
    }
    finish(record, hardware=args.hardware, write=args.record)


if __name__ == "__main__":
    main()
