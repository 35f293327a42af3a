"""Network namespaces of Linux that stand for machines; they need root and the command ip."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

HOST = "10.213.77.1"  # this machine, as the others see it
CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Machine:
    """A network of its own, which reaches `HOST` and itself.

    Attributes:
        name: of the namespace.
        link: of this machine, that leads there.
    """

    name: str
    link: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What begins a command that runs there."""
        return ("ip", "netns", "exec", self.name)

    def cut_off(self) -> None:
        """Lose all packets from and to it, as an unplugged cable does."""
        run("ip", "link", "set", self.link, "down")

    def plug_in(self) -> None:
        """Undo `cut_off`."""
        run("ip", "link", "set", self.link, "up")

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Have this thread be there inside the block: what it binds stays there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (
            open("/proc/thread-self/ns/net") as here,
            open(f"/var/run/netns/{self.name}") as there,
        ):
            for file in (there, here):
                if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                if file is there:
                    yield


@contextmanager
def make_machines(num_machines: int) -> Iterator[list[Machine]]:
    """Yield machines on one network with this one, or skip the test.

    Args:
        num_machines: how many.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    bridge = "foley-bridge"
    machines = [Machine(f"foley-{n}", f"foley-link-{n}") for n in range(num_machines)]
    made = False
    try:
        made = _can_run("ip", "link", "add", bridge, "type", "bridge")
        if not made:
            pytest.skip("this machine makes no networks")
        run("ip", "address", "add", f"{HOST}/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        for number, machine in enumerate(machines, start=2):
            run("ip", "netns", "add", machine.name)
            inside = ("ip", "-n", machine.name)
            pair = ("type", "veth", "peer", "name", "eth0", "netns", machine.name)
            run("ip", "link", "add", machine.link, *pair)
            run("ip", "link", "set", machine.link, "master", bridge, "up")
            run(*inside, "address", "add", f"{HOST.rpartition('.')[0]}.{number}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "up")
            run(*inside, "link", "set", "lo", "up")
        yield machines
    finally:
        for machine in machines:
            _can_run("ip", "netns", "delete", machine.name)
            _can_run("ip", "link", "delete", machine.link)
        if made:
            run("ip", "link", "delete", bridge)


def run(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True, capture_output=True)


def _can_run(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
