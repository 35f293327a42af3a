"""Run `python -m runners.worker.model_process DESCRIPTOR`: the model of a `ProcessDevice`.

The process ends when its pipe, a descriptor that it inherits, is closed at the other end. A fault
of the device ends it with status 1.
"""

import faulthandler
import os
import signal
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import structlog

from runners.logs import configure_logging
from runners.orphans import die_with_parent
from runners.worker.faults import translate_error
from runners.worker.loading import ModelChoice, freeze_gc, load_pipeline
from runners.worker.process_device import (
    SHOW_THREADS,
    ForgetBatchCall,
    ForgetCall,
    LaunchCall,
    ProcessStart,
    WaitCall,
)

if TYPE_CHECKING:
    from runners.worker.device import LocalDevice
    from runners.worker.reports import Launch

log = structlog.get_logger(__name__)


def main() -> None:
    """Serve the worker at the other end of the pipe until it is closed."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # the worker says when it is time
        signal.signal(number, lambda *_: None)
    faulthandler.register(SHOW_THREADS, all_threads=True)
    pipe = Connection(int(sys.argv[1]))
    try:
        start: ProcessStart = pipe.recv()
        configure_logging(start.log_level)
        structlog.contextvars.bind_contextvars(process_of=start.name)
        serve(pipe, start.choice)
    except (EOFError, ConnectionError):
        os._exit(0)  # without the time that the libraries take to end
    except Exception:
        log.exception("engine_failed")
        os._exit(1)


def serve(pipe: Connection, choice: ModelChoice) -> None:
    """Load a model, and execute the actions that come.

    Args:
        pipe: to the worker.
        choice: of the model.

    Raises:
        EOFError: the pipe was closed.
    """
    device = _load(pipe, choice)
    (lane,) = device.make_lanes(1)
    with lane.use():
        while True:
            match pipe.recv():
                case LaunchCall(kind, tasks):
                    pipe.send(_translate(lane.launch(kind, tasks, num_busy=1)))
                case WaitCall():
                    pipe.send(lane.wait())
                case ForgetCall(serial):
                    device.forget(serial)
                case ForgetBatchCall():
                    lane.forget_batch()


def _load(pipe: Connection, choice: ModelChoice) -> "LocalDevice":
    """Return the warm device, after the worker was told of it or of what went wrong."""
    try:
        pipeline = load_pipeline(choice)
        from runners.worker.device import LocalDevice

        device = LocalDevice(pipeline)
        facts = device.start(on_loss=lambda: None)
    except Exception as error:
        pipe.send(translate_error(error))
        pipe.recv()  # until it closes the pipe
        raise
    freeze_gc()
    pipe.send(facts._replace(budget=replace(facts.budget, lanes=1)))
    return device


def _translate(launch: "Launch") -> "Launch":
    """Return the answer with errors that another process can read; their causes stay here."""
    reports = {
        serial: report._replace(failure=report.failure and translate_error(report.failure))
        for serial, report in launch.reports.items()
    }
    return launch._replace(reports=reports)


if __name__ == "__main__":
    main()
