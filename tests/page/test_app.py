"""What the page lets through to Gradio, by the page's own rule."""

import subprocess
import sys

import pytest

from runners.page.app import is_refused
from tests.server import ROOT


@pytest.mark.parametrize("prefix", ["", "/ui"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/process_recording"),  # would run the system's FFmpeg
        ("POST", "/gradio_api/call/v2/generate"),
        ("POST", "/gradio_api/vibe-edit/"),
        ("POST", "/gradio_api/upload/../process_recording"),
        ("DELETE", "/gradio_api/file=/x"),
        ("POST", "/"),
        ("GET", "/gradio_api/file=http://127.0.0.1/x"),
        ("GET", "/gradio_api/file=HTTPS://127.0.0.1/x"),
        ("GET", "/gradio_api/file/http://127.0.0.1/x"),
        ("GET", "/gradio_api/proxy=http://127.0.0.1/x"),
        ("HEAD", "/gradio_api/proxy=http://127.0.0.1/x"),
    ],
)
def test_what_the_page_does_not_use_is_refused(prefix: str, method: str, path: str) -> None:
    assert is_refused(method, prefix + path)


@pytest.mark.parametrize("prefix", ["", "/ui"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/config"),
        ("GET", "/gradio_api/file=/tmp/foley-page-1/clip.mp4"),
        ("GET", "/gradio_api/queue/data"),
        ("GET", "/results/a/1/foley-1.mp4"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/queue/join"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/cancel"),
    ],
)
def test_what_the_page_uses_is_passed_on(prefix: str, method: str, path: str) -> None:
    assert not is_refused(method, prefix + path)


def test_an_address_that_is_none_ends_the_page_with_one_line() -> None:
    command = [sys.executable, "-m", "runners.page", "--server", "nonsense", "--port", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("page: --server: 'nonsense' is not an address")
    assert len(ended.stderr.splitlines()) == 1
