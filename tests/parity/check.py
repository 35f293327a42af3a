"""Runs a folder of golden files and prints one line a file with the measured error.

    python -m tests.parity.check DIR

The error is the largest absolute difference over the largest absolute value of the expected
tensor, in float32 on the CPU. Sizes are read from each file, so folders with other sizes work.
Exits with 1 when a file is over its limit, 2 when the folder cannot be used.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from foley.configs import SYNC_FPS, VISUAL_FPS
from foley.denoise import Denoising, VelocityModel
from foley.media.clock import FramePicker, num_latents, seconds_of
from foley.media.decode import VideoInfo, decode_frames, probe
from foley.media.scale import fit_and_crop, stretch
from foley.media.source import MediaLimits
from foley.models.context import DiTContext
from foley.models.dit import FoleyDiT
from foley.models.embeddings import embed_time
from foley.models.joint_block import JointBlock
from foley.models.layers import AUDIO_NORM_EPS, JOINT_EPS
from foley.models.rope import InterleavedPositions, JointRotary, RotaryTable, rotate, stretch_index
from foley.plans import Solver
from foley.sampling import SolverPoint, compute_evaluation_sigmas, guide, make_sigmas
from foley.types import Conditions
from tests.parity import fixtures
from tests.parity.fixtures import Fixture

LIMIT = 1e-5
# Two of the file's 128 frequencies are not the nearest float32, one of them (0.42) shows: its last
# bit is 3e-8, times t = 1000. Measured: 3.02e-5, on any processor.
EMBEDDING_LIMIT = 4e-5
AUDIO_LIMIT = 1e-4
EXACT = 0.0

# What was computed, what was expected, and how far apart they may be.
Comparison = tuple[str, Tensor, Tensor, float]
SOLVERS: dict[str, Solver] = {
    "euler": "euler",
    "heun-2": "heun",
    "midpoint-2": "midpoint",
    "kutta-4": "rk4",
}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest value; infinite for other shapes or NaN."""
    if actual.shape != expected.shape:
        return float("inf")
    difference = (actual.double() - expected.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    error = difference / scale if scale else difference
    return error if error == error else float("inf")


def _velocity(model: FoleyDiT, latents: Tensor, timesteps: Tensor, context: DiTContext) -> Tensor:
    return model(latents, model.make_time_modulation(timesteps / 1000.0), context)


def _case(model: FoleyDiT, file: Fixture, prefix: str) -> Comparison:
    x = file[f"{prefix}in.x"]
    context = model.make_context(
        file[f"{prefix}in.clip_feat"],
        file[f"{prefix}in.sync_feat"],
        file[f"{prefix}in.cond"],
        x.shape[-1],
    )
    velocity = _velocity(model, x, file[f"{prefix}in.t"], context)
    return f"{prefix}velocity", velocity, file[f"{prefix}out.x"], LIMIT


def check_dit(file: Fixture) -> Iterator[Comparison]:
    """One run of the transformer."""
    yield _case(fixtures.dit(file), file, "")


def check_dit_cases(file: Fixture) -> Iterator[Comparison]:
    """Other lengths, and the unconditional run."""
    model = fixtures.dit(file.sibling(file.metadata["weights"]))
    for index in range(int(file.metadata["n_cases"])):
        yield _case(model, file, f"case{index}.")
    lengths = json.loads(file.metadata["empty"])
    x = file["empty.in.x"]
    context = model.make_empty_context(
        lengths["visual"], lengths["sync"], file["empty.in.cond"], x.shape[-1]
    )
    velocity = _velocity(model, x, file["empty.in.t"], context)
    yield "empty.velocity", velocity, file["empty.out.x"], LIMIT


# What a module of the reference is called here; `.in` and the stream names are added to it.
_MODULES = {
    "audio_embedder": "audio_in",
    "cond_in": "clip_in.text",
    "sync_in": "clip_in.sync",
    "time_in": "time_in",
    "visual_proj": "clip_in.visual",
    "audio_self_proj": "audio.out",
    "audio_cross_proj": "audio.cross_out",
    "audio_mlp": "audio.mlp",
    "v_cond_self_proj": "visual.out",
    "v_cond_cross_proj": "visual.cross_out",
    "v_cond_mlp": "visual.mlp",
    "linear1": "out",
    "linear2": "mlp",
    "modulation": "modulation",
}


def check_dit_mid(file: Fixture) -> Iterator[Comparison]:
    """Intermediate values, in the order of the file."""
    base = file.sibling(file.path.stem.removesuffix("_mid"))
    model = fixtures.dit(base)
    seen: dict[str, Tensor] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # The last joint block is run twice: its own forward skips the visual stream.
            seen[name], seen[f"{name}.in"] = output, inputs[0]
            if isinstance(module, JointBlock):
                seen[f"{name}.audio"], seen[f"{name}.visual"] = output
                seen[f"{name}.arguments"] = inputs  # type: ignore[assignment]

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in model.named_modules()]
    x = base["in.x"]
    context = model.make_context(
        base["in.clip_feat"], base["in.sync_feat"], base["in.cond"], x.shape[-1]
    )
    _velocity(model, x, base["in.t"], context)
    last = len(model.joint_blocks) - 1
    arguments = seen[f"joint_blocks.{last}.arguments"]
    model.joint_blocks[last](*arguments, update_visual=True)
    for handle in handles:
        handle.remove()
    for index in range(len(model.audio_blocks)):  # computed for distinct rows, shown for each token
        name = f"audio_blocks.{index}.modulation"
        seen[name] = seen[name][context.row_index]
        # The reference's module applies SiLU itself, so its input is what comes before that.
        before = context.sync_rows + seen["time_in"][context.row_owner]
        seen[f"{name}.in"] = before[context.row_index]

    for name in file.names("mid."):
        ours = name.replace("triple_blocks", "joint_blocks").replace(
            "single_blocks", "audio_blocks"
        )
        head, _, tail = ours.partition(".")
        if head in ("joint_blocks", "audio_blocks"):
            index, _, module = tail.partition(".")
            module, _, side = module.partition(".")
            parts = [head, index, _MODULES.get(module, module), side]
            ours = ".".join(part for part in parts if part)
        else:
            ours = _MODULES[head] + (f".{tail}" if tail else "")
        yield name, seen[ours][:1], file[f"mid.{name}"], LIMIT


def check_dit_eps(file: Fixture) -> Iterator[Comparison]:
    """Small inputs, where the epsilons decide."""
    model = fixtures.dit(file.sibling(file.metadata["weights"]))
    joint, single = model.joint_blocks[0], model.audio_blocks[0]
    audio, visual, text = file["in.audio"], file["in.visual"], file["in.text"]
    for name, eps in (("triple", JOINT_EPS), ("single", AUDIO_NORM_EPS), ("final", JOINT_EPS)):
        normed = F.layer_norm(audio, audio.shape[-1:], eps=eps)
        yield f"ln_{name}", normed, file[f"out.ln_{name}"], LIMIT
    yield "rms_triple", joint.audio.q_norm(file["in.q"]), file["out.rms_triple"], LIMIT
    yield "rms_single", single.q_norm(file["in.q"]), file["out.rms_single"], LIMIT

    num_audio, num_visual = audio.shape[1], visual.shape[1]
    active = F.silu(file["in.vec"])
    rotary = _rotary(num_audio, num_visual, model.head_dim)
    key, value = model.text_projections[0](text)
    text_table = RotaryTable.at(torch.arange(text.shape[1]), model.head_dim)
    out_audio, out_visual = joint(
        audio,
        visual,
        *model.time_projections[0](active),
        rotate(key, text_table),
        value,
        rotary,
    )
    yield "triple.audio", out_audio, file["out.triple.audio"], LIMIT
    yield "triple.visual", out_visual, file["out.triple.visual"], LIMIT
    rows = F.silu(file["in.vec_tokens"])  # [B, A, C]
    index = torch.arange(rows.shape[0] * rows.shape[1]).view(rows.shape[:2])
    out = single(audio, rows.flatten(0, 1), index, rotary.plain_audio)
    yield "single", out, file["out.single"], LIMIT


def _rotary(num_audio: int, num_visual: int, head_dim: int) -> JointRotary:
    positions = InterleavedPositions.of(num_audio, num_visual)
    return JointRotary(
        RotaryTable.at(positions.audio, head_dim),
        RotaryTable.at(positions.visual, head_dim),
        RotaryTable.at(torch.arange(num_audio), head_dim),
        RotaryTable.at(torch.arange(num_visual), head_dim),
        positions.visual_source if num_visual > num_audio else None,
    )


def check_sampler(file: Fixture) -> Iterator[Comparison]:
    """A whole trajectory with injected noise; with its sound where the file has it."""
    weights = file.metadata["weights"].split("+")
    model = fixtures.dit(file.sibling(weights[0]))
    solver = SOLVERS[file.metadata["solver"]]
    scale, num_steps = float(file.metadata["guidance"]), int(file.metadata["steps"])
    sigmas = make_sigmas(num_steps, float(file.metadata["shift"]))
    yield "sigmas", sigmas, file["out.sigmas"], LIMIT

    timesteps = file.tensors.get("out.timesteps", file.tensors.get("out.model_timesteps"))
    if timesteps is not None:
        yield "timesteps", 1000 * compute_evaluation_sigmas(sigmas, solver), timesteps, LIMIT

    conditions = Conditions(
        visual_tokens=file["in.siglip"][0],
        sync_tokens=file["in.sync"][0],
        text_tokens=torch.cat((file["in.neg"], file["in.text"])),
        num_latents=file["in.noise"].shape[-1],
    )
    points: list[SolverPoint] = []
    velocities: list[Tensor] = []
    handle = model.register_forward_hook(lambda m, i, out: velocities.append(out))
    path = Denoising(
        model, conditions, file["in.noise"], sigmas, solver=solver, guidance_scale=scale
    )
    velocities_of = VelocityModel(model)
    while path.point is not None:
        points.append(path.point)
        path.advance(*velocities_of([path.prepare_part()]))
    handle.remove()
    last = path.latents
    assert last is not None
    # The states that the solver returned, in order: where it went next, and at last the result.
    states = [*(point.latents for point in points[1:]), last]
    per_step = len(points) // num_steps
    yield "latents", torch.stack(states[per_step - 1 :: per_step]), file["out.latents"], LIMIT
    if "out.inner" in file.tensors:
        yield "inner", torch.stack(states), file["out.inner"], LIMIT
    if "out.velocity" in file.tensors:
        guided = [guide(*v.chunk(2), scale) if scale > 1 else v for v in velocities]
        yield "velocity", torch.stack(guided), file["out.velocity"], LIMIT
    if "out.audio" in file.tensors:
        audio = fixtures.vae(file.sibling(weights[1]))(last)
        yield "audio", audio, file["out.audio"], AUDIO_LIMIT


def make_flux_sigmas(num_steps: int, num_latents: int) -> Tensor:
    """Return the schedule whose shift grows with the number of latent frames.

    The official configurations do not use it, so the library does not have it.
    Source: specification, section 4. mu is linear through (256, 0.5) and (4096, 1.15).
    """
    slope = (1.15 - 0.5) / (4096 - 256)
    mu = math.exp(slope * num_latents + 0.5 - slope * 256)
    sigmas = torch.linspace(1, 0, num_steps + 1)
    return mu / (mu + (1 / sigmas - 1))


def check_schedules(file: Fixture) -> Iterator[Comparison]:
    """Noise levels, bit for bit where the formula has one order of operations."""
    for name in file.tensors:
        case, _, kind = name.partition(".")
        if case.startswith("flux"):
            steps, tokens = case.removeprefix("flux_n").split("_tokens")
            sigmas = make_flux_sigmas(int(steps), int(tokens))
        elif case.startswith("noreverse"):
            sigmas = 1 - make_sigmas(int(case.removeprefix("noreverse_n")))
        else:
            steps, shift = case.removeprefix("n").split("_shift")
            sigmas = make_sigmas(int(steps), float(shift))
        yield name, sigmas if kind == "sigmas" else 1000 * sigmas[:-1], file[name], LIMIT


def check_dac(file: Fixture) -> Iterator[Comparison]:
    """Decode and encode."""
    model = fixtures.vae(file)
    yield "audio", model.decode(file["dec.in.z"]), file["dec.out.audio"], AUDIO_LIMIT
    mean, logvar = model.encode(file["enc.in.audio"])
    yield "mean", mean, file["enc.out.mean"], LIMIT
    yield "logvar", logvar, file["enc.out.logvar"], LIMIT


def check_synchformer(file: Fixture) -> Iterator[Comparison]:
    """One segment, its intermediate values, and a video cut into segments."""
    model, settings = fixtures.synchformer(file), file.config
    side, num_frames = settings["image"], settings["frames"]
    segment = fixtures.pattern(num_frames, side, side, 0.3)
    yield "segment_probe", segment[:, :, ::32, ::32], file["in.segment_probe"], LIMIT
    seen: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for block in model.blocks
    ]
    yield "segment", model(segment), file["out.segment"], LIMIT
    for handle in handles:
        handle.remove()
    for index, tokens in enumerate(seen):
        yield f"blocks.{index}", tokens[:, ::97], file[f"mid.blocks.{index}"], LIMIT
    patches = model.embed_patches(segment).flatten(0, 1)[None]
    expected = file["mid.patch_embed_3d"]
    yield "patches", patches[:, ::97][:, : expected.shape[1]], expected, LIMIT
    video = fixtures.pattern(int(file.metadata["frames"]), side, side, 1.1)
    for at_once in (8, 2):
        yield f"video/{at_once}", model(video, at_once), file["out.video"], LIMIT


def check_siglip(file: Fixture) -> Iterator[Comparison]:
    """The vision tower."""
    output = fixtures.vision_encoder(file)(pixel_values=file["in.pixel_values"])
    yield "last_hidden_state", output.last_hidden_state, file["out.last_hidden_state"], LIMIT
    yield "pooled", output.pooler_output, file["out.pooled"], LIMIT


def check_clap(file: Fixture) -> Iterator[Comparison]:
    """The text tower. The projected embedding in the file is not used by this model."""
    output = fixtures.text_encoder(file)(
        input_ids=file["in.input_ids"], attention_mask=file["in.attention_mask"]
    )
    yield "last_hidden_state", output.last_hidden_state, file["out.last_hidden_state"], LIMIT


def check_rope_time(file: Fixture) -> Iterator[Comparison]:
    """Rotary tables, rotation, interleaving, stretching, and the time embedding."""
    for name in file.names("table_"):
        case, _, kind = name.partition(".")
        if kind == "rows":
            continue
        length, dim = map(int, case.split("_"))
        rows = file.tensors.get(f"table_{case}.rows", torch.arange(length))
        table = RotaryTable.at(torch.arange(length), dim)
        values = (table.cos if kind == "cos" else table.sin).repeat_interleave(2, dim=-1)
        yield name, values[rows], file[f"table_{name}"], LIMIT
    for name in ("q", "k"):
        tokens = file[f"apply.{name}"]
        table = RotaryTable.at(torch.arange(tokens.shape[1]), tokens.shape[-1])
        yield f"apply.{name}", rotate(tokens, table), file[f"apply.{name}_out"], LIMIT
    for name in file.names("interleave"):
        case, _, kind = name.partition(".")
        prefix = f"interleave{case}"
        positions = InterleavedPositions.of(*file[f"{prefix}.lens"].tolist())
        expected = file[f"{prefix}.{kind}"]
        if kind == "audio_position":
            yield name, positions.audio, expected, EXACT
        elif kind == "visual_position":
            yield name, positions.visual, expected, EXACT
        elif kind == "visual_source":
            yield name, positions.visual_source, expected, EXACT
        elif kind == "out_audio":
            table = RotaryTable.at(positions.audio, expected.shape[-1])
            yield name, rotate(file[f"{prefix}.q_audio"], table), expected, LIMIT
        elif kind == "out_visual":
            table = RotaryTable.at(positions.visual, expected.shape[-1])
            moved = file[f"{prefix}.q_visual"][:, positions.visual_source]
            yield name, rotate(moved, table), expected, LIMIT
    for name in file.names("sync_index"):
        case, _, kind = name.partition(".")
        if kind == "index":
            lengths = file[f"sync_index{case}.lens"].tolist()
            yield name, stretch_index(*lengths), file[f"sync_index{name}"], EXACT
    for name in file.names("temb.dim"):
        made, expected = embed_time(file["temb.t"], int(name)), file[f"temb.dim{name}"]
        yield f"temb.{name}", made, expected, EMBEDDING_LIMIT


def check_preprocess(file: Fixture) -> Iterator[Comparison]:
    """Scaling of uint8 frames, bit for bit."""
    for name in file.tensors:
        image, _, kind = name.partition(".")
        if kind == "in":
            continue
        expected = file[name]  # [3, S, S]
        scale = stretch if kind == "siglip_u8" else fit_and_crop
        yield name, scale(file[f"{image}.in"], expected.shape[-1]).permute(2, 0, 1), expected, EXACT


_LIMIT_SECONDS = 15.0  # of the program that made the files
_BARS = 10  # a clip's frames show their own number in binary, least significant bar on the left


def check_frames(path: Path) -> Iterator[Comparison]:
    """Which frames are picked: by the clock alone, and by decoding the clips."""
    golden = json.loads(path.read_text())
    for name, expected in golden["videos"].items():
        numerator, denominator = map(int, expected["time_base"].split("/"))
        time_base = Fraction(numerator, denominator)
        for fps in (VISUAL_FPS, SYNC_FPS):
            yield (
                f"{name} clock at {fps}",
                torch.tensor(_picks(expected["frame_pts"], time_base, fps)),
                torch.tensor(expected[f"picks_{fps}"]),
                EXACT,
            )
        clip = path.parent / "videos" / name
        frames = decode_frames(
            clip,
            visual_size=80,
            sync_size=48,
            limits=MediaLimits(max_seconds=_LIMIT_SECONDS),
            trim=True,
        )
        picks = torch.tensor(expected["picks_8"])
        yield f"{name} decoded at 8", _bars(frames.visual) @ 2 ** torch.arange(_BARS), picks, EXACT
        # The sync frames are cropped to their middle, which leaves some of the bars.
        bits, weights = _visible_bars(frames.sync[: frames.num_picked], probe(clip))
        picks = torch.tensor(expected["picks_25"])[:, None] // weights % 2
        yield f"{name} decoded at 25", bits, picks, EXACT
        lengths = torch.tensor([frames.num_picked, num_latents(frames.num_picked)])
        stated = torch.tensor([len(expected["picks_25"]), expected["latent_len"]])
        yield f"{name} lengths", lengths, stated, EXACT
    for count in range(1, 401):
        odd = golden["latent_len_not_2n"].get(str(count), 2 * count)
        yield f"latents of {count}", torch.tensor(num_latents(count)), torch.tensor(odd), EXACT


def _picks(timestamps: list[int], time_base: Fraction, fps: int) -> list[int]:
    picker = FramePicker(fps)
    picks: list[int] = []
    for index, pts in enumerate(timestamps):
        seconds = seconds_of(pts, time_base)
        if 0 <= seconds <= _LIMIT_SECONDS:
            picks += [index] * picker.count(seconds)
    return picks


def _bars(frames: Tensor) -> Tensor:
    """Whether each bar of each whole frame is bright, int64 [n, bars]."""
    columns = frames.float().mean(dim=(1, 3))  # [n, W]
    return (columns.unflatten(1, (_BARS, -1)).mean(dim=-1) > 127).long()


def _visible_bars(frames: Tensor, clip: VideoInfo) -> tuple[Tensor, Tensor]:
    """Brightness of the bars whose middle survived the crop, [n, bars], and the worth of each."""
    size = frames.shape[2]
    width = size * clip.width / clip.height  # before the crop
    middles = [(bar + 0.5) * width / _BARS - (width - size) / 2 for bar in range(_BARS)]
    seen = [bar for bar, middle in enumerate(middles) if 2 <= middle < size - 2]
    columns = frames.float().mean(dim=(1, 3))[:, [int(middles[bar]) for bar in seen]]
    return (columns > 127).long(), torch.tensor([2**bar for bar in seen])


CHECKS: list[tuple[str, Callable[[Fixture], Iterator[Comparison]]]] = [
    # The first pattern that matches a file's name.
    ("dit_*_mid", check_dit_mid),
    ("dit_*_cases", check_dit_cases),
    ("dit_*_eps", check_dit_eps),
    ("dit_*", check_dit),
    ("sampler_*", check_sampler),
    ("schedules*", check_schedules),
    ("dac_*", check_dac),
    ("synchformer_*", check_synchformer),
    ("siglip_*", check_siglip),
    ("clap_text_*", check_clap),
    ("rope_time*", check_rope_time),
    ("preprocess_*", check_preprocess),
]


def find_check(path: Path) -> Callable[[], Iterator[Comparison]] | None:
    """The check for a golden file, by its name; None where no check is known."""
    if path.name == "frames.json":
        return lambda: check_frames(path)
    if path.suffix == ".safetensors":
        for name, check in CHECKS:
            if path.match(f"{name}.safetensors"):
                return lambda: check(fixtures.load(path))
    return None


@torch.no_grad()
def run(path: Path) -> tuple[bool, str]:
    """Whether a golden file passes, and a line about it."""
    check = find_check(path)
    if check is None:
        return False, f"{path.name:32} no check is known for this file"
    worst, count, failed = ("", 0.0, 1.0), 0, []
    for name, actual, expected, limit in check():
        error = relative_error(actual, expected)
        count += 1
        if error > limit:
            failed.append(f"{name} {error:.2e}, limit {limit:.0e}")
        if error >= worst[1]:
            worst = (name, error, limit)
    name, error, _ = worst
    verdict = "ok  " if not failed and count else "FAIL"
    line = f"{path.name:32} {verdict} error {error:.2e} at {name or 'none'}, {count} tensors"
    if failed:
        line += f"; over the limit: {'; '.join(failed[:3])}" + (" ..." if len(failed) > 3 else "")
    return not failed and count > 0, line


def main(arguments: list[str]) -> int:
    """Run the folder named on the command line; the exit status."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m tests.parity.check DIR, a folder of golden files", file=sys.stderr)
        return 2
    paths = sorted(p for p in Path(arguments[0]).iterdir() if p.suffix in (".safetensors", ".json"))
    if not paths:
        print(f"{arguments[0]} holds no golden files", file=sys.stderr)
        return 2
    results = [run(path) for path in paths]
    for _, line in results:
        print(line)
    passed = sum(ok for ok, _ in results)
    print(f"{passed} of {len(results)} files pass")
    return 0 if passed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
