"""Measure the time from the click on the page's button to the first sound.

    python -m benchmarks.bench_page [--visits 3] [--clip bigbuckbunny.mp4] [--record]

Each visit starts the service with `tiny` and opens the page with an example clip in a headless
Chromium. The measured time begins with the click and ends when the player's clock advances. The
time in which the page opens is reported separately.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from benchmarks.records import ROOT, environment, finish
from tests.server import Server

LIMIT_SECONDS = 15.0
# The length in seconds and the RMS of the sound that the player plays, decoded by the browser.
LISTEN = """async (video) => {
    const bytes = await (await fetch(video.currentSrc)).arrayBuffer();
    const sound = await new OfflineAudioContext(1, 48000, 48000).decodeAudioData(bytes);
    const samples = sound.getChannelData(0);
    let power = 0;
    for (const sample of samples) power += sample * sample;
    return [sound.duration, Math.sqrt(power / samples.length)];
}"""


def measure_visit(browser: Browser, clip: str) -> dict[str, float]:
    """Start a service, use its page once, and return the seconds of each step."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), {"OMP_NUM_THREADS": "2"})
        try:
            started = time.monotonic()
            server.wait_until_ready()
            ready_seconds = time.monotonic() - started
            return {"service_seconds": ready_seconds, **use_page(browser, server.port, clip)}
        finally:
            server.stop()


def use_page(browser: Browser, port: int, clip: str) -> dict[str, float]:
    """Open the page, generate the sound of an example clip, and play it."""
    context = browser.new_context()
    page = context.new_page()
    opened = time.monotonic()
    page.goto(f"http://127.0.0.1:{port}/ui/?example={clip}")
    page.locator("#clip").get_by_role("button", name="Clear").wait_for(timeout=60_000)
    open_seconds = time.monotonic() - opened
    clicked = time.monotonic()
    page.get_by_role("button", name="Make the sound").click()
    player = page.locator("[data-player] video")
    player.wait_for(timeout=120_000)
    shown_seconds = time.monotonic() - clicked
    player.evaluate("video => video.play()")
    page.wait_for_function("document.querySelector('[data-player] video').currentTime > 0")
    sound_seconds = time.monotonic() - clicked
    duration_seconds, loudness = player.evaluate(LISTEN)
    context.close()
    return {
        "open_seconds": open_seconds,
        "shown_seconds": shown_seconds,
        "first_sound_seconds": sound_seconds,
        "duration_seconds": duration_seconds,
        "loudness": loudness,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visits", type=int, default=3)
    parser.add_argument("--clip", default="bigbuckbunny.mp4")
    parser.add_argument("--hardware", default="epyc")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    found = subprocess.run(
        [ROOT / "scripts" / "browser"], capture_output=True, text=True, check=True
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found.stdout.strip(),
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        visits = [measure_visit(browser, options.clip) for _ in range(options.visits)]
        version = browser.version
        browser.close()
    print("| service ready | page open | result shown | first sound |")
    print("| --- | --- | --- | --- |")
    for v in visits:
        names = ("service_seconds", "open_seconds", "shown_seconds", "first_sound_seconds")
        print("| " + " | ".join(f"{v[name]:.1f} s" for name in names) + " |")
    seconds = [v["first_sound_seconds"] for v in visits]
    print(f"first sound: median {statistics.median(seconds):.1f} s, limit {LIMIT_SECONDS:.0f} s")
    record = {
        "what": "page",
        **environment(),
        "browser": f"Chromium {version}",
        "preset": "tiny",
        "clip": options.clip,
        "num_inference_steps": 50,
        "warmup": 0,
        "visits": visits,
        "p50_seconds": statistics.median(seconds),
        "max_seconds": max(seconds),
        "limit_seconds": LIMIT_SECONDS,
    }
    finish(record, hardware=options.hardware, write=options.record)


if __name__ == "__main__":
    main()
