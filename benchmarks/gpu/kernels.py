"""The kernels of one audio block in several variants, with their rates."""

# N tokens, C width, F MLP width

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.bench import Bench
from foley.configs import LATENT_RATE
from foley.gpu import compilation, pointwise
from foley.models.attention import attend
from foley.models.packing import Borders, Segments


class Case(NamedTuple):
    """A variant to measure.

    Attributes:
        name: for the record.
        run: launches it.
        flop: its floating-point operations.
        num_bytes: the bytes that it must read and write.
    """

    name: str
    run: Callable[[], object]
    flop: float = 0.0
    num_bytes: float = 0.0


def measure_kernels(bench: Bench) -> dict[str, Any]:
    """Seconds of convolutions, attention and pointwise kernels at the steps' token counts."""
    return _measure_groups(
        bench, _products, _fp8_products, _pointwise_kernels, _attention, _candidates
    )


def measure_products(bench: Bench) -> dict[str, Any]:
    """Seconds of the matrix products alone, in bf16 and with each way to scale and sum fp8."""
    return _measure_groups(bench, _products, _fp8_products)


def _measure_groups(bench: Bench, *groups: Callable[..., list[Case]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for clips in bench.args.clips:
        lengths = [round(bench.args.seconds * LATENT_RATE)] * (2 * clips)
        print(f"{sum(lengths)} tokens")
        found[str(sum(lengths))] = {
            case.name: _measure(bench, case)
            for group in groups
            for case in _cases(bench, group, lengths)
        }
        bench.reset_peak()
    return found


def _cases(bench: Bench, group: Callable[..., list[Case]], lengths: list[int]) -> list[Case]:
    try:
        return group(bench, lengths)
    except Exception as error:  # noqa: BLE001 - the other kernels are measured nevertheless
        return [Case(group.__name__, _raiser(error))]


def _raiser(error: Exception) -> Callable[[], object]:
    def run() -> object:
        raise error

    return run


def _measure(bench: Bench, case: Case) -> dict[str, Any]:
    try:
        with torch.inference_mode():
            seconds = bench.measure_kernel_seconds(case.run)
    except Exception as error:  # noqa: BLE001 - the other kernels are measured nevertheless
        message = (str(error) or repr(error)).splitlines()[0]
        print(f"  {case.name:38} failed: {message[:90]}")
        return {"failed": message}
    made: dict[str, Any] = {"seconds": seconds}
    text = f"  {case.name:38}{1e6 * seconds:9.1f} us"
    if case.flop:
        made["flop_per_second"] = rate = case.flop / seconds
        text += f"{rate / 1e12:8.0f} TFLOP/s"
        if ceiling := bench.ceiling():
            text += f"{100 * rate / ceiling:5.0f} %"
    if case.num_bytes:
        made["bytes_per_second"] = case.num_bytes / seconds
        text += f"{case.num_bytes / seconds / 1e12:8.2f} TB/s"
    print(text, flush=True)
    return made


def _make_draw(bench: Bench) -> Callable[..., Tensor]:
    def draw(*shape: int, fan_in: int = 1) -> Tensor:
        return (fan_in**-0.5 * torch.randn(*shape, device=bench.device)).to(bench.half)

    return draw


def _products(bench: Bench, lengths: list[int]) -> list[Case]:
    config, draw, n = bench.preset.dit, _make_draw(bench), sum(lengths)
    c, f = config.hidden_dim, config.conv_mlp_dim
    num_rows = 100 * len(lengths)
    x, x3, h, h3 = draw(n, c), draw(n, 3 * c), draw(n, f), draw(n, 3 * f)
    rows = draw(num_rows, c)
    conv_in = draw(len(lengths), c, lengths[0])
    conv = draw(f, c, 3, fan_in=3 * c)
    wide, square = draw(3 * c, 2 * f, fan_in=3 * c), draw(c, 3 * c, fan_in=c)
    taps, columns = draw(f, 3 * c, fan_in=f), draw(3 * f, c, fan_in=3 * f)
    out_columns, modulation = draw(3 * c, c, fan_in=3 * c), draw(c, 6 * c, fan_in=c)
    half = 6 * n * c * f
    return [
        Case("conv1d C -> F", lambda: F.conv1d(conv_in, conv, padding=1), half),
        Case("gate and up [N,3C] x [3C,2F]", lambda: x3 @ wide, 2 * half),
        Case("down, taps [N,F] x [F,3C]", lambda: h @ taps, half),
        Case("down, columns [N,3F] x [3F,C]", lambda: h3 @ columns, half),
        Case("out, taps [N,C] x [C,3C]", lambda: x @ square, 6 * n * c * c),
        Case("out, columns [N,3C] x [3C,C]", lambda: x3 @ out_columns, 6 * n * c * c),
        Case("modulation [R,C] x [C,6C]", lambda: rows @ modulation, 12 * num_rows * c * c),
    ]


def _fp8_products(bench: Bench, lengths: list[int]) -> list[Case]:
    """Products in fp8, with a scale for each row (as in the model) and for each matrix."""
    if not bench.on_gpu or "fp8" not in bench.args.precision:
        return []
    config, draw, n = bench.preset.dit, _make_draw(bench), sum(lengths)
    c, f = config.hidden_dim, config.conv_mlp_dim
    cases = []
    for name, inner, outer in (
        ("gate and up", 3 * c, 2 * f),
        ("down, taps", f, 3 * c),
        ("down, columns", 3 * f, c),
        ("qkv", c, 3 * c),
    ):
        x, weight = draw(n, inner), draw(outer, inner, fan_in=inner)
        expected, flop = x.float() @ weight.float().t(), 2.0 * n * inner * outer
        for kind, (rows, row_scale), (columns, column_scale) in (
            ("rows", pointwise.quantise(x), pointwise.quantise(weight)),
            ("matrices", _quantise_whole(x), _quantise_whole(weight)),
        ):
            for fast in (True, False):
                run = partial(_multiply_fp8, rows, columns, row_scale, column_scale, fast)
                error = ((run().float() - expected).norm() / expected.norm()).item()
                sums = "fast" if fast else "exact"
                title = f"fp8 {name}, {kind}, {sums} sums, {100 * error:.1f} %"
                cases.append(Case(title, run, flop))
    return cases


def _quantise_whole(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.float().abs().amax().view(1, 1) / torch.finfo(torch.float8_e4m3fn).max
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def _multiply_fp8(
    rows: Tensor, columns: Tensor, row_scale: Tensor, column_scale: Tensor, fast: bool
) -> Tensor:
    return torch._scaled_mm(
        rows,
        columns.t(),
        scale_a=row_scale,
        scale_b=column_scale.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=fast,
    )


def _pointwise_kernels(bench: Bench, lengths: list[int]) -> list[Case]:
    config, draw, n = bench.preset.dit, _make_draw(bench), sum(lengths)
    c, f, d = config.hidden_dim, config.conv_mlp_dim, config.head_dim
    borders = Borders.of(lengths, bench.device)
    ends = borders.first, borders.last
    x, taps, both, qkv = draw(n, c), draw(n, 3 * c), draw(n, 2 * f), draw(n, 3 * c)
    stream = torch.randn(n, c, device=bench.device)
    rows = draw(100 * len(lengths), 6 * c)
    owner = torch.randint(0, len(rows), (n,), device=bench.device)
    m = rows.chunk(6, dim=1)
    table, weight = torch.randn(n, d // 2, device=bench.device), draw(d)
    cases = []
    kinds = (
        {"": compilation.compile_pointwise(), ", plain": compilation.PLAIN} if bench.on_gpu else {}
    )
    for suffix, ops in (kinds or {"": compilation.PLAIN}).items():
        cases += [
            Case(f"neighbours{suffix}", partial(ops.join_neighbours, x, *ends), 0, 8 * n * c),
            Case(f"gated{suffix}", partial(ops.swiglu, both), 0, 6 * n * f),
            Case(
                f"add taps and modulate{suffix}",
                partial(
                    ops.add_taps_and_modulate,
                    *(stream, taps, None, m[5], m[0], m[1], owner, *ends, 1e-5),
                ),
                0,
                16 * n * c,
            ),
            Case(
                f"norm and rotate{suffix}",
                partial(ops.norm_and_rotate, qkv[:, :c], None, weight, None, table, table, 1e-6),
                0,
                4 * n * c,
            ),
            Case(f"quantise{suffix}", partial(ops.quantise, x), 0, 3 * n * c),
        ]
    if bench.on_gpu and "fp8" in bench.args.precision:
        by_kernel = compilation.compile_pointwise("fp8")
        for suffix, beside, gates in (
            ("", by_kernel.join_neighbours, by_kernel.swiglu),
            (
                " by the compiler",
                torch.compile(pointwise.join_neighbours_fp8),
                torch.compile(pointwise.swiglu_fp8),
            ),
        ):
            cases += [
                Case(f"neighbours in fp8{suffix}", partial(beside, x, *ends), 0, 5 * n * c),
                Case(f"gated in fp8{suffix}", partial(gates, both), 0, 5 * n * f),
            ]
    return cases


def _attention(bench: Bench, lengths: list[int]) -> list[Case]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    config, draw, n = bench.preset.dit, _make_draw(bench), sum(lengths)
    q, k, v = (draw(1, n, config.num_heads, config.head_dim) for _ in range(3))
    batched = [part.view(len(lengths), lengths[0], *part.shape[2:]) for part in (q, k, v)]
    halves = [lengths[0] // 2, lengths[0] - lengths[0] // 2, *lengths[1:]]
    equal = Segments.of(lengths, lengths, bench.device)
    unequal = Segments.of(halves, halves, bench.device)

    def flop(sizes: list[int]) -> float:
        return 4.0 * config.hidden_dim * sum(size**2 for size in sizes)

    cases = [
        Case("attention, equal lengths", lambda: attend(q, k, v, equal), flop(lengths)),
        Case("attention, other lengths", lambda: attend(q, k, v, unequal), flop(halves)),
    ]
    if bench.on_gpu:

        def attend_with(backend: SDPBackend) -> Tensor:
            with sdpa_kernel(backend):
                return attend(batched[0], batched[1], batched[2])

        cases += [
            Case(
                "attention, cuDNN", partial(attend_with, SDPBackend.CUDNN_ATTENTION), flop(lengths)
            ),
            Case(
                "attention, flash", partial(attend_with, SDPBackend.FLASH_ATTENTION), flop(lengths)
            ),
        ]
    return cases


def _candidates(bench: Bench, lengths: list[int]) -> list[Case]:
    if not bench.on_gpu:
        return []
    from benchmarks.gpu.candidates import convolve_and_gate, convolve_and_gate_plain

    config, draw, n = bench.preset.dit, _make_draw(bench), sum(lengths)
    c, f = config.hidden_dim, config.conv_mlp_dim
    x, weight = draw(n, c), draw(2 * f, 3 * c, fan_in=3 * c)
    borders = Borders.of(lengths, bench.device)
    ends = borders.first, borders.last
    ops = compilation.compile_pointwise()
    expected = convolve_and_gate_plain(x, weight, *ends).float()
    made = convolve_and_gate(x, weight, *ends).float()
    error = ((made - expected).norm() / expected.norm()).item()
    print(f"  candidate's error {error:.1e}")
    if not error < 0.01:
        raise RuntimeError(f"the candidate is wrong by {error}")
    flop = 12.0 * n * c * f

    def run_current() -> Tensor:
        return ops.swiglu(ops.join_neighbours(x, *ends) @ weight.t())

    cases = [Case("gate, up and gating, as it is", run_current, flop)]
    for block, warps, stages in (
        ((128, 128, 64), 8, 3),
        ((128, 128, 64), 8, 4),
        ((64, 128, 64), 4, 4),
        ((128, 64, 64), 4, 4),
        ((64, 64, 64), 4, 5),
    ):
        options: dict[str, Any] = {"block": block, "num_warps": warps, "num_stages": stages}
        run = partial(convolve_and_gate, x, weight, *ends, **options)
        cases.append(Case(f"gate, up and gating, Triton {block} {warps} {stages}", run, flop))
    return cases
