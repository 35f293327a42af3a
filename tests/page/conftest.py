"""A real service, a real Chromium, and one result that several tests look at."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from tests.server import ROOT, Server, draw_clip

MAX_CLIP_SECONDS = 6
READY_MS = 30_000
PROMPT = "birds & <b>steps</b>, 'close'"  # what addresses, shells and HTML each read their own way
SEED = 7


@dataclass
class Tab:
    """A tab of a visitor, and what it asked of the network."""

    page: Page
    requests: list[Request] = field(default_factory=list)

    def make(self) -> None:
        """Press the button."""
        self.page.get_by_role("button", name="Make the sound").click()

    def set_steps(self, steps: int) -> None:
        """Few steps take little time, many leave some to look and to cancel."""
        if not self.page.get_by_label("Negative prompt").is_visible():
            self.page.get_by_role("button", name="More settings").click()
        field = self.page.get_by_role("spinbutton", name="Steps")
        field.fill(str(steps))
        field.press("Tab")

    def fix_seed(self, seed: str) -> None:
        self.page.get_by_label("Fixed", exact=True).check()
        self.page.get_by_label("Fixed seed").fill(seed)

    def upload(self, clip: Path) -> None:
        """Choose a file; returns when the page holds it."""
        # For a moment the one of the upload and the one of the player are both there.
        clear = self.page.locator("#clip").get_by_role("button", name="Clear").first
        if clear.count():
            clear.click()
        self.page.locator("#clip input[type=file]").set_input_files(clip)
        clear.wait_for()

    def wait_for_result(self, number: int = 1) -> None:
        self.page.get_by_label(f"Result {number}", exact=True).wait_for(timeout=60_000)

    def error(self, place: str) -> str:
        """The sentence beside a control, once it stands there."""
        return self.page.locator(f"#error-{place}").get_by_role("alert").inner_text()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    found = subprocess.run([ROOT / "scripts" / "browser"], capture_output=True, text=True)
    if found.returncode:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(found.stderr.strip())
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=found.stdout.strip(),
            args=[
                "--use-fake-device-for-media-stream",  # a camera that draws
                "--use-fake-ui-for-media-stream",  # and a visitor who allows it
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
            ],
        )
        yield chromium
        chromium.close()


@dataclass
class Start:
    """What was seen while the page started, on its first visit."""

    first_html: str = ""
    num_pages_before: int = -1
    livez_seconds: list[float] = field(default_factory=list)


@pytest.fixture(scope="package")
def start() -> Start:
    """Filled by `server`."""
    return Start()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp("page"), {"FOLEY_MAX_CLIP_SECONDS": str(MAX_CLIP_SECONDS)}
    )
    try:
        server.wait_until_ready()
        start.num_pages_before = num_pages(server)
        start.first_html = page_html(server)
        while "gradio_config" not in page_html(server):
            asked = time.monotonic()
            assert server.probe("/livez") == 200
            start.livez_seconds.append(time.monotonic() - asked)
            assert sum(start.livez_seconds) < 60
        yield server
        # A tab holds a stream open; ending the service must not wait for it.
        with server.client.stream("GET", "/ui/gradio_api/heartbeat/tab") as heartbeat:
            next(heartbeat.iter_bytes())
            family, stopping = server.family(), time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0, server.log.read_text()
        assert time.monotonic() - stopping < 15  # the grace for open streams is 30 s
        assert psutil.wait_procs(family, 5)[1] == [], "the page's process is left"
    finally:
        assert server.stop() == 0, server.log.read_text()


def num_pages(server: Server) -> int:
    """How many processes of the page there are."""
    return sum("runners.page" in process.cmdline() for process in server.family())


def page_html(server: Server) -> str:
    return server.client.get("/ui/", headers={"Accept": "text/html"}).text


@pytest.fixture(scope="package")
def open_tab(browser: Browser, server: Server) -> Iterator[Callable[..., Tab]]:
    """Opens the page as a visitor who has never been there."""
    contexts: list[BrowserContext] = []

    def open_(query: str = "", *, url: str = "") -> Tab:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}))
        contexts[-1].set_default_timeout(10_000)
        tab = Tab(contexts[-1].new_page())
        tab.page.on("request", lambda request: tab.requests.append(request))
        tab.page.goto((url or f"http://127.0.0.1:{server.port}/ui/") + query)
        start = tab.page.get_by_role("button", name="Make the sound")
        start.wait_for(timeout=READY_MS)
        # Its scripts are alive once the model's name has come.
        expect(tab.page.locator("#model")).not_to_contain_text("Asking", timeout=READY_MS)
        return tab

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture
def tab(open_tab: Callable[..., Tab]) -> Iterator[Tab]:
    tab = open_tab()
    yield tab
    tab.page.context.close()


@pytest.fixture(scope="package")
def made(open_tab: Callable[..., Tab]) -> Tab:
    """A tab with a result: two variations of an example clip, uploaded as a visitor's own."""
    tab = open_tab()
    tab.upload(ROOT / "examples" / "bigbuckbunny.mp4")
    tab.page.get_by_label("Prompt").first.fill(PROMPT)
    tab.page.get_by_label("2", exact=True).check()
    tab.fix_seed(str(SEED))
    tab.set_steps(2)
    tab.make()
    tab.wait_for_result()
    return tab


@pytest.fixture(scope="package")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    draw_clip(folder / "short.mp4")
    draw_clip(folder / "long.mp4", num_frames=25 * (MAX_CLIP_SECONDS + 2))
    (folder / "broken.mp4").write_bytes(b"this is no video" * 1000)
    return folder
