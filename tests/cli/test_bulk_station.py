"""The process that has the model in `foley bulk`, when it dies. A program stands in for it."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from foley.bulk import BulkOutcome, BulkStart, BulkTask
from foley.cli.bulk.command import run_all
from foley.cli.bulk.station import StationProcess
from foley.errors import CheckpointError, ServerError
from foley.request import GenerationRequest

# Answers as `runners.bulk` does, and notes each row that it was given in a file.
PROGRAM = """
import json, os, sys
log, behaviour = sys.argv[1:]
sys.stdin.readline()
if behaviour == "damaged":
    print(json.dumps({"error": ["checkpoint_invalid", "weights are damaged"]}), flush=True)
    sys.exit()
if behaviour == "silent":
    sys.exit(3)
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
    held.append(task)
    if len(held) < 2 and behaviour != "poison":
        continue  # outcomes come late, so that several rows are in hand
    for task in held:
        if behaviour == "poison" and task["id"] == "row 5":
            os._exit(1)
        print(json.dumps({"id": task["id"], "state": "done"}), flush=True)
    held = []
    if behaviour == "dies" and count >= 6:
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
def start(tmp_path: Path) -> Callable[[str], StationProcess]:
    def start(behaviour: str) -> StationProcess:
        command = (sys.executable, "-S", "-c", PROGRAM, str(tmp_path / "log"), behaviour)
        return StationProcess(BulkStart(), command)

    return start


def read_log(tmp_path: Path) -> list[list[str]]:
    return [line.rsplit(" ", 2) for line in (tmp_path / "log").read_text().splitlines()]


def run(station: StationProcess, count: int) -> dict[str, BulkOutcome]:
    try:
        outcomes = list(run_all(station, make_tasks(count)))
    finally:
        station.close()
    assert len(outcomes) == len({one.id for one in outcomes}) == count
    return {one.id: one for one in outcomes}


def test_rows_in_hand_go_to_the_next_process(
    start: Callable[[str], StationProcess], tmp_path: Path
) -> None:
    station = start("dies")
    outcomes = run(station, 40)
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
    start: Callable[[str], StationProcess],
) -> None:
    outcomes = run(start("poison"), 12)
    failed = [one for one in outcomes.values() if one.state == "failed"]
    assert [one.id for one in failed] == ["row 5"]
    assert failed[0].error_code == "runner_lost"
    assert "died 3 times at this row" in failed[0].error


def test_a_process_that_only_dies_ends_the_run(start: Callable[[str], StationProcess]) -> None:
    station = start("all")
    with pytest.raises(ServerError, match=r"died .* without a result"):
        run(station, 40)


def test_what_keeps_the_model_from_loading_is_said(
    start: Callable[[str], StationProcess],
) -> None:
    with pytest.raises(CheckpointError, match="weights are damaged"):
        start("damaged")
    with pytest.raises(ServerError, match="ended with status 3 before it was ready"):
        start("silent")


def test_the_process_ends_with_the_command(start: Callable[[str], StationProcess]) -> None:
    station = start("waits")
    station.submit(make_tasks(1)[0])
    process = station._process
    station.close()
    assert process.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
