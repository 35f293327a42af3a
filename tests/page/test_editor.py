"""The editor: one project in a real browser, by mouse and by keyboard, and what it refuses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.keyed import FIRST_KEY
from tests.page.editor import EditorTab, draw_played_clip, open_editor
from tests.page.reverse_proxy import run_proxy
from tests.page.test_controls import MIN_CONTRAST, NAMELESS, POOR_CONTRAST
from tests.patience import wait_until
from tests.server import Server

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
    """A tab with one track that has a take."""
    tab = open_tab()
    tab.open_clip(played_clip)
    tab.set_steps(2)
    tab.page.get_by_label("Track 1: prompt").fill(PROMPT)
    tab.page.get_by_role("button", name="Generate", exact=True).click()
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
