"""The page's results: they play, they match the service's files, and they can be repeated."""

import contextlib
import io
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import av
import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import PROMPT, SEED, Tab
from tests.patience import Deadline
from tests.server import ROOT, Server

pytestmark = pytest.mark.long

CLIP = ROOT / "examples" / "bigbuckbunny.mp4"
SECONDS = 5.24  # the frames that the model saw; the clip's 132 frames last 5.28
# Duration and loudness of the player's sound, as the browser decodes it.
LISTEN = """async (video) => {
    const bytes = await (await fetch(video.currentSrc)).arrayBuffer();
    const sound = await new OfflineAudioContext(1, 48000, 48000).decodeAudioData(bytes);
    const samples = sound.getChannelData(0);
    let power = 0;
    for (const sample of samples) power += sample * sample;
    return [sound.duration, Math.sqrt(power / samples.length)];
}"""


def sound_of(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        frames = list(container.decode(audio=0))
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1)


def select_track(page: Page, name: str) -> None:
    page.get_by_role("radio", name=name).check(force=True)


def downloads(page: Page) -> dict[str, bytes]:
    """Return the content of each download link of the selected track."""
    files = {}
    for link in page.get_by_role("link", name=re.compile("^Download")).all():
        with page.expect_download() as download:
            link.click()
        files[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
    return files


@pytest.fixture(scope="module")
def files(result_tab: Tab) -> dict[str, bytes]:
    found = {}
    for variation in "12":
        select_track(result_tab.page, f"Variation {variation}")
        found |= downloads(result_tab.page)
    return found


def test_the_result_plays_and_is_not_silent(result_tab: Tab) -> None:
    select_track(result_tab.page, "Variation 1")
    video = result_tab.page.locator("[data-player] video")
    expect(video).to_have_js_property("readyState", 4)
    assert video.evaluate("video => video.duration") == pytest.approx(5.28, abs=0.05)
    duration, loudness = video.evaluate(LISTEN)
    assert duration == pytest.approx(SECONDS, abs=0.1)
    assert loudness > 1e-3
    assert video.evaluate("video => video.videoWidth") == 1280
    video.evaluate("video => { video.muted = true; video.currentTime = 0; return video.play(); }")
    result_tab.page.wait_for_function(
        "document.querySelector('[data-player] video').currentTime > 0.3"
    )
    video.evaluate("video => video.pause()")


def test_switching_tracks_keeps_the_position_and_shows_the_other_waveform(result_tab: Tab) -> None:
    page = result_tab.page
    select_track(page, "Variation 1")
    video = page.locator("[data-player] video")
    page.get_by_label("Position in seconds").fill("2.5")
    expect(page.get_by_role("img", name=re.compile("Waveform: Variation 1"))).to_be_visible()
    source = video.evaluate("video => video.currentSrc")
    for name in ("Original", "Variation 2"):
        select_track(page, name)
        page.wait_for_function(
            "source => { const video = document.querySelector('[data-player] video');"
            " return video.currentSrc !== source && video.readyState >= 2; }",
            arg=source,
        )
        source = video.evaluate("video => video.currentSrc")
        assert video.evaluate("video => video.currentTime") == pytest.approx(2.5, abs=0.01)
        assert video.evaluate("video => video.paused")
        visible = page.get_by_role("img", name=re.compile("^Waveform")).all()
        assert [re.search(name, x.get_attribute("aria-label") or "") is None for x in visible] == [
            False
        ]
    assert page.locator(".foley-timeline").evaluate(
        "line => Number(line.style.getPropertyValue('--position'))"
    ) == pytest.approx(2.5 / SECONDS, abs=0.01)


def test_a_playing_player_continues_after_a_switch(result_tab: Tab) -> None:
    select_track(result_tab.page, "Variation 1")
    video = result_tab.page.locator("[data-player] video")
    video.evaluate("video => { video.muted = true; video.currentTime = 1; return video.play(); }")
    select_track(result_tab.page, "Original")
    result_tab.page.wait_for_function(
        "() => { const video = document.querySelector('[data-player] video');"
        " return video.currentTime > 1.2 && !video.paused; }"
    )
    video.evaluate("video => video.pause()")


def test_the_result_begins_at_the_height_of_the_clip(result_tab: Tab) -> None:
    clip, result = (result_tab.page.locator(name).bounding_box() for name in ("#clip", "#result"))
    assert clip is not None
    assert result is not None
    assert result["y"] == pytest.approx(clip["y"], abs=1)


def test_film_strip_waveform_and_spectrogram_have_the_same_width(result_tab: Tab) -> None:
    select_track(result_tab.page, "Variation 1")
    strip = result_tab.page.locator(".foley-strip")
    spectrogram = result_tab.page.get_by_role("img", name=re.compile("^Spectrogram: Variation 1"))
    waveform = result_tab.page.get_by_role("img", name=re.compile("^Waveform: Variation 1"))
    for picture in (strip, spectrogram):
        assert picture.evaluate("image => image.complete && image.naturalWidth > 600")
    boxes = [picture.bounding_box() for picture in (strip, spectrogram, waveform)]
    assert all(boxes)
    assert len({(round(box["x"]), round(box["width"])) for box in boxes if box}) == 1


def test_downloads_hold_the_sound_and_the_unchanged_video_packets(files: dict[str, bytes]) -> None:
    assert sorted(files) == [f"foley-{n}.{f}" for n in (1, 2) for f in ("flac", "mp4", "wav")]
    assert not np.array_equal(sound_of(files["foley-1.wav"]), sound_of(files["foley-2.wav"]))
    for name, content in files.items():
        sound = sound_of(content)
        assert sound.shape[1] / 48_000 == pytest.approx(SECONDS, abs=0.1), name
        assert np.abs(sound).max() > 1e-3, name
    with av.open(io.BytesIO(files["foley-1.mp4"])) as result, av.open(str(CLIP)) as clip:
        packets = [[bytes(p) for p in x.demux(video=0) if p.size] for x in (result, clip)]
    assert packets[0] == packets[1]


def snippet(result_tab: Tab, name: str) -> str:
    if not result_tab.page.get_by_role("button", name=f"Copy {name}").is_visible():
        result_tab.page.get_by_text("Repeat this result").click()
    return result_tab.page.get_by_label(name, exact=True).inner_text()


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")
def test_the_curl_command_repeats_the_result(
    result_tab: Tab, files: dict[str, bytes], tmp_path: Path
) -> None:
    shutil.copy(CLIP, tmp_path)
    command = snippet(result_tab, "curl")
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True, capture_output=True)
    with zipfile.ZipFile(tmp_path / "foley.zip") as archive:
        for name in ("foley-1.mp4", "foley-2.mp4"):
            assert np.array_equal(sound_of(archive.read(name)), sound_of(files[name]))


def test_the_python_program_repeats_the_result(
    result_tab: Tab,
    files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(CLIP, tmp_path)
    program = snippet(result_tab, "Python")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    # In this process, which has imported the client: that takes longer than the program.
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})
    names = capsys.readouterr().out.split()
    for index, name in enumerate(names, start=1):
        sound = sound_of((tmp_path / name).read_bytes())
        assert np.array_equal(sound, sound_of(files[f"foley-{index}.mp4"]))
    assert len(names) == 2


def test_the_link_sets_every_control_and_shows_no_result_of_another_session(
    result_tab: Tab, open_tab: Callable[..., Tab]
) -> None:
    snippet(result_tab, "curl")
    link = result_tab.page.get_by_role("link", name="Link with these settings").get_attribute(
        "href"
    )
    assert link is not None
    page = open_tab(link).page
    expect(page.get_by_label("Prompt").first).to_have_value(PROMPT)
    expect(page.get_by_label("2", exact=True)).to_be_checked()
    expect(page.get_by_label("Fixed seed")).to_have_value(str(SEED))
    expect(page.get_by_role("spinbutton", name="Steps")).to_have_value("2")
    expect(page.get_by_label("Picture and sound")).to_be_checked()
    # It is a session of its own, which does not see the results of the other.
    expect(page.get_by_text("Your result appears here")).to_be_visible()
    expect(page.get_by_text("Results of this session")).to_be_hidden()
    assert page.locator("[data-player]").count() == 0
    page.context.close()


def test_earlier_results_and_their_seeds_can_be_selected(result_tab: Tab) -> None:
    page = result_tab.page
    page.get_by_role("button", name="Big Buck Bunny").click()
    page.get_by_label("1", exact=True).check()
    page.get_by_label("Sound alone").check()
    page.get_by_label("Use a part of it").check()
    page.get_by_label("-16 LUFS (online)").check()
    page.get_by_label("Random", exact=True).check()
    page.get_by_label("Prompt").first.fill("another")
    result_tab.generate()
    result_tab.wait_for_result(2)
    video = page.locator("[data-player] video")
    # It is a random seed at two steps: 5.4e-4 to 5.8e-3 were measured.
    assert video.evaluate(LISTEN)[1] > 1e-4
    assert sorted(downloads(page)) == ["foley-1.flac", "foley-1.wav"]
    facts = page.locator(".foley-facts").inner_text()
    (seed,) = re.findall(r"Seed\s+(\d+)", facts)
    snippet(result_tab, "curl")
    assert "example=bigbuckbunny.mp4" in str(
        page.get_by_role("link", name="Link with these settings").get_attribute("href")
    )
    page.get_by_role("button", name="Keep this seed").click()
    expect(page.get_by_label("Fixed seed")).to_have_value(seed)
    history = page.get_by_role("group", name="Results of this session").get_by_role("radio")
    history.first.check()
    result_tab.wait_for_result(1)
    expect(page.get_by_label("Prompt").first).to_have_value(PROMPT)
    expect(page.get_by_label("2", exact=True)).to_be_checked()
    expect(page.get_by_label("Fixed seed")).to_have_value(str(SEED))
    for name in ("Picture and sound", "Refuse it", "As it is"):
        expect(page.get_by_role("radio", name=name, exact=True)).to_be_checked()
    expect(page.get_by_role("spinbutton", name="Steps")).to_have_value("2")
    history.last.check()
    result_tab.wait_for_result(2)
    for name in ("Sound alone", "Use a part of it", "-16 LUFS (online)"):
        expect(page.get_by_label(name)).to_be_checked()
    expect(page.get_by_label("Prompt").first).to_have_value("another")
    history.first.check()
    result_tab.wait_for_result(1)


def test_the_page_sends_no_request_to_another_host(result_tab: Tab, server: Server) -> None:
    assert result_tab.requests
    hosts = {urlsplit(request.url).netloc for request in result_tab.requests}
    assert hosts - {""} == {f"127.0.0.1:{server.port}"}  # "": data and blob


def test_layers_are_edited_and_the_files_of_a_closed_tab_are_removed(
    open_tab: Callable[..., Tab], server: Server
) -> None:
    layers = '[{"prompt":"rain"},{"prompt":"wind","gain_db":-9}]'
    tab = open_tab(
        "?"
        + urlencode(
            {
                "num_inference_steps": 1,
                "example": "hammer.mp4",
                "format": "wav",
                "layers": layers,
            }
        )
    )
    page = tab.page
    page.locator("#clip").get_by_role("button", name="Clear").first.wait_for()
    tab.set_steps(1)  # shows the settings
    expect(page.get_by_label("Layers")).to_have_value('rain\n{"prompt": "wind", "gain_db": -9.0}')
    tab.generate()
    tab.wait_for_result()
    for name in ("Layer 1", "Layer 2", "New sound"):
        select_track(page, name)
    mix = sound_of(downloads(page)["foley-1.wav"])
    # A part of it is made anew, and the settings of the first result come back.
    page.get_by_role("button", name="Edit this result").click()
    expect(page.get_by_label("Start from a sound")).to_have_value(re.compile("page-"))
    page.get_by_label("Layers").fill("")
    page.get_by_label("Cues").fill("glass")
    page.get_by_label("Make anew").fill("1-2")
    tab.generate()
    assert "Line 1 is 'glass'; write START-STOP" in tab.error("cues")
    page.get_by_label("Cues").fill("1.5-2: glass shatters")
    tab.generate()
    tab.wait_for_result(2)
    edited = sound_of(downloads(page)["foley-1.wav"])
    changed = np.abs(edited - mix).max(0).nonzero()[0]
    assert 48_000 <= changed.min() < changed.max() < 96_000
    history = page.get_by_role("group", name="Results of this session").get_by_role("radio")
    history.first.check()
    tab.wait_for_result(1)
    expect(page.get_by_label("Layers")).to_have_value(re.compile("^rain\n"))
    expect(page.get_by_label("Cues")).to_have_value("")
    expect(page.get_by_label("Make anew")).to_have_value("")
    source = tab.page.locator("[data-player] video").evaluate("video => video.currentSrc")
    assert server.client.get(source).status_code == 200
    tab.page.context.close()
    deadline = Deadline(20)
    status = 200
    while status != 404:
        assert not deadline.is_over(), f"{source} still answers {status}"
        # The file may be removed between the head and the body of a response.
        with contextlib.suppress(httpx.RemoteProtocolError):
            status = server.client.get(source).status_code
