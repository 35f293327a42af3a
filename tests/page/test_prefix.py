"""The page below the path of a reverse proxy."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers

from foley.client import FoleyClient
from runners.page.public_url import find_public_url
from tests.page.conftest import Tab
from tests.page.reverse_proxy import run_proxy
from tests.server import Server

pytestmark = pytest.mark.long

# Gradio's own, which the page does not need.
FIXED = {"/favicon.ico", "/manifest.json", "/ui/static/js/iframeResizer.contentWindow.min.js"}


@pytest.mark.parametrize(
    "keeps_path",
    [
        pytest.param(False, id="taken off"),
        # The test of the client has it too.
        pytest.param(True, id="passed on", marks=pytest.mark.soak),
    ],
)
def test_the_page_works_below_a_path(
    server: Server, open_tab: Callable[..., Tab], clips: Path, keeps_path: bool
) -> None:
    with run_proxy(f"http://127.0.0.1:{server.port}", keeps_path=keeps_path) as (url, outside):
        tab = open_tab(url=url + ("" if keeps_path else "/"))
        assert tab.page.url == f"{url}/ui/"
        tab.upload(clips / "short.mp4")
        tab.set_steps(1)
        tab.generate()
        tab.wait_for_result()
        loaded = "document.querySelector('[data-player] video').readyState >= 1"
        tab.page.wait_for_function(loaded)
        broken = "[...document.images].filter((image) => image.complete && !image.naturalWidth)"
        assert tab.page.evaluate(f"{broken}.map((image) => image.src)") == []
        assert f"{url}/v1/generate" in tab.page.locator("#result").inner_html()
        download = tab.page.locator("[data-player] a[href$='.wav']").first
        file = httpx.get(download.evaluate("(link) => link.href"), trust_env=False)
        assert file.content.startswith(b"RIFF")
        tab.page.context.close()
        assert set(outside) <= FIXED


def test_the_client_works_below_a_path(server: Server, clips: Path, tmp_path: Path) -> None:
    with (
        run_proxy(f"http://127.0.0.1:{server.port}", keeps_path=True) as (url, outside),
        FoleyClient(url) as client,
    ):
        result = client.generate(clips / "short.mp4", num_inference_steps=1)
        client.download(result.files[0], tmp_path / "sound.mp4")
        assert not outside


@pytest.mark.parametrize(
    ("headers", "url"),
    [
        ({"host": "a:1"}, "http://a:1/ui"),
        ({"host": "a", "referer": "https://b/foley/ui/?seed=1"}, "https://b/foley/ui"),
        ({"host": "a", "referer": "https://b/elsewhere/"}, "http://a/ui"),
        ({"host": "a", "referer": "javascript:/ui/"}, "http://a/ui"),
        (
            {"host": "a", "x-forwarded-host": "b, c", "x-forwarded-proto": "https"},
            "https://b/ui",
        ),
    ],
)
def test_the_browser_knows_the_address_of_the_page(headers: dict[str, str], url: str) -> None:
    assert find_public_url(Headers(headers), "/ui") == url
