"""The page plays what is made of a sound while the rest is made."""

import base64
import io
import wave
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.conftest import RESULT_SECONDS, Tab
from tests.page.editor import KEEP_PLAYED
from tests.patience import scale
from tests.server import draw_clip

pytestmark = pytest.mark.long

# As a person does who waits for the button. A test that looks from outside may be late.
PLAY_WHEN_SHOWN = """
new MutationObserver((_, observer) => {
    const button = document.querySelector("[data-beginning]:not([hidden]) button");
    if (!button) return;
    observer.disconnect();
    button.click();
}).observe(document, { attributes: true, subtree: true });
"""
# The greatest difference between what was heard first and the beginning of the result.
COMPARE = """async () => {
    const link = document.querySelector('#result .foley-downloads a[href$=".wav"]');
    const bytes = await (await fetch(link.href)).arrayBuffer();
    const whole = await new OfflineAudioContext(1, 1, 48000).decodeAudioData(bytes);
    const [result, heard] = [whole, played[0].buffer].map((buffer) => buffer.getChannelData(0));
    return Math.max(...heard.map((value, n) => Math.abs(value - result[n])));
}"""


def make_wav() -> str:
    """Return a second of silence as base64."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 48_000, 0, "NONE", ""))
        writer.writeframes(bytes(2 * 48_000))
    return base64.b64encode(file.getvalue()).decode()


def test_the_beginning_is_heard_first_and_the_result_goes_on_with_it(
    open_tab: Callable[[], Tab], tmp_path: Path
) -> None:
    draw_clip(tmp_path / "clip.mp4", num_frames=132)
    tab = open_tab()
    page = tab.page
    page.evaluate(f"() => {{ {KEEP_PLAYED} {PLAY_WHEN_SHOWN} }}")
    tab.upload(tmp_path / "clip.mp4")
    tab.set_steps(2)
    tab.generate()
    page.wait_for_function("played.length > 0", timeout=1000 * scale(RESULT_SECONDS))
    assert page.evaluate("played[0].buffer.duration") == pytest.approx(2.56)
    tab.wait_for_result()
    expect(page.locator("[data-beginning]")).to_be_hidden()
    page.wait_for_function("document.querySelector('[data-player] video').currentTime > 0.5")
    assert not page.locator("[data-player] video").evaluate("(video) => video.muted")
    assert page.evaluate(COMPARE) < 1e-4
    page.context.close()


def test_a_cancelled_sound_falls_silent(open_tab: Callable[[], Tab]) -> None:
    tab = open_tab()
    page = tab.page
    page.evaluate(f"() => {{ {PLAY_WHEN_SHOWN} }}")
    said = '<div hidden data-pieces data-start-seconds="0"><a href="{}"></a></div>'
    sound = "data:audio/wav;base64," + make_wav()
    show = "(html) => { document.querySelector('#pieces').innerHTML = html; }"
    page.evaluate(show, said.format(sound))
    button = page.get_by_role("button", name="Pause", exact=True)
    expect(button).to_be_visible()
    expect(page.get_by_text("1.0 s are made")).to_be_visible()
    page.evaluate(show, "")
    expect(page.locator("[data-beginning]")).to_be_hidden()
    page.context.close()
