"""Keep the launcher, `bentoml serve`, from losing the signal to end.

BentoML starts the processes of the service by circus. That drops a signal which comes at a moment
when it starts processes: at its own start, and when it replaces one that has died. The launcher
would then go on for ever, and be killed with everything in it once the grace period is over.
"""

from typing import Any

import click

RETRY_SECONDS = 0.2


def keep_stop_signals() -> None:
    """Have the launcher end after SIGTERM, whenever that comes; other processes do nothing."""
    context = click.get_current_context(silent=True)
    if context is not None and "fd" not in context.params:  # the launcher's children have it
        patch_launcher()


def patch_launcher() -> None:
    """Have the launcher in this process stop later, where it would refuse to stop now."""
    from bentoml._internal.utils.circus import Arbiter  # which only the launcher has imported

    stop_now = Arbiter.stop

    def stop(arbiter: Any) -> Any:
        if arbiter._exclusive_running_command is None:
            return stop_now(arbiter)
        arbiter.loop.call_later(RETRY_SECONDS, arbiter.stop)
        return None

    Arbiter.stop = stop  # type: ignore[method-assign, assignment]
