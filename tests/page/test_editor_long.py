"""The editor and the page with clips of 10 s and of a minute, on a server that takes them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from foley.media.original import read_original
from tests.page.conftest import Tab
from tests.page.editor import (
    KEEP_PLAYED,
    EditorTab,
    draw_played_clip,
    open_editor,
)
from tests.page.recordings import split_stretches
from tests.patience import is_within, scale
from tests.server import Server

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def long_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # The model has both cores, as where nobody sets this: other servers of the tests have one.
    settings = {"FOLEY_MAX_CLIP_SECONDS": "60", "OMP_NUM_THREADS": "2"}
    server = Server(tmp_path_factory.mktemp("long"), settings)
    try:
        server.wait_until_ready()
        yield server
    finally:
        assert server.stop() == 0, server.log.read_text()


@pytest.mark.parametrize("device", ["mouse", "keyboard"])
@pytest.mark.parametrize(("seconds", "first_sound_seconds"), [(10, 10), (60, 60)])
def test_a_long_clip_is_made_played_made_again_and_downloaded(
    long_server: Server,
    browser: Browser,
    tmp_path: Path,
    seconds: int,
    first_sound_seconds: float,
    device: str,
) -> None:
    tab: EditorTab = open_editor(browser, f"http://127.0.0.1:{long_server.port}/editor/")
    page = tab.page

    def do(button: str, key: str) -> None:
        if device == "mouse":
            page.get_by_role("button", name=button, exact=True).click()
        else:
            page.evaluate("document.activeElement.blur()")
            page.keyboard.press(key)

    tab.open_clip(draw_played_clip(tmp_path / "ball.mp4", seconds=seconds))
    page.get_by_label("Track 1: prompt").fill("a wooden ball bounces")
    started = time.monotonic()
    do("Generate", "Control+Enter")
    do("Play", "Space")  # the sound is heard as soon as there is some
    tab.wait("window.played.length > 0", 120)
    elapsed = time.monotonic() - started
    print(f"{seconds} s, by {device}: first sound after {elapsed:.1f} s")
    assert is_within(elapsed, first_sound_seconds)
    do("Pause", "Space")
    tab.wait("editor.store.project.tracks[0].takes.length === 1", 120)
    tab.wait("document.querySelector('#cancel').hidden")
    tab.wait_for_mix()
    if device == "mouse":
        tab.drag("#mix", 0.5, 0.55)
    else:
        for key in ("Home", *("Shift+ArrowRight",) * 5, "i", "Shift+ArrowRight", "o"):
            page.keyboard.press(key)
    do("Make again", "r")
    tab.wait("editor.store.project.tracks[0].spots[0]?.takes.length === 1", 120)
    tab.wait("document.querySelector('#cancel').hidden")
    tab.wait_for_mix()
    heard = np.array(tab.state("editor.open.mix.map((channel) => [...channel])"))
    page.get_by_label("Format").select_option("flac")
    with page.expect_download(timeout=1000 * scale(60)) as info:
        do("Download", "d")
    path = tmp_path / info.value.suggested_filename
    info.value.save_as(path)
    track = read_original(path, fit=lambda layout: layout)
    assert track is not None
    length = min(heard.shape[1], track.sound.samples.shape[1])
    saved = track.sound.samples[:, :length]
    assert np.corrcoef(heard[:, :length].ravel(), saved.ravel())[0, 1] > 0.999
    assert tab.messages == []
    page.context.close()


def test_a_minute_is_heard_while_it_is_made_and_as_one_sound(
    long_server: Server, browser: Browser, tmp_path: Path
) -> None:
    tab = open_editor(browser, f"http://127.0.0.1:{long_server.port}/editor/", without_policy=True)
    page = tab.page
    tab.open_clip(draw_played_clip(tmp_path / "ball.mp4", seconds=60))
    tab.record()
    page.get_by_label("Track 1: prompt").fill("a wooden ball bounces")
    started = time.monotonic()
    page.keyboard.press("Control+Enter")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    tab.wait("window.played.length > 0", 120)
    print(f"60 s: first sound after {time.monotonic() - started:.1f} s, pieces of the rest follow")
    assert tab.state("document.querySelector('#cancel').hidden") is False  # it is still made
    assert tab.state("editor.store.project.tracks[0].takes.length") == 0
    assert 5 < tab.state("window.played[0].buffer.duration") < 20
    tab.wait("editor.store.project.tracks[0].takes.length === 1", 120)
    tab.wait_for_mix()
    tab.wait("!editor.player.isPlaying", 120)
    recorded, mix = tab.recorded(), tab.read_samples("editor.open.mix[0]")
    assert np.array_equal(mix, tab.read_samples("editor.sounds.samples.values().next().value[0]"))
    stretches = split_stretches(recorded, mix)
    print(f"waits, in samples: {[stretch.silence for stretch in stretches[1:]]}")
    page.context.close()


def test_the_page_plays_a_minute_while_it_is_made(
    long_server: Server, open_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    tab = open_tab(url=f"http://127.0.0.1:{long_server.port}/ui/")
    page = tab.page
    page.evaluate(f"() => {{ {KEEP_PLAYED} }}")
    tab.upload(draw_played_clip(tmp_path / "ball.mp4", seconds=60))
    page.get_by_label("Prompt").first.fill("a wooden ball bounces")
    started = time.monotonic()
    tab.generate()
    listen = page.get_by_role("button", name="Play what is there")
    listen.wait_for(timeout=1000 * scale(60))
    listen.click()
    page.wait_for_function("played.length > 0")
    print(f"60 s on the page: first sound after {time.monotonic() - started:.1f} s")
    assert 5 < page.evaluate("played[0].buffer.duration") < 20
    assert not page.locator("[data-player]").count()  # it is still made
    # The picture is that of the clip, and goes with the sound.
    picture = page.locator("[data-beginning] video")
    expect(picture).to_have_js_property("paused", value=False)
    expect(picture).to_have_js_property("videoWidth", 160)
    # What comes later is heard after it, from where the playing is.
    page.wait_for_function("played.at(-1).buffer.duration > 25", timeout=1000 * scale(60))
    assert page.evaluate("played.at(-1).options[1]") > 0
    tab.wait_for_result()
    expect(page.locator("[data-beginning]")).to_be_hidden()
    page.wait_for_function("document.querySelector('[data-player] video').currentTime > 5")
    page.context.close()
