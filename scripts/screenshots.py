"""Make the pictures of the documents anew: two of the page, and the plot of a GPU record.

    python -m scripts.screenshots

The script starts the service with `tiny`, opens its page in Chromium, generates the sound of an
example clip and writes docs/images/page-desktop.png, page-phone.png and performance.svg. It needs
the extras `dev` and `page`.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.plot_gpu import plot
from scripts.local_service import ROOT, LocalServiceError, run_service

IMAGES = ROOT / "docs" / "images"
RECORD = ROOT / "benchmarks" / "records" / "2026-11-26_gpu_h100_9e95e6a.json"
MAX_BYTES = 400_000
WAIT_MS = 120_000
SETTLE_MS = 2_000  # for the player's loading indicator and transitions, which have no event
# The settings are fixed, so that every run shows the same result.
LINK = "/ui/?example=hammer.mp4&prompt=a+hammer+hits+stone&num_variations=2&seed=11"
MARGIN = 16  # CSS pixels above the player in the phone's picture
SHOWN_SECONDS = 2.5  # position of the player in the pictures


def main() -> int:
    """Write all pictures; return the exit status."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    plot(json.loads(RECORD.read_text()), "bf16", IMAGES / "performance.svg")
    try:
        with tempfile.TemporaryDirectory() as folder, run_service(Path(folder) / "log") as client:
            take_pictures(str(client.base_url))
    except LocalServiceError as error:
        print(f"screenshots: {error}", file=sys.stderr)
        return 1
    for path in sorted(IMAGES.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")
    return 0


def take_pictures(url: str) -> None:
    """Write the pictures of the page on a desktop and on a phone.

    Args:
        url: address of the service.

    Raises:
        RuntimeError: a picture is larger than `MAX_BYTES`.
    """
    found = subprocess.run(
        [ROOT / "scripts" / "browser"], stdout=subprocess.PIPE, text=True, check=True
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found.stdout.strip(),
            args=["--no-sandbox"] if os.geteuid() == 0 else [],
        )
        page = open_page(browser, url, width=1280, height=900, dark=False)
        save_picture(page, IMAGES / "page-desktop.png", top=0)
        page.context.close()
        page = open_page(browser, url, width=390, height=844, dark=True)
        top = page.evaluate(
            "document.querySelector('[data-player]').getBoundingClientRect().top + scrollY"
        )
        save_picture(page, IMAGES / "page-phone.png", top=top - MARGIN)
        browser.close()


def open_page(browser: Browser, url: str, *, width: int, height: int, dark: bool) -> Page:
    """Open the page and generate a sound; return the page once the result is shown.

    Args:
        browser: Chromium.
        url: address of the service.
        width: of the window in CSS pixels.
        height: of the window in CSS pixels.
        dark: whether the visitor prefers dark colours.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.goto(url + LINK)
    page.locator("#clip").get_by_role("button", name="Clear").first.wait_for()
    page.locator("#model").get_by_text("tiny", exact=True).wait_for()
    page.get_by_role("button", name="Make the sound").click()
    page.get_by_label("Result 1", exact=True).wait_for()
    page.get_by_label("Position in seconds").fill(str(SHOWN_SECONDS))
    page.wait_for_function(
        "[...document.querySelectorAll('video')].every(video => video.readyState === 4)"
        " && [...document.images].every(image => image.complete)"
        " && !document.querySelector('[data-player] video').seeking"
    )
    page.evaluate("document.activeElement?.blur()")
    page.mouse.move(0, 0)  # no control is highlighted
    page.wait_for_timeout(SETTLE_MS)
    return page


def save_picture(page: Page, path: Path, *, top: float) -> None:
    """Write a PNG of the page from `top` to its end with a palette of 256 colours.

    Args:
        page: the page as it is shown.
        path: where to write the PNG.
        top: in CSS pixels from the page's upper edge.

    Raises:
        RuntimeError: the picture is larger than `MAX_BYTES`.
    """
    whole = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    picture = whole.crop((0, round(top), whole.width, whole.height))
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if (num_bytes := path.stat().st_size) > MAX_BYTES:
        raise RuntimeError(f"{path} has {num_bytes} bytes, the limit is {MAX_BYTES}")


if __name__ == "__main__":
    sys.exit(main())
