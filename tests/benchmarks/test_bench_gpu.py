"""The GPU benchmark runs on a machine that has neither FFmpeg's libraries nor BentoML."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.model import computed_flop, mixed_lengths, step_flop
from foley.configs import XL, XXL

ROOT = Path(__file__).parents[2]
ABSENT = ("av", "bentoml", "cyclopts", "grpc", "prometheus_client", "pydantic_settings")
SMALL = [
    "--device",
    "cpu",
    "--preset",
    "tiny",
    "--seconds",
    "1",
    "--steps",
    "1",
    "--clips",
    "1",
    "2",
]


@pytest.mark.parametrize(
    ("preset", "seconds", "teraflop"), [(XXL, 8, 6.15), (XXL, 15, 11.72), (XL, 8, 3.50)]
)
def test_work_is_counted_as_the_specification_does(
    preset: object, seconds: float, teraflop: float
) -> None:
    assert step_flop(preset.dit, seconds) / 1e12 == pytest.approx(teraflop, abs=0.006)  # type: ignore[attr-defined]
    assert 0.8 < computed_flop(preset.dit, seconds) / step_flop(preset.dit, seconds) < 0.9  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [2, 4, 16])
def test_mixed_lengths_have_the_sum_of_equal_ones(count: int) -> None:
    lengths = mixed_lengths(8, count)
    assert sum(lengths) == pytest.approx(8 * count)
    assert len(set(lengths)) > 1
    assert min(lengths) >= 1
    assert max(lengths) <= 15


def run(parts: list[str], folder: Path) -> dict[str, object]:
    """The record of a run without the absent packages."""
    out = folder / "record.json"
    program = (
        f"import sys, runpy\nfor name in {ABSENT!r}: sys.modules[name] = None\n"
        f"sys.argv = {['bench_gpu', *SMALL, '--parts', *parts, '--out', str(out)]!r}\n"
        "runpy.run_module('benchmarks.bench_gpu', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    last = json.loads(done.stdout.strip().splitlines()[-1])
    assert last["failed"] == []
    assert json.loads(out.read_text())["steps"] == last["steps"]
    return last


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_every_part_runs(tmp_path: Path) -> None:
    every = runpy.run_path(str(ROOT / "benchmarks" / "bench_gpu.py"))["PARTS"]
    record = run([name for name in every if name != "starts"], tmp_path)
    assert record["steps"]["bf16_2_mixed"]["efficiency_of_equal"] > 0  # type: ignore[index]
    assert record["parity"]["golden_fused_bf16"] < 0.015  # type: ignore[index]
