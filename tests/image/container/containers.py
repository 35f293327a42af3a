"""Containers run by podman, without a daemon and on a host with version 1 control groups."""

import itertools
import json
import os
import resource
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from runners.process import find_free_port
from tests.patience import Deadline, scale, wait_for_exit, wait_until

USER = 10001
# In a mixed hierarchy podman takes this part for a whole one.
ISOLATED = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec podman "$@"'


def podman(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start podman in a mount namespace of its own. It replaces the shell that starts it."""
    command = ["unshare", "--mount", "sh", "-c", ISOLATED, "podman", *arguments]
    return subprocess.Popen(command, **options)


@dataclass
class Container:
    """A container that runs in the foreground of a podman process."""

    name: str
    volume: Path
    log: Path
    port: int
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=scale(120), trust_env=False
        )

    def status(self, path: str, port: int | None = None) -> int:
        """Return the status of a path; 0 if nothing listens."""
        try:
            base = f"http://127.0.0.1:{port or self.port}"
            return self.client.get(base + path, timeout=scale(5)).status_code
        except httpx.TransportError:
            return 0

    def wait_until(
        self, path: str, status: int, seconds: float, port: int | None = None
    ) -> list[int]:
        """Wait for a status and return all statuses on the way to it, each change once.

        Args:
            path: of the container's service.
            status: the one to wait for.
            seconds: limit on a quiet machine.
            port: another one than the service's.
        """
        deadline = Deadline(seconds)
        seen: list[int] = []
        while not seen or seen[-1] != status:
            assert self.process.poll() is None, self.text()
            assert not deadline.is_over(), (seen, self.text())
            now = self.status(path, port)
            if seen[-1:] != [now]:
                seen.append(now)
            time.sleep(0.05)
        return seen

    def text(self) -> str:
        """Return the log."""
        return self.log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of the log about one thing."""
        lines = [json.loads(x) for x in self.text().splitlines() if x.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    def wait_for_event(self, name: str, seconds: float = 10) -> list[dict[str, Any]]:
        """Wait for a line of the log about one thing, and return such lines."""
        return wait_until(lambda: self.events(name), seconds, what=self.text)

    def stages(self) -> dict[str, float]:
        """Return the seconds of each stage of the latest start."""
        return {event["stage"]: event["seconds"] for event in self.events("start_stage")}

    def processes(self) -> list[psutil.Process]:
        """Return the container's processes, as the host sees them."""
        marker = f"CONTAINER_NAME={self.name}".encode()
        found = []
        for process in psutil.process_iter():
            try:
                environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if marker in environment and "podman" not in process.name():
                found.append(process)
        return [p for p in found if p.name() not in ("sh", "conmon", "unshare")]

    def generate(self, clip: bytes, **fields: object) -> httpx.Response:
        """POST /v1/generate."""
        data = {name: str(value) for name, value in fields.items()}
        return self.client.post("/v1/generate", files={"clip": clip}, data=data)

    def terminate(self) -> int:
        """Send SIGTERM to the first process, as an orchestrator does; return the exit status."""
        wait_for_exit(podman("kill", "--signal", "TERM", self.name, stdout=subprocess.DEVNULL))
        return wait_for_exit(self.process, 60)

    def kill(self) -> None:
        """Send SIGKILL, as when the host goes down."""
        wait_for_exit(podman("kill", self.name, stdout=subprocess.DEVNULL))
        wait_for_exit(self.process)


class Containers:
    """Starts containers, and kills those that are left."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self._folder = folder
        self._wheels = wheels
        self._numbers = itertools.count()
        self._made: list[Container] = []

    def volume(self) -> Path:
        """Make a folder that the image's user owns."""
        volume = self._folder / f"volume-{next(self._numbers)}"
        volume.mkdir()
        os.chown(volume, USER, USER)
        return volume

    def run(
        self,
        variant: str,
        *command: str,
        volume: Path | None = None,
        port: int | None = None,
        **settings: str,
    ) -> Container:
        """Start a container with a read-only root, on the host's network, bound to loopback."""
        volume = volume or self.volume()
        port = port or find_free_port()
        name = f"foley-test-{os.getpid()}-{next(self._numbers)}"
        log = self._folder / f"{name}.log"
        environment = {
            "BENTOML_HOST": "127.0.0.1",
            "PORT": str(port),
            "FOLEY_GRPC_PORT": "0",
            "FOLEY_DEVICE": "cpu",
            "FOLEY_PRESET": "tiny",
            "CONTAINER_NAME": name,
            **settings,
        }
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        arguments = ["run", "--rm", "--name", name, "--read-only", "--network", "host"]
        arguments += ["--cgroups", "disabled", "--ulimit", f"nofile={soft}:{hard}"]
        arguments += ["--ulimit", "nproc=4096:4096", "--cap-drop", "all"]
        arguments += ["--security-opt", "no-new-privileges"]
        arguments += ["--volume", f"{volume}:/data", "--volume", f"{self._wheels}:/wheels:ro"]
        for key, value in environment.items():
            arguments += ["--env", f"{key}={value}"]
        with log.open("wb") as output:
            process = podman(
                *arguments,
                f"localhost/foley:{variant}",
                *command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        container = Container(name, volume, log, port, process)
        self._made.append(container)
        return container

    def close(self) -> None:
        """Kill the containers that still run."""
        for container in self._made:
            container.client.close()
            if container.process.poll() is None:
                wait_for_exit(podman("kill", container.name, stdout=subprocess.DEVNULL))
                try:
                    container.process.wait(scale(20))
                except subprocess.TimeoutExpired:
                    os.killpg(container.process.pid, signal.SIGKILL)
                    container.process.wait()
        self._made.clear()
