"""The page's controls: errors beside their cause, cancelling, keys, keyboard, contrast."""

import io
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

import av
import httpx
import pytest
from playwright.sync_api import Page, expect

from foley.configs import OFFICIAL_GUIDANCE, TINY, TINY_GUIDANCE
from foley.plans import TINY_PLAN
from runners.process import find_free_port
from tests.keyed import FIRST_KEY
from tests.media.test_images import draw_picture
from tests.page.conftest import PageStart, Tab, num_pages
from tests.patience import is_within, scale, wait_until
from tests.server import ROOT, Server

pytestmark = pytest.mark.long

MIN_CONTRAST = 4.5  # WCAG 2.2, AA, for text of ordinary size
# Every visible text whose contrast to its background is too low. Disabled elements are exempt.
# Translucent colours are blended with what is behind them.
POOR_CONTRAST = """(least) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const parse = (text) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = text;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = ([r, g, b, a], [R, G, B]) =>
        [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
    const behind = (node) => {
        if (!node) return parse(getComputedStyle(document.documentElement).colorScheme === "dark"
            ? "black" : "white");
        const colour = parse(getComputedStyle(node).backgroundColor);
        return colour[3] === 1 ? colour : over(colour, behind(node.parentElement));
    };
    const luminance = (colour) => colour.slice(0, 3)
        .map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const poor = [];
    let seen = 0;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim();
        const node = walker.currentNode.parentElement;
        if (!text || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })
            || node.closest("script, style, option, video, [disabled], .foley-sr")) continue;
        if (!node.getClientRects().length) continue;
        seen += 1;
        const ground = behind(node);
        const ink = over(parse(getComputedStyle(node).color), ground);
        const [low, high] = [luminance(ink), luminance(ground)].sort((a, b) => a - b);
        const contrast = (high + 0.05) / (low + 0.05);
        if (contrast < least) poor.push([contrast.toFixed(2), text.slice(0, 40)]);
    }
    return [seen, poor];
}"""
# The number of interactive elements, and those without an accessible name.
NAMELESS = """() => {
    const operable = document.querySelectorAll(
        "button, a[href], input:not([type=hidden]), select, textarea, video, summary");
    const visible = [...operable].filter((node) => node.checkVisibility());
    const nameless = visible.filter((node) => !(
        node.getAttribute("aria-label") || node.getAttribute("aria-labelledby")
        || [...(node.labels ?? [])].some((label) => label.textContent.trim())
        || (!node.matches("input, select, textarea, video") && node.textContent.trim())));
    return [visible.length, nameless.map((node) => node.outerHTML.slice(0, 160))];
}"""
# Counts the bytes that recordings of this page have delivered. When a recording ends, Gradio drops
# what the browser has not delivered, which on a loaded machine can be nearly everything.
COUNT_RECORDED_BYTES = """() => {
    const start = MediaRecorder.prototype.start;
    window.recordedBytes = 0;
    MediaRecorder.prototype.start = function (...options) {
        this.addEventListener("dataavailable", (event) => {
            window.recordedBytes += event.data.size;
        });
        return start.apply(this, options);
    };
}"""
FOCUSED = "document.activeElement?.textContent.trim().slice(0, 40) || ''"


@pytest.fixture(scope="module")
def used_tab(open_tab: Callable[..., Tab]) -> Iterator[Tab]:
    """A tab for the tests below that neither begin with a fresh one nor make a sound."""
    tab = open_tab()
    yield tab
    tab.page.context.close()


@pytest.fixture
def empty_tab(used_tab: Tab) -> Tab:
    """A tab without a clip. To open a fresh one takes longer than most of these tests."""
    clear = used_tab.page.locator("#clip").get_by_role("button", name="Clear").first
    if clear.count():
        clear.click()
        expect(clear).to_be_hidden()
    return used_tab


def test_an_error_about_the_clip_stands_beside_the_clip(empty_tab: Tab, clips: Path) -> None:
    empty_tab.generate()
    assert "no clip yet" in empty_tab.error("clip")
    empty_tab.upload(clips / "broken.mp4")
    expect(empty_tab.page.locator("#error-clip").get_by_role("alert")).to_be_hidden()
    empty_tab.generate()
    assert "video" in empty_tab.error("clip")
    assert "/" not in empty_tab.error("clip"), "a path"
    expect(empty_tab.page.get_by_role("button", name="Make the sound")).to_be_enabled()


def check_pictures_result(page: Page, option: str) -> None:
    """Check the result of pictures 80 wide for 1.2 s: its length, its command and its original."""
    player = page.get_by_label("Result 1", exact=True)
    expect(player).to_contain_text("1.20 s at 48 kHz")
    assert option in player.locator("code").first.text_content()
    page.get_by_label("Original", exact=True).check()
    page.wait_for_function(
        """() => {
            const video = document.querySelector("#result video");
            return video.src.endsWith("original.mp4") && video.videoWidth === 80;
        }"""
    )


def test_numbered_pictures_are_a_clip_with_a_rate(tab: Tab, tmp_path: Path) -> None:
    page = tab.page
    names = [f"shot_{number}.png" for number in range(1, 13)]  # in no order of text
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(draw_picture(number))

    def choose(files: list[str]) -> None:
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Pictures, or a zip of them").click()
        chooser.value.set_files([tmp_path / name for name in files])

    rate = page.get_by_label("Pictures per second")
    expect(rate).to_be_hidden()
    choose([name for name in names if name != "shot_5.png"])
    assert "number the pictures without gaps" in tab.error("clip")
    choose(names)
    expect(page.locator("#pictures-name")).to_contain_text("12 files are the clip")
    expect(page.locator("#error-clip").get_by_role("alert")).to_be_hidden()
    tab.set_steps(1)
    rate.fill("10")
    tab.generate()
    tab.wait_for_result()
    check_pictures_result(page, "frame_rate=10")
    page.get_by_role("button", name="Remove").click()
    expect(rate).to_be_hidden()
    tab.generate()
    assert "no clip yet" in tab.error("clip")


def test_a_still_picture_is_a_clip_with_a_length(tab: Tab, tmp_path: Path) -> None:
    page = tab.page
    (tmp_path / "photo.png").write_bytes(draw_picture(3))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Pictures, or a zip of them").click()
    chooser.value.set_files(tmp_path / "photo.png")
    expect(page.locator("#pictures-name")).to_contain_text("photo.png is the clip")
    expect(page.get_by_label("Pictures per second")).to_be_hidden()
    length = page.get_by_label("Length in seconds")
    expect(length).to_have_value("4")
    length.fill("0")
    tab.set_steps(1)
    tab.generate()
    assert "greater than or equal to 0.1" in tab.error("duration_seconds")
    length.fill("1.2")
    tab.generate()
    tab.wait_for_result()
    check_pictures_result(page, "duration_seconds=1.2")


def test_without_a_picture_the_prompt_alone_makes_a_sound(
    tab: Tab, clips: Path, open_tab: Callable[..., Tab]
) -> None:
    page = tab.page
    tab.upload(clips / "short.mp4")
    page.get_by_role("button", name="No picture").click()
    length = page.get_by_label("Length in seconds")
    expect(length).to_have_value("4")
    tab.set_steps(1)
    tab.generate()
    assert "Needs a prompt or layers" in tab.error("duration_seconds")
    page.get_by_label("Prompt").first.fill("rain on a tin roof")
    length.fill("1.5")
    tab.generate()
    tab.wait_for_result()
    player = page.get_by_label("Result 1", exact=True)
    expect(player).to_contain_text("1.50 s at 48 kHz")
    expect(player.get_by_label("Original", exact=True)).to_have_count(0)
    expect(player.locator(".foley-lane:visible svg")).to_have_count(1)
    curl = player.locator("code").first.text_content()
    assert "duration_seconds=1.5" in curl
    assert "clip=@" not in curl
    assert page.evaluate("document.querySelector('#result video').src").endswith(".wav")
    query = page.locator(".foley-link").get_attribute("href")
    linked = open_tab(query).page
    expect(linked.get_by_label("Length in seconds")).to_have_value("1.5")
    linked.context.close()
    tab.upload(clips / "short.mp4")  # which takes the place of the length
    expect(length).to_be_hidden()


def test_generating_waits_until_an_example_is_loaded(empty_tab: Tab) -> None:
    start = empty_tab.page.get_by_role("button", name="Make the sound")
    empty_tab.page.route("**/gradio_api/**", lambda _: None)  # hold what is sent to the server
    empty_tab.page.get_by_role("button", name="Big Buck Bunny").click()
    expect(start).to_be_disabled()
    empty_tab.page.unroute("**/gradio_api/**")  # which lets the held ones go
    expect(start).to_be_enabled()
    expect(empty_tab.page.get_by_label("Prompt").first).to_have_value("dripping water")


def test_a_clip_that_is_too_long_is_refused_and_a_part_of_it_offered(tab: Tab, clips: Path) -> None:
    page = tab.page
    page.set_viewport_size({"width": 390, "height": 844})  # a phone
    tab.upload(clips / "long.mp4")
    tab.set_steps(1)
    offer = page.get_by_role("button", name="Use 6 s of the clip")
    expect(offer).to_be_hidden()
    page.evaluate("window.scrollTo(0, 0)")
    page.get_by_label("Prompt").first.press("Control+Enter")
    assert "6" in tab.error("clip")
    # Wherever the button was, it and the error beside it are on the screen now.
    beside = page.locator("#error-start")
    expect(beside).to_contain_text(tab.error("clip"))
    expect(beside).to_be_in_viewport(ratio=0.99)
    expect(offer).to_be_in_viewport(ratio=0.99)
    expect(page.locator("#start")).to_be_in_viewport()
    expect(page.locator("#start")).to_be_enabled()
    page.get_by_label("From second").fill("4.4")  # of 8
    offer.click()
    tab.wait_for_result()
    assert "3.60 s" in page.locator(".foley-facts").inner_text()
    expect(page.get_by_label("Use a part of it")).to_be_checked()
    expect(page.get_by_label("Begin at second")).to_have_value("4.4")
    # The original is that part too, so that both tracks show the same at each time.
    media = page.get_by_role("radio", name="Original").get_attribute("data-media")
    content = page.request.get(urljoin(page.url, media)).body()
    with av.open(io.BytesIO(content)) as reader:
        shown = [frame.time for frame in reader.decode(video=0) if frame.time >= 0]
    assert (shown[0], shown[-1]) == pytest.approx((0, 3.56), abs=0.001)
    expect(offer).to_be_hidden()
    expect(beside).to_be_hidden()


def test_an_error_about_the_seed_stands_beside_the_seed(empty_tab: Tab, clips: Path) -> None:
    empty_tab.upload(clips / "short.mp4")
    beside = empty_tab.page.locator("#error-seed")
    for seed, words in (("seven", "whole number"), (str(2**63), "less than"), ("-1", "whole")):
        empty_tab.fix_seed(seed)
        empty_tab.generate()
        expect(beside).to_contain_text(words)


@pytest.mark.parametrize(
    ("query", "steps", "guidance"),
    [
        ("?num_inference_steps=7", 7, TINY_GUIDANCE),
        # The value that the page shows before it knows the model.
        (f"?guidance_scale={OFFICIAL_GUIDANCE}", TINY_PLAN.num_inference_steps, OFFICIAL_GUIDANCE),
    ],
)
def test_steps_and_guidance_default_to_the_model_s_unless_a_link_sets_them(
    open_tab: Callable[..., Tab], query: str, steps: int, guidance: float
) -> None:
    tab = open_tab(query)
    expect(tab.page.locator("#model")).to_contain_text("tiny")
    for name, value in (("Steps", steps), ("Guidance", guidance)):
        field = tab.page.get_by_label(f"number input for {name}")
        expect(field).to_have_value(f"{value:g}")
    tab.page.context.close()


def test_a_link_with_a_wrong_setting_shows_an_error(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab("?num_inference_steps=many")
    assert "num_inference_steps" in tab.error("start")
    tab.page.context.close()


def test_a_link_sets_the_mix_and_a_second_track_needs_a_video(
    open_tab: Callable[..., Tab], clips: Path
) -> None:
    tab = open_tab("?original_sound=keep&loudness_lufs=-16.0")
    page = tab.page
    expect(page.get_by_label("Second track")).to_be_checked()
    expect(page.get_by_label("-16 LUFS")).to_be_checked()
    tab.upload(clips / "short.mp4")
    page.get_by_label("Sound alone").check()
    tab.generate()
    expect(page.locator("#error-original_sound")).to_contain_text("format wav holds one")
    page.context.close()


def test_cancelling_works_within_a_second_and_the_page_remains_usable(
    tab: Tab, clips: Path, server: Server
) -> None:
    tab.upload(clips / "short.mp4")
    tab.set_steps(200)
    tab.page.get_by_label("rk4").check()
    tab.generate()
    progress = tab.page.locator("#progress")
    expect(progress).to_contain_text(" of 200", timeout=1000 * scale(20))
    expect(progress).to_contain_text("left")
    tab.page.get_by_label("Prompt").first.fill("meanwhile")  # the page remains usable
    started = time.monotonic()
    tab.page.get_by_role("button", name="Cancel").click()
    assert "Cancelled" in tab.error("start")
    assert is_within(time.monotonic() - started, 1)
    expect(tab.page.get_by_label("Prompt").first).to_have_value("meanwhile")
    server.wait_for_metric("foley_running", 0)
    tab.page.get_by_label("euler").check()
    tab.set_steps(1)
    tab.generate()
    tab.wait_for_result()


def test_a_clip_is_recorded_from_the_camera(tab: Tab, server: Server) -> None:
    camera = tab.page.locator("#clip")
    camera.get_by_role("button", name="Capture from camera").click()
    camera.get_by_role("button", name="Click to Access Webcam").click()
    record = camera.get_by_role("button", name="start recording")
    tab.page.evaluate(COUNT_RECORDED_BYTES)
    record.click()
    tab.page.wait_for_function("window.recordedBytes > 100_000")
    record.click()  # the same button stops the recording
    camera.get_by_role("button", name="Clear").first.wait_for()
    source = "document.querySelector('#clip video')?.currentSrc"
    recording = tab.page.wait_for_function(source).json_value()
    response = server.client.get(recording)
    with av.open(io.BytesIO(response.content)) as container:
        *_, last = (frame.time for frame in container.decode(video=0))
    tab.set_steps(1)
    tab.generate()
    tab.wait_for_result()
    (seconds,) = re.findall(r"Length\s+([\d.]+) s", tab.page.locator(".foley-facts").inner_text())
    assert float(seconds) == pytest.approx(last, abs=0.3)  # the last frame may be held


def test_the_page_can_be_used_with_the_keyboard_alone(tab: Tab) -> None:
    page = tab.page

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(FOCUSED).startswith(name):
                return
        pytest.fail(f"{name} was not reached")

    tab_to("Big Buck Bunny")
    page.keyboard.press("Enter")
    page.locator("#clip").get_by_role("button", name="Clear").first.wait_for()
    page.keyboard.press("Tab")
    tab_to("More settings")
    page.keyboard.press("Enter")
    tab.page.get_by_label("Negative prompt").wait_for()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label') || ''").startswith(
            "number input for Steps"
        ):
            break
    page.keyboard.press("Control+a")
    page.keyboard.type("2")
    tab_to("Make the sound")
    page.keyboard.press("Enter")
    tab.wait_for_result()
    for _ in range(60):  # to the radio buttons that select a track
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('[data-track]')"):
            break
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("radio", name="Original")).to_be_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    place = "document.querySelector('[data-player] video').currentTime"
    page.wait_for_function(f"{place} > 0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_and_controls_have_names(result_tab: Tab, scheme: str) -> None:
    page = result_tab.page
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(
        "dark => document.body.classList.contains('dark') === dark", arg=scheme == "dark"
    )
    page.wait_for_timeout(1000 * scale(0.3))  # colours change over 150 ms
    num_texts, poor = page.evaluate(POOR_CONTRAST, MIN_CONTRAST)
    assert num_texts > 40
    assert poor == []
    num_operable, nameless = page.evaluate(NAMELESS)
    assert num_operable > 25
    assert nameless == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_exceeds_the_width_of_the_screen(result_tab: Tab, width: int) -> None:
    result_tab.page.set_viewport_size({"width": width, "height": 844})
    result_tab.page.locator("details").evaluate("details => { details.open = true; }")
    assert result_tab.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_model_and_the_licence_of_its_weights_are_shown(empty_tab: Tab) -> None:
    summary = empty_tab.page.locator("#model").inner_text()
    assert f"tiny, {TINY.about}." in summary
    assert "Apache-2.0 \u00b7 worldwide" in summary
    assert not empty_tab.page.get_by_role(
        "textbox", name="Key"
    ).count()  # the service asks for none


def test_the_model_s_prompts_are_offered_to_start_from(empty_tab: Tab) -> None:
    for prompt in TINY.prompts:
        empty_tab.page.get_by_role("button", name=prompt).click()
        expect(empty_tab.page.locator("#prompt textarea")).to_have_value(prompt)


def test_control_enter_starts_a_generation_from_the_prompt(empty_tab: Tab) -> None:
    empty_tab.page.locator("#prompt textarea").press("Control+Enter")
    assert "no clip yet" in empty_tab.error("clip")


def test_space_plays_and_pauses_the_result_but_writes_into_the_prompt(result_tab: Tab) -> None:
    page = result_tab.page
    page.locator("#result h2, header h1").first.click()  # the focus is on nothing
    page.evaluate(
        "window.played = []; for (const name of ['play', 'pause'])"
        "document.addEventListener(name, () => window.played.push(name), true)"
    )
    page.keyboard.press("Space")
    page.wait_for_function("window.played.join() === 'play'")
    page.keyboard.press("Space")
    page.wait_for_function("window.played.join() === 'play,pause'")
    prompt = page.locator("#prompt textarea")
    before = prompt.input_value()
    prompt.press("End")
    prompt.press("Space")
    expect(prompt).to_have_value(f"{before} ")
    prompt.fill(before)
    assert page.evaluate("window.played.join()") == "play,pause"


def test_the_page_starts_on_the_first_request_and_does_not_block_probes(
    server: Server, page_start: PageStart
) -> None:
    assert page_start.num_pages_before == 0
    assert num_pages(server) == 1
    assert "The page is starting" in page_start.first_html
    assert len(page_start.livez_seconds) > 3
    assert is_within(max(page_start.livez_seconds), 1)


def test_gradio_serves_neither_urls_nor_files_outside_the_page(server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}/livez"
    assert server.client.get(f"/ui/gradio_api/file={url}").status_code == 404
    for path in ("/etc/passwd", str(server.log)):
        assert server.client.get(f"/ui/gradio_api/file={path}").status_code == 403


@pytest.mark.soak  # starts two more services
def test_a_page_of_its_own_asks_for_the_service_s_key(
    open_tab: Callable[..., Tab], keyed_server: Server, clips: Path
) -> None:
    """The page runs as a process of its own, outside the service."""
    port = find_free_port()
    command = [sys.executable, "-m", "runners.page", "--port", str(port)]
    command += ["--server", f"http://127.0.0.1:{keyed_server.port}"]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/"), 30)
            tab = open_tab(url=f"http://127.0.0.1:{port}/")
            key = tab.page.get_by_role("textbox", name="Key")  # the page itself needs none
            expect(key).to_be_visible()
            upload = f"http://127.0.0.1:{port}/gradio_api/upload"
            refused = httpx.post(upload, files={"files": b"x"}, trust_env=False)
            assert refused.status_code == 401
            tab.page.get_by_role("button", name="Big Buck Bunny").click()  # needs no upload
            tab.page.locator("#clip video").wait_for()
            tab.set_steps(1)
            tab.generate()
            assert "requires a key" in tab.error("api_key")
            key.fill("wrong-key")
            tab.generate()
            expect(tab.page.locator("#error-api_key")).to_contain_text("does not know this key")
            key.fill(FIRST_KEY)
            tab.upload(clips / "short.mp4")
            tab.generate()
            tab.wait_for_result()
            expect(tab.page.locator("#model")).to_contain_text("tiny")
            expect(tab.page.locator("#error-api_key").get_by_role("alert")).to_be_hidden()
            tab.page.get_by_text("Repeat this result").click()
            assert "$FOLEY_API_KEY" in tab.page.get_by_label("curl", exact=True).inner_text()
            assert FIRST_KEY not in tab.page.content()
        finally:
            process.terminate()
    assert process.returncode == 0
    assert FIRST_KEY not in keyed_server.log.read_text()


def answers(url: str) -> bool:
    try:
        httpx.get(url, trust_env=False)
    except httpx.TransportError:
        return False
    return True
