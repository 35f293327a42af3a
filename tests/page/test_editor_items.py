"""What the editor is for, by mouse and by keyboard, with a clip of 10 s and one of a minute.

The sounds are made by the tests, so that no model is needed; the page and its files are the real
ones. What calls the service is in test_editor.py and test_editor_long.py.
"""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from runners.editor.files import EditorFiles
from runners.process import find_free_ports
from tests.page.editor import EditorTab, draw_played_clip, load_editor, open_editor
from tests.patience import wait_until

pytestmark = pytest.mark.long

PROMPT = "a wooden ball bounces"
TRACK = "editor.store.project.tracks[0]"
# Keeps knocks as takes, so long as the clip. The one of number n has its knocks 20 n ms later.
ADD_TAKES = """async (ids) => {
    const { encodeWav } = await import("./sounds.js");
    const { store, sounds } = foleyEditor;
    const { duration } = store.project;
    for (const [number, id] of ids.entries()) {
        const sound = new Float32Array(Math.round(duration * 48000));
        for (let second = 0; second < Math.floor(duration); second++) {
            const start = Math.round((second + 0.5 + 0.02 * number) * 48000);
            for (let n = 0; n < 12000; n++)
                sound[start + n] = 0.4 * Math.exp(-n / 1500) * Math.sin(n * n);
        }
        await sounds.add(id, encodeWav([sound]));
    }
}"""
TAKES = ["take-1", "take-2", "part-1"]


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the editor's files, served without a model."""
    (port,) = find_free_ports(1)
    routes = [Mount("/editor", EditorFiles("'self'"))]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{port}/editor/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module", params=[10, pytest.param(60, marks=pytest.mark.soak)])
def opened(
    request: pytest.FixtureRequest,
    browser: Browser,
    site: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[EditorTab]:
    """A tab with a clip, whose track has two takes, and a part that was made again."""
    tab = open_editor(browser, site)
    folder = tmp_path_factory.mktemp("items")
    tab.open_clip(draw_played_clip(folder / "ball.mp4", seconds=request.param))
    tab.page.evaluate(ADD_TAKES, TAKES)
    tab.state(f"""editor.store.change((project) => Object.assign(project.tracks[0], {{
        prompt: "{PROMPT}", chosen: "take-2", before: "take-1",
        takes: [{{ id: "take-1", seed: 1, prompt: "" }}, {{ id: "take-2", seed: 2, prompt: "" }}],
        spots: [{{ id: "spot", start: 6, stop: 8, chosen: "part-1", before: null,
                   takes: [{{ id: "part-1", seed: 3 }}] }}],
    }}))""")
    tab.wait_for_mix()
    yield tab
    tab.page.context.close()


@pytest.fixture
def tab(opened: EditorTab) -> Iterator[EditorTab]:
    """The tab as it was at first: nothing plays, nothing is selected, no field has the focus."""
    before = opened.state("structuredClone(editor.store.project)")
    opened.page.evaluate("document.activeElement?.blur()")
    opened.state("(editor.player.pause(), editor.player.seek(0), editor.actions.zoomAll())")
    yield opened
    opened.state(f"(editor.player.pause(), editor.store.replace({json.dumps(before)}))")
    opened.wait_for_mix()


def position(tab: EditorTab) -> float:
    """Return where the playhead is, in seconds."""
    return float(tab.state("editor.player.position"))


def duration(tab: EditorTab) -> float:
    """Return the length of the clip in seconds."""
    return float(tab.state("editor.store.project.duration"))


def click_lane(tab: EditorTab, lane: str, share: float) -> None:
    """Click on a lane at a share of its width."""
    place = tab.page.locator(lane)
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    assert box is not None
    tab.page.mouse.click(box["x"] + share * box["width"], box["y"] + 0.8 * box["height"])


def set_range(tab: EditorTab, label: str, share: float) -> None:
    """Click on a slider at a share of its width."""
    slider = tab.page.get_by_label(label, exact=True)
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    tab.page.mouse.click(box["x"] + share * box["width"], box["y"] + 0.5 * box["height"])


def test_the_playhead_is_moved_and_the_overview_shows_all(tab: EditorTab) -> None:
    click_lane(tab, "#mix", 0.5)
    assert position(tab) == pytest.approx(duration(tab) / 2, rel=0.01)
    click_lane(tab, ".track .lane", 0.25)
    assert position(tab) == pytest.approx(duration(tab) / 4, rel=0.01)
    tab.page.keyboard.press("End")
    assert position(tab) == duration(tab)
    tab.page.keyboard.press("Home")
    tab.page.keyboard.press("Shift+ArrowRight")
    tab.page.keyboard.press("ArrowRight")
    assert position(tab) == pytest.approx(1.04)
    expect(tab.page.locator("#time")).to_have_text("0:01.040")
    for _ in range(2):
        tab.page.keyboard.press("+")
    click_lane(tab, "#overview", 0.75)  # the overview shows the whole clip at any zoom
    assert position(tab) == pytest.approx(0.75 * duration(tab), rel=0.01)
    view = tab.state("editor.timeline.view")
    assert view["start"] < position(tab) < view["stop"]


def test_it_plays_and_pauses(tab: EditorTab) -> None:
    for press in (
        lambda: tab.page.locator("#play").click(),
        lambda: tab.page.keyboard.press("Space"),
    ):
        press()
        tab.wait("editor.player.isPlaying && editor.player.position > 0.2")
        press()
        tab.wait("!editor.player.isPlaying")
        stopped = position(tab)
        assert 0.2 < stopped < duration(tab)
        assert position(tab) == stopped
        tab.page.evaluate("document.activeElement.blur()")
        tab.page.keyboard.press("Home")


def test_the_timeline_is_zoomed(tab: EditorTab) -> None:
    view = "editor.timeline.view.stop - editor.timeline.view.start"
    box = tab.page.locator("#mix").bounding_box()
    assert box is not None
    tab.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 30)
    tab.page.keyboard.down("Control")
    tab.page.mouse.wheel(0, -300)
    tab.page.keyboard.up("Control")
    tab.wait(f"{view} < 0.6 * editor.store.project.duration")
    tab.page.keyboard.press("0")
    assert tab.state(view) == pytest.approx(duration(tab))
    set_range(tab, "Zoom", 0.5)
    assert tab.state(view) < 0.5 * duration(tab)
    tab.page.evaluate("document.activeElement.blur()")
    for _ in range(12):
        tab.page.keyboard.press("-")
    assert tab.state(view) == pytest.approx(duration(tab))
    tab.page.keyboard.press("+")
    assert tab.state(view) < 0.9 * duration(tab)


def test_a_selection_is_looped(tab: EditorTab) -> None:
    share = 2 / duration(tab)
    tab.page.get_by_label("Snap to onsets").uncheck()
    tab.drag("#mix", share, 1.4 * share)
    tab.page.get_by_label("Snap to onsets").check()
    tab.page.locator("#loop").click()
    tab.page.locator("#play").click()
    tab.wait("window.played.at(-1).loop")
    start, stop = tab.state("Object.values(editor.store.project.selection)")
    pixel = duration(tab) / tab.state("editor.timeline.width")
    assert [start, stop] == pytest.approx([2, 2.8], abs=0.01 + 2 * pixel)
    tab.wait(f"editor.player.position >= {start}")
    assert position(tab) <= stop
    tab.page.locator("#play").click()
    tab.page.locator("#loop").click()
    tab.page.get_by_role("button", name="Clear").click()
    assert tab.state("editor.store.project.selection") is None
    tab.page.evaluate("document.activeElement.blur()")
    tab.page.keyboard.press("Home")
    for key in ("Shift+ArrowRight", "i", "Shift+ArrowRight", "o", "l", "Space"):
        tab.page.keyboard.press(key)
    assert tab.state("Object.values(editor.store.project.selection)") == pytest.approx([1, 2])
    tab.wait("editor.player.isPlaying && window.played.at(-1).loop")
    tab.page.keyboard.press("Space")
    tab.page.keyboard.press("l")
    tab.page.keyboard.press("Escape")
    assert tab.state("editor.store.project.selection") is None


def test_a_selection_begins_at_an_onset(tab: EditorTab) -> None:
    onset = tab.state("editor.timeline.onsets.find((onset) => onset > 2)")
    assert onset == pytest.approx(2.52, abs=0.02)
    near = 5 / tab.state("editor.timeline.width")
    tab.drag("#mix", onset / duration(tab) + near, 0.8)
    assert tab.state("editor.store.project.selection.start") == pytest.approx(onset, abs=0.001)
    tab.page.keyboard.press("Escape")
    tab.page.keyboard.press("Home")
    for key in (".", ".", ".", "i"):
        tab.page.keyboard.press(key)
    assert tab.state("editor.store.project.selection.start") == pytest.approx(onset, abs=0.001)
    tab.page.keyboard.press(",")
    assert position(tab) == pytest.approx(onset - 1, abs=0.02)


def test_cues_are_drawn_dragged_named_and_removed(tab: EditorTab) -> None:
    cues, page, whole = f"{TRACK}.cues", tab.page, duration(tab)
    page.get_by_label("Snap to onsets").uncheck()
    tab.drag(".track .lane", 0.1, 0.3, at=0.9)
    tab.wait(f"{cues}.length === 1")
    drawn = tab.state(f"{cues}[0]")
    assert [drawn["start"], drawn["stop"]] == pytest.approx([0.1 * whole, 0.3 * whole], rel=0.05)
    page.keyboard.type("glass breaks")
    expect(page.locator("[data-cue]")).to_have_text("glass breaks")
    tab.drag(".track .lane", 0.2, 0.25, at=0.9)  # the whole cue
    moved = tab.state(f"{cues}[0]")
    assert moved["start"] == pytest.approx(drawn["start"] + 0.05 * whole, rel=0.1)
    assert moved["stop"] - moved["start"] == pytest.approx(drawn["stop"] - drawn["start"], abs=0.01)
    tab.drag(".track .lane", moved["stop"] / whole - 0.001, 0.45, at=0.9)  # its end
    assert tab.state(f"{cues}[0].stop") == pytest.approx(0.45 * whole, rel=0.02)
    assert tab.state(f"{cues}[0].start") == moved["start"]
    page.get_by_role("button", name="Remove cue").click()
    assert tab.state(cues) == []
    page.get_by_label("Snap to onsets").check()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Home")
    for key in ("Shift+ArrowRight", "i", "Shift+ArrowRight", "o", "c"):
        page.keyboard.press(key)
    page.keyboard.type("a bell")
    assert tab.state(f"[{cues}[0].start, {cues}[0].stop, {cues}[0].prompt]") == [1, 2, "a bell"]
    page.locator("[data-cue]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert tab.state(f"[{cues}[0].start, {cues}[0].stop]") == pytest.approx([1.05, 2.1])
    page.keyboard.press("Enter")
    expect(page.get_by_label("Prompt of cue")).to_be_focused()
    page.locator("[data-cue]").focus()
    page.keyboard.press("Delete")
    assert tab.state(cues) == []


def test_tracks_have_gain_pan_mute_solo_and_a_seed(tab: EditorTab) -> None:
    page, tracks = tab.page, "editor.store.project.tracks"
    page.get_by_role("button", name="Add track").click()
    page.get_by_label("Track 2: prompt").click()
    page.keyboard.type("steady rain")
    page.get_by_label("Track 2: seed").click()
    page.keyboard.type("12")
    set_range(tab, "Track 2: gain", 0.1)
    set_range(tab, "Track 2: pan", 0.9)
    track = tab.state(f"{tracks}[1]")
    assert (track["prompt"], track["seed"]) == ("steady rain", "12")
    assert track["gain_db"] < -40
    assert track["pan"] > 0.7
    page.get_by_label("Track 2: mute").click()
    assert tab.state(f"{tracks}.map((track) => track.mute)") == [False, True]
    page.get_by_label("Track 2: solo").click()
    assert tab.state(f"[{tracks}[1].mute, {tracks}[1].solo]") == [False, True]
    page.get_by_label("Track 2: remove").click()
    assert tab.state(f"{tracks}.length") == 1
    page.locator("#add-track").focus()
    page.keyboard.press("Enter")
    for label, keys in (("prompt", "rain"), ("seed", "7")):
        page.get_by_label(f"Track 2: {label}").focus()
        page.keyboard.type(keys)
    for label, key in (("gain", "ArrowDown"), ("pan", "ArrowLeft")):
        page.get_by_label(f"Track 2: {label}").focus()
        page.keyboard.press(key)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("m")
    track = tab.state(f"{tracks}[1]")
    assert [track[key] for key in ("prompt", "seed", "gain_db", "mute")] == [
        "rain",
        "7",
        -0.5,
        True,
    ]
    assert track["pan"] == pytest.approx(-0.05)
    page.keyboard.press("s")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("m")
    assert tab.state(f"{tracks}.map((track) => [track.mute, track.solo])") == [
        [True, False],
        [False, True],
    ]
    page.get_by_label("Track 2: remove").focus()
    page.keyboard.press("Enter")
    assert tab.state(f"{tracks}.length") == 1


def test_the_original_is_a_track(tab: EditorTab) -> None:
    page, original = tab.page, "editor.store.project.original"
    lufs = page.locator("#lufs").inner_text()
    page.get_by_label("Original sound").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert tab.state(f"{original}.mode") == "duck"
    page.get_by_label("Depth").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#original-gain").focus()
    page.keyboard.press("ArrowRight")
    assert tab.state(f"[{original}.depth_db, {original}.gain_db]") == [12.5, 0.5]
    tab.wait_for_mix()
    assert page.locator("#lufs").inner_text() != lufs
    page.get_by_label("Original sound").select_option("mix")  # its list is no part of the page
    expect(page.get_by_label("Depth")).to_be_hidden()
    page.get_by_label("Original sound").select_option("duck")
    for label in ("Depth", "Release"):
        set_range(tab, label, 0.9)
    assert tab.state(f"{original}.depth_db") > 30
    assert tab.state(f"{original}.release_ms") > 4000


def test_takes_of_a_track_and_of_a_part_are_chosen_at_the_same_place(tab: EditorTab) -> None:
    page = tab.page
    page.get_by_label("Track 1: take").select_option("take-1")
    assert tab.state(f"{TRACK}.chosen") == "take-1"
    page.evaluate("document.activeElement.blur()")
    for key, chosen in (("2", "take-2"), ("a", "take-1"), ("a", "take-2")):
        page.keyboard.press(key)
        assert tab.state(f"{TRACK}.chosen") == chosen
    tab.wait_for_mix()
    for chosen in (None, "part-1"):
        box = page.locator("[data-spot]").bounding_box()
        assert box is not None
        page.mouse.dblclick(box["x"] + 3, box["y"] + 60)
        assert tab.state(f"{TRACK}.spots[0].chosen") == chosen
        tab.wait_for_mix()
    tab.state("editor.player.seek(7)")
    for key, chosen in (("1", None), ("2", "part-1"), ("a", None)):
        page.keyboard.press(key)
        assert tab.state(f"{TRACK}.spots[0].chosen") == chosen
    tab.wait_for_mix()
    assert position(tab) == 7
    assert tab.state(f"{TRACK}.chosen") == "take-2"


def test_edits_are_undone_and_done_again(tab: EditorTab) -> None:
    page, gain = tab.page, f"{TRACK}.gain_db"
    set_range(tab, "Track 1: gain", 0.2)
    changed = tab.state(gain)
    assert changed < 0
    for undo, redo in (("#undo", "#redo"), ("Control+z", "Control+Shift+z")):
        for control, value in ((undo, 0), (redo, changed)):
            if control.startswith("#"):
                page.locator(control).click()
                page.evaluate("document.activeElement.blur()")
            else:
                page.keyboard.press(control)
            assert tab.state(gain) == value


def test_a_project_is_saved_and_opened(tab: EditorTab, tmp_path: Path) -> None:
    page = tab.page
    for name, save in (
        ("click", lambda: page.locator("#save-project").click()),
        ("key", lambda: page.keyboard.press("Control+s")),
    ):
        page.evaluate("document.activeElement.blur()")
        with page.expect_download() as info:
            save()
        path = tmp_path / f"{name}.foley.json"
        info.value.save_as(path)
        assert [layer["seed"] for layer in json.loads(path.read_text())["request"]["layers"]] == [2]
    for name, choose in (
        ("click", lambda: page.locator("#open-project").click()),
        ("key", lambda: (page.locator("#project-file").focus(), page.keyboard.press("Enter"))),
    ):
        with page.expect_file_chooser() as chooser:
            choose()
        chooser.value.set_files(tmp_path / f"{name}.foley.json")
        tab.wait("editor.store.project.tracks[0].seed === 2")
        assert tab.state("editor.store.project.tracks[0].remake.length") == 1
        tab.wait("document.querySelector('#cancel').hidden")
        tab.state("editor.store.change((project) => { project.tracks[0].seed = ''; })")
    page.evaluate(ADD_TAKES, TAKES)  # opening a project forgets the sounds


def test_work_is_there_again_after_a_reload(tab: EditorTab) -> None:
    for id_ in TAKES:  # as where the service made them
        tab.page.evaluate(
            "async (id) => { const { keepFile } = await import('./keep.js');"
            " await keepFile(id, foleyEditor.sounds.files.get(id)); }",
            id_,
        )
    set_range(tab, "Track 1: gain", 0.3)
    tab.wait_until_kept()
    tab.wait_for_mix()
    before = tab.state("[editor.store.project, editor.open.mix[0].reduce((a, b) => a + b * b, 0)]")
    load_editor(tab, tab.page.url)
    tab.wait("editor.open.mix !== null")
    tab.wait_for_mix()
    after = tab.state("[editor.store.project, editor.open.mix[0].reduce((a, b) => a + b * b, 0)]")
    assert after[0] == before[0]
    assert after[1] == pytest.approx(before[1])


def test_nothing_of_a_clip_stays_when_a_project_of_another_clip_is_opened(
    tab: EditorTab, tmp_path: Path
) -> None:
    page, before = tab.page, len(tab.state("window.played"))
    path = tmp_path / "other.foley.json"
    path.write_text(
        json.dumps({"foley_project": 1, "clip": "other.mp4", "request": {"prompt": "rain"}})
    )
    page.locator("#project-file").set_input_files(path)
    expect(page.locator("#notice")).to_contain_text("Open its clip, other.mp4")
    tab.wait_for_mix()
    expect(page.locator("#lufs")).to_have_text("\N{EN DASH}")
    expect(page.locator("#overview > div").first).to_be_hidden()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    assert tab.state("[editor.player.isPlaying, window.played.length]") == [False, before]
    assert tab.state("editor.player.duration") == 0


def test_lanes_follow_a_change_between_light_and_dark(tab: EditorTab) -> None:
    page = tab.page
    colour = "editor.timeline.mix.wave.options.waveColor"
    light = tab.state(colour)
    page.emulate_media(color_scheme="dark")
    tab.wait(f"{colour} !== '{light}'")
    page.emulate_media(color_scheme="light")
    tab.wait(f"{colour} === '{light}'")
