"""From the controls of the page to the options of a request, and back, without a browser."""

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from foley.errors import ParameterError
from foley.request import AvoidSpeech
from runners.page.bounds import PageBounds
from runners.page.controls import SPEECH
from runners.page.form import find_clip, list_inputs, read_link, read_options, read_settings
from runners.page.layout import PageLayout
from tests.page.loops import run_apart


@pytest.fixture(scope="module")
def layout() -> PageLayout:
    async def build() -> PageLayout:  # Gradio takes the event loop of its thread
        bounds = PageBounds(max_seconds=600, max_bytes=1 << 28, needs_key=False, has_jobs=True)
        with gr.Blocks():
            return PageLayout(bounds, same_origin=True)

    return run_apart(build())


def choose(layout: PageLayout, label: str) -> dict[Any, Any]:
    values = {control: control.value for control in list_inputs(layout)}
    return values | {layout.clip.video: "clip.mp4", layout.settings.speech: label}


@pytest.mark.parametrize(("label", "option"), SPEECH.items())
def test_what_becomes_of_speech_is_an_option_and_a_link(
    layout: PageLayout, label: str, option: AvoidSpeech
) -> None:
    options = read_options(layout, choose(layout, label))
    assert options.get("avoid_speech", "off") == option
    control = layout.settings.speech
    assert read_link(layout, {"avoid_speech": option})[control] == label
    query = {"avoid_speech": options["avoid_speech"]} if "avoid_speech" in options else {}
    assert read_settings(layout, query, ())[control] == label


@pytest.mark.parametrize(
    ("pictures", "video", "length", "expected"),
    [
        ("", "clip.mp4", None, {"format": "mp4"}),
        ("", "clip.mp4", 3, {"format": "mp4"}),  # a video has its own length
        ("frames.zip", "", 3, {"format": "mp4", "frame_rate": 24.0}),
        ("photo.JPG", "", 3, {"format": "mp4", "duration_seconds": 3.0}),
        ("", "", 3, {"format": "wav", "duration_seconds": 3.0}),
    ],
)
def test_a_length_is_that_of_a_still_picture_or_of_a_sound_alone(
    layout: PageLayout, pictures: str, video: str, length: float | None, expected: dict[str, Any]
) -> None:
    clip = layout.clip
    values = {control: control.value for control in list_inputs(layout)}
    values |= {clip.pictures: pictures, clip.video: video, clip.length: length}
    options = read_options(layout, values | {layout.sound.prompt: "rain"})
    told = ("format", "frame_rate", "duration_seconds")
    assert {name: options[name] for name in told if name in options} == expected
    assert find_clip(layout, values) == (Path(pictures or video) if pictures or video else None)
    if "duration_seconds" in expected:
        assert read_link(layout, {"duration_seconds": "3.0"})[clip.length] == 3


def test_without_a_clip_and_a_length_nothing_is_made(layout: PageLayout) -> None:
    values = {control: control.value for control in list_inputs(layout)}
    with pytest.raises(ParameterError, match="clip: there is no clip yet"):
        read_options(layout, values)
    with pytest.raises(ParameterError, match="duration_seconds: needs a prompt or layers"):
        read_options(layout, values | {layout.clip.length: 3})


def test_an_earlier_result_without_a_clip_takes_the_clip_away(layout: PageLayout) -> None:
    query = {"duration_seconds": "2.5"}
    shown = read_settings(layout, query, (), has_clip=False)
    assert (shown[layout.clip.video], shown[layout.clip.length]) == (None, 2.5)
    kept = read_settings(layout, {}, ())
    assert layout.clip.video not in kept
    assert kept[layout.clip.length] is None
