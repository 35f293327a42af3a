"""Train the decoder of the DAC-VAE on a fixed analysis, and the classifier of materials.

    python -m training.train_vae --out FOLDER [--minutes 7] [--resume FOLDER]

The decoder gets noise in the channels that the analysis does not use. It is trained with the
spectral energy distance 2 d(x, y) - d(y, y'), which does not require a copy of the target's noise,
only noise with the same distribution. The energies of bands over tens of milliseconds are compared
directly, so that the levels are right.
"""

# B crops, S samples, A latent frames

import argparse
import math
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.gpu.placement import to_device
from foley.models.analysis import ACTIVE, HOP, SAMPLE_RATE, Analysis, append_noise, mel_filters
from foley.models.vae import FoleyVAE, build_vae
from training import clips, judge
from training.scene import LAYERS
from training.settings import (
    TRAINED,
    TrainingBudget,
    WeightAverage,
    learning_rate,
    load_compile_cache,
    load_state,
    save_compile_cache,
    save_state,
    set_up,
    write_record,
)

DATA_SEED = 101
HELD_OUT_SEED = 909
EDGE = 6  # latent frames at each side of a crop that the loss ignores, except at a clip's border
AT_A_BORDER = 0.25  # share of the steps with crops at the beginning, and of those at the end
BUZZ_WEIGHT = 0.1  # per dB
LEVEL_WEIGHT = 3.0  # per decade of the energy in an octave
_OUTSIDE = 2048  # samples of silence added at a border, because windows are zero at their ends
_FFTS = (8192, 4096, 2048, 1024, 512, 256, 128, 64)

_QUIET = 2e-5  # magnitude that counts as silence, 94 dB below a full-scale sine
_LEVEL_FFT = 2048
_OCTAVES_HZ = (0, 350, 700, 1400, 2800, 5600, 11_200, 24_000)
_FAINT = 1e-6  # energy that is too faint for a hit, 60 dB below a full-scale sine


class SoundPool:
    """A pool of sounds with their latents on the device, which is renewed batch by batch.

    Args:
        stream: of batches.
        analysis: encodes the sounds.
        device: of the tensors.
        batches: number of batches in the pool.
    """

    def __init__(
        self, stream: object, analysis: Analysis, device: torch.device, batches: int
    ) -> None:
        self.stream, self.analysis, self.device = stream, analysis, device
        self.sounds: list[Tensor] = []
        self.latents: list[Tensor] = []
        self.oldest = 0
        for _ in range(batches):
            self.renew()
        self.batches = batches

    @torch.no_grad()
    def renew(self) -> None:
        """Replace the oldest batch."""
        batch = next(self.stream).to(self.device)  # type: ignore[call-overload]
        sound = batch.waveform()
        entry = sound, self.analysis(sound)
        if len(self.sounds) == getattr(self, "batches", -1):
            self.sounds[self.oldest], self.latents[self.oldest] = entry
            self.oldest = (self.oldest + 1) % self.batches
        else:
            self.sounds.append(entry[0])
            self.latents.append(entry[1])

    def crops(self, count: int, size: int) -> tuple[Tensor, Tensor, slice]:
        """Waveforms [B, S] and active latents [B, C, size] of crops, and the samples to compare.

        The decoder does not see the latents outside a crop, so the edges of a crop cannot be right
        and are not compared. At the border of a clip there is silence outside, and the decoder must
        not click there.

        Args:
            count: B, a multiple of 4.
            size: latent frames of a crop.
        """
        where, trim = torch.rand(()).item(), EDGE * HOP
        seen = slice(trim, -trim)
        which = torch.randint(len(self.sounds), (4,)).tolist()
        sounds, latents = [], []
        for index in which:
            sound, latent = self.sounds[index], self.latents[index]
            rows = torch.randint(len(sound), (count // 4,), device=self.device)
            last = latent.shape[-1] - size
            starts = torch.randint(last + 1, (count // 4,), device=self.device)
            if where < AT_A_BORDER:
                starts, seen = torch.zeros_like(starts), slice(0, -trim)
            elif where > 1 - AT_A_BORDER:
                starts, seen = torch.full_like(starts, last), slice(trim, None)
            frames = starts[:, None] + torch.arange(size, device=self.device)
            samples = starts[:, None] * HOP + torch.arange(size * HOP, device=self.device)
            sounds.append(sound[rows[:, None], samples])
            latents.append(latent[rows[:, None], :, frames].transpose(1, 2))
        return torch.cat(sounds), torch.cat(latents), seen


def compute_spectra(waveform: Tensor) -> list[Tensor]:
    """The magnitudes [B, f, t] of waveforms [B, S] at several resolutions; 1 is full scale."""
    result = []
    for size in _FFTS:
        window = torch.hann_window(size, device=waveform.device)
        spectrum = torch.stft(
            waveform, size, size // 4, window=window, center=False, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        result.append(torch.sqrt(power + 1e-8) / (window.sum() / 2))
    return result


def spectral_distance(first: list[Tensor], second: list[Tensor], loudness: list[Tensor]) -> Tensor:
    """The spectral distance [B] of magnitudes and of their logarithms.

    Args:
        first: of `compute_spectra`.
        second: of `compute_spectra`.
        loudness: [B] for each resolution, by which magnitudes are divided.
    """
    total = torch.zeros((), device=first[0].device)
    for a, b, level in zip(first, second, loudness, strict=True):
        # Norms instead of sums over bins compare frames and crops as a whole.
        linear = torch.sqrt((a - b).square().mean((1, 2)) + 1e-12) / level
        logs = (torch.log(a + _QUIET) - torch.log(b + _QUIET)).square().mean(1)
        total = total + linear + torch.sqrt(logs + 1e-6).mean(1)
    return total / len(first)


def band_energies(spectrum: list[Tensor], filters: dict[int, Tensor]) -> list[Tensor]:
    """log10 of the energy in bands over about 10 and 40 ms, in which noise has a steady energy.

    Args:
        spectrum: of `compute_spectra`.
        filters: bands for some of the resolutions, by the samples of a frame.
    """
    result = []
    for size, magnitudes in zip(_FFTS, spectrum, strict=True):
        if size in filters:
            energy = filters[size].T @ magnitudes.square()
            result += [
                torch.log10(energy + _QUIET**2),
                torch.log10(F.avg_pool1d(energy, 8, 4) + _QUIET**2),
            ]
    return result


def level_errors(target: list[Tensor], made: list[Tensor]) -> Tensor:
    """The mean error of the energy in octaves over 85 ms, in decades, weighted by loudness.

    It penalises tones that the decoder makes from noise, whose level changes with each draw. Noise
    that is an octave wide has a steady level and is not penalised.

    Args:
        target: of `compute_spectra`.
        made: of `compute_spectra`.
    """
    which = _FFTS.index(_LEVEL_FFT)
    edges = [round(hz * _LEVEL_FFT / SAMPLE_RATE) for hz in _OCTAVES_HZ]

    def octaves(spectrum: list[Tensor]) -> Tensor:
        energy = spectrum[which].square()
        parts = [energy[:, low:high].sum(1) for low, high in pairwise(edges)]
        return torch.log10(F.avg_pool1d(torch.stack(parts, 1), 5, 2) + _FAINT)

    wanted, found = octaves(target), octaves(made)
    loud = wanted - math.log10(_FAINT)
    return (loud * (found - wanted).abs()).sum() / loud.sum().clamp_min(1.0)


def buzz_excess(target: Tensor, made: Tensor) -> Tensor:
    """The excess [B] in dB of lines at multiples of the latent rate over those of the target.

    Only whole latent frames are used, so that these multiples fall on bins of the spectrum.

    Args:
        target: [B, S].
        made: [B, S].
    """
    num_samples = made.shape[-1] // HOP * HOP
    found, wanted = (judge.lines_db(w[:, :num_samples], 1e-2) for w in (made, target))
    return (found - wanted).clamp_min(0)


def energy_distance(
    target: Tensor, one: Tensor, two: Tensor, filters: dict[int, Tensor], seen: slice
) -> tuple[Tensor, Tensor]:
    """The loss of two samples, and the error of their levels in dB.

    Args:
        target: [B, S].
        one: [B, S], the decoder's result with one draw of noise.
        two: [B, S], the result with another draw.
        filters: see `band_energies`.
        seen: the part of S that is compared.
    """
    outside = (_OUTSIDE * (seen.start == 0), _OUTSIDE * (seen.stop is None))
    target, one, two = (w[:, seen] for w in (target, one, two))
    x, y, z = (compute_spectra(F.pad(w, outside)) for w in (target, one, two))
    loudness = [s.square().mean((1, 2)).sqrt() + 5e-4 for s in x]
    near = spectral_distance(x, y, loudness) + spectral_distance(x, z, loudness)
    apart = spectral_distance(y, z, loudness)
    levels = torch.zeros((), device=target.device)
    wanted = band_energies(x, filters)
    for sample in (y, z):
        for a, b in zip(wanted, band_energies(sample, filters), strict=True):
            levels = levels + (a - b).abs().mean() / len(wanted)
    octaves = level_errors(x, y) + level_errors(x, z)
    buzz = (buzz_excess(target, one) + buzz_excess(target, two)).mean()
    loss = (near - apart).mean() + 2 * levels + LEVEL_WEIGHT * octaves + BUZZ_WEIGHT * buzz
    return loss, octaves.detach() * 5


def train_judge(
    device: torch.device, steps: int, held_out: "list[clips.Batch]"
) -> tuple[judge.MaterialJudge, float]:
    """Train the classifier of materials; returns it and its accuracy on held-out exact sounds.

    Args:
        device: on which it is trained.
        steps: of training.
        held_out: batches for the accuracy.
    """
    model = judge.MaterialJudge().to(device)
    windows, labels = [], []
    for index in range(12 if steps > 50 else 1):
        for action in ("bounce", "tap", "strike", "drip"):
            batch = clips.make_batch(
                DATA_SEED + 1, index * 32, 32 if steps > 50 else 2, 4.0, action=action, quiet=True
            ).to(device)
            windows.append(
                judge.cut_hit_windows(batch.waveform(), batch.owner, batch.hits["seconds"])
            )
            labels.append(batch.hits["material"].long())
    fit_judge(model, torch.cat(windows), torch.cat(labels), steps)
    return model, material_accuracy(model, held_out, [b.waveform() for b in held_out])


def fit_judge(model: judge.MaterialJudge, sounds: Tensor, targets: Tensor, steps: int) -> None:
    """Train a classifier of materials.

    Args:
        model: on its device.
        sounds: windows [E, S] of `judge.cut_hit_windows`.
        targets: int64 [E], the material of each.
        steps: of training.
    """
    device = sounds.device
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / steps, 2e-3, step)
        rows = torch.randint(len(sounds), (256,), device=device)
        picked = sounds[rows]
        shift = int(torch.randint(-480, 481, (1,)).item())
        noise = torch.randn_like(picked)
        peak = picked.abs().amax(1, keepdim=True)
        amount = peak * 10 ** -torch.empty(len(picked), 1, device=device).uniform_(1.0, 4.0)
        features = model.features(picked.roll(shift, 1) + amount * noise)
        # Noise and tilts of the spectrum make it robust against small errors of a reconstruction.
        tilt = torch.randn(len(picked), 1, 1, 1, device=device) * 0.15
        features = (
            features + tilt * torch.linspace(-1, 1, features.shape[2], device=device)[:, None]
        )
        features = features + 0.1 * torch.randn_like(features)
        loss = F.cross_entropy(model(features), targets[rows], label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def material_accuracy(
    model: judge.MaterialJudge, batches: "list[clips.Batch]", sounds: list[Tensor]
) -> float:
    """The share of hits whose material the classifier recognises.

    Args:
        model: the classifier.
        batches: with the hits.
        sounds: [B, S] for each batch.
    """
    right = total = 0
    for batch, sound in zip(batches, sounds, strict=True):
        windows = judge.cut_hit_windows(sound, batch.owner, batch.hits["seconds"])
        found = model(model.features(windows)).argmax(1)
        right += int((found == batch.hits["material"]).sum())
        total += len(found)
    return right / max(total, 1)


@torch.no_grad()
def evaluate_decoder(
    vae: FoleyVAE, analysis: Analysis, model: judge.MaterialJudge, batches: "list[clips.Batch]"
) -> dict[str, float]:
    """The figures of a decoder on held-out clips: materials, levels, silence, onsets, buzz.

    Args:
        vae: with the decoder.
        analysis: the encoder.
        model: the classifier of materials.
        batches: of held-out clips.
    """
    generator = torch.Generator(batches[0].reverb.device).manual_seed(5)
    real, rebuilt = [], []
    for batch in batches:
        sound = batch.waveform()
        real.append(sound)
        rebuilt.append(vae.decode(append_noise(analysis(sound), generator)).float()[:, 0])
    errors: list[float] = []
    forces: list[float] = []
    levels: list[float] = []
    depths: list[float] = []
    match, ceiling = judge.Match(), judge.Match()
    for batch, sound, other in zip(batches, real, rebuilt, strict=True):
        for clip in range(len(batch)):
            own = batch.owner == clip
            times, force = batch.hits["seconds"][own].tolist(), batch.hits["force"][own].tolist()
            match.add(judge.detect_onsets(other[clip]), judge.merge_close_events(times))
            ceiling.add(judge.detect_onsets(sound[clip]), judge.merge_close_events(times))
            depths.append(judge.silence_db(sound[clip], other[clip]))
            for seconds, strength in zip(times, force, strict=True):
                level = judge.level_db(other[clip], seconds)
                errors.append(level - judge.level_db(sound[clip], seconds))
                forces.append(strength)
                levels.append(level)
    size = torch.tensor(errors).abs()
    true_levels = torch.tensor(levels) - torch.tensor(errors)
    truth = torch.stack((torch.tensor(forces).clamp_min(0.02).log(), true_levels))
    stacked = torch.stack((torch.tensor(forces).clamp_min(0.02).log(), torch.tensor(levels)))
    return {
        "material_accuracy": material_accuracy(model, batches, rebuilt),
        "material_accuracy_real": material_accuracy(model, batches, real),
        "level_error_db_median": float(size.median()),
        "level_error_db_p90": float(size.quantile(0.9)),
        "level_bias_db": float(torch.tensor(errors).mean()),
        "force_level_correlation": float(torch.corrcoef(stacked)[0, 1]),
        "force_level_correlation_real": float(torch.corrcoef(truth)[0, 1]),
        "silence_db_median": float(torch.tensor(depths).nanmedian()),
        "buzz_db": measure_buzz(vae, analysis, batches[0].reverb.device),
        "onset_f1": match.f1,
        "onset_f1_real": ceiling.f1,
        "onset_error_ms": match.median_error_ms,
    }


@torch.no_grad()
def measure_buzz(vae: FoleyVAE, analysis: Analysis, device: torch.device) -> float:
    """The excess in dB of lines at multiples of the latent rate in reconstructed noises."""
    excess: list[float] = []
    for index in range(60):
        batch = clips.make_batch(HELD_OUT_SEED, index, 1, 3.0).to(device)
        kind = int(batch.layers["kind"][0, 0])
        if len(batch.owner) or kind < 0 or LAYERS[kind] not in ("rain", "wind", "fire", "stream"):
            continue
        real = batch.waveform()
        rebuilt = vae.decode(append_noise(analysis(real))).float()[:, 0]
        excess.append(judge.buzz_db(rebuilt[0]) - judge.buzz_db(real[0]))
    return float(torch.tensor(excess).mean()) if excess else float("nan")


def make_held_out_batches(device: torch.device, count: int) -> "list[clips.Batch]":
    """Clips with one object and no continuous sound, of seeds that no training uses.

    Args:
        device: of the batches.
        count: clips of each action.
    """
    actions = ("bounce", "roam", "strike", "tap", "clap", "drip")
    return [
        clips.make_batch(HELD_OUT_SEED, 0, count, 4.0, action=action, quiet=True).to(device)
        for action in actions
    ]


def main() -> None:
    """Run the training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument(
        "--data-seed", type=int, default=DATA_SEED, help="use another one when resuming"
    )
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--crop", type=int, default=64, help="latent frames")
    parser.add_argument("--pool", type=int, default=24, help="batches of 32 clips to crop from")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--smoke", action="store_true", help="seconds on a CPU, no real training")
    args = parser.parse_args()
    device = set_up(1)
    args.out.mkdir(parents=True, exist_ok=True)
    budget = TrainingBudget(args.minutes, max_steps=2 if args.smoke else None)
    config = TRAINED.vae
    if args.smoke:
        config = replace(config, decoder_dim=64)
    analysis, vae = Analysis().to(device), to_device(build_vae(config), device).train()
    kept = 1.0
    if args.resume:
        analysis.load_state_dict(load_state(args.resume / "analysis.safetensors"))
        vae.load_state_dict(load_state(args.resume / "vae.safetensors"))
        load_compile_cache(args.resume)
    workers = 0 if args.smoke else args.workers
    size = clips.FixedSize(4.0, 4 if args.smoke else 32)
    stream = clips.stream(args.data_seed, size, workers)
    if not args.resume:
        first = [next(stream).to(device).waveform() for _ in range(2 if args.smoke else 24)]
        kept = analysis.fit(first)
    pool = SoundPool(stream, analysis, device, 2 if args.smoke else args.pool)
    held_out = make_held_out_batches(device, 2 if args.smoke else 24)
    if args.resume:
        model = judge.MaterialJudge().to(device).eval()
        model.load_state_dict(load_state(args.resume / "judge.safetensors"))
        accuracy = material_accuracy(model, held_out, [b.waveform() for b in held_out])
    else:
        model, accuracy = train_judge(device, 3 if args.smoke else 900, held_out)
    save_state(args.out / "judge.safetensors", model.state_dict())
    save_state(args.out / "analysis.safetensors", analysis.state_dict())
    print(
        f"{budget.elapsed:.0f} s: PCA keeps {kept:.4f}; accuracy of the classifier {accuracy:.3f}",
        flush=True,
    )

    parameters = [*vae.post_quant.parameters(), *vae.decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, args.rate, betas=(0.8, 0.99), weight_decay=0.0)
    average = WeightAverage(vae, 0.999)
    decode = torch.compile(vae.decode) if device.type == "cuda" else vae.decode
    filters = {size: mel_filters(size, bands).to(device) for size, bands in ((2048, 64), (512, 32))}
    step, shown, log = 0, time.monotonic(), []
    while (progress := budget.progress(step)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, args.rate, step)
        sound, latents, seen = pool.crops(4 if args.smoke else args.batch, args.crop)
        wobble = 0.08 * torch.rand(len(latents), 1, 1, device=device)
        latents = latents + wobble * torch.randn_like(latents)  # the transformer makes errors, too
        both = decode(torch.cat((append_noise(latents), append_noise(latents))))[:, 0]
        one, two = both.chunk(2)
        loss, plain = energy_distance(sound, one, two, filters, seen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        if step % 4 == 0:
            pool.renew()
        step += 1
        if time.monotonic() - shown > 20 or args.smoke:
            shown = time.monotonic()
            log.append([step, round(budget.elapsed), round(loss.item(), 4), round(plain.item(), 4)])
            print(
                f"step {step} {budget.elapsed:.0f} s loss {loss:.4f} level error {plain:.3f} dB",
                flush=True,
            )
    average.swap()
    vae.eval()
    save_state(args.out / "vae.safetensors", vae.state_dict())
    if device.type == "cuda":
        save_compile_cache(args.out / "vae.compiled")
    figures = evaluate_decoder(vae, analysis, model, held_out)
    write_record(
        args.out / "vae.json",
        what="vae",
        data_seed=args.data_seed,
        steps=step,
        batch=args.batch,
        seconds=round(budget.elapsed, 1),
        active_channels=ACTIVE,
        variance_kept=None if args.resume else kept,
        resumed=bool(args.resume),
        losses=log,
        gate=figures,
    )


if __name__ == "__main__":
    main()
