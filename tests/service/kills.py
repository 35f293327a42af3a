"""A service whose processes are killed, one after the other."""

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable

import psutil

from tests.patience import wait_for_exit, wait_until
from tests.server import Server

# The page has a fork server too. All of their children count as them.
KINDS = {"launcher", "FoleyApi", "GpuRunner", "executor", "fork_server", "runners.page"}


class KilledService:
    """A service that is started again after its first process was killed.

    Args:
        start: starts it, given how many times it was started before.
        has_page: its page is started too, each time; that takes as long as all the rest.

    Attributes:
        server: the running one; None while it is replaced.
        killed: how many processes of each kind were killed.
    """

    def __init__(self, start: Callable[[int], Server], *, has_page: bool) -> None:
        self._start = start
        self._has_page = has_page
        self._chooser = random.Random(0)
        self._family: list[psutil.Process] = []
        self._current = start(0)
        self.server: Server | None = self._current
        self.killed: Counter[str] = Counter()

    def wait_until_up(self) -> Server:
        """Wait for the model, and the page; returns the server."""
        wait_until_up(self._current, has_page=self._has_page)
        return self._current

    def kill(self) -> None:
        """Kill a process of the kind that was killed least. The second is the launcher."""
        launcher = self._current.process.pid
        self._family = self._current.family() or self._family
        kinds: dict[str, list[psutil.Process]] = {}
        for process in self._family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline():  # it has not ended
                    name = "launcher" if process.pid == launcher else describe(process)
                    kinds.setdefault(name, []).append(process)
        if self.killed.total() == 1:
            name = "launcher"
        else:
            name = min(sorted(kinds), key=lambda name: (self.killed[name], self._chooser.random()))
        victim = self._chooser.choice(kinds[name])
        if victim.pid != launcher:
            with contextlib.suppress(psutil.NoSuchProcess):  # a media child, which has ended
                victim.kill()
                self.killed[name] += 1
            return
        self.server = None  # its port may be another program's soon
        victim.kill()
        self.killed[name] += 1
        kill_all(self._family)  # as at the end of a container, of which it is the first process
        wait_for_exit(self._current.process)
        self._current.client.close()
        self._current = self._start(self.killed[name])
        self._current.wait_until_ready()
        self.server = self._current

    def close(self) -> None:
        """Kill all of its processes."""
        self.server = None
        kill_all([*self._family, *self._current.family()])
        wait_for_exit(self._current.process)
        self._current.client.close()


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill processes, some of which may have ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def wait_until_up(server: Server, *, has_page: bool = True) -> None:
    """Wait for the model, and for the page, which starts when it is asked for.

    Args:
        server: of which a process was killed.
        has_page: wait for the page.
    """
    paths = ("/readyz", "/ui/") if has_page else ("/readyz",)
    wait_until(
        lambda: all(server.probe(path) == 200 for path in paths), 300, what="it never came back"
    )


def describe(process: psutil.Process) -> str:
    """Which one of the service's processes it is. The page's media children are those of plots."""
    line = " ".join(process.cmdline())
    names = ("executor", "fork_server", "plot_server", "runners.page", "GpuRunner", "FoleyApi")
    return next((name for name in names if name in line), line[:60])
