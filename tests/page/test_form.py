"""From the controls of the page to the options of a request, and back, without a browser."""

from typing import Any

import gradio as gr
import pytest

from foley.request import AvoidSpeech
from runners.page.bounds import PageBounds
from runners.page.controls import SPEECH
from runners.page.form import list_inputs, read_link, read_options, read_settings
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
    return values | {layout.settings.speech: label}


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
