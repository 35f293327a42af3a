"""Measure a trained model by the sounds that it generates for held-out clips.

python -m training.evaluate --state FOLDER --out FILE [--quick]
"""

# B clips, S samples, A latent frames, V visual tokens

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from foley.configs import OFFICIAL_GUIDANCE, SYNC_SEGMENT_STRIDE, TINY_GUIDANCE
from foley.gpu.placement import to_device
from foley.media.clock import num_latents
from foley.models.analysis import LATENT_DIM, SAMPLE_RATE, Analysis, append_noise
from foley.models.context import DiTContext
from foley.models.vae import FoleyVAE, build_vae
from foley.plans import QUALITIES, SamplingPlan, Solver
from foley.request import GenerationRequest
from foley.sampling import SolverPoint, count_guided_steps, guide, integrate, make_sigmas
from foley.session import fade_ends
from training import clips, judge, labels, text
from training.features import PAD, FrozenEncoders, PromptTokenizer
from training.flow import FlowModel
from training.materials import MATERIALS
from training.scene import PLAIN, UNSEEN, Style
from training.settings import TRAINED, load_state, set_up, write_record
from training.train_dit import load_frozen

HELD_OUT_SEED = 909
NEGATIVE = "noisy, harsh"
_AT_ONCE = 32
EVALUATIONS_PER_STEP: dict[Solver, int] = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "ab2": 1}


@dataclass
class TrainedModel:
    """All parts of a trained model, on one device."""

    analysis: Analysis
    encoders: FrozenEncoders
    words: PromptTokenizer
    flow: FlowModel
    vae: FoleyVAE
    materials: judge.MaterialJudge
    device: torch.device


AS_SERVED = GenerationRequest().choose_sampling(TRAINED)


@dataclass(frozen=True)
class Sampling:
    """Settings of the generation.

    Attributes:
        plan: of the sampler; the default is as served.
        guidance_scale: above 1 for guidance.
        seed: of the noise.
    """

    plan: SamplingPlan = AS_SERVED
    guidance_scale: float = TINY_GUIDANCE
    seed: int = 0


def add_quality(parser: argparse.ArgumentParser) -> None:
    """Add the option `--quality`, for `choose_plan`."""
    parser.add_argument("--quality", choices=QUALITIES, help="by default as served")


def choose_plan(args: argparse.Namespace) -> SamplingPlan:
    """Return the plan of the sampler that `--quality` names."""
    return AS_SERVED if args.quality is None else QUALITIES[args.quality]


def load_trained(state: Path, device: torch.device) -> TrainedModel:
    """Load a state folder that the training scripts wrote."""
    analysis, encoders, words = load_frozen(state, device)

    def weights(name: str) -> dict[str, Tensor]:
        return load_state(state / f"{name}.safetensors", device)

    flow, vae = FlowModel().to(device).eval(), to_device(build_vae(TRAINED.vae), device).eval()
    materials = judge.MaterialJudge().to(device).eval()
    flow.load_state_dict(weights("dit"))
    vae.load_state_dict(weights("vae"))
    materials.load_state_dict(weights("judge"))
    return TrainedModel(analysis, encoders, words, flow, vae, materials, device)


@torch.no_grad()
def generate_sounds(
    parts: TrainedModel,
    batch: clips.Batch,
    how: Sampling,
    prompts: list[str] | None = None,
    *,
    shuffled: bool = False,
) -> Tensor:
    """Generate the sounds [B, S] of a batch.

    Args:
        parts: the model.
        batch: the clips.
        how: settings of the generation.
        prompts: one for each clip; the clips' own when None.
        shuffled: use the sync tokens of the previous clip of the batch, which must destroy the
            synchrony.
    """
    device = parts.device
    on_gpu = device.type == "cuda"
    pictures = batch.pictures()
    missing = -pictures.shape[1] % SYNC_SEGMENT_STRIDE  # whole segments, as in the pipeline
    pictures = torch.cat((pictures, pictures[:, -1:].expand(-1, missing, -1, -1, -1)), dim=1)
    visual, sync = parts.encoders(pictures)
    if shuffled:
        sync = sync.roll(1, 0)
    count = num_latents(pictures.shape[1])
    said = prompts or batch.prompts
    ids = parts.words.encode([*said, NEGATIVE]).to(device)
    dit = parts.flow.dit
    with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
        words = parts.flow.text(input_ids=ids, attention_mask=(ids != PAD).long()).last_hidden_state
        cond = dit.make_context(visual, sync, words[:-1], count)
        contexts = [cond]
        if how.guidance_scale > 1:
            negative = words[-1:].expand(len(batch), -1, -1)
            uncond = dit.make_empty_context(visual.shape[1], sync.shape[1], negative, count)
            contexts = [uncond, cond]
        context = DiTContext.concatenate(contexts)
        plan = how.plan
        sigmas = make_sigmas(plan.num_inference_steps, plan.schedule_shift)
        num_guided = count_guided_steps(sigmas, plan.guidance_interval)
        generator = torch.Generator().manual_seed(how.seed)
        noise = torch.randn(len(batch), LATENT_DIM, count, generator=generator).to(device)

        def velocity(point: SolverPoint) -> Tensor:
            is_guided = len(contexts) > 1 and point.step < num_guided
            repeated = point.latents.repeat(1 + is_guided, 1, 1)
            levels = torch.full((len(repeated),), point.sigma, device=device)
            times = dit.make_time_modulation(levels)
            out = dit(repeated, times, context if is_guided else cond)
            if not is_guided:
                return out
            without, with_conditions = out.chunk(2)
            return guide(without, with_conditions, how.guidance_scale)

        latents = integrate(velocity, noise, sigmas, plan.solver, num_guided)
    sounds = parts.vae.decode(latents).float()[:, 0, : round(batch.seconds * SAMPLE_RATE)]
    fade_ends(sounds)
    return sounds


@torch.no_grad()
def reconstruct(parts: TrainedModel, sounds: Tensor) -> Tensor:
    """Encode and decode sounds [B, S]; a generated sound cannot be better than the result."""
    return parts.vae.decode(append_noise(parts.analysis(sounds))).float()[:, 0]


def make_held_out(
    parts: TrainedModel, seconds: float, count: int, style: Style = PLAIN, **options: Any
) -> list[clips.Batch]:
    """Batches of clips of seeds that no training uses.

    Args:
        parts: whose device the batches are on.
        seconds: length of each clip.
        count: number of clips.
        style: of drawing.
        options: of `draw_scene`: action, quiet.
    """
    batches = []
    for first in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - first)
        made = clips.make_batch(HELD_OUT_SEED, first, size, seconds, style, **options)
        batches.append(made.to(parts.device))
    return batches


def score(
    batch: clips.Batch, sounds: Tensor, match: judge.Match, strict: judge.Match | None = None
) -> None:
    """Add the onsets of a batch of sounds to a match.

    Args:
        batch: the clips with their events.
        sounds: [B, S].
        match: does not count onsets at the start of a slide.
        strict: counts them as false, if it is given.
    """
    for clip, unscored in enumerate(labels.find_shoves(batch)):
        truth = judge.merge_close_events(batch.hits["seconds"][batch.owner == clip].tolist())
        found = judge.detect_onsets(sounds[clip])
        match.add(found, truth, unscored)
        if strict is not None:
            strict.add(found, truth)


def match_figures(match: judge.Match) -> dict[str, float]:
    """The figures of a match, rounded."""
    return {
        "f1": round(match.f1, 4),
        "precision": round(match.precision, 4),
        "recall": round(match.recall, 4),
        "median_error_ms": round(match.median_error_ms, 2),
    }


def measure_synchrony(
    parts: TrainedModel,
    how: Sampling,
    lengths: tuple[float, ...],
    count: int,
    style: Style = PLAIN,
    *,
    controls: bool = True,
) -> dict[str, dict[str, float]]:
    """The synchrony of generated sounds, and of control sounds.

    The controls are the exact sounds (`truth`), reconstructed ones (`rebuilt`), and those that were
    generated with the sync tokens of another clip. `strict` is explained in `score`.

    Args:
        parts: the model.
        how: settings of the generation.
        lengths: of the clips, in seconds.
        count: number of clips of each length.
        style: of drawing.
        controls: whether to measure the controls.
    """
    kinds: tuple[str, ...] = ("generated", "strict")
    if controls:
        kinds += ("truth", "rebuilt", "other_clip")
    matches = {kind: judge.Match() for kind in kinds}
    for seconds in lengths:
        for batch in make_held_out(parts, seconds, count, style, quiet=True):
            sounds = generate_sounds(parts, batch, how)
            score(batch, sounds, matches["generated"], matches["strict"])
            if controls:
                real = batch.waveform()
                score(batch, real, matches["truth"])
                rebuilt = reconstruct(parts, real)
                score(batch, rebuilt, matches["rebuilt"])
                score(
                    batch, generate_sounds(parts, batch, how, shuffled=True), matches["other_clip"]
                )
    return {kind: match_figures(match) for kind, match in matches.items()}


@torch.no_grad()
def measure_obedience(parts: TrainedModel, how: Sampling, count: int) -> dict[str, float]:
    """The share of hits with the sound of the material that the prompt names.

    The prompt names another material than the one in the picture.

    Args:
        parts: the model.
        how: settings of the generation.
        count: number of clips of each action.
    """
    rng = np.random.default_rng(5)
    totals = dict.fromkeys(("asked", "rebuilt", "real", "hits"), 0)
    for action in ("bounce", "tap", "strike"):
        for batch in make_held_out(parts, 4.0, count, action=action, quiet=True):
            own = torch.full((len(batch),), -1, device=parts.device)
            own[batch.owner] = batch.hits["material"].long()
            asked = [
                int(rng.choice([m for m in range(len(MATERIALS)) if m != mine]))
                for mine in own.tolist()
            ]
            prompts = [text.name_material(rng, MATERIALS[m]) for m in asked]
            real = batch.waveform()
            rebuilt = reconstruct(parts, real)
            wanted = torch.tensor(asked, device=parts.device)[batch.owner]
            for name, sounds, target in (
                ("asked", generate_sounds(parts, batch, how, prompts), wanted),
                ("rebuilt", rebuilt, batch.hits["material"].long()),
                ("real", real, batch.hits["material"].long()),
            ):
                windows = judge.cut_hit_windows(sounds, batch.owner, batch.hits["seconds"])
                heard = parts.materials(parts.materials.features(windows)).argmax(1)
                totals[name] += int((heard == target).sum())
            totals["hits"] += len(wanted)
    hits = max(totals.pop("hits"), 1)
    return {name: round(value / hits, 4) for name, value in totals.items()} | {
        "chance": round(1 / len(MATERIALS), 4)
    }


@torch.no_grad()
def measure_loudness(parts: TrainedModel, how: Sampling, count: int) -> dict[str, float]:
    """The correlation of loudness and force, and the depth of the silence between events.

    Loudness in sones is measured for all hits at their exact time, and for the hits with a detected
    onset (`heard`) from that on: a hit that sounds 30 ms early may be over at its exact time.
    Levels in dB are correlated with the logarithm of the force, for both. One inaudible hit at
    -80 dB outweighs many audible ones in the former. Silence is also measured for prompts
    that name the material (`named`): another material may ring when the true one is over.

    Args:
        parts: the model.
        how: settings of the generation.
        count: number of clips of each action.
    """
    rng = np.random.default_rng(5)
    kinds = ("generated", "rebuilt", "real")
    heard: dict[str, list[float | None]] = {kind: [] for kind in kinds}
    exact: dict[str, list[float]] = {kind: [] for kind in kinds}
    forces: list[float] = []
    depths: dict[str, list[float]] = {kind: [] for kind in ("generated", "rebuilt", "named")}
    for action in ("bounce", "roam", "tap", "clap"):
        for batch in make_held_out(parts, 5.0, count, action=action, quiet=True):
            real = batch.waveform()
            rebuilt = reconstruct(parts, real)[:, : real.shape[1]].clone()
            fade_ends(rebuilt)
            sounds = {
                "generated": generate_sounds(parts, batch, how),
                "rebuilt": rebuilt,
                "real": real,
            }
            found = {
                name: [judge.detect_onsets(one) for one in sound] for name, sound in sounds.items()
            }
            owners, hits = batch.owner.tolist(), batch.hits
            forces += hits["force"].tolist()
            for owner, seconds in zip(owners, hits["seconds"].tolist(), strict=True):
                for name, sound in sounds.items():
                    onsets = found[name][owner]
                    exact[name].append(judge.level_db(sound[owner], seconds))
                    heard[name].append(judge.onset_level_db(sound[owner], onsets, seconds))
            sounds["named"] = generate_sounds(parts, batch, how, make_naming_prompts(batch, rng))
            for name, values in depths.items():
                values += [judge.silence_db(*pair) for pair in zip(real, sounds[name], strict=True)]
    table: dict[str, float] = {}
    logarithms = np.log(forces)
    for name in kinds:
        rows = [i for i, level in enumerate(heard[name]) if level is not None]
        of_heard = [level for level in heard[name] if level is not None]
        sones = [judge.level_to_sones(level) for level in exact[name]]
        table |= {
            f"force_loudness_correlation_{name}": correlation(forces, sones),
            f"force_loudness_correlation_heard_{name}": correlation(
                np.take(forces, rows), [judge.level_to_sones(level) for level in of_heard]
            ),
            f"force_level_correlation_{name}": correlation(logarithms, exact[name]),
            f"force_level_correlation_heard_{name}": correlation(logarithms[rows], of_heard),
            f"heard_{name}": round(len(rows) / len(forces), 4),
        }
    error = np.abs(np.subtract(exact["rebuilt"], exact["real"]))
    table["rebuilt_level_error_db"] = round(float(np.median(error)), 2)
    for name, values in depths.items():
        known = [depth for depth in values if not np.isnan(depth)]
        table[f"silence_db_median_{name}"] = round(float(np.median(known)), 1)
        share = float(np.mean([depth >= 30 for depth in known]))
        table[f"share_of_clips_30_db_silent_{name}"] = round(share, 4)
    return table


def make_naming_prompts(batch: clips.Batch, rng: np.random.Generator) -> list[str]:
    """Prompts that name the material of each clip's last hit; a clip without hits keeps its own.

    Args:
        batch: the clips.
        rng: of the wording.
    """
    prompts = list(batch.prompts)
    for clip, material in zip(batch.owner.tolist(), batch.hits["material"].tolist(), strict=True):
        if material < len(MATERIALS):  # a bang of light has no material
            prompts[clip] = text.name_material(rng, MATERIALS[int(material)])
    return prompts


def correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Pearson's correlation of two series [E], rounded."""
    values = np.corrcoef(np.asarray(first, np.float64), np.asarray(second, np.float64))
    return round(float(values[0, 1]), 4)


@torch.no_grad()
def measure_textures(parts: TrainedModel, how: Sampling, count: int) -> dict[str, float]:
    """Figures of continuous sounds: levels over and within clips, offset, buzz, clicks.

    Args:
        parts: the model.
        how: settings of the generation.
        count: number of clips, of which those with a continuous sound alone are measured.
    """
    real_levels, levels, inside, offsets, buzz, real_buzz = [], [], [], [], [], []
    clicks, real_clicks = 0, 0
    for batch in make_held_out(parts, 5.0, count):
        kinds = batch.layers["kind"][:, 0]
        silent_hits = torch.ones(len(batch), dtype=torch.bool, device=parts.device)
        silent_hits[batch.owner] = False
        chosen = ((kinds >= 0) & (kinds < 5) & silent_hits).nonzero().flatten().tolist()
        if not chosen:
            continue
        real, sounds = batch.waveform(), generate_sounds(parts, batch, how)
        for clip in chosen:
            one, two = (w[clip][: len(w[clip]) // 4800 * 4800] for w in (real, sounds))
            a, b = (w.view(-1, 4800).square().mean(1).add(1e-9).log10() * 10 for w in (one, two))
            real_levels.append(float(a.mean()))
            levels.append(float(b.mean()))
            if a.std() > 2:
                inside.append(float(torch.corrcoef(torch.stack((a, b)))[0, 1]))
            offsets.append(float(two.mean().abs() / two.square().mean().sqrt().clamp_min(1e-6)))
            clicks, real_clicks = (
                clicks + judge.count_clicks(two),
                real_clicks + judge.count_clicks(one),
            )
            if int(kinds[clip]) != 2:  # the sound of an engine has such lines
                buzz.append(judge.buzz_db(two))
                real_buzz.append(judge.buzz_db(one))
    if len(levels) < 3:
        return {"clips": len(levels)}
    return {
        "clips": len(levels),
        "level_correlation_between_clips": round(float(np.corrcoef(real_levels, levels)[0, 1]), 4),
        "level_correlation_within": round(float(np.mean(inside)), 4) if inside else float("nan"),
        "level_bias_db": round(float(np.mean(np.subtract(levels, real_levels))), 2),
        "offset_relative_to_rms": round(float(np.max(offsets)), 4),
        "clicks_a_clip": round(clicks / len(levels), 2),
        "clicks_a_clip_real": round(real_clicks / len(levels), 2),
        "buzz_db": round(float(np.mean(buzz)), 2),
        "buzz_db_real": round(float(np.mean(real_buzz)), 2),
    }


@torch.no_grad()
def measure_likeness(parts: TrainedModel, how: Sampling, count: int) -> dict[str, float]:
    """Spectral distances of generated and exact sounds, and of two halves of the exact ones.

    Args:
        parts: the model.
        how: settings of the generation.
        count: number of clips.
    """
    real, made = [], []
    for batch in make_held_out(parts, 5.0, count):
        sound, other = batch.waveform(), generate_sounds(parts, batch, how)
        real.append(judge.band_levels(sound))
        made.append(judge.band_levels(other))
    truth, found = torch.cat(real), torch.cat(made)
    half = len(truth) // 2
    return {
        "log_mel_distance": round(float((truth - found)[:, :48].abs().mean()), 4),
        "log_mel_distance_other_clips": round(
            float((truth - truth.roll(1, 0))[:, :48].abs().mean()), 4
        ),
        "frechet": round(judge.frechet_distance(truth, found), 4),
        "frechet_two_halves_of_real": round(judge.frechet_distance(truth[:half], truth[half:]), 4),
    }


def measure_steps(
    parts: TrainedModel, guidance_scale: float, count: int
) -> list[dict[str, object]]:
    """Synchrony and spectral distances for each solver and number of steps.

    Args:
        parts: the model.
        guidance_scale: of the generation.
        count: number of clips.
    """
    rows: list[dict[str, object]] = []
    for solver, per_step in EVALUATIONS_PER_STEP.items():
        for steps in (4, 8, 10, 16, 25, 50):
            how = Sampling(SamplingPlan(steps, solver), guidance_scale)
            match, real, made = judge.Match(), [], []
            for batch in make_held_out(parts, 5.0, count, quiet=True):
                sounds = generate_sounds(parts, batch, how)
                score(batch, sounds, match)
                real.append(judge.band_levels(batch.waveform()))
                made.append(judge.band_levels(sounds))
            truth, found = torch.cat(real), torch.cat(made)
            rows.append(
                {
                    "solver": solver,
                    "steps": steps,
                    "evaluations": steps * per_step,
                    **match_figures(match),
                    "log_mel_distance": round(float((truth - found)[:, :48].abs().mean()), 4),
                    "frechet": round(judge.frechet_distance(truth, found), 4),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure a state and write a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--noise-seed", type=int, default=0)
    add_quality(parser)
    parser.add_argument("--quick", action="store_true", help="only by length, and two more figures")
    parser.add_argument("--table", action="store_true", help="also quality against steps")
    args = parser.parse_args()
    device = set_up(9)
    start = time.monotonic()
    parts = load_trained(args.state, device)
    figures: dict[str, object] = {}

    def measure(name: str, work: Callable[[], object]) -> None:
        figures[name] = work()
        print(f"{time.monotonic() - start:.0f} s {name}", flush=True)
        write_record(
            args.out,
            what="quality",
            seed=HELD_OUT_SEED,
            count=n,
            plan=how.plan._asdict(),
            noise_seed=how.seed,
            figures=figures,
        )

    n, how = args.count, Sampling(choose_plan(args), seed=args.noise_seed)
    usual = (3.0, 5.0, 8.0)
    if args.quick:
        for seconds in (2.0, *usual, 12.0, 15.0):
            measure(
                f"sync_{seconds:.0f}",
                partial(measure_synchrony, parts, how, (seconds,), n, controls=False),
            )
        measure("obedience", lambda: measure_obedience(parts, how, n // 2))
        measure("loudness", lambda: measure_loudness(parts, how, n))
        return
    measure("sync_3_to_8", lambda: measure_synchrony(parts, how, usual, n))
    measure("obedience", lambda: measure_obedience(parts, how, n))
    measure("loudness", lambda: measure_loudness(parts, how, 2 * n))
    measure("sync_2", lambda: measure_synchrony(parts, how, (2.0,), n))
    measure("sync_12_to_15", lambda: measure_synchrony(parts, how, (12.0, 15.0), n // 2))
    measure("sync_unseen_style", lambda: measure_synchrony(parts, how, usual, n, UNSEEN))
    measure("textures", lambda: measure_textures(parts, how, 8 * n))
    measure("likeness", lambda: measure_likeness(parts, how, 4 * n))
    for scale in (1.0, OFFICIAL_GUIDANCE):
        other = replace(how, guidance_scale=scale)
        measure(f"sync_guidance_{scale}", partial(measure_synchrony, parts, other, (5.0,), n))
        measure(f"obedience_guidance_{scale}", partial(measure_obedience, parts, other, n))
    if args.table:
        measure("against_steps", lambda: measure_steps(parts, how.guidance_scale, n // 2))


if __name__ == "__main__":
    main()
