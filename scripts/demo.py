"""Starts the service, sends it a clip, writes out.mp4, out.wav and out.png to demo/, and stops it.

python -m scripts.demo
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from runners.process import free_port

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "examples" / "bigbuckbunny.mp4"
PROMPT = "soft taps and wind"
OUT = ROOT / "demo"
LOG = OUT / "server.log"
START_SECONDS = 120.0
REQUEST_SECONDS = 300.0
STOP_SECONDS = 30.0


class DemoError(Exception):
    """Something failed; the message is the one line that the user sees."""


def main() -> int:
    """Exit status: 0 when all files were made."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service is stopped too
    try:
        OUT.mkdir(exist_ok=True)
        if not CLIP.is_file():
            raise DemoError(f"there is no {CLIP.relative_to(ROOT)}")
        run()
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


def run() -> None:
    """The demo itself."""
    started = time.monotonic()
    with service() as client:
        ready_seconds = time.monotonic() - started
        print(f"service   ready after {ready_seconds:.1f} s, on {client.base_url}")
        seed = generate(client, "mp4", {"prompt": PROMPT})
        generate(client, "wav", {"prompt": PROMPT, "seed": seed})
        stopping = time.monotonic()
    print(f"service   stopped in {time.monotonic() - stopping:.1f} s")
    draw()
    print(f"          {time.monotonic() - started:.1f} s in all")


def generate(client: httpx.Client, format_: str, fields: dict[str, str]) -> str:
    """Have one file made, write it, and tell about it; returns its seed."""
    with CLIP.open("rb") as clip:
        try:
            response = client.post(
                "/v1/generate", files={"clip": clip}, data={**fields, "format": format_}
            )
        except httpx.HTTPError as error:
            raise DemoError(f"the service did not answer ({error}); see {show(LOG)}") from error
    if response.status_code != 200:
        error = response.json()["error"]
        raise DemoError(f"the service refused ({error['code']}): {error['message']}")
    path = OUT / f"out.{format_}"
    path.write_bytes(response.content)
    headers = response.headers
    print(
        f"made      {show(path)}: {headers['content-type']}, {path.stat().st_size} bytes, "
        f"{float(headers['x-foley-duration-seconds']):.2f} s of sound, "
        f"seed {headers['x-foley-seed']}, model {headers['x-foley-model']}"
    )
    stages = json.loads(headers["x-foley-timings"]).items()
    print("          " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages))
    for notice in json.loads(headers["x-foley-notices"]):
        print(f"          note: {notice}")
    return headers["x-foley-seed"]


def draw() -> None:
    """Draw frames, waveform and spectrogram of what was made, over one time line."""
    # They take seconds to import: not before the service has answered.
    import torch

    from benchmarks.quality import drawing
    from benchmarks.quality.onsets import onsets
    from runners.page.plots import read_sound

    read = read_sound(OUT / "out.wav")
    assert read is not None
    samples, rate = read
    found = onsets(torch.from_numpy(samples))
    sound = drawing.Sound(name="generated", samples=samples, rate=rate, found=found)
    path = OUT / "out.png"
    drawing.draw(CLIP, [sound], path, title=f'{CLIP.name}, "{PROMPT}"')
    print(f"drawn     {show(path)}: frames, waveform and spectrogram, {len(found)} onsets marked")


@contextlib.contextmanager
def service() -> Iterator[httpx.Client]:
    """A client of a service that is ready, and is stopped in the end."""
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", "service:FoleyApi"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--timeout-graceful-shutdown", "10"]
    with tempfile.TemporaryDirectory() as home, LOG.open("wb") as log:
        environment = {
            **os.environ,
            "FOLEY_PRESET": "tiny",
            "FOLEY_DEVICE": "cpu",
            "FOLEY_GRPC_PORT": "0",
            "BENTOML_HOME": home,  # counts of another server live in the usual one
            "BENTOML_DO_NOT_TRACK": "True",
        }
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the demo only, which then stops the service
        )
        try:
            base_url = f"http://127.0.0.1:{port}"
            with httpx.Client(
                base_url=base_url, timeout=REQUEST_SECONDS, trust_env=False
            ) as client:
                wait_until_ready(client, process)
                yield client
        finally:
            stop(process)


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Return once the model is warm.

    Raises:
        DemoError: the service ended, its model cannot be loaded, or it takes too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = LOG.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise DemoError(f"the service ended before it was ready: {lines[-1]}")
        with contextlib.suppress(httpx.TransportError):
            response = client.get("/readyz", timeout=5.0)
            if response.status_code == 200:
                return
            error = response.json()["error"]
            if error["code"] != "not_ready":
                raise DemoError(f"{error['message']}; see {show(LOG)}")
        time.sleep(0.2)
    raise DemoError(f"the service was not ready after {START_SECONDS:.0f} s; see {show(LOG)}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the service; the server of its processes passes the signal on to them."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise DemoError(f"the service did not stop in {STOP_SECONDS:.0f} s") from None


def show(path: Path) -> str:
    """The path as seen from the repository."""
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
