"""`foley bulk --address`: the same rows on a cluster, by Ray Data.

driver: rows ── Ray Data ──► actor, one a GPU ── StationProcess ──► results and records
             ◄── outcomes ──

An actor that dies is started again by Ray, which gives it its batch once more. Rows of the batch
that were finished are found by their records, and are not made twice.
"""

import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from foley.bulk import BulkOutcome, BulkStart, BulkTask, name_record
from foley.cli.bulk.records import read_records
from foley.cli.bulk.station import StationProcess
from foley.errors import ConnectionFailedError
from foley.storage import open_storage

LOCAL = "local"
NUM_ATTEMPTS = 5  # Ray waits 30 s for its own start, and gives up on a busy machine
PAUSE_SECONDS = 1.0  # after the first attempt, and twice as long after each further one
REACH_SECONDS = 5.0
# Rows given to an actor at a time. A batch must outlast the time that the next one takes to come.
ROWS_AT_A_TIME = 32
CPUS_PER_WORKER = 4.0  # without GPUs
# Two batches overlap in an actor, so that it has rows while the last ones of a batch end.
BATCHES_AT_ONCE = 2


class ClusterWorker:
    """What an actor does: works on batches of rows with one process that has the model.

    Args:
        start: a `BulkStart` as JSON.
    """

    def __init__(self, start: str) -> None:
        self._station = StationProcess(BulkStart.model_validate_json(start))
        self._station.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Return the outcome of each row, as JSON. A row that fails is an outcome too.

        Args:
            batch: with the column `task`, each a `BulkTask` as JSON.
        """
        tasks = [BulkTask.model_validate_json(str(text)) for text in batch["task"]]
        pending = [find_finished(task) or self._station.submit(resume(task)) for task in tasks]
        outcomes = [one if isinstance(one, BulkOutcome) else one.result() for one in pending]
        return {"outcome": [one.model_dump_json() for one in outcomes]}


def find_finished(task: BulkTask) -> BulkOutcome | None:
    """Return the outcome of a row that was finished in a batch that was cut off.

    Args:
        task: the row.
    """
    storage = open_storage(task.output)
    record = read_records(storage, [name_record(task.id)]).get(task.id)
    if record is None or record.state != "done" or record.digest != task.digest:
        return None
    return record if all(storage.has(name) for name in record.names) else None


def resume(task: BulkTask) -> BulkTask:
    """Return a row as it is to be worked on: results in part, with a record, are its own.

    Args:
        task: a row that is not finished.
    """
    if open_storage(task.output).has(name_record(task.id)):
        return task.model_copy(update={"replace": True})
    return task


def run_on_cluster(
    tasks: Sequence[BulkTask],
    start: BulkStart,
    console: Console,
    *,
    address: str,
    num_workers: int | None,
) -> Iterator[BulkOutcome]:
    """Yield the outcomes of rows as they come.

    Args:
        tasks: the rows, whose clips and output every machine of the cluster can reach.
        start: which model each worker loads.
        console: for a line about the cluster.
        address: of the cluster, as Ray takes it; `local` starts one on this machine.
        num_workers: how many processes have a model; None for one a GPU, or a few without.

    Raises:
        ConnectionFailedError: the cluster cannot be reached or started.
    """
    import ray
    import ray.data

    connect(address, console)
    try:
        resources = ray.cluster_resources()
        num_gpus, num_cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
        workers = num_workers or num_gpus or max(1, int(num_cpus / CPUS_PER_WORKER))
        workers = min(workers, len(tasks))
        console.print(f"{workers} workers on {len(ray.nodes())} machines, {num_gpus} GPUs")
        # Before the data set is made, which copies the context.
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        size = min(ROWS_AT_A_TIME, math.ceil(len(tasks) / workers))
        outcomes = ray.data.from_items(
            [{"task": task.model_dump_json()} for task in tasks],
            override_num_blocks=math.ceil(len(tasks) / size),
        ).map_batches(
            ClusterWorker,
            fn_constructor_args=(start.model_dump_json(),),
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(
                size=workers,
                max_tasks_in_flight_per_actor=BATCHES_AT_ONCE,
                max_concurrent_calls_per_actor=BATCHES_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            # A part of the cores is left for Ray's own tasks.
            num_gpus=1 if num_gpus else None,
            num_cpus=None if num_gpus else 0.9 * num_cpus / workers,
        )
        for row in outcomes.iter_rows():
            yield BulkOutcome.model_validate_json(row["outcome"])
    finally:
        ray.shutdown()


def connect(address: str, console: Console) -> None:
    """Join a cluster, or start one on this machine.

    Args:
        address: as of `run_on_cluster`.
        console: for a line about each attempt that failed.

    Raises:
        ConnectionFailedError: neither succeeds.
    """
    # Ray would report each start to its makers. Who wants that sets the variable to 1.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options["include_dashboard"] = False
    for attempt in range(1, NUM_ATTEMPTS + 1):
        try:
            _reach(address)
            ray.init(address=address, **options)
        except Exception as error:
            # Ray raises plain exceptions of many classes here.
            ray.shutdown()
            if attempt == NUM_ATTEMPTS:
                raise ConnectionFailedError(
                    f"Ray at {address} did not answer in {attempt} attempts ({error}); check the "
                    "address, or start a cluster by `ray start --head`"
                ) from error
            console.print(f"Ray at {address}: {error}; attempt {attempt + 1} of {NUM_ATTEMPTS}")
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        else:
            return


def _reach(address: str) -> None:
    """Return if something listens at an address, since Ray would look for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
