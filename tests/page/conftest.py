"""A real service, a real Chromium, and one result that several tests read."""

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

from tests.patience import Deadline, is_within, scale, wait_for_exit
from tests.server import ROOT, Server, draw_clip

MAX_CLIP_SECONDS = 6
READY_SECONDS = 30
RESULT_SECONDS = 60
PROMPT = "birds & <b>steps</b>, 'close'"  # has a meaning in URLs, shells and HTML
SEED = 7

WATCH_START = """() => {
    window.startWasDisabled = false;
    const button = document.querySelector("#start");
    new MutationObserver(() => { window.startWasDisabled ||= button.disabled; })
        .observe(button, { attributes: true });
}"""


@dataclass
class Tab:
    """A browser tab with the page, and its requests."""

    page: Page
    requests: list[Request] = field(default_factory=list)

    def generate(self) -> None:
        """Press the button, and wait until the page has disabled it.

        Gradio ignores a click while the event of an earlier click has not ended.
        """
        self.page.evaluate(WATCH_START)
        self.page.get_by_role("button", name="Make the sound").click()
        self.page.wait_for_function("window.startWasDisabled")

    def set_steps(self, steps: int) -> None:
        """Set the solver steps: few are fast, many leave time to look and to cancel."""
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
        # The buttons of the upload and of the player can exist at the same time.
        clear = self.page.locator("#clip").get_by_role("button", name="Clear").first
        if clear.count():
            clear.click()
        self.page.locator("#clip input[type=file]").set_input_files(clip)
        clear.wait_for()

    def wait_for_result(self, number: int = 1) -> None:
        self.page.get_by_label(f"Result {number}", exact=True).wait_for(
            timeout=1000 * scale(RESULT_SECONDS)
        )

    def error(self, place: str) -> str:
        """Wait for the error beside a control and return it."""
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
                "--use-fake-device-for-media-stream",  # a camera with a test picture
                "--use-fake-ui-for-media-stream",  # allow the camera without a question
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
            ],
        )
        yield chromium
        chromium.close()


@dataclass
class PageStart:
    """What was observed while the page started, on the first request for it."""

    first_html: str = ""
    num_pages_before: int = -1
    livez_seconds: list[float] = field(default_factory=list)


@pytest.fixture(scope="package")
def page_start() -> PageStart:
    """Filled by `server`."""
    return PageStart()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, page_start: PageStart) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page")
    server = Server(
        folder,
        {
            "FOLEY_MAX_CLIP_SECONDS": str(MAX_CLIP_SECONDS),
            "FOLEY_ROOT_PATH": "/foley",
            "FOLEY_JOBS_DIR": str(folder / "jobs"),
        },
    )
    try:
        server.wait_until_ready()
        page_start.num_pages_before = num_pages(server)
        page_start.first_html = page_html(server)
        deadline = Deadline(60)
        while "gradio_config" not in page_html(server):
            asked = time.monotonic()
            assert server.probe("/livez") == 200
            page_start.livez_seconds.append(time.monotonic() - asked)
            assert not deadline.is_over(), server.log.read_text()
        yield server
        # An open tab holds a stream open, and the shutdown must not wait for it.
        with server.client.stream("GET", "/ui/gradio_api/heartbeat/tab") as heartbeat:
            next(heartbeat.iter_bytes())
            # The launcher signals all processes; this one is needed until the work has ended.
            (page,) = server.find("runners.page")
            page.send_signal(signal.SIGTERM)
            assert "gradio_config" in page_html(server)
            family, stopping = server.family(), time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert wait_for_exit(server.process) == 0, server.log.read_text()
        # The grace for open streams is 30 s. The log says what it waited for.
        assert is_within(time.monotonic() - stopping, 15), server.log.read_text()[-8000:]
        _, alive = psutil.wait_procs(family, scale(5))
        assert alive == [], "the page's process is left"
    finally:
        assert server.stop() == 0, server.log.read_text()


def num_pages(server: Server) -> int:
    """Return the number of processes that serve the page."""
    return len(server.find("runners.page"))


def page_html(server: Server) -> str:
    return server.client.get("/ui/", headers={"Accept": "text/html"}).text


@pytest.fixture(scope="package")
def open_tab(browser: Browser, server: Server) -> Iterator[Callable[..., Tab]]:
    """A function that opens the page in a new browser context."""
    contexts: list[BrowserContext] = []

    def open_(query: str = "", *, url: str = "") -> Tab:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}))
        contexts[-1].set_default_timeout(1000 * scale(10))
        expect.set_options(timeout=1000 * scale(5))
        tab = Tab(contexts[-1].new_page())
        tab.page.on("request", lambda request: tab.requests.append(request))
        tab.page.goto((url or f"http://127.0.0.1:{server.port}/ui/") + query)
        start = tab.page.get_by_role("button", name="Make the sound")
        start.wait_for(timeout=1000 * scale(READY_SECONDS))
        # The page's scripts run once the model is shown.
        expect(tab.page.locator("#model")).not_to_contain_text(
            "Connecting", timeout=1000 * scale(READY_SECONDS)
        )
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
def result_tab(open_tab: Callable[..., Tab]) -> Tab:
    """A tab with a result: two variations of an example clip that was uploaded as a file."""
    tab = open_tab()
    tab.upload(ROOT / "examples" / "bigbuckbunny.mp4")
    tab.page.get_by_label("Prompt").first.fill(PROMPT)
    tab.page.get_by_label("2", exact=True).check()
    tab.fix_seed(str(SEED))
    tab.set_steps(2)
    tab.generate()
    tab.wait_for_result()
    return tab


@pytest.fixture(scope="package")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    draw_clip(folder / "short.mp4")
    draw_clip(folder / "long.mp4", num_frames=25 * (MAX_CLIP_SECONDS + 2))
    (folder / "broken.mp4").write_bytes(b"this is no video" * 1000)
    return folder
