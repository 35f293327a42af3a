"""The full image as a pod and behind a load balancer.

The page has one port on the host, so these tests are run by one process: see `test_starts`.
"""

import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from foley.v1.foley_pb2 import GenerateOptions, GenerateRequest
from foley.v1.foley_pb2_grpc import FoleyServiceStub
from runners.process import find_free_port
from tests.image.container.containers import USER, Container, Containers
from tests.image.sounds import seconds_of
from tests.media.clips import list_packets
from tests.patience import is_within, scale, wait_until
from tests.server import ROOT

PAGE_PORT, SSH_PORT = 7860, 2222
START_SECONDS = 120
CLIP = (ROOT / "examples" / "bigbuckbunny.mp4").read_bytes()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return find_free_port()


@pytest.fixture(scope="module")
def seen() -> list[int]:
    """The statuses of /ping during the start of `pod`, which fills the list."""
    return []


@pytest.fixture(scope="module")
def pod(containers: Containers, key: Path, grpc_port: int, seen: list[int]) -> Iterator[Container]:
    """The full image in the role pod."""
    for port in (PAGE_PORT, SSH_PORT):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} is taken"
    public_key = key.with_suffix(".pub").read_text().strip()
    pod = containers.run(
        "full", FOLEY_ROLE="pod", FOLEY_GRPC_PORT=str(grpc_port), PUBLIC_KEY=public_key
    )
    try:
        seen += pod.wait_until("/ping", 200, START_SECONDS)
        yield pod
    finally:
        containers.close()


def ssh(key: Path, *command: str, **options: str) -> subprocess.CompletedProcess[str]:
    """Run a command over SSH as the image's user."""
    base = {
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        **options,
    }
    flags = [part for name, value in base.items() for part in ("-o", f"{name}={value}")]
    arguments = ["ssh", "-F", "none", "-i", str(key), "-p", str(SSH_PORT), *flags]
    return subprocess.run(
        [*arguments, "foley@127.0.0.1", *command],
        capture_output=True,
        text=True,
        timeout=scale(30),
    )


def test_ping_answers_204_while_loading_and_then_200(pod: Container, seen: list[int]) -> None:
    assert [status for status in seen if status] == [204, 200]


def test_the_start_is_logged_by_stage(pod: Container) -> None:
    assert {"volume", "doctor", "weights", "sshd"} == set(pod.stages())
    (ready,) = pod.wait_for_event("service_ready")
    assert ready["seconds_since_start"]["container"] > 0
    assert is_within(ready["seconds_since_start"]["container"], START_SECONDS)
    print("full: ready after", ready["seconds_since_start"], "stages", pod.stages())


def test_a_sound_is_generated_over_http(pod: Container) -> None:
    response = pod.generate(CLIP, num_inference_steps=4, seed=7, format="wav")
    assert response.status_code == 200, response.text
    assert seconds_of(response.content) == pytest.approx(5.24, abs=0.1)
    again = pod.generate(CLIP, num_inference_steps=4, seed=7, format="wav")
    assert list_packets(again.content) == list_packets(response.content)
    video = pod.generate(CLIP, num_inference_steps=1)
    assert video.headers["content-type"] == "video/mp4"


def test_a_sound_is_generated_over_grpc(pod: Container, grpc_port: int) -> None:
    options = GenerateOptions(num_inference_steps=4, seed=7, format="wav")
    requests = [GenerateRequest(options=options), GenerateRequest(chunk=CLIP)]
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        grpc.channel_ready_future(channel).result(scale(20))
        events = list(FoleyServiceStub(channel).Generate(iter(requests), timeout=scale(120)))
    (result,) = [event.result for event in events if event.HasField("result")]
    wavs = [i for i, file in enumerate(result.files) if file.format == "wav"]
    content = b"".join(
        event.chunk.data
        for event in events
        if event.HasField("chunk") and event.chunk.file_index == wavs[0]
    )
    again = pod.generate(CLIP, num_inference_steps=4, seed=7, format="wav")
    assert list_packets(content) == list_packets(again.content)


def test_the_page_is_on_its_port(pod: Container) -> None:
    pod.wait_until("/config", 200, 60, PAGE_PORT)  # gradio's; a starting page answers before
    page = httpx.get(f"http://127.0.0.1:{PAGE_PORT}/", trust_env=False)
    assert page.status_code == 200
    assert "gradio" in page.text
    assert "foley" in page.text.lower()


def test_everything_runs_as_an_ordinary_user(pod: Container) -> None:
    processes = pod.processes()
    assert len(processes) > 3
    assert {tuple(process.uids()) for process in processes} == {(USER, USER, USER)}


def test_only_the_public_keys_owner_gets_a_shell(pod: Container, key: Path, tmp_path: Path) -> None:
    opened = ssh(key, "id", "-u")
    assert (opened.returncode, opened.stdout.strip()) == (0, str(USER)), opened.stderr
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    assert "Permission denied (publickey)." in ssh(other, "id").stderr
    by_password = ssh(other, "id", PreferredAuthentications="password,keyboard-interactive")
    assert "Permission denied (publickey)." in by_password.stderr


def test_the_root_is_read_only_and_contains_no_build_tools(pod: Container, key: Path) -> None:
    assert "Read-only file system" in ssh(key, "touch", "/app/x").stderr
    for tool in ("gcc", "cc", "make", "git", "pip", "pip3", "uv", "curl"):
        found = ssh(key, "command", "-v", tool)
        assert found.returncode != 0, found.stdout
    assert ssh(key, "ls", "/var/lib/apt/lists").stdout == ""
    assert ssh(key, "ls", "/root/.cache", "/wheels/x", "/home/bentoml").stdout == ""


def test_the_installed_packages_are_those_of_the_lock(pod: Container, key: Path) -> None:
    lock = ssh(key, "cat", "/app/lock.txt").stdout
    entries = re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE)
    locked = {(canonical(name), version) for name, version in entries}
    assert locked
    names = ssh(key, "ls", "/app/.venv/lib/python3.11/site-packages").stdout.split()
    folders = [name.removesuffix(".dist-info") for name in names if name.endswith(".dist-info")]
    installed = {(canonical(f.split("-")[0]), f.split("-")[1]) for f in folders}
    assert installed == locked


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_killed_runner_is_replaced(pod: Container) -> None:
    (runner,) = [p for p in pod.processes() if "GpuRunner" in p.cmdline()]
    runner.kill()
    pod.wait_until("/ping", 204, 20)
    pod.wait_until("/ping", 200, 60)
    assert pod.generate(CLIP, num_inference_steps=1).status_code == 200


def test_sigterm_drains_and_a_restart_leaves_the_volume_unchanged(
    pod: Container, containers: Containers
) -> None:
    with ThreadPoolExecutor() as pool:
        call = pool.submit(pod.generate, CLIP, num_inference_steps=50)
        wait_until(lambda: "foley_running 1.0" in pod.client.get("/metrics").text, 30)
        assert pod.terminate() == 0, pod.text()
        assert call.result().status_code == 200
    before = sorted(path.name for path in pod.volume.rglob("*"))
    again = containers.run("full", volume=pod.volume, port=pod.port, FOLEY_ROLE="load-balancer")
    again.wait_until("/ping", 200, START_SECONDS)
    assert sorted(path.name for path in pod.volume.rglob("*")) == before
    assert again.terminate() == 0


def test_the_load_balancers_health_port_and_path_are_used(containers: Containers) -> None:
    health = find_free_port()
    container = containers.run(
        "full",
        FOLEY_ROLE="load-balancer",
        PORT_HEALTH=str(health),
        HEALTH_CHECK_PATH="/health",
        FOLEY_API_KEYS="a-key",
    )
    try:
        assert container.wait_until("/health", 200, START_SECONDS, health)[-2:] == [204, 200]
        assert container.status("/health") == 200
        assert container.status("/v1/models") == 401
        assert container.status("/", PAGE_PORT) == 0  # the page is for pods
        assert container.terminate() == 0
    finally:
        containers.close()
