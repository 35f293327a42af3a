"""Keep the launcher, `bentoml serve`, from losing the signal to end and from hiding failed starts.

BentoML starts the processes of the service by circus. That drops a signal which comes at a moment
when it starts processes: at its own start, and when it replaces one that has died. The launcher
would then go on for ever, and be killed with everything in it once the grace period is over.

After SIGTERM the launcher ends with 0, even where one of its own processes sent the signal. So a
process that cannot start first sends `START_FAILED`. The launcher then ends with `EXIT_STATUS`.
"""

import signal
from typing import Any

import click

RETRY_SECONDS = 0.2
START_FAILED = signal.SIGUSR1  # which circus leaves alone
EXIT_STATUS = 3  # of a service that cannot start, as of every command (docs/guides/cli.md)


def keep_stop_signals() -> None:
    """Have the launcher end after SIGTERM, whenever that comes; other processes do nothing."""
    context = click.get_current_context(silent=True)
    if context is not None and "fd" not in context.params:  # the launcher's children have it
        patch_launcher()


def patch_launcher() -> None:
    """Have the launcher in this process stop later, where it would refuse to stop now.

    It ends with `EXIT_STATUS` if `START_FAILED` came first.
    """
    from bentoml._internal.utils.circus import Arbiter  # which only the launcher has imported

    run, stop_now = Arbiter.start, Arbiter.stop
    failures: list[int] = []
    signal.signal(START_FAILED, lambda number, _frame: failures.append(number))

    def start(arbiter: Any, cb: Any = None) -> None:
        run(arbiter, cb)
        if failures:
            raise SystemExit(EXIT_STATUS)

    def stop(arbiter: Any) -> Any:
        # What fails from now on may fail because everything ends.
        signal.signal(START_FAILED, signal.SIG_IGN)
        if arbiter._exclusive_running_command is None:
            return stop_now(arbiter)
        arbiter.loop.call_later(RETRY_SECONDS, arbiter.stop)
        return None

    Arbiter.start = start  # type: ignore[method-assign, assignment]
    Arbiter.stop = stop  # type: ignore[method-assign, assignment]
