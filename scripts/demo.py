"""Start the service, send it a clip, write out.mp4, out.wav and out.png to demo/, and stop it.

python -m scripts.demo
"""

import json
import signal
import sys
import time
from pathlib import Path

import httpx

from scripts.local_service import ROOT, LocalServiceError, run_service

CLIP = ROOT / "examples" / "hammer.mp4"
CONTACTS = CLIP.with_suffix(".json")  # when the hammer touches the stone
PROMPT = "a hammer hits stone"
OUT = ROOT / "demo"
LOG = OUT / "server.log"


class DemoError(Exception):
    """A request failed; the message is one line for the user."""


def main() -> int:
    """Run the demo; return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service is stopped too
    try:
        OUT.mkdir(exist_ok=True)
        if not CLIP.is_file():
            raise DemoError(f"there is no {CLIP.relative_to(ROOT)}")
        run_demo()
    except (DemoError, LocalServiceError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


def run_demo() -> None:
    """Generate a video and a sound with the same seed, and draw them.

    Raises:
        DemoError: the service refused a request.
        LocalServiceError: the service does not start or stop.
    """
    started = time.monotonic()
    with run_service(LOG) as client:
        ready_seconds = time.monotonic() - started
        print(f"service   ready after {ready_seconds:.1f} s, on {client.base_url}")
        seed = generate(client, "mp4", {"prompt": PROMPT})
        generate(client, "wav", {"prompt": PROMPT, "seed": seed})
        stopping = time.monotonic()
    print(f"service   stopped in {time.monotonic() - stopping:.1f} s")
    draw_result()
    print(f"          {time.monotonic() - started:.1f} s in total")


def generate(client: httpx.Client, format_: str, options: dict[str, str]) -> str:
    """Generate one file, write it to demo/, print its description and return its seed.

    Args:
        client: of the service.
        format_: mp4, mov, mkv, webm, wav or flac.
        options: other fields of the form.

    Raises:
        DemoError: the service refused the request or did not answer.
    """
    with CLIP.open("rb") as clip:
        try:
            response = client.post(
                "/v1/generate", files={"clip": clip}, data={**options, "format": format_}
            )
        except httpx.HTTPError as error:
            raise DemoError(
                f"the service did not answer ({error}); see {make_relative(LOG)}"
            ) from error
    if response.status_code != 200:
        refusal = response.json()["error"]
        raise DemoError(f"the service refused ({refusal['code']}): {refusal['message']}")
    path = OUT / f"out.{format_}"
    path.write_bytes(response.content)
    headers = response.headers
    print(
        f"wrote     {make_relative(path)}: {headers['content-type']}, {path.stat().st_size} bytes, "
        f"{float(headers['x-foley-duration-seconds']):.2f} s of sound, "
        f"seed {headers['x-foley-seed']}, model {headers['x-foley-model']}"
    )
    stages = json.loads(headers["x-foley-timings"]).items()
    print("          " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages))
    for notice in json.loads(headers["x-foley-notices"]):
        print(f"          note: {notice}")
    return headers["x-foley-seed"]


def draw_result() -> None:
    """Write demo/out.png: frames, waveform and spectrogram, with contacts and detected onsets."""
    # These imports take seconds, so they follow the requests.
    import torch

    from benchmarks.quality import drawing
    from runners.page.plots import read_sound
    from training.judge import TOLERANCE_SECONDS, detect_onsets, match_onsets

    sound = read_sound(OUT / "out.wav")
    assert sound is not None
    samples, rate = sound
    onsets = detect_onsets(torch.from_numpy(samples))
    contacts: list[float] = json.loads(CONTACTS.read_text())["contacts"]
    drawn = drawing.Sound(name="generated", samples=samples, rate=rate, found=onsets)
    path = OUT / "out.png"
    drawing.draw(CLIP, [drawn], path, title=f'{CLIP.name}, "{PROMPT}"', events=contacts)
    num_matched = len(match_onsets(onsets, contacts))
    print(f"drew      {make_relative(path)}: frames, waveform and spectrogram")
    print(
        f"          {num_matched} of {len(contacts)} hits are heard within "
        f"{1000 * TOLERANCE_SECONDS:.0f} ms, and {len(onsets) - num_matched} onsets match no hit"
    )


def make_relative(path: Path) -> str:
    """Return a path relative to the repository.

    Args:
        path: a path inside the repository.
    """
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
