"""The loads and figures of the benchmarks of serving and starting. No server is started."""

import argparse
import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks import bench_start, meters
from benchmarks.bench_serving import (
    Load,
    LoadRequest,
    LoadResponse,
    compute_ratios,
    draw_load,
    make_closed_load,
    print_progress,
    print_table,
    summarise,
)
from benchmarks.bench_start import measure_folder
from benchmarks.random_model import write_model
from foley.configs import TINY
from foley.weights.loading import load_components
from tests.patience import wait_until

ROOT = Path(__file__).parents[2]
ARGUMENTS = argparse.Namespace(
    closed_requests=5,
    closed_seconds=8,
    closed_steps=50,
    steps=(10, 20),
    seed=0,
    concurrency=4,
    picture=["1280x720", "320x240"],
)


ONE_PICTURE = argparse.Namespace(**vars(ARGUMENTS) | {"picture": ["320x240"]})


def test_requests_of_a_closed_load_differ_only_in_their_seeds() -> None:
    load = make_closed_load(ARGUMENTS)
    assert {(one.seconds, one.steps) for one in load} == {(8, 50)}
    assert len({one.seed for one in load}) == len(load) == 5


def test_drawn_loads_repeat_and_keep_to_the_steps() -> None:
    load = draw_load(50, 2, 7, (25, 50))
    assert load == draw_load(50, 2, 7, (25, 50))
    assert {one.steps for one in load} == {25, 50}
    assert load[-1].at == pytest.approx(25, rel=0.5)


def test_callers_wait_for_their_responses() -> None:
    at_once, most = 0, 0

    async def call(_clip: bytes, _fields: dict[str, str]) -> bytes:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return b""

    async def send_all(num_callers: int) -> list[LoadResponse]:
        return await Load(call, {8: b""}).send_closed([LoadRequest(0, 8, 50, 0)] * 8, num_callers)

    for num_callers in (1, 4):
        at_once, most = 0, 0
        row = summarise(asyncio.run(send_all(num_callers)))
        assert most == num_callers
        assert row["num_requests"] == 8
        assert row["seconds"] >= 0.08 / num_callers
        assert row["p50_seconds"] >= 0.01
        assert row["short_p50_seconds"] is None  # there are no short clips


def test_a_load_of_which_every_request_fails_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    async def call(_clip: bytes, _fields: dict[str, str]) -> bytes:
        raise RuntimeError("503 not now")

    row = summarise(
        asyncio.run(Load(call, {8: b""}).send_closed([LoadRequest(0, 8, 50, 0)] * 3, 2))
    )
    assert len(row["errors"]) == 3
    row |= {"server_cpu_seconds": 1.0, "others_cpu_seconds": 0.0, "mean_stage_seconds": {}}
    print_progress("callers_2", row)
    print_table({"step": {"callers_2": row}})
    assert "503 not now" in capsys.readouterr().out
    assert compute_ratios({"step": {"callers_1": row, "callers_4": row}}, ONE_PICTURE) == {}


def test_each_picture_has_a_ratio_of_its_own() -> None:
    rates = {"callers_1": 1, "callers_4": 2, "callers_1_320x240": 2, "callers_4_320x240": 3}
    step = {name: {"requests_per_second": rate} for name, rate in rates.items()}
    assert compute_ratios({"step": step}, ARGUMENTS) == {
        "throughput_4_over_1": 2,
        "throughput_4_320x240_over_1": 1.5,
    }


def test_the_gpu_is_read_while_a_load_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = ModuleType("pynvml")
    shares: list[int] = []

    def read_utilization(gpu: str) -> SimpleNamespace:
        shares.append(100 * (len(shares) % 2))
        return SimpleNamespace(gpu=shares[-1])

    driver.nvmlInit = lambda: None  # type: ignore[attr-defined]
    driver.nvmlDeviceGetHandleByIndex = str  # type: ignore[attr-defined]
    driver.nvmlDeviceGetUtilizationRates = read_utilization  # type: ignore[attr-defined]
    driver.nvmlDeviceGetMemoryInfo = lambda gpu: SimpleNamespace(used=7)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(meters, "GPU_PERIOD_SECONDS", 0.001)
    meter = meters.GpuMeter()
    wait_until(lambda: len(shares) > 20)
    found = meter.read()
    assert found["num_gpu_samples"] > 10
    assert found["gpu_busy_share"] == pytest.approx(0.5, abs=0.1)
    assert found["gpu_used_bytes"] == 7


def test_the_error_of_an_unreadable_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = meters.GpuMeter().read()
    assert found["gpu_busy_share"] is None
    assert "pynvml" in found["gpu_error"]


@pytest.mark.soak  # starts a service
def test_a_random_model_loads_and_its_start_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_model(folder, TINY, torch.device("cpu"))
    components = load_components(folder)
    dtypes = {name: next(m.parameters()).dtype for name, m in components.modules().items()}
    assert dtypes.pop("dit") == torch.bfloat16
    assert set(dtypes.values()) == {torch.float32}
    row = measure_folder(folder, TINY, "cpu", num_warm=1)
    assert len(row["runs"]) == 2
    assert row["bytes"] > row["largest_file_bytes"] > 0
    assert all(run["process_seconds"] > run["seconds"] > 0 for run in row["runs"])


def test_files_of_no_preset_are_not_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_start", "--preset", "tiny"])
    with pytest.raises(SystemExit, match="2"):
        bench_start.main()
    assert "--model" in capsys.readouterr().err


@pytest.mark.soak
def test_whole_request_batching_finishes_a_batch_before_the_next() -> None:
    program = """
        from benchmarks.whole_requests import WholeRequests
        from runners.worker import worker
        from runners.worker.scheduler import KINDS, Budget, JobSize, ScheduledJob

        assert worker.Scheduler is WholeRequests
        scheduler = WholeRequests([Budget(tokens=100)], dict.fromkeys(KINDS, 1.0), capacity=3)
        size = JobSize(tokens=40, num_evaluations=2, num_pieces=1, num_sounds=1, num_latents=40)
        for name in "abc":
            job = ScheduledJob(id=name, priority="interactive", deadline=1.0)
            scheduler.reserve(job)
            scheduler.queue(job, size, now=0.0)
        while (action := scheduler.next(0)) is not None:
            print(action.kind, *(job.id for job in action.jobs))
            scheduler.complete(action, 1.0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "encode a",
        "encode b",
        "sample a b",
        "sample a b",
        "decode_audio a",
        "decode_audio b",
        "encode c",
        "sample c",
        "sample c",
        "decode_audio c",
    ]
