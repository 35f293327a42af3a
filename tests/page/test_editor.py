"""The editor: one project in a real browser, by mouse and by keyboard, and what it refuses."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from foley.cli.generate import generate
from foley.cli.options import ModelOptions
from foley.media.filters import Sound, measure_loudness, measure_true_peak
from foley.media.original import read_original
from tests.keyed import FIRST_KEY
from tests.page.editor import (
    SAMPLE_RATE,
    EditorTab,
    draw_played_clip,
    load_editor,
    open_editor,
)
from tests.page.recordings import split_stretches
from tests.page.reverse_proxy import run_proxy
from tests.page.test_controls import MIN_CONTRAST, NAMELESS, POOR_CONTRAST
from tests.patience import scale, wait_until
from tests.server import Server

pytestmark = pytest.mark.long

PROMPT = "a wooden ball bounces"
# The share of the pixels of canvases that are not transparent; shadow trees are searched too.
INKED = """(selector) => {
    const find = (root) => [...root.querySelectorAll("*")].flatMap((node) =>
        [...(node.matches("canvas") ? [node] : []),
         ...(node.shadowRoot ? find(node.shadowRoot) : [])]);
    const root = document.querySelector(selector);
    const canvases = root.matches("canvas") ? [root] : find(root);
    return canvases.filter((canvas) => canvas.width && canvas.height).map((canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return data.filter((value, n) => n % 4 === 3 && value > 0).length / (data.length / 4);
    });
}"""


@pytest.fixture(scope="module")
def played_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_played_clip(tmp_path_factory.mktemp("editor") / "ball.mp4")


@pytest.fixture(scope="module")
def open_tab(browser: Browser, server: Server) -> Iterator[Callable[..., EditorTab]]:
    """A function that opens the editor in a new browser context."""
    tabs: list[EditorTab] = []

    def open_(url: str = "", **options: int) -> EditorTab:
        tabs.append(
            open_editor(browser, url or f"http://127.0.0.1:{server.port}/editor/", **options)
        )
        return tabs[-1]

    yield open_
    for tab in tabs:
        tab.page.context.close()


@pytest.fixture(scope="module")
def editor(open_tab: Callable[..., EditorTab], played_clip: Path) -> EditorTab:
    """A tab with one track that has a take, which somebody wanted to hear before it was made."""
    tab = open_tab()
    tab.open_clip(played_clip)
    tab.set_steps(2)
    tab.page.get_by_label("Track 1: prompt").fill(PROMPT)
    tab.page.get_by_role("button", name="Generate", exact=True).click()
    tab.page.evaluate("document.activeElement.blur()")
    tab.page.keyboard.press("Space")
    tab.wait_for_takes(1)
    return tab


@pytest.fixture(autouse=True)
def rest(request: pytest.FixtureRequest) -> None:
    """Begin each test with nothing playing, nothing selected and the focus on nothing."""
    if "editor" not in request.fixturenames:
        return
    tab: EditorTab = request.getfixturevalue("editor")
    tab.page.set_viewport_size({"width": 1280, "height": 900})
    tab.page.evaluate("document.activeElement?.blur()")
    tab.state("(editor.player.pause(), editor.player.seek(0), editor.actions.clearSelection())")


def test_a_take_is_seen_as_frames_waveform_and_spectrogram(editor: EditorTab) -> None:
    assert editor.state("editor.store.project.duration") == pytest.approx(2, abs=0.05)
    assert editor.state("editor.store.project.tracks[0].takes[0].prompt") == PROMPT
    assert editor.state("Math.max(...editor.open.mix[0])") > 0.001
    assert "LUFS" in editor.page.locator("#lufs").inner_text()
    for selector, least in (("#frames", 0.9), ("#overview", 0.01), ("#mix", 0.9)):
        wait_until(
            lambda selector=selector, least=least: (
                max(editor.page.evaluate(INKED, selector), default=0) > least
            ),
            what=selector,
        )


def test_nothing_foreign_is_loaded_and_the_policy_refuses_nothing(editor: EditorTab) -> None:
    origin = editor.page.url.removesuffix("/editor/")
    assert [url for url in editor.addresses if not url.startswith((origin, "blob:", "data:"))] == []
    assert editor.messages == []


def test_play_waits_for_a_sound_that_is_being_made(editor: EditorTab) -> None:
    first = editor.state("[window.played[0].buffer.duration, window.played[0].options[1]]")
    assert first == pytest.approx([2, 0], abs=0.05)
    assert editor.state("Math.max(...window.played[0].buffer.getChannelData(0))") > 0.001


def test_play_waits_also_when_it_is_pressed_at_once(
    open_tab: Callable[..., EditorTab], played_clip: Path
) -> None:
    tab = open_tab()
    tab.open_clip(played_clip)
    tab.page.get_by_label("Track 1: prompt").fill(PROMPT)
    tab.wait_for_mix()
    tab.page.evaluate(
        "() => { document.querySelector('#generate').click(); foleyEditor.player.play(); }"
    )
    tab.wait("editor.player.isWaiting")
    assert tab.state("window.played.length") == 0
    tab.page.locator("#cancel").click()
    tab.wait("!editor.player.isPlaying")
    tab.page.context.close()


def test_a_sound_that_grows_while_it_is_heard_has_no_gap_and_no_click(
    open_tab: Callable[..., EditorTab],
) -> None:
    tab = open_tab(without_policy=True)
    tab.record()
    make = "Float32Array.from({ length: 96000 }, (_, n) => Math.sin(n * n / 1e5) / 2)"
    tab.page.evaluate(f"() => {{ window.sound = {make}; }}")
    grow = "editor.player.setSound([window.sound, window.sound], 2, {})"
    tab.state(grow.format(0))
    tab.page.keyboard.press("Space")
    tab.wait("editor.player.isWaiting && editor.player.isPlaying")
    tab.state(grow.format(1.2))
    tab.wait("editor.player.position > 0.1")
    tab.state(f"({grow.format(1.6)}, {grow.format(2)})")  # at one time, as after a busy second
    tab.wait("!editor.player.isPlaying")
    recorded, sound = tab.recorded(), tab.read_samples("window.sound")
    assert [stretch.stop for stretch in split_stretches(recorded, sound)] == [len(sound)]
    tab.page.context.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_controls_are_named_texts_have_contrast_and_nothing_is_too_wide(
    editor: EditorTab, width: int
) -> None:
    page = editor.page
    page.set_viewport_size({"width": width, "height": 844})
    for details in page.locator("details").all():
        details.evaluate("details => { details.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    num_operable, nameless = page.evaluate(NAMELESS)
    assert num_operable > 25
    assert nameless == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        num_texts, poor = page.evaluate(POOR_CONTRAST, MIN_CONTRAST)
        assert num_texts > 40
        assert poor == []
    page.emulate_media(color_scheme="light")


def test_a_page_at_rest_draws_nothing_and_lets_the_loudspeakers_go(editor: EditorTab) -> None:
    page = editor.page
    page.keyboard.press("Space")
    editor.wait("editor.player.position > 0.1")
    page.keyboard.press("Space")
    editor.wait("editor.player._context.state === 'suspended'")
    page.evaluate("""() => {
        window.numFrames = 0;
        const ask = window.requestAnimationFrame;
        window.requestAnimationFrame = (draw) => { window.numFrames++; return ask(draw); };
    }""")
    page.wait_for_timeout(500)
    assert page.evaluate("window.numFrames") == 0
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator("#time")).to_have_text("0:01.000")
    page.keyboard.press("Space")
    editor.wait("editor.player.position > 1.1")
    page.keyboard.press("Space")


def test_keys_play_step_select_and_loop(editor: EditorTab) -> None:
    page = editor.page
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowRight")
    assert editor.state("editor.player.position") == pytest.approx(1)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("i")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("o")
    selection = editor.state("editor.store.project.selection")
    assert selection == pytest.approx({"start": 0.96, "stop": 1.88}, abs=0.002)
    page.keyboard.press("l")
    page.keyboard.press("Space")
    editor.wait("editor.player.isPlaying")
    editor.wait("window.played.at(-1).loop")
    page.keyboard.press("Space")
    assert 0.96 <= editor.state("editor.player.position") <= 1.88
    page.keyboard.press("l")
    page.keyboard.press("Escape")
    assert editor.state("editor.store.project.selection") is None


def test_the_selection_is_dragged_and_snaps_to_onsets(editor: EditorTab) -> None:
    editor.state("editor.timeline.onsets = [0.5, 1.5]")
    editor.drag("#mix", 0.252, 0.6)
    start, stop = editor.state("Object.values(editor.store.project.selection)")
    assert start == 0.5
    assert stop == pytest.approx(1.2, abs=0.02)
    editor.page.keyboard.press("Escape")
    editor.page.get_by_label("Snap to onsets").uncheck()
    editor.drag("#mix", 0.252, 0.6)
    assert editor.state("editor.store.project.selection.start") == pytest.approx(0.504, abs=0.003)
    editor.page.get_by_label("Snap to onsets").check()


def test_zoom_keeps_all_lanes_together(editor: EditorTab) -> None:
    page = editor.page
    page.keyboard.press("Shift+ArrowRight")
    for _ in range(4):
        page.keyboard.press("+")
    start, stop = editor.state("[editor.timeline.view.start, editor.timeline.view.stop]")
    assert start <= 1 <= stop
    assert stop - start < 1.8
    lanes = editor.state("[...editor.timeline._lanes].map((lane) => lane.scroll)")
    assert lanes == pytest.approx([lanes[0]] * len(lanes), abs=1)
    assert lanes[0] > 0
    page.keyboard.press("0")
    assert editor.state("editor.timeline.view.start") == 0


def test_takes_are_compared_by_keys_without_losing_the_place(editor: EditorTab) -> None:
    page = editor.page
    page.keyboard.press("Control+Enter")
    editor.wait_for_takes(2)
    ids = editor.state("editor.store.project.tracks[0].takes.map((take) => take.id)")
    page.keyboard.press("Shift+ArrowRight")
    position = editor.state("editor.player.position")
    for key, expected in (("1", 0), ("a", 1), ("a", 0), ("2", 1)):
        page.keyboard.press(key)
        assert editor.state("editor.store.project.tracks[0].chosen") == ids[expected]
    editor.wait_for_mix()
    assert editor.state("editor.player.position") == position
    page.keyboard.press("Control+z")
    assert editor.state("editor.store.project.tracks[0].chosen") != ids[1]
    page.keyboard.press("Control+Shift+z")
    assert editor.state("editor.store.project.tracks[0].chosen") == ids[1]


def test_refusals_stand_beside_the_button(
    open_tab: Callable[..., EditorTab], tmp_path: Path
) -> None:
    tab = open_tab(width=390)
    error = tab.page.get_by_role("alert")
    tab.page.keyboard.press("Control+Enter")
    expect(error).to_contain_text("There is no clip yet")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video" * 1000)
    tab.open_clip(broken)
    expect(tab.page.locator("#notice")).to_contain_text("cannot show this clip")
    tab.page.keyboard.press("Control+Enter")
    expect(error).to_contain_text("video")
    expect(tab.page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()
    tab.page.context.close()


def test_the_editor_works_below_a_path_and_asks_for_a_key(
    open_tab: Callable[..., EditorTab], keyed_server: Server, played_clip: Path
) -> None:
    with run_proxy(f"http://127.0.0.1:{keyed_server.port}", keeps_path=False) as (url, outside):
        tab = open_tab(f"{url}/editor")
        assert tab.page.url == f"{url}/editor/"
        expect(tab.page.get_by_label("API key")).to_be_visible()
        tab.open_clip(played_clip)
        tab.set_steps(1)
        tab.page.get_by_role("button", name="Generate", exact=True).click()
        expect(tab.page.get_by_role("alert")).to_contain_text("asks for a key")
        tab.page.get_by_label("API key").fill(FIRST_KEY)
        tab.page.get_by_label("API key").press("Enter")
        tab.page.get_by_role("button", name="Generate", exact=True).click()
        tab.wait_for_takes(1)
        assert FIRST_KEY not in tab.page.content()
        assert set(outside) <= {"/favicon.ico"}
        tab.page.context.close()


def read_sound(path: Path) -> np.ndarray:
    """Return the first sound of a file, [C, S] at 48 kHz."""
    track = read_original(path, fit=lambda layout: layout)
    assert track is not None
    return track.sound.samples


def correlate(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two sounds over the length that both have, channels together."""
    length = min(one.shape[1], other.shape[1])
    return float(np.corrcoef(one[:, :length].ravel(), other[:, :length].ravel())[0, 1])


def save_download(tab: EditorTab, folder: Path, kind: str) -> Path:
    """Download the result in a format, and return the file."""
    tab.page.get_by_label("Format").select_option(kind)
    with tab.page.expect_download(timeout=1000 * scale(30)) as info:
        tab.page.get_by_role("button", name="Download").click()
    path = folder / info.value.suggested_filename
    info.value.save_as(path)
    tab.wait("document.querySelector('#cancel').hidden")
    return path


def test_what_is_heard_is_what_is_downloaded(editor: EditorTab, tmp_path: Path) -> None:
    page = editor.page
    before = editor.state("structuredClone(editor.store.project)")
    page.get_by_label("Track 1: gain").fill("3.5")
    page.get_by_label("Track 1: pan").fill("-0.4")
    page.get_by_label("Original sound").select_option("duck")
    page.get_by_label("Depth").fill("20")
    page.evaluate("document.activeElement.blur()")
    editor.wait_for_mix()
    page.keyboard.press("Space")
    editor.wait("editor.player.isPlaying")
    page.keyboard.press("Space")
    heard = editor.heard()
    wav = save_download(editor, tmp_path, "wav")
    assert wav.name == "ball.foley.wav"
    saved = read_sound(wav)
    assert correlate(heard, saved) > 0.999  # measured: 1.000
    length = min(heard.shape[1], saved.shape[1])
    scale_between = np.sum(heard[:, :length] * saved[:, :length]) / np.sum(heard[:, :length] ** 2)
    assert scale_between == pytest.approx(1, rel=0.03)  # two meters of the true peak
    mp4 = save_download(editor, tmp_path, "mp4")
    assert correlate(heard, read_sound(mp4)) > 0.99  # AAC; measured: 0.999
    with av.open(str(mp4)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    levels = Sound(heard, "stereo")
    shown = [float(page.locator(name).inner_text().split()[0]) for name in ("#lufs", "#peak")]
    assert shown[0] == pytest.approx(measure_loudness(levels), abs=0.1)  # one decimal is shown
    assert shown[1] == pytest.approx(20 * np.log10(measure_true_peak(levels)), abs=0.3)
    editor.state(f"editor.store.change((project) => Object.assign(project, {json.dumps(before)}))")


def test_a_selection_is_made_again_and_the_rest_stays(editor: EditorTab) -> None:
    page = editor.page
    take = "[...editor.sounds.compose(editor.store.project.tracks[0])[0]]"
    before = np.array(editor.state(take))
    page.get_by_label("Selection starts").fill("0.5")
    page.get_by_label("Selection stops").fill("1.25")
    page.get_by_label("Selection stops").press("Enter")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("r")
    editor.wait("editor.store.project.tracks[0].spots[0]?.takes.length === 1", 60)
    editor.wait("document.querySelector('#cancel').hidden")
    after = np.array(editor.state(take))
    start, stop = int(0.5 * SAMPLE_RATE), int(1.25 * SAMPLE_RATE)
    np.testing.assert_array_equal(after[:start], before[:start])
    np.testing.assert_array_equal(after[stop:], before[stop:])
    assert np.abs(after[start:stop] - before[start:stop]).max() > 1e-3
    page.keyboard.press("Shift+ArrowRight")  # into the part
    page.keyboard.press("1")
    np.testing.assert_array_equal(np.array(editor.state(take)), before)
    page.keyboard.press("2")
    np.testing.assert_array_equal(np.array(editor.state(take)), after)
    expect(page.locator("[data-spot]")).to_have_text("1 of 1")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert editor.state("editor.store.project.tracks[0].spots") == []


@pytest.mark.soak
def test_cues_are_drawn_moved_named_and_removed(editor: EditorTab) -> None:
    page = editor.page
    cues = "editor.store.project.tracks[0].cues"
    editor.state("editor.timeline.onsets = []")
    editor.drag(".track .lane", 0.3, 0.5)
    editor.wait(f"{cues}.length === 1")
    cue = editor.state(f"{cues}[0]")
    assert [cue["start"], cue["stop"]] == pytest.approx([0.6, 1.0], abs=0.02)
    assert cue["prompt"] == PROMPT
    page.keyboard.type("glass breaks")  # its name is selected
    assert editor.state(f"{cues}[0].prompt") == "glass breaks"
    region = page.locator(f"[data-cue='{cue['id']}']")
    expect(region).to_have_text("glass breaks")
    region.focus()
    region.press("ArrowRight")
    assert editor.state(f"{cues}[0].start") == pytest.approx(cue["start"] + 0.05, abs=0.001)
    page.keyboard.press("Shift+ArrowRight")
    moved = editor.state(f"{cues}[0]")
    assert moved["stop"] - moved["start"] == pytest.approx(cue["stop"] - cue["start"] + 0.05)
    page.keyboard.press("i")
    editor.drag("#mix", 0.7, 0.9)
    page.keyboard.press("c")
    editor.wait(f"{cues}.length === 2")
    page.evaluate("document.activeElement.blur()")
    fields = page.get_by_label("Start of cue")
    fields.nth(1).fill("0.1")  # over the first cue: it stops at its end
    fields.nth(1).press("Tab")
    assert editor.state(f"{cues}[1].start") == editor.state(f"{cues}[0].stop")
    page.get_by_role("button", name="Remove cue").first.click()
    page.locator("[data-cue]").focus()
    page.keyboard.press("Delete")
    assert editor.state(cues) == []


def test_tracks_are_added_muted_and_played_alone(editor: EditorTab) -> None:
    page = editor.page
    page.get_by_role("button", name="Add track").click()
    page.get_by_label("Track 2: prompt").fill("steady rain")
    page.get_by_role("button", name="Generate all").click()
    editor.wait("editor.store.project.tracks[1].takes.length === 1", 60)
    editor.wait("document.querySelector('#cancel').hidden")
    editor.wait_for_mix()
    both = np.array(editor.state("[...editor.open.effect[0]]"))
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("s")  # the second track, which is selected
    editor.wait_for_mix()
    second = np.array(editor.state("[...editor.open.effect[0]]"))
    page.keyboard.press("ArrowUp")
    page.keyboard.press("m")
    page.get_by_label("Track 2: solo").click()
    editor.wait_for_mix()
    np.testing.assert_array_equal(np.array(editor.state("[...editor.open.effect[0]]")), second)
    page.get_by_label("Track 1: mute").click()
    editor.wait_for_mix()
    np.testing.assert_array_equal(np.array(editor.state("[...editor.open.effect[0]]")), both)
    assert np.abs(both - second).max() > 1e-4
    page.get_by_label("Track 2: remove").click()
    assert editor.state("editor.store.project.tracks.length") == 1


@pytest.mark.soak
def test_work_survives_a_reload(editor: EditorTab) -> None:
    editor.state("editor.store.change((project) => { project.tracks[0].gain_db = -3; })")
    editor.wait_until_kept()
    editor.wait_for_mix()
    before = editor.state("[editor.store.project, [...editor.open.mix[0]]]")
    load_editor(editor, editor.page.url)
    editor.wait_for_mix()
    editor.wait("editor.open.mix !== null")
    assert editor.state("[editor.store.project, [...editor.open.mix[0]]]") == before
    assert editor.state("document.querySelector('#picture').videoWidth") == 160


@pytest.mark.soak
def test_a_project_is_saved_loaded_and_run_by_the_command_line(
    editor: EditorTab, played_clip: Path, tmp_path: Path
) -> None:
    page = editor.page
    page.get_by_label("Selection starts").fill("0.5")
    page.get_by_label("Selection stops").fill("1.25")
    page.get_by_label("Selection stops").press("Enter")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("r")
    part = "editor.store.project.tracks[0].spots.at(-1)?.takes.length === 1"
    editor.wait(part, 60)
    editor.wait("document.querySelector('#cancel').hidden")
    editor.wait_for_mix()
    with page.expect_download() as info:
        page.keyboard.press("Control+s")
    path = played_clip.parent / info.value.suggested_filename
    info.value.save_as(path)
    assert path.name == "ball.foley.json"
    (saved,) = json.loads(path.read_text())["parts"]
    assert [saved["start_seconds"], saved["stop_seconds"]] == [0.5, 1.25]
    heard = np.array(editor.state("editor.open.mix.map((channel) => [...channel])"))
    output = tmp_path / "out.wav"
    assert generate(project_file=path, output=output, model=ModelOptions(preset="tiny")) == 0
    made = read_sound(output)
    assert correlate(heard, np.broadcast_to(made, heard.shape[:1] + made.shape[1:])) > 0.999
    page.locator("#project-file").set_input_files(path)
    editor.wait("editor.store.project.tracks[0].seed !== ''")
    assert editor.state("editor.store.project.tracks[0].prompt") == PROMPT
    page.keyboard.press("Control+Enter")
    editor.wait_for_takes(1)
    assert editor.state(part)
    again = np.array(editor.state("editor.open.mix.map((channel) => [...channel])"))
    assert correlate(heard, again) > 0.999
