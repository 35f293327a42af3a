"""What a browser shows of a result that has transparent pixels."""

import base64
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser

from foley.media.mux import write_video
from tests.media.clips import write_clip

ALPHA_CLIP = Path(__file__).parents[1] / "assets/clips/alpha.webm"
# The least and the greatest alpha of a frame.
READ_ALPHA = """async (url) => {
    const video = document.createElement("video");
    video.muted = true;
    video.src = url;
    await new Promise((done, fail) => {
        video.onloadeddata = () => { video.currentTime = 0.5; };
        video.onseeked = done;
        video.onerror = () => fail(new Error(video.error.message));
    });
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    const context = canvas.getContext("2d");
    // A frame that was found is drawn a little later; until then nothing is.
    for (let look = 0; ; look += 1) {
        context.drawImage(video, 0, 0);
        const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
        const alpha = data.filter((_, index) => index % 4 === 3);
        const greatest = Math.max(...alpha);
        if (greatest || look === 200) return [Math.min(...alpha), greatest];
        await new Promise((done) => setTimeout(done, 50));
    }
}"""


@pytest.mark.long
def test_a_browser_sees_through_the_transparent_pixels_of_a_result(
    browser: Browser, tmp_path: Path
) -> None:
    written = write_video(ALPHA_CLIP, torch.zeros(1, 48_000), tmp_path / "out.webm")
    opaque = write_clip(tmp_path / "opaque.webm", codec="libvpx-vp9")
    page = browser.new_page()
    try:
        seen = [
            page.evaluate(
                READ_ALPHA, f"data:video/webm;base64,{base64.b64encode(content).decode()}"
            )
            for content in (p.read_bytes() for p in (written.path, ALPHA_CLIP, opaque))
        ]
    finally:
        page.close()
    assert seen[0] == seen[1]
    assert seen[0][0] == 0
    assert seen[2] == [255, 255]
