"""The processes with the model in `foley bulk`, when they die. A program stands in for them."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from foley.bulk import BulkOutcome, BulkStart, BulkTask
from foley.cli.bulk.stations import Stations, plan_environments
from foley.errors import CheckpointError, ParameterError, ServerError
from foley.request import GenerationRequest
from tests.patience import is_within

# Answers as `runners.bulk` does, and notes each row that it was given in a file.
PROGRAM = """
import json, os, sys, time
log, behaviour = sys.argv[1:]
behaviour = os.environ.get("BEHAVIOUR", behaviour)
sys.stdin.readline()
if behaviour == "damaged" or (behaviour == "breaks" and os.path.exists(log + ".broken")):
    print(json.dumps({"error": ["checkpoint_invalid", "weights are damaged"]}), flush=True)
    sys.exit()
if behaviour == "silent":
    sys.exit(3)
if behaviour == "loads":
    time.sleep(1000)
print(json.dumps({"preset": "tiny", "jobs": 4}), flush=True)
count = 0
held = []
for line in sys.stdin:
    task = json.loads(line)
    with open(log, "a") as file:
        file.write(f"{task['id']} {os.getpid()} {task['replace']}\\n")
    count += 1
    if behaviour == "all":
        os._exit(1)
    if behaviour == "breaks" and count == 3:
        open(log + ".broken", "w").close()
        os._exit(1)
    if behaviour == "slow":
        time.sleep(0.05)
    held.append(task)
    if len(held) < 2 and behaviour in ("dies", "waits"):
        continue  # outcomes come late, so that several rows are in hand
    for task in held:
        if behaviour == "poison" and task["id"] == "row 5":
            os._exit(1)
        print(json.dumps({"id": task["id"], "state": "done"}), flush=True)
    held = []
    if behaviour in ("dies", "falls") and count >= 6:
        os._exit(1)
for task in held:
    pass
"""


def make_tasks(count: int) -> list[BulkTask]:
    return [
        BulkTask(
            id=f"row {i}", clip="x.mp4", request=GenerationRequest(), output="/o", names=("x.mp4",)
        )
        for i in range(count)
    ]


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Stations]:
    def start(behaviour: str, *others: str, losses: list[str] | None = None) -> Stations:
        command = (sys.executable, "-S", "-c", PROGRAM, str(tmp_path / "log"), behaviour)
        environments = [{"BEHAVIOUR": name} for name in (behaviour, *others)]
        return Stations(
            BulkStart(), environments, losses.append if losses is not None else print, command
        )

    return start


def read_log(tmp_path: Path) -> list[list[str]]:
    return [line.rsplit(" ", 2) for line in (tmp_path / "log").read_text().splitlines()]


def run(stations: Stations, count: int) -> dict[str, BulkOutcome]:
    try:
        outcomes = list(stations.work(make_tasks(count)))
    finally:
        stations.close()
    assert len(outcomes) == len({one.id for one in outcomes}) == count
    return {one.id: one for one in outcomes}


def test_rows_in_hand_go_to_the_next_process(
    start: Callable[..., Stations], tmp_path: Path
) -> None:
    stations = start("dies")
    outcomes = run(stations, 40)
    (station,) = stations.processes
    assert station.num_deaths >= 3
    assert {one.state for one in outcomes.values()} == {"done"}
    given = Counter(row for row, _, _ in read_log(tmp_path))
    repeated = sum(count - 1 for count in given.values())
    assert repeated <= station.num_deaths * station.ready.jobs
    # What is given again may have left results, which are its own.
    seen = set()
    for row, _, replace in read_log(tmp_path):
        assert replace == "True" or row not in seen
        seen.add(row)


def test_the_row_that_ends_the_process_is_found_and_the_others_are_made(
    start: Callable[..., Stations],
) -> None:
    outcomes = run(start("poison"), 12)
    failed = [one for one in outcomes.values() if one.state == "failed"]
    assert [one.id for one in failed] == ["row 5"]
    assert failed[0].error_code == "runner_lost"
    assert "died 3 times at this row" in failed[0].error


def test_processes_that_only_die_end_the_run(start: Callable[..., Stations]) -> None:
    losses: list[str] = []
    with pytest.raises(ServerError, match=r"died .* without a result"):
        run(start("all"), 40)
    with pytest.raises(ServerError, match=r"died .* without a result"):
        run(start("all", "all", losses=losses), 40)
    assert len(losses) == 1


def test_a_process_that_cannot_start_again_leaves_its_rows_to_the_others(
    start: Callable[..., Stations], tmp_path: Path
) -> None:
    losses: list[str] = []
    stations = start("breaks", "quick", losses=losses)
    outcomes = run(stations, 40)
    assert {one.state for one in outcomes.values()} == {"done"}
    (loss,) = losses
    assert loss == "weights are damaged; 1 of the processes goes on"
    # Nothing is given again but what the dead process had.
    given = Counter(row for row, _, _ in read_log(tmp_path))
    assert sum(count - 1 for count in given.values()) <= stations.processes[0].ready.jobs


def test_a_process_that_dies_costs_the_others_nothing(
    start: Callable[..., Stations], tmp_path: Path
) -> None:
    stations = start("falls", "slow")
    kept = str(stations.processes[1].pid)
    outcomes = run(stations, 60)
    assert {one.state for one in outcomes.values()} == {"done"}
    dying, slow = stations.processes
    assert (dying.num_deaths > 0, slow.num_deaths) == (True, 0)
    given = Counter(row for row, _, _ in read_log(tmp_path))
    assert sum(count - 1 for count in given.values()) <= dying.num_deaths * dying.ready.jobs
    by = Counter(pid for _, pid, _ in read_log(tmp_path))
    assert by[kept] > 0
    assert stations.processes[1].pid == int(kept)


def test_rows_go_where_the_fewest_are(start: Callable[..., Stations], tmp_path: Path) -> None:
    stations = start("quick", "slow")
    quick, slow = (str(process.pid) for process in stations.processes)
    run(stations, 100)
    by = Counter(pid for _, pid, _ in read_log(tmp_path))
    assert 0 < by[slow] < by[quick]


def test_what_keeps_the_model_from_loading_is_said(
    start: Callable[..., Stations],
) -> None:
    with pytest.raises(CheckpointError, match="weights are damaged"):
        start("damaged")
    with pytest.raises(ServerError, match="ended with status 3 before it was ready"):
        start("silent")
    # The others are not waited for.
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="weights are damaged"):
        start("damaged", "loads")
    assert is_within(time.monotonic() - began, 5)


def test_the_processes_end_with_the_command(start: Callable[..., Stations]) -> None:
    stations = start("waits", "waits")
    for process in stations.processes:
        process.submit(make_tasks(1)[0])
    ids = [process.pid for process in stations.processes]
    stations.close()
    for number in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


@pytest.mark.parametrize(
    ("device", "num_gpus", "asked", "visible", "expected"),
    [
        ("cpu", 2, None, None, [None]),
        ("cpu", 2, 3, None, [None] * 3),
        ("auto", 0, 2, None, [None] * 2),
        ("auto", 1, None, None, ["0"]),
        ("cuda", 3, None, None, ["0", "1", "2"]),
        ("auto", 3, 2, "5, GPU-1,7", ["5", "GPU-1"]),
        ("cuda:1", 3, None, "5,6,7", [None]),
    ],
)
def test_each_gpu_has_a_process(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    num_gpus: int,
    asked: int | None,
    visible: str | None,
    expected: list[str | None],
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    found = plan_environments(device, num_gpus, asked)
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in found] == expected
    threads = {one.get("OMP_NUM_THREADS") for one in found}
    assert threads == {None if len(found) == 1 else str(16 // len(found))}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert not any("OMP_NUM_THREADS" in one for one in plan_environments(device, num_gpus, asked))


@pytest.mark.parametrize(("device", "asked"), [("auto", 3), ("cuda", 3), ("cuda:1", 2)])
def test_more_processes_than_gpus_are_refused(device: str, asked: int) -> None:
    with pytest.raises(ParameterError, match="--workers"):
        plan_environments(device, 2, asked)
