"""The editor in a browser tab, and clips that browsers play."""

import base64
import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from playwright.sync_api import Browser, Page, expect

from tests.patience import scale, wait_until

SAMPLE_RATE = 48_000
FRAME_RATE = 25
# Keeps what is given to the loudspeakers: the buffer of each source that starts.
KEEP_PLAYED = """
const start = AudioBufferSourceNode.prototype.start;
window.played = [];
AudioBufferSourceNode.prototype.start = function (...options) {
    window.played.push({ buffer: this.buffer, options, at: performance.now(), loop: this.loop });
    return start.apply(this, options);
};
"""
# Collects the left channel of what all nodes together give to the loudspeakers.
RECORDER = """
registerProcessor("recorder", class extends AudioWorkletProcessor {
    process([input]) {
        this.port.postMessage(input[0] ? input[0].slice() : new Float32Array(128));
        return true;
    }
});
"""
RECORD = """async (recorder) => {
    const context = foleyEditor.player._context ??= new AudioContext({ sampleRate: 48000 });
    const module = new Blob([recorder], { type: "text/javascript" });
    await context.audioWorklet.addModule(URL.createObjectURL(module));
    const node = new AudioWorkletNode(context, "recorder");
    window.recorded = [];
    node.port.onmessage = ({ data }) => window.recorded.push(data);
    const connect = AudioNode.prototype.connect;
    AudioNode.prototype.connect = function (target, ...options) {
        if (target === context.destination) connect.call(this, node);
        return connect.call(this, target, ...options);
    };
}"""
# What a browser passes on of an array of samples.
ENCODE = """
    const encode = (samples) => {
        const bytes = new Uint8Array(samples.slice().buffer);
        let text = "";
        for (let n = 0; n < bytes.length; n += 32768)
            text += String.fromCharCode(...bytes.subarray(n, n + 32768));
        return btoa(text);
    };
"""


@dataclass
class EditorTab:
    """A tab with the editor.

    Attributes:
        page: of the browser.
        messages: warnings and errors of the console, such as refusals by the policy.
        addresses: of all requests.
    """

    page: Page
    messages: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def state(self, expression: str) -> Any:
        """Return what an expression of JavaScript gives, where `editor` is the editor."""
        return self.page.evaluate(
            f"(() => {{ const editor = foleyEditor; return {expression}; }})()"
        )

    def wait(self, expression: str, seconds: float = 20) -> None:
        """Wait until an expression is true. The page's policy forbids Playwright's own waiting."""
        wait_until(lambda: self.state(expression), seconds, what=lambda: self.describe(expression))

    def describe(self, expression: str) -> str:
        """Return why the wait for an expression has failed."""
        error = self.state("document.querySelector('#error').textContent")
        return f"{expression} never became true: {error} {self.messages}"

    def wait_for_mix(self) -> None:
        """Wait until what is heard is the project as it is."""
        self.wait("document.body.dataset.mix === 'ready'")

    def wait_until_kept(self) -> None:
        """Wait until the browser keeps the project as it is."""
        self.wait("document.body.dataset.kept === 'yes'")

    def open_clip(self, clip: Path) -> None:
        """Choose a file; returns when it is shown."""
        self.page.locator("#clip-file").set_input_files(clip)
        self.wait(f"editor.store.project.clip === {json.dumps(clip.name)}")
        self.wait("document.querySelector('#cancel').hidden")
        self.wait_for_mix()

    def set_steps(self, steps: int) -> None:
        """Set the solver steps: few are fast."""
        self.state(f"editor.store.change((project) => {{ project.steps = {steps}; }})")

    def wait_for_takes(self, *counts: int) -> None:
        """Wait until the tracks have so many takes, and are heard."""
        takes = "JSON.stringify(editor.store.project.tracks.map((track) => track.takes.length))"
        self.wait(f"{takes} === '{json.dumps(list(counts), separators=(',', ':'))}'", 60)
        self.wait("document.querySelector('#cancel').hidden")
        self.wait_for_mix()

    def drag(self, lane: str, start: float, stop: float, *, at: float = 0.5) -> None:
        """Drag over a lane, from one share of its width to another one."""
        self.page.locator(lane).scroll_into_view_if_needed()
        box = self.page.locator(lane).bounding_box()
        assert box is not None
        y = box["y"] + at * box["height"]
        self.page.mouse.move(box["x"] + start * box["width"], y)
        self.page.mouse.down()
        for step in range(1, 6):
            share = start + (stop - start) * step / 5
            self.page.mouse.move(box["x"] + share * box["width"], y)
        self.page.mouse.up()

    def heard(self) -> np.ndarray:
        """Return the samples that the last start of the player gave to the loudspeakers, [2, S]."""
        channel = "window.played.at(-1).buffer.getChannelData({})"
        return np.stack([self.read_samples(channel.format(index)) for index in (0, 1)])

    def read_samples(self, expression: str) -> np.ndarray:
        """Return what an expression gives that is a Float32Array."""
        text = self.page.evaluate(
            f"(() => {{ {ENCODE} const editor = foleyEditor; return encode({expression}); }})()"
        )
        return np.frombuffer(base64.b64decode(text), np.float32)

    def record(self) -> None:
        """Keep what the loudspeakers get from now on, for `recorded`; needs `without_policy`."""
        self.page.evaluate(RECORD, RECORDER)

    def recorded(self) -> np.ndarray:
        """Return what the loudspeakers got since `record`, of the left channel, [S]."""
        joined = """(() => {
            const joined = new Float32Array(128 * window.recorded.length);
            window.recorded.forEach((block, n) => joined.set(block, 128 * n));
            return joined;
        })()"""
        return self.read_samples(joined)


def open_editor(
    browser: Browser, url: str, *, width: int = 1280, without_policy: bool = False
) -> EditorTab:
    """Open the editor in a new browser context; without its policy a test may add scripts."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, accept_downloads=True, bypass_csp=without_policy
    )
    context.set_default_timeout(1000 * scale(10))
    context.add_init_script(KEEP_PLAYED)
    expect.set_options(timeout=1000 * scale(5))
    tab = EditorTab(context.new_page())
    tab.page.on(
        "console",
        lambda line: tab.messages.append(line.text) if line.type in ("error", "warning") else None,
    )
    tab.page.on("pageerror", lambda error: tab.messages.append(error.message))
    tab.page.on("request", lambda request: tab.addresses.append(request.url))
    load_editor(tab, url)
    return tab


def load_editor(tab: EditorTab, url: str) -> None:
    """Load the page, and wait until it has what the browser keeps."""
    tab.page.goto(url)
    wait_until(
        lambda: tab.page.evaluate("document.body?.dataset.ready === 'yes'"), what=tab.messages
    )


def draw_played_clip(path: Path, *, seconds: int = 2, has_sound: bool = True) -> Path:
    """Write an H.264 clip of a ball that bounces each second, with a tone of its own."""
    with av.open(str(path), "w") as writer:
        picture = writer.add_stream("libx264", rate=FRAME_RATE, width=160, height=120)
        picture.pix_fmt = "yuv420p"
        sound = writer.add_stream("aac", rate=SAMPLE_RATE, layout="stereo") if has_sound else None
        for index in range(seconds * FRAME_RATE):
            pixels = np.full((120, 160, 3), 40, np.uint8)
            height = int(80 * abs(np.sin(np.pi * index / FRAME_RATE)))
            pixels[100 - height : 115 - height, 70:90] = (230, 180, 80)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
            writer.mux(picture.encode(frame))
        writer.mux(picture.encode(None))
        if sound is not None:
            times = np.arange(seconds * SAMPLE_RATE) / SAMPLE_RATE
            tone = 0.2 * np.sin(2 * np.pi * 330 * times) * (1 + np.sin(2 * np.pi * 0.7 * times))
            samples = np.stack([tone, 0.5 * tone]).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "stereo")
            frame.sample_rate, frame.pts = SAMPLE_RATE, 0
            writer.mux(sound.encode(frame))
            writer.mux(sound.encode(None))
    return path
