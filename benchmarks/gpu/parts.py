"""The parts of the GPU benchmark that run the whole model."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.bench import Bench, print_step
from benchmarks.gpu.model import (
    computed_flop,
    mixed_lengths,
    random_components,
    random_dit,
    random_frames,
    random_part,
    step_flop,
)
from benchmarks.gpu.profiling import profile_run
from benchmarks.records import percentile
from foley.denoise import EvaluationPart, VelocityModel
from foley.gpu import pointwise
from foley.gpu.compilation import Pointwise, compile_pointwise, select_plain
from foley.gpu.cuda_graphs import CudaCapture
from foley.gpu.fused_context import FusedContext
from foley.gpu.fused_step import FusedDiT
from foley.gpu.matrix import Precision
from foley.gpu.memory_modes import Memory
from foley.gpu.placement import halve_sound_decoder, to_dtype
from foley.gpu.step_graphs import LARGE_EVALUATIONS, FusedStep
from foley.models.context import DiTContext
from foley.models.dit import FoleyDiT
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest

# The sizes of the GPUs for which the memory modes are made.
MODE_LIMIT_BYTES = {"balanced": 12_000_000_000, "low": 8_000_000_000}


def measure_ceilings(bench: Bench) -> dict[str, float]:
    """Operations per second of large products, and bytes per second of a copy, on random data."""
    size = 8192 if bench.on_gpu else 512
    a, b = (torch.randn(size, size, device=bench.device).to(bench.half) for _ in range(2))
    flop = 2 * size**3
    found = {"matrix_bf16": flop / bench.measure_kernel_seconds(lambda: a @ b, 30)}
    count = 2**31 if bench.on_gpu else 2**22
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    found["copy"] = 2 * count / bench.measure_kernel_seconds(lambda: target.copy_(source), 20)
    x, x_scale = pointwise.quantise(a)
    y, y_scale = pointwise.quantise(b)

    def multiply_fp8() -> Tensor:
        return torch._scaled_mm(
            x,
            y.t(),
            scale_a=x_scale,
            scale_b=y_scale.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    try:
        found["matrix_fp8"] = flop / bench.measure_kernel_seconds(multiply_fp8, 30)
    except RuntimeError as error:
        print(f"fp8 product: {str(error).splitlines()[0]}")
    return found


def measure_start(bench: Bench) -> dict[str, Any]:
    """Seconds from weights on the device to a warm pipeline, to be run in a fresh process."""
    began = time.perf_counter()
    components = random_components(bench, bench.device)
    bench.wait()
    drawn = time.perf_counter()
    pipeline = FoleyPipeline(components, bench.device, memory="full" if bench.on_gpu else "auto")
    bench.wait()
    placed = time.perf_counter()
    pipeline.warm_up()
    bench.wait()
    ready = time.perf_counter()
    frames = random_frames(bench.preset, bench.args.seconds)
    request = GenerationRequest(seed=1, num_inference_steps=bench.args.steps)
    totals = []
    for _ in range(4):
        begun = time.perf_counter()
        pipeline.generate(frames, request)
        totals.append(time.perf_counter() - begun)
    return {
        "make_seconds": drawn - began,
        "place_seconds": placed - drawn,
        "warm_up_seconds": ready - placed,
        "place_to_ready_seconds": ready - drawn,
        "generate_seconds": totals,
        "first_over_later": totals[0] / percentile(totals[1:], 50),
    }


def measure_starts(bench: Bench) -> dict[str, Any]:
    """`measure_start` in two processes: with an empty compile cache, and with the filled one."""
    given: Path | None = bench.args.cache
    is_filled = given is not None and given.is_dir() and any(given.iterdir())
    cache = given or Path(tempfile.mkdtemp(prefix="foley-compiled-"))
    found = {}
    for name in ("warm",) if is_filled else ("cold", "warm"):
        command = [sys.executable, "-m", "benchmarks.bench_gpu", "--parts", "start", "--json-only"]
        for option in ("preset", "device", "seconds", "steps"):
            command += [f"--{option}", str(getattr(bench.args, option))]
        places = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **places}
        )
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            raise RuntimeError(f"{name} start failed: {done.stderr[-1500:]}")
        row = json.loads(lines[-1])
        found[name] = row.get("start") or row
    return found


def measure_parity(bench: Bench) -> dict[str, Any]:
    """Relative L2 errors against the golden files, and against float32 at full size."""
    from tests.parity import fixtures

    golden = Path(__file__).parents[2] / "tests" / "assets" / "golden"
    errors: dict[str, Any] = {}

    def relative(actual: Tensor, expected: Tensor) -> float:
        return ((actual.float().cpu() - expected).norm() / expected.norm()).item()

    file = fixtures.load(golden / "dit_tiny.safetensors")
    source = fixtures.dit(file)

    def build(dtype: torch.dtype) -> FoleyDiT:
        dit = FoleyDiT(**dict(source.config))
        dit.load_state_dict(source.state_dict())
        return to_dtype(nn.Module.to(dit, bench.device), dtype).requires_grad_(False).eval()

    inputs = {
        k: file[f"in.{k}"].to(bench.device) for k in ("x", "t", "clip_feat", "sync_feat", "cond")
    }

    def velocity(dit: FoleyDiT, fused: FusedDiT | None) -> Tensor:
        x = inputs["x"]
        context = dit.make_context(
            inputs["clip_feat"], inputs["sync_feat"], inputs["cond"], x.shape[-1]
        )
        times = dit.make_time_modulation(inputs["t"] / 1000)
        if fused is None:
            return dit(x, times, context)
        out = fused(x.transpose(1, 2).flatten(0, 1), times, FusedContext.of(context))
        return out.unflatten(0, (len(x), -1)).transpose(1, 2)

    expected = file["out.x"]
    variants: tuple[tuple[str, torch.dtype, Precision | None], ...] = (
        ("modules_float32", torch.float32, None),
        ("modules_bf16", torch.bfloat16, None),
        ("fused_bf16", torch.bfloat16, "bf16"),
        ("fused_fp8", torch.bfloat16, "fp8"),
    )
    for name, dtype, precision in variants:
        try:
            dit = build(dtype)
            fused = FusedDiT(dit, precision, _ops(bench, precision)) if precision else None
            errors[f"golden_{name}"] = relative(velocity(dit, fused), expected)
        except RuntimeError as error:
            errors[f"golden_{name}"] = f"failed: {str(error).splitlines()[0]}"

    file = fixtures.load(golden / "dac_tiny.safetensors")
    vae = fixtures.vae(file)
    copy = type(vae)(**dict(vae.config))
    copy.load_state_dict(vae.state_dict())
    copy = halve_sound_decoder(nn.Module.to(copy, bench.device)).requires_grad_(False)
    errors["golden_sound_fp16"] = relative(
        copy(file["dec.in.z"].to(bench.device)), file["dec.out.audio"]
    )

    dit = random_dit(bench)
    part = random_part(bench, dit, bench.args.seconds, 1)
    other = random_part(bench, dit, 0.6 * bench.args.seconds, 2)

    def at_full_size(model: VelocityModel, members: Sequence[EvaluationPart]) -> Tensor:
        return model(members)[0].float().cpu()

    modules = at_full_size(VelocityModel(dit), [part])
    step = make_step(bench, dit, "bf16")
    model = VelocityModel(dit, step)
    alone, again, replayed = (at_full_size(model, [part]) for _ in range(3))
    model([other, part])
    packed = model([other, part])[1].float().cpu()
    errors["run_to_run_equal"] = bool(torch.equal(alone, again) and torch.equal(again, replayed))
    errors["full_packed_against_alone"] = relative(packed, alone)
    del model, step
    bench.reset_peak()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact_dit = to_dtype(dit, torch.float32)
    exact_part = random_part(bench, exact_dit, bench.args.seconds, 1)
    exact = at_full_size(VelocityModel(exact_dit), [exact_part])
    torch.backends.cudnn.allow_tf32 = True
    errors["full_modules_bf16"] = relative(modules, exact)
    errors["full_fused_bf16"] = relative(alone, exact)
    dit = to_dtype(exact_dit, bench.half)  # bf16 values all along
    try:
        eight = VelocityModel(dit, FusedStep(dit, "fp8", _ops(bench, "fp8"), _run_again))
        errors["full_fused_fp8"] = relative(at_full_size(eight, [part]), exact)
    except RuntimeError as error:
        errors["full_fused_fp8"] = f"failed: {str(error).splitlines()[0]}"
    return errors


def _run_again(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Stand in for a CUDA graph on the CPU: a function that computes the result again."""
    result = run()

    def replay() -> None:
        result.copy_(run())

    return replay, result


def measure_steps(bench: Bench) -> dict[str, Any]:
    """Seconds of one evaluation of several clips, of equal and of mixed lengths, by precision."""
    found: dict[str, Any] = {}
    seconds = bench.args.seconds
    for precision in bench.args.precision:
        dit = random_dit(bench)
        model = VelocityModel(dit, make_step(bench, dit, precision))
        more = precision == "bf16" and not bench.args.brief
        for count in bench.args.clips:
            parts = [random_part(bench, dit, seconds, seed) for seed in range(count)]
            name = f"{precision}_{count}"
            found[name] = _time_step(bench, model, parts, [seconds] * count, precision)
            if precision != "bf16" and f"bf16_{count}" in found:
                before = found[f"bf16_{count}"]["step_seconds"]
                found[name]["times_bf16"] = before / found[name]["step_seconds"]
            print_step(f"{precision}, {count} clips of {seconds:g} s", found[name])
        for length, count in ((15.0, 1), (15.0, 4)) if bench.on_gpu and more else ():
            parts = [random_part(bench, dit, length, seed) for seed in range(count)]
            name = f"{precision}_{count}_of_{length:g}s"
            found[name] = _time_step(bench, model, parts, [length] * count, precision)
            print_step(name, found[name])
        for count in [n for n in bench.args.clips if n > 1 and more]:
            lengths = mixed_lengths(seconds, count)
            parts = [random_part(bench, dit, n, seed) for seed, n in enumerate(lengths)]
            mixed = _time_step(bench, model, parts, lengths, precision)
            equal = found[f"{precision}_{count}"]
            mixed["efficiency_of_equal"] = mixed["flop_per_second"] / equal["flop_per_second"]
            mixed["lengths_seconds"] = lengths
            found[f"{precision}_{count}_mixed"] = mixed
            print_step(f"{precision}, {count} clips mixed", mixed)
        del model, dit
        bench.reset_peak()
    return found


def measure_unfused(bench: Bench) -> dict[str, Any]:
    """Seconds of one evaluation without a graph, and by the unfused modules."""
    if not bench.on_gpu:
        return {"skipped": "no GPU"}
    seconds = bench.args.seconds
    dit = random_dit(bench)
    parts = [random_part(bench, dit, seconds, 0)]
    found = {"modules_1": _time_step(bench, VelocityModel(dit), parts, [seconds], "bf16")}
    found["without_graph"] = _without_graph(bench, dit, seconds)
    return found


def make_step(bench: Bench, dit: FoleyDiT, precision: Precision) -> FusedStep:
    """The step as the product runs it; on a CPU in plain PyTorch, without graphs."""
    capture = CudaCapture() if bench.on_gpu else _run_again
    return FusedStep(dit, precision, _ops(bench, precision), capture)


def _ops(bench: Bench, precision: Precision) -> Pointwise:
    return compile_pointwise(precision) if bench.on_gpu else select_plain(precision)


def _without_graph(bench: Bench, dit: FoleyDiT, seconds: float) -> dict[str, Any]:
    fused = FusedDiT(dit, "bf16", _ops(bench, "bf16"))

    class Direct:
        def __call__(self, latents: Tensor, time: Any, context: DiTContext) -> Tensor:
            return fused(latents, time, FusedContext.of(context))

        def forget(self) -> None: ...
        def release(self) -> None: ...

    model = VelocityModel(dit, Direct())
    return _time_step(bench, model, [random_part(bench, dit, seconds, 0)], [seconds], "bf16")


def _time_step(
    bench: Bench,
    model: VelocityModel,
    parts: list[EvaluationPart],
    lengths: list[float],
    precision: str,
) -> dict[str, Any]:
    bench.reset_peak()
    # Graphs of large steps are captured only after this many evaluations.
    warm_up = LARGE_EVALUATIONS + 1 if bench.on_gpu else 3
    (first,) = bench.measure_seconds(lambda: model(parts), 1, warm_up=warm_up)
    # About one second in all, however long a step takes.
    repeats = min(30, max(6, round(1.0 / first))) if bench.on_gpu else 2
    samples = bench.measure_seconds(lambda: model(parts), repeats, warm_up=0)
    median = percentile(samples, 50)
    flop = sum(step_flop(bench.preset.dit, n) for n in lengths)
    computed = sum(computed_flop(bench.preset.dit, n) for n in lengths)
    ceiling = bench.ceiling(precision)
    row = {
        "step_seconds": median,
        "samples": samples,
        "flop": flop,
        "computed_flop": computed,
        "flop_per_second": flop / median,
        "computed_flop_per_second": computed / median,
        "peak_bytes": bench.peak_bytes(),
    }
    if ceiling:
        row["floor_seconds"] = flop / ceiling
        row["efficiency"] = flop / median / ceiling
        row["computed_efficiency"] = computed / median / ceiling
    return row


def measure_memory(bench: Bench) -> dict[str, Any]:
    """Peak memory and seconds of three requests in each memory mode.

    Memory that other parts still hold is subtracted. The modes for small GPUs may use only as much
    memory as such a GPU has, because the allocator's unused blocks have to fit as well.
    """
    found: dict[str, Any] = {}
    modes: list[Memory] = bench.args.memory if bench.on_gpu else ["auto"]
    for mode in modes:
        held, limit = bench.allocated_bytes(), MODE_LIMIT_BYTES.get(mode)
        with bench.limit_memory(limit and limit + held):
            found[mode] = {"limit_bytes": limit, **_peaks(bench, mode, held)}
        placing, requests = found[mode]["placing_peak_bytes"], found[mode]["requests"]
        print(
            f"{mode}: placing {placing / 1e9:.2f} GB; "
            + ", ".join(
                f"{r['peak_bytes'] / 1e9:.2f} GB ({r['peak_reserved_bytes'] / 1e9:.2f} reserved) "
                f"in {r['seconds']:.2f} s"
                for r in requests
            )
        )
    return found


def _peaks(bench: Bench, mode: Memory, held: int) -> dict[str, Any]:
    """The figures of one mode, without the `held` bytes of other parts."""
    home = bench.device if mode == "full" else torch.device("cpu")
    components = random_components(bench, home)
    bench.reset_peak()
    pipeline = FoleyPipeline(components, bench.device, memory=mode)
    placing = bench.peak_bytes() - held
    frames = random_frames(bench.preset, bench.args.seconds)
    request = GenerationRequest(seed=1, num_inference_steps=bench.args.steps)
    pipeline.warm_up()
    requests = []
    for _ in range(3):
        bench.reset_peak()
        begun = time.perf_counter()
        result = pipeline.generate(frames, request)
        requests.append(
            {
                "seconds": time.perf_counter() - begun,
                "peak_bytes": bench.peak_bytes() - held,
                "peak_reserved_bytes": bench.peak_reserved_bytes() - held,
                **result.timings,
            }
        )
    return {"placing_peak_bytes": placing, "requests": requests}


def check_out_of_memory(bench: Bench) -> dict[str, Any]:
    """Whether the pipeline gives the same result as before after it ran out of memory."""
    from foley.errors import DeviceError

    if not bench.on_gpu:
        return {"skipped": "no GPU"}
    pipeline = FoleyPipeline(random_components(bench, bench.device), bench.device, memory="full")
    frames = random_frames(bench.preset, 2)
    request = GenerationRequest(seed=1, num_inference_steps=2)
    before = pipeline.generate(frames, request).waveforms
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(bench.device)[0]
    hoard = torch.empty(free - 100_000_000, dtype=torch.uint8, device=bench.device)
    message = ""
    try:
        pipeline.generate(random_frames(bench.preset, 15), request)
    except DeviceError as error:
        message = str(error)
    del hoard
    torch.cuda.empty_cache()
    after = pipeline.generate(frames, request).waveforms
    difference = ((after - before).norm() / before.norm()).item()
    same = bool(torch.equal(before, after))
    return {"message": message, "same_afterwards": same, "error": difference}


def profile_steps(bench: Bench) -> dict[str, Any]:
    """The kernels of a step with the fewest and with the most clips, by precision."""
    found: dict[str, Any] = {}
    for precision in bench.args.precision:
        dit = random_dit(bench)
        model = VelocityModel(dit, make_step(bench, dit, precision))
        for count in sorted({bench.args.clips[0], bench.args.clips[-1]}):
            parts = [random_part(bench, dit, bench.args.seconds, seed) for seed in range(count)]
            found[f"{precision}_{count}"] = profile_run(
                bench,
                f"{precision}, {count} clips",
                partial(model, parts),
                warm_up=LARGE_EVALUATIONS + 1 if bench.on_gpu else 3,
                rows_shown=25,
            )
        del model, dit
        bench.reset_peak()
    return found
