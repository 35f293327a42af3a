"""Containers that start otherwise than a pod: a queue worker, the slim image, those that fail."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.image.container.containers import USER, Containers
from tests.patience import Deadline, is_within, wait_for_exit
from tests.runpod.queue_server import JobQueue
from tests.server import ROOT

START_SECONDS = 120
MAX_SLIM_BYTES = 1_000_000_000
MAX_SECOND_START_SECONDS = 10
CLIP = (ROOT / "examples" / "bigbuckbunny.mp4").read_bytes()
EXAMPLE = json.loads((ROOT / "test_input.json").read_text())["input"]


def test_a_queue_worker_completes_a_job(containers: Containers) -> None:
    queue = JobQueue()
    container = containers.run(
        "full", FOLEY_ROLE="queue", OMP_NUM_THREADS="2", **queue.environment()
    )
    try:
        queue.send("job", EXAMPLE)
        result = queue.result("job", START_SECONDS)
        assert result["output"]["files"][0]["base64"], result
        assert container.terminate() == 0, container.text()
    finally:
        containers.close()
        queue.close()


def test_an_unwritable_volume_ends_the_start_with_one_line(
    containers: Containers, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o755)  # root's
    container = containers.run("full", volume=volume)
    assert wait_for_exit(container.process, 30) == 3
    (line,) = container.text().splitlines()
    assert f"user {USER} may not write to the volume /data" in line
    assert f"chown {USER} /data" in line


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"FOLEY_ROLE": "server"}, "must be pod, load-balancer or queue"),
        ({"FOLEY_PRESET": "xl"}, "was not accepted"),
        ({"FOLEY_DEVICE": "cuda"}, "this machine does not fit"),
        ({"FOLEY_PRESENT": "tiny"}, "did you mean FOLEY_PRESET?"),
    ],
)
def test_a_container_that_cannot_start_ends_with_the_reason(
    containers: Containers, settings: dict[str, str], words: str
) -> None:
    container = containers.run("full", **{"FOLEY_ROLE": "load-balancer", **settings})
    assert wait_for_exit(container.process, 60) != 0
    assert words in container.text()
    assert "Traceback" not in container.text()


def test_a_command_runs_instead_of_the_role(containers: Containers) -> None:
    container = containers.run("full", "foley", "--version")
    assert wait_for_exit(container.process, 60) == 0
    assert container.text().splitlines()[-1] == "0.1.0"


def inspect(variant: str) -> dict[str, Any]:
    listing = subprocess.run(
        ["buildah", "inspect", "--type", "image", f"localhost/foley:{variant}"],
        check=True,
        capture_output=True,
    ).stdout
    document: dict[str, Any] = json.loads(listing)
    return document


@pytest.mark.parametrize("variant", ["full", "slim"])
def test_the_images_have_labels_and_no_secrets(variant: str) -> None:
    config = inspect(variant)["Docker"]["config"]
    prefix = "org.opencontainers.image."
    labels = {k.removeprefix(prefix): v for k, v in config["Labels"].items() if prefix in k}
    assert labels["version"] == "0.1.0"
    assert labels["licenses"] == "Apache-2.0"
    assert re.fullmatch("[0-9a-f]{40}", labels["revision"])
    assert config["User"] == f"{USER}:{USER}"
    named = re.compile("TOKEN|SECRET|PASSWORD|_KEY|CREDENTIAL", re.IGNORECASE)
    assert not [entry for entry in config["Env"] if named.search(entry.split("=")[0])]


def image_bytes(variant: str) -> int:
    listing = subprocess.run(
        ["buildah", "images", "--json", f"localhost/foley:{variant}"],
        check=True,
        capture_output=True,
    ).stdout
    number, unit = str(json.loads(listing)[0]["size"]).split()
    return int(float(number) * {"MB": 1e6, "GB": 1e9}[unit])


def packages_in(cache: Path) -> set[str]:
    """The packages that uv has unpacked so far."""
    return {name for _, names, _ in os.walk(cache) for name in names if name.endswith(".dist-info")}


def test_slim_installs_once_and_continues_after_a_kill(containers: Containers) -> None:
    assert image_bytes("slim") < MAX_SLIM_BYTES
    print("slim:", image_bytes("slim"), "bytes; full:", image_bytes("full"), "bytes")
    first = containers.run("slim", FOLEY_ROLE="load-balancer")
    cache = first.volume / "python" / "cache"
    deadline = Deadline(120)
    while len(packages_in(cache)) < 6:
        assert first.process.poll() is None, first.text()
        assert not deadline.is_over(), first.text()
        time.sleep(0.1)
    first.kill()
    fetched = packages_in(cache)
    assert not list((first.volume / "python").glob("*/.complete"))

    second = containers.run("slim", volume=first.volume, FOLEY_ROLE="load-balancer")
    second.wait_until("/ping", 200, 300)
    (ready,) = second.wait_for_event("service_ready")
    print("slim: first whole start ready after", ready["seconds_since_start"])
    assert fetched <= packages_in(cache)
    assert second.generate(CLIP, num_inference_steps=1).status_code == 200
    assert second.terminate() == 0
    assert "installing the locked packages" in second.text()

    third = containers.run("slim", volume=first.volume, FOLEY_ROLE="load-balancer")
    third.wait_until("/ping", 200, START_SECONDS)
    (ready,) = third.wait_for_event("service_ready")
    assert third.terminate() == 0
    assert "installing" not in third.text()
    print("slim: second start", second.stages(), "third start", third.stages())
    assert is_within(third.stages()["install"], MAX_SECOND_START_SECONDS)
    print("slim: third start ready after", ready["seconds_since_start"])
