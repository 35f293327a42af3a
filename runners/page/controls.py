"""The controls of the page, in groups. Each group creates its components where it is built.

Gradio adds a component to the block that is open when the component is created.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import annotated_types
import gradio as gr

from foley.configs import OFFICIAL_GUIDANCE
from foley.mix import OriginalSound
from foley.plans import OFFICIAL_PLAN, SOLVERS
from foley.request import MAX_ADAPTER_SCALE, AvoidSpeech, GenerationRequest
from runners.page.bounds import PageBounds
from runners.page.direct import (
    make_edit,
    parse_cues,
    parse_layers,
    write_cue,
    write_layer,
    write_ranges,
)
from runners.page.messages import render_status
from runners.page.player import BEGINNING, EMPTY

EXAMPLES_FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = {  # title of the button, and prompt
    "hammer.mp4": ("Hammer, 5 s", "a hammer hits stone"),
    "bigbuckbunny.mp4": ("Big Buck Bunny, 5 s", "dripping water"),
    "bikes.mp4": ("Bikes, 10 s", "wind blowing"),
}
CREDIT = "Big Buck Bunny \u00a9 2008 Blender Foundation, CC BY 3.0"
NUM_SUGGESTIONS = 5  # prompts of the model to start from
NUM_ADAPTERS = 16  # that the page has room for
RANDOM, FIXED = "Random", "Fixed"
VIDEO, SOUND_ALONE = "Picture and sound", "Sound alone"
OUTPUTS = {VIDEO: "mp4", SOUND_ALONE: "wav"}
OWN_SOUNDS: dict[str, OriginalSound] = {
    "Leave it out": "drop",
    "Second track": "keep",
    "Mix": "mix",
    "Duck": "duck",
}
LOUDNESSES: dict[str, float | None] = {
    "As it is": None,
    "-23 LUFS (broadcast)": -23.0,
    "-16 LUFS (online)": -16.0,
}
SPEECH: dict[str, AvoidSpeech] = {
    "As it comes": "off",
    "Measure it": "report",
    "Try again": "retry",
}
REFUSE, TRIM = "Refuse it", "Use a part of it"
DEFAULT_FRAME_RATE = 24.0  # of numbered pictures, as of film
DEFAULT_SECONDS = 4.0  # of a still picture, and of a sound without a clip
NUM_VARIATIONS = (1, 2, 3, 4)
MODEL_POLL_SECONDS = 2.0  # between two questions while the model loads
JOBS_POLL_SECONDS = 3.0  # between two questions while a job runs
DEFAULTS = GenerationRequest()

Errors = dict[str, gr.HTML]  # place of an error, see `messages.PLACES`, and its component


class ModelControls:
    """The model's name and licence, and the API key if the service asks for one.

    Args:
        errors: receives the component for errors about the key.
    """

    def __init__(self, errors: Errors) -> None:
        self.summary = gr.HTML(render_status("Connecting to the service\u2026"), elem_id="model")
        self.timer = gr.Timer(MODEL_POLL_SECONDS)
        with gr.Column(visible=False, elem_classes="foley-key") as self.key_box:
            self.api_key = gr.Textbox(
                label="API key",
                info="This service requires a key. The page sends it with each request and does "
                "not store it.",
                type="password",
                elem_id="api-key",
            )
            _add_error(errors, "api_key")


class ClipControls:
    """The clip: upload, camera, examples, pictures, or none and a length.

    Args:
        errors: receives the component for errors about the clip.
    """

    def __init__(self, errors: Errors) -> None:
        self.video = gr.Video(
            label="Clip",
            sources=["upload", "webcam"],
            include_audio=True,
            webcam_options=gr.WebcamOptions(mirror=False),
            height=300,
            elem_id="clip",
        )
        self.example = gr.State("")  # file name of the example, if the clip is one
        _add_error(errors, "clip")
        self.example_buttons: dict[str, gr.Button] = {}
        examples = {k: v for k, v in EXAMPLES.items() if (EXAMPLES_FOLDER / k).is_file()}
        if examples:
            with gr.Row(elem_classes="foley-chips"):
                gr.HTML("<span>Examples</span>", elem_classes="foley-chips-name")
                for name, (title, _) in examples.items():
                    self.example_buttons[name] = gr.Button(title, size="sm", min_width=0)
            gr.HTML(f"<small>{CREDIT}</small>", elem_classes="foley-credit")
        # Path of a still picture, or of a zip of numbered ones, in place of the video.
        self.pictures = gr.State("")
        with gr.Row(elem_classes="foley-chips"):
            gr.HTML("<span>Or</span>", elem_classes="foley-chips-name")
            self.choose_pictures = gr.UploadButton(
                "Pictures, or a zip of them",
                file_types=[".zip", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"],
                file_count="multiple",
                size="sm",
                min_width=0,
                elem_id="choose-pictures",
            )
            self.choose_alone = gr.Button(
                "No picture", size="sm", min_width=0, elem_id="choose-alone"
            )
        with gr.Column(visible=False) as self.pictures_box:
            self.pictures_name = gr.HTML("", elem_id="pictures-name")
            with gr.Row(elem_classes="foley-part"):
                self.frame_rate = gr.Number(
                    DEFAULT_FRAME_RATE,
                    label="Pictures per second",
                    min_width=120,
                    elem_id="frame-rate",
                )
                self.drop_pictures = gr.Button("Remove", size="md", elem_id="drop-pictures")
        _add_error(errors, "frame_rate")
        with (
            gr.Column(visible=False) as self.length_box,
            gr.Row(elem_classes="foley-part"),
        ):
            # Without a video and pictures, a number here asks for a sound of the prompt alone.
            self.length = gr.Number(
                None,
                label="Length in seconds",
                info="Of a sound without a clip, or of a still picture.",
                min_width=120,
                elem_id="length",
            )
            self.drop_length = gr.Button("Remove", size="md", elem_id="drop-length")
        _add_error(errors, "duration_seconds")


class SoundControls:
    """The prompt, the variations, the seed and the kind of result.

    Args:
        errors: receives the components for errors about these options.
    """

    def __init__(self, errors: Errors) -> None:
        self.prompt = gr.Textbox(
            label="Prompt",
            info="What should be heard. Without a prompt, the picture alone decides.",
            lines=2,
            max_lines=5,
            elem_id="prompt",
        )
        _add_error(errors, "prompt")
        with gr.Row(elem_classes="foley-chips", visible=False) as self.suggestions:
            gr.HTML("<span>Start from</span>", elem_classes="foley-chips-name")
            # Their texts come from the model.
            self.prompt_buttons = [
                gr.Button("", size="sm", min_width=0, visible=False) for _ in range(NUM_SUGGESTIONS)
            ]
        with gr.Row(elem_classes="foley-pair"):
            self.num_variations = gr.Radio(
                NUM_VARIATIONS, value=1, label="Variations", min_width=0, scale=5
            )
            self.seed_kind = gr.Radio(
                [RANDOM, FIXED], value=RANDOM, label="Seed", min_width=0, scale=4
            )
        _add_error(errors, "num_variations")
        self.seed = gr.Textbox(
            label="Fixed seed",
            info="The same seed and settings give the same sound.",
            visible=False,
            elem_id="seed",
        )
        _add_error(errors, "seed")
        self.output = gr.Radio(list(OUTPUTS), value=VIDEO, label="Result")


class ModelSlider:
    """A slider for an option whose default depends on the model.

    Args:
        name: the option's name in `GenerationRequest`.
        value: the value that is shown until the model is known.
        step: distance between two values.
        label: the name that the user reads.
        info: the sentence below the name.
        errors: receives the component for errors about the option.
    """

    def __init__(
        self, name: str, value: float, *, step: float, label: str, info: str, errors: Errors
    ) -> None:
        least, most = read_bounds(name)
        self.slider = gr.Slider(least, most, step=step, value=value, label=label, info=info)
        _add_error(errors, name)
        # The value that the page set last; None once a link has set the slider.
        self.preset_value = gr.Number(value, visible=False)
        self.model_value = gr.Number(visible=False)  # the model's default


class AdapterControls:
    """A slider for each adapter of the model, which is unknown until the model is.

    Args:
        errors: receives the component for errors about adapters.
    """

    def __init__(self, errors: Errors) -> None:
        self.names = gr.State(())  # of the sliders that are shown, in order
        with gr.Column(visible=False, elem_id="adapters") as self.box:
            self.sliders = [
                gr.Slider(0, MAX_ADAPTER_SCALE, step=0.05, value=0, visible=False)
                for _ in range(NUM_ADAPTERS)
            ]
        _add_error(errors, "adapters")

    @property
    def inputs(self) -> list[gr.components.Component]:
        """The controls that hold the adapters' scales."""
        return [self.names, *self.sliders]

    def read(self, values: Mapping[Any, Any]) -> dict[str, float]:
        """Return the scale of each adapter, by name.

        Args:
            values: of the controls in `inputs`.
        """
        scales = (float(values[slider] or 0) for slider in self.sliders)
        return dict(zip(values[self.names], scales, strict=False))

    def show(
        self, scales: Mapping[str, float], about: Mapping[str, str] = MappingProxyType({})
    ) -> dict[Any, Any]:
        """Return the updates that show a slider for each adapter, as many as there is room for.

        Args:
            scales: by name, in order; those that change the model are never left out.
            about: a line for each name that has one.
        """
        used = [name for name, scale in scales.items() if scale]
        others = [name for name, scale in scales.items() if not scale]
        chosen = [*used, *others][: len(self.sliders)]
        names = tuple(name for name in scales if name in chosen)
        updates: dict[Any, Any] = {self.names: names, self.box: gr.Column(visible=bool(names))}
        for slider, name in itertools.zip_longest(self.sliders, names):
            if name is None:
                updates[slider] = gr.Slider(value=0, visible=False)
                continue
            info = about.get(name) or "0 leaves the adapter out, 1 is as it was trained."
            updates[slider] = gr.Slider(
                label=f"Adapter {name}", info=info, value=scales[name], visible=True
            )
        return updates


class DirectControls:
    """What is heard when, which sounds are mixed, and the sound that a new one starts from.

    Args:
        errors: receives the components for errors about these options.
    """

    def __init__(self, errors: Errors) -> None:
        self.cues = gr.Textbox(
            label="Cues",
            info="Prompts for ranges of seconds, one a line, such as 1.2-3.5: glass shatters",
            lines=2,
            max_lines=8,
            elem_id="cues",
        )
        _add_error(errors, "cues")
        self.layers = gr.Textbox(
            label="Layers",
            info="Sounds that are mixed, in place of the prompt, one a line: a prompt, or an "
            'object such as {"prompt": "wind", "gain_db": -9, "pan": -0.4}',
            lines=2,
            max_lines=8,
            elem_id="layers",
        )
        _add_error(errors, "layers")
        self.source = gr.Textbox(
            label="Start from a sound",
            info="original is the clip's own sound. The button Edit this result, below a result, "
            "writes its id here. Empty: a new sound.",
            elem_id="edit-source",
        )
        self.ranges = gr.Textbox(
            label="Make anew",
            info="Ranges of seconds, such as 1.2-3.5, 4-5. The rest stays as it is.",
            elem_id="edit-ranges",
        )
        self.strength = gr.Slider(
            0,
            1,
            step=0.05,
            value=1,
            label="Strength",
            info="How far the sound may go from that which it starts from.",
        )
        _add_error(errors, "edit")

    @property
    def inputs(self) -> list[gr.components.Component]:
        """All fields."""
        return [self.cues, self.layers, self.source, self.ranges, self.strength]

    def read(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the options that the fields stand for; their values may be out of bounds.

        Args:
            values: of the fields in `inputs`.

        Raises:
            ParameterError: a field cannot be read.
        """
        edit = make_edit(
            values[self.source] or "", values[self.ranges] or "", values[self.strength]
        )
        options = {
            "cues": parse_cues(values[self.cues] or ""),
            "layers": parse_layers(values[self.layers] or ""),
            "edit": edit,
        }
        return {name: value for name, value in options.items() if value}

    def show(self, request: GenerationRequest) -> dict[Any, Any]:
        """Return the value of each field for a request.

        Args:
            request: the options.
        """
        edit = request.edit
        strength = edit.strength if edit else None
        return {
            self.cues: "\n".join(map(write_cue, request.cues)),
            self.layers: "\n".join(map(write_layer, request.layers)),
            self.source: edit.source if edit else "",
            self.ranges: write_ranges(edit) if edit else "",
            self.strength: 1 if strength is None else strength,
        }


class SettingControls:
    """The settings behind the button "More settings".

    Args:
        bounds: what the service accepts of a clip.
        errors: receives the components for errors about these options.
    """

    def __init__(self, bounds: PageBounds, errors: Errors) -> None:
        # No accordion: a closed accordion drops the values that a link sets inside it.
        gr.Button("More settings", size="md", elem_id="more-button")
        with gr.Column(elem_id="more"):
            self.negative_prompt = gr.Textbox(
                label="Negative prompt",
                info="What should not be heard.",
                value=DEFAULTS.negative_prompt,
            )
            _add_error(errors, "negative_prompt")
            self.steps = ModelSlider(
                "num_inference_steps",
                OFFICIAL_PLAN.num_inference_steps,
                step=1,
                label="Steps",
                info="More steps take longer and are more exact.",
                errors=errors,
            )
            self.guidance = ModelSlider(
                "guidance_scale",
                OFFICIAL_GUIDANCE,
                step=0.1,
                label="Guidance",
                info="How strongly the sound follows prompt and picture. 1 switches it off.",
                errors=errors,
            )
            self.solver = gr.Radio(
                list(SOLVERS),
                value="euler",
                label="Solver",
                info="A step of heun or midpoint costs as much as two of euler, one of rk4 four.",
            )
            _add_error(errors, "solver")
            self.adapters = AdapterControls(errors)
            self.direct = DirectControls(errors)
            self.speech = gr.Radio(
                list(SPEECH),
                value="As it comes",
                label="Speech that nobody asked for",
                info="Try again draws other seeds while there is some, and takes longer.",
                elem_id="avoid-speech",
            )
            self.own_sound = gr.Radio(
                list(OWN_SOUNDS),
                value="Leave it out",
                label="The clip's own sound",
                info="Duck lowers it while the new sound is heard.",
                elem_id="own-sound",
            )
            _add_error(errors, "original_sound")
            self.loudness = gr.Radio(
                list(LOUDNESSES), value="As it is", label="Loudness", elem_id="loudness"
            )
            self.too_long = gr.Radio(
                [REFUSE, TRIM],
                value=REFUSE,
                label=f"A clip longer than {bounds.max_seconds:g} s",
            )
            self.start_seconds = gr.Number(
                0,
                minimum=0,
                label="Begin at second",
                info="Of the clip. What is before is left out.",
                elem_id="start-seconds",
            )
            _add_error(errors, "start_seconds")


class ActionControls:
    """The buttons that start and cancel a generation, and its progress.

    Args:
        bounds: what the service accepts of a clip.
        errors: receives the component for errors that belong to no other control. Other errors
            are shown there too, since the eye is at the button.
    """

    def __init__(self, bounds: PageBounds, errors: Errors) -> None:
        with gr.Row(elem_classes="foley-actions"):
            self.start = gr.Button("Make the sound", variant="primary", elem_id="start")
            self.cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="cancel")
        _add_error(errors, "start")
        with gr.Row(elem_classes="foley-part", visible=False) as self.part:
            self.part_start = gr.Number(
                0, minimum=0, label="From second", min_width=120, elem_id="part-start"
            )
            self.use_part = gr.Button(f"Use {bounds.max_seconds:g} s of the clip", size="md")
        self.progress = gr.HTML("", elem_id="progress")


class ResultControls:
    """The player, and the list of the session's results."""

    def __init__(self) -> None:
        gr.HTML(BEGINNING, elem_id="beginning")
        self.pieces = gr.HTML("", elem_id="pieces")  # what `assets/beginning.js` plays
        self.player = gr.HTML(EMPTY, elem_id="result")
        self.history = gr.Radio(
            [], label="Results of this session", visible=False, elem_id="history", type="index"
        )
        with gr.Row(elem_classes="foley-actions", visible=False) as self.seed_row:
            self.keep_seed = gr.Button("Keep this seed", size="sm", elem_id="keep-seed")
            self.edit = gr.Button("Edit this result", size="sm", elem_id="edit-result")


class JobControls:
    """The jobs of this browser, which a reload does not lose."""

    def __init__(self) -> None:
        with gr.Column(elem_id="jobs"):
            self.submit = gr.Button("Make it as a job", size="sm", elem_id="submit-job")
            self.list = gr.HTML("", elem_id="job-list")
        # Ids and prompts, of which none is secret: a fixed key outlives a restart of the page.
        self.kept = gr.BrowserState([], storage_key="foley-jobs", secret="foley-jobs")
        self.timer = gr.Timer(JOBS_POLL_SECONDS, active=False)


def read_bounds(name: str) -> tuple[float, float]:
    """Return the least and the greatest value of a number in `GenerationRequest`.

    Args:
        name: a field with both bounds.
    """
    rules = GenerationRequest.model_fields[name].metadata
    (least,) = (rule.ge for rule in rules if isinstance(rule, annotated_types.Ge))
    (most,) = (rule.le for rule in rules if isinstance(rule, annotated_types.Le))
    return float(least), float(most)  # type: ignore[arg-type]


def _add_error(errors: Errors, place: str) -> None:
    """Add an empty component for the errors of the control before it."""
    errors[place] = gr.HTML("", elem_id=f"error-{place}", elem_classes="foley-error-box")
