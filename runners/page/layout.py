"""The layout of the page: which groups of controls stand where."""

import gradio as gr

from runners.page.bounds import PageBounds
from runners.page.controls import (
    ActionControls,
    ClipControls,
    Errors,
    JobControls,
    ModelControls,
    ResultControls,
    SettingControls,
    SoundControls,
)

HEADER = '<header class="foley-head"><h1>Foley</h1><p>Sound for silent video</p>{links}</header>'
# Relative, so that it also leads there below the path of a proxy.
EDITOR_LINK = '<p><a href="../editor/">Editor</a></p>'


class PageLayout:
    """All controls of the page in place.

    Args:
        bounds: what the service accepts of a clip.
        same_origin: whether the service, which has the editor, has the page's own address.

    Attributes:
        errors: the component for the errors of each place; see `messages.PLACES`.
        jobs: None where the service takes no jobs.
    """

    def __init__(self, bounds: PageBounds, *, same_origin: bool) -> None:
        self.errors: Errors = {}
        gr.HTML(HEADER.format(links=EDITOR_LINK if same_origin else ""))
        self.model = ModelControls(self.errors)
        with gr.Row(elem_classes="foley-columns"):
            with gr.Column(scale=6, min_width=320):
                self.clip = ClipControls(self.errors)
                self.sound = SoundControls(self.errors)
                self.settings = SettingControls(bounds, self.errors)
                self.actions = ActionControls(bounds, self.errors)
            with gr.Column(scale=7, min_width=320):
                self.results = ResultControls()
                self.jobs = JobControls() if bounds.has_jobs else None
