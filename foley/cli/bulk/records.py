"""What is known of each row: from earlier runs, for the next run, and as a report."""

import contextlib
import csv
import fcntl
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from foley.bulk import RECORDS, BulkOutcome, BulkTask, name_record
from foley.cli.bulk.rows import BadRow
from foley.errors import ConflictError, OutputError
from foley.storage import Storage, is_remote

REPORT = "report.csv"
PARQUET = "report.parquet"
COLUMNS = (
    *(
        "row",
        "clip",
        "prompt",
        "state",
        "variation",
        "layer",
        "seed",
        "duration_seconds",
        "seconds",
        "device_seconds",
    ),
    *(
        "speech_seconds",
        "integrated_lufs",
        "true_peak_dbtp",
        "path",
        "error_code",
        "error",
        "notices",
    ),
)
_NUMBERS = (
    *("duration_seconds", "seconds", "device_seconds", "speech_seconds"),
    *("integrated_lufs", "true_peak_dbtp"),
)
_READERS = 16  # records read at once, since each read from a bucket waits


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What earlier runs left to do.

    Attributes:
        finished: outcomes of rows that are done, or have failed and are left alone.
        waiting: rows to work on, in order.
        num_changed: rows whose options or clip's path differ from those of their result.
    """

    finished: dict[str, BulkOutcome]
    waiting: list[BulkTask]
    num_changed: int


def plan_rows(
    tasks: Sequence[BulkTask], storage: Storage, output: str, *, retry_failed: bool
) -> Plan:
    """Return what is done and what is left, by listing the output.

    Args:
        tasks: all rows.
        storage: of the output.
        output: its address.
        retry_failed: whether rows that failed in an earlier run are worked on again.
    """
    sizes = storage.list_sizes()
    if not is_remote(output):
        remove_partial_files(Path(output), sizes)
    names = {name_record(task.id) for task in tasks} & sizes.keys()
    records = read_records(storage, sorted(names))
    finished: dict[str, BulkOutcome] = {}
    waiting: list[BulkTask] = []
    num_changed = 0
    for task in tasks:
        record = records.get(task.id)
        if record is not None and record.state == "failed":
            if not retry_failed and record.digest == task.digest:
                finished[task.id] = record
                continue
            record = None
        made = record.names if record is not None else task.names
        if all(name in sizes for name in made):
            if record is None:  # made by something else, or its record was removed
                record = BulkOutcome(id=task.id, state="done", names=task.names)
            num_changed += record.digest not in ("", task.digest)
            finished[task.id] = record
            continue
        # A part of the results is left of an attempt that was cut off.
        replace = any(name in sizes for name in (*made, *task.names))
        waiting.append(task.model_copy(update={"replace": replace}))
    return Plan(finished=finished, waiting=waiting, num_changed=num_changed)


def read_records(storage: Storage, names: Sequence[str]) -> dict[str, BulkOutcome]:
    """Return what is kept of rows, by their id.

    Args:
        storage: of the output.
        names: of the records. One that cannot be read counts as missing.
    """

    def read(name: str) -> BulkOutcome | None:
        with contextlib.suppress(OutputError, ValidationError):
            return BulkOutcome.model_validate_json(storage.read(name))
        return None

    with ThreadPoolExecutor(_READERS) as readers:
        return {record.id: record for record in readers.map(read, names) if record is not None}


def keep_failure(storage: Storage, outcome: BulkOutcome) -> None:
    """Keep that a row failed, so that the next run leaves it alone.

    Args:
        storage: of the output.
        outcome: of the row.

    Raises:
        OutputError: it cannot be written.
    """
    storage.write(name_record(outcome.id), outcome.model_dump_json().encode())


@contextlib.contextmanager
def lock_output(output: str) -> Iterator[None]:
    """Keep a second run away from a folder for as long as the block lasts.

    The kernel drops the lock with the process. In a bucket there is no lock: there the second file
    of a name is refused.

    Args:
        output: path of the folder, which is made, or an s3:// address.

    Raises:
        ConflictError: another run has the folder.
        OutputError: the folder cannot be made or written.
    """
    if is_remote(output):
        yield
        return
    path = Path(output, RECORDS, "lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another run writes to {output}; wait for its end, or name another output"
            ) from error
        yield


def remove_partial_files(output: Path, sizes: Mapping[str, int]) -> None:
    """Remove files that a killed process did not finish. The lock is held.

    Args:
        output: the folder.
        sizes: its files.
    """
    for name in sizes:
        if (path := PurePosixPath(name)).suffix == ".partial" and path.name.startswith(".foley-"):
            (output / name).unlink(missing_ok=True)


def make_report(
    tasks: Sequence[BulkTask], bad: Sequence[BadRow], outcomes: Mapping[str, BulkOutcome]
) -> list[dict[str, Any]]:
    """Return the lines of the report: one for each sound, and one for each row without.

    Args:
        tasks: all rows whose options hold.
        bad: the other rows.
        outcomes: by the id of the row; one that is missing was not worked on.
    """
    lines = [line for task in tasks for line in _describe(task, outcomes.get(task.id))]
    for row in bad:
        error = {"error_code": row.error.code, "error": str(row.error)}
        lines.append({"row": row.id, "state": "failed", **error})
    return [{column: line.get(column) for column in COLUMNS} for line in lines]


def _describe(task: BulkTask, outcome: BulkOutcome | None) -> Iterator[dict[str, Any]]:
    about = {"row": task.id, "clip": task.clip, "prompt": task.request.prompt}
    if outcome is None:
        yield {**about, "state": "waiting"}
        return
    about["state"] = outcome.state
    if outcome.state == "failed":
        yield {**about, "error_code": outcome.error_code, "error": outcome.error}
        return
    seeds, num_mixes = (*outcome.seeds, *outcome.layer_seeds), task.request.num_variations
    for index, name in enumerate(outcome.names):
        is_layer = index >= num_mixes
        loudness = outcome.loudness[index].after if index < len(outcome.loudness) else None
        speech = outcome.speech_seconds[index : index + 1]
        yield {
            **about,
            "variation": None if is_layer else index + 1,
            "layer": index - num_mixes + 1 if is_layer else None,
            "seed": seeds[index] if seeds else None,
            "duration_seconds": round(outcome.duration_seconds, 6) or None,
            "seconds": round(outcome.seconds, 3) or None,
            "device_seconds": round(outcome.device_seconds, 4) or None,
            "speech_seconds": speech[0] if speech else None,
            "integrated_lufs": loudness.integrated_lufs if loudness else None,
            "true_peak_dbtp": loudness.true_peak_dbtp if loudness else None,
            "path": f"{task.output}/{name}",
            "notices": " ".join(outcome.notices) or None,
        }


def write_report(storage: Storage, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the report, as CSV and, where pyarrow is installed, as Parquet; returns the names.

    Args:
        storage: of the output.
        lines: of `make_report`.

    Raises:
        OutputError: it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(lines)
    storage.write(REPORT, text.getvalue().encode())
    if importlib.util.find_spec("pyarrow") is None:
        return [REPORT]
    import pyarrow
    import pyarrow.parquet

    kinds = {
        **dict.fromkeys(("variation", "layer", "seed"), pyarrow.int64()),
        **dict.fromkeys(_NUMBERS, pyarrow.float64()),
    }
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist([dict(line) for line in lines], schema=schema)
    pyarrow.parquet.write_table(table, buffer)
    storage.write(PARQUET, buffer.getvalue())
    return [REPORT, PARQUET]
