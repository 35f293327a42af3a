"""The page: its controls, and what happens when they are used."""

import contextlib
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import annotated_types
import gradio as gr
import structlog

from foley.client import AsyncFoleyClient, RequestOptions
from foley.configs import OFFICIAL_GUIDANCE, OFFICIAL_STEPS
from foley.errors import (
    ConnectionFailedError,
    FoleyError,
    NotReadyError,
    ParameterError,
    UnauthorizedError,
)
from foley.request import SOLVERS, GenerationRequest
from runners.page import messages
from runners.page.player import EMPTY, take_html
from runners.page.results import Take
from runners.page.sessions import Visits
from runners.page.snippets import Recipe

log = structlog.get_logger(__name__)

EXAMPLES_FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = {"bigbuckbunny.mp4": "Big Buck Bunny, 5 s", "bikes.mp4": "Bikes, 10 s"}
CREDIT = "Big Buck Bunny \u00a9 2008 Blender Foundation, CC BY 3.0"
STARTING_POINTS = {
    "Meadow": "a meadow in summer, birds, soft steps on grass",
    "Bicycles": "bicycles rolling past on asphalt, chains clicking, light wind",
    "Footsteps": "footsteps on gravel, close",
    "Rain": "steady rain on leaves, distant thunder",
    "Kitchen": "cooking in a kitchen, sizzling pan, a knife on a board",
}
RANDOM, FIXED = "Random", "Fixed"
OUTPUTS = {"Picture and sound": "mp4", "Sound alone": "wav"}
REFUSE, TRIM = "Refuse it", "Use its beginning"
NUM_VARIATIONS = (1, 2, 3, 4)
MODEL_SECONDS = 2.0  # between two questions while the model loads
NO_CLIP = "There is no clip yet. Upload one, record one, or take an example."
BUG = "Something went wrong inside the page. Your entries stay here: try again."
DEFAULTS = GenerationRequest()
# Where a slider still stands where it was set to, it goes to the model's own value.
SUGGEST = "(value, usual, own) => own && value === usual ? [own, own] : [value, usual]"


@dataclass(frozen=True, kw_only=True)
class PageBounds:
    """What the service accepts of a clip."""

    max_seconds: float
    max_bytes: int


class Page:
    """The page of one service.

    Args:
        visits: where results are kept; it knows the service's address.
        bounds: what the service accepts of a clip.
        prefix: path below which the page is served: empty, or such as /ui.
        same_origin: whether the service answers at the page's own address, so that commands which
            repeat a result name that one.
    """

    def __init__(
        self, visits: Visits, bounds: PageBounds, *, prefix: str, same_origin: bool
    ) -> None:
        self.visits = visits
        self.bounds = bounds
        self.prefix = prefix
        self.same_origin = same_origin
        self.errors: dict[str, gr.HTML] = {}

    def build(self) -> gr.Blocks:
        """All of it."""
        # Uploads of visitors who left are looked for every ten minutes, and go after two hours.
        with gr.Blocks(
            title="Foley", analytics_enabled=False, fill_width=True, delete_cache=(600, 7200)
        ) as blocks:
            gr.HTML(
                '<header class="foley-head"><h1>Foley</h1><p>Sound for silent video</p></header>'
            )
            self.model = gr.HTML(
                messages.waiting_html("Asking which model answers\u2026"), elem_id="model"
            )
            self.model_timer = gr.Timer(MODEL_SECONDS)
            with gr.Column(visible=False, elem_classes="foley-key") as self.key_box:
                self.api_key = gr.Textbox(
                    label="Key",
                    info="This service answers only with a key. It is sent with each request and "
                    "kept nowhere.",
                    type="password",
                    elem_id="api-key",
                )
                self._error("api_key")
            with gr.Row(elem_classes="foley-columns"):
                with gr.Column(scale=6, min_width=320):
                    self._inputs()
                with gr.Column(scale=7, min_width=320):
                    self._outputs()
            self._events(blocks)
        return blocks

    def _error(self, place: str) -> None:
        """Room for a sentence beside the control just made."""
        self.errors[place] = gr.HTML("", elem_id=f"error-{place}", elem_classes="foley-error-box")

    def _inputs(self) -> None:
        self.clip = gr.Video(
            label="Clip",
            sources=["upload", "webcam"],
            include_audio=True,
            webcam_options=gr.WebcamOptions(mirror=False),
            height=300,
            elem_id="clip",
        )
        self.example = gr.State("")  # name of the example that the clip is
        self._error("clip")
        self.example_buttons = {
            name: title for name, title in EXAMPLES.items() if (EXAMPLES_FOLDER / name).is_file()
        }
        self.buttons_of_examples: dict[str, gr.Button] = {}
        if self.example_buttons:
            with gr.Row(elem_classes="foley-chips"):
                gr.HTML("<span>Examples</span>", elem_classes="foley-chips-name")
                for name, title in self.example_buttons.items():
                    self.buttons_of_examples[name] = gr.Button(title, size="sm", min_width=0)
            gr.HTML(f"<small>{CREDIT}</small>", elem_classes="foley-credit")
        self.prompt = gr.Textbox(
            label="Prompt",
            info="What should be heard. Left empty, the picture alone decides.",
            lines=2,
            max_lines=5,
            elem_id="prompt",
        )
        self._error("prompt")
        with gr.Row(elem_classes="foley-chips"):
            gr.HTML("<span>Start from</span>", elem_classes="foley-chips-name")
            self.start_buttons = {
                gr.Button(name, size="sm", min_width=0): text
                for name, text in STARTING_POINTS.items()
            }
        with gr.Row(elem_classes="foley-pair"):
            self.num_variations = gr.Radio(
                NUM_VARIATIONS, value=1, label="Variations", min_width=0, scale=5
            )
            self.seed_kind = gr.Radio(
                [RANDOM, FIXED], value=RANDOM, label="Seed", min_width=0, scale=4
            )
        self._error("num_variations")
        self.seed = gr.Textbox(
            label="Fixed seed",
            info="The same seed and settings give the same sound.",
            visible=False,
            elem_id="seed",
        )
        self._error("seed")
        self.output = gr.Radio(list(OUTPUTS), value=next(iter(OUTPUTS)), label="Result")
        # Not an accordion: while one is closed, what a link sets in it is lost.
        gr.Button("More settings", size="md", elem_id="more-button")
        with gr.Column(elem_id="more"):
            self.negative_prompt = gr.Textbox(
                label="Negative prompt",
                info="What should not be heard.",
                value=DEFAULTS.negative_prompt,
            )
            self._error("negative_prompt")
            least, most = bounds("num_inference_steps")
            self.steps = gr.Slider(
                least,
                most,
                step=1,
                value=OFFICIAL_STEPS,
                label="Steps",
                info="More steps take longer and are more exact.",
            )
            self._error("num_inference_steps")
            # Where the slider was set to last, unless by the visitor or a link; that of the model.
            self.usual_steps = gr.Number(OFFICIAL_STEPS, visible=False)
            self.model_steps = gr.Number(visible=False)
            least, most = bounds("guidance_scale")
            self.guidance = gr.Slider(
                least,
                most,
                step=0.1,
                value=OFFICIAL_GUIDANCE,
                label="Guidance",
                info="How strongly the sound follows prompt and picture. 1 switches it off.",
            )
            self._error("guidance_scale")
            self.usual_guidance = gr.Number(OFFICIAL_GUIDANCE, visible=False)
            self.model_guidance = gr.Number(visible=False)
            self.solver = gr.Radio(
                list(SOLVERS),
                value=DEFAULTS.solver,
                label="Solver",
                info="A step of heun or midpoint costs as much as two of euler, one of rk4 four.",
            )
            self._error("solver")
            self.too_long = gr.Radio(
                [REFUSE, TRIM],
                value=REFUSE,
                label=f"A clip longer than {self.bounds.max_seconds:g} s",
            )
        with gr.Row(elem_classes="foley-actions"):
            self.start = gr.Button("Make the sound", variant="primary", elem_id="start")
            self.stop = gr.Button("Cancel", variant="stop", interactive=False, elem_id="cancel")
        self._error("start")
        self.progress = gr.HTML("", elem_id="progress")

    def _outputs(self) -> None:
        self.result = gr.HTML(EMPTY, elem_id="result")
        self.history = gr.Radio(
            [], label="History of this visit", visible=False, elem_id="history", type="index"
        )
        with gr.Row(elem_classes="foley-actions", visible=False) as self.again_row:
            self.keep_seed = gr.Button("Keep this seed", size="sm", elem_id="keep-seed")

    def _events(self, blocks: gr.Blocks) -> None:
        # Everything goes through the service's own interface: the page offers none beside it.
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        at_once = {**quiet, "queue": False}
        model: dict[str, Any] = {
            "inputs": [self.api_key],
            "outputs": [
                self.model, self.key_box, self.errors["api_key"], self.model_timer,
                self.model_steps, self.model_guidance,
            ],
        }  # fmt: skip
        filled = blocks.load(self.prefill, None, self._prefilled(), **at_once)
        asked = [
            self.model_timer.tick(self.ask_model, **model, **quiet),
            filled.then(self.ask_model, **model, **quiet),  # what the link sets goes before
            self.api_key.change(self.ask_model, **model, **quiet, trigger_mode="always_last"),
        ]
        for answered in asked:
            for slider, own in (
                ([self.steps, self.usual_steps], self.model_steps),
                ([self.guidance, self.usual_guidance], self.model_guidance),
            ):
                # In the browser: what a visitor sets meanwhile stays.
                answered.then(None, [*slider, own], slider, js=SUGGEST, **at_once)
        for name, button in self.buttons_of_examples.items():
            path = str(EXAMPLES_FOLDER / name)
            outputs = [self.clip, self.example, self.errors["clip"]]
            button.click(lambda path=path, name=name: (path, name, ""), None, outputs, **at_once)
        for event in (self.clip.upload, self.clip.clear, self.clip.stop_recording):
            event(lambda: ("", ""), None, [self.example, self.errors["clip"]], **at_once)
        for button, text in self.start_buttons.items():
            button.click(lambda text=text: text, None, self.prompt, **at_once)
        self.seed_kind.change(
            lambda kind: gr.Textbox(visible=kind == FIXED), self.seed_kind, self.seed, **at_once
        )
        inputs = {
            self.clip, self.example, self.prompt, self.negative_prompt, self.steps, self.guidance,
            self.solver, self.seed_kind, self.seed, self.num_variations, self.output,
            self.too_long, self.api_key,
        }  # fmt: skip
        outputs = [
            self.result, self.history, self.progress, self.start, self.stop, self.again_row,
            self.key_box, *self.errors.values(),
        ]  # fmt: skip
        made = gr.on(
            [self.start.click, self.prompt.submit],
            self.generate,
            inputs,
            outputs,
            trigger_mode="once",
            concurrency_limit=None,
            **quiet,
        )
        # Only then: what is pressed before the end of `generate` goes unheard.
        made.then(self.rest, None, [self.start, self.stop], **at_once)
        self.stop.click(self.cancel, None, self.stop, **at_once)
        self.history.input(self.show, self.history, self.result, **at_once)
        self.keep_seed.click(self.keep, self.history, [self.seed_kind, self.seed], **at_once)
        blocks.unload(self.leave)

    async def ask_model(self, api_key: str) -> tuple[Any, ...]:
        """Model, whether the key is asked for and why, asking again, steps, guidance."""
        try:
            async with AsyncFoleyClient(self.visits.server_url, api_key=api_key or None) as client:
                (model,) = await client.list_models()
        except (UnauthorizedError, ParameterError) as error:
            sentence = ""
            if api_key:
                sentence = messages.error_sentence(error, key_given=True)
            text = messages.waiting_html("The service tells its model to those who have a key.")
            return (
                text,
                gr.Column(visible=True),
                messages.error_html(sentence),
                gr.Timer(active=False),
                gr.skip(),
                gr.skip(),
            )
        except NotReadyError:
            text = messages.waiting_html(
                "The model is loading. You can prepare everything meanwhile."
            )
            return text, gr.skip(), "", gr.Timer(active=True), gr.skip(), gr.skip()
        except FoleyError as error:
            text = messages.waiting_html(messages.error_sentence(error, key_given=bool(api_key)))
            again = gr.Timer(active=isinstance(error, ConnectionFailedError))
            return text, gr.skip(), "", again, gr.skip(), gr.skip()
        own = (model.num_inference_steps or None, model.guidance_scale or None)
        return messages.model_html(model), gr.skip(), "", gr.Timer(active=False), *own

    def _prefilled(self) -> list[Any]:
        return [
            self.clip, self.example, self.prompt, self.negative_prompt, self.steps, self.guidance,
            self.solver, self.seed_kind, self.seed, self.num_variations, self.output,
            self.too_long, self.errors["start"], self.usual_steps, self.usual_guidance,
        ]  # fmt: skip

    def prefill(self, request: gr.Request) -> dict[Any, Any]:
        """What a link sets."""
        given = dict(request.query_params)
        found: dict[Any, Any] = {}
        options = {name: given[name] for name in GenerationRequest.model_fields if name in given}
        try:
            asked = GenerationRequest.parse(**options)
        except ParameterError as error:
            text = f"This link does not fit the page: {error}."
            return {self.errors["start"]: messages.error_html(text)}
        controls = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "solver": self.solver,
            "num_variations": self.num_variations,
        }
        found |= {controls[name]: getattr(asked, name) for name in options if name != "seed"}
        if asked.num_inference_steps is not None:
            found[self.usual_steps] = None
        if asked.guidance_scale is not None:
            found[self.usual_guidance] = None
        if asked.seed is not None:
            found[self.seed_kind] = FIXED
            found[self.seed] = gr.Textbox(value=str(asked.seed), visible=True)
        if given.get("format") in ("wav", "flac"):
            found[self.output] = "Sound alone"
        if given.get("trim") == "true":
            found[self.too_long] = TRIM
        if (name := given.get("example")) in self.example_buttons:
            found[self.clip], found[self.example] = str(EXAMPLES_FOLDER / name), name
        return found or {self.errors["start"]: ""}

    async def generate(
        self, given: dict[Any, Any], request: gr.Request
    ) -> AsyncGenerator[dict[Any, Any], None]:
        """Make the sound, telling how far it is; what goes wrong stands beside its cause."""
        session = str(request.session_hash)
        yield {
            **dict.fromkeys(self.errors.values(), ""),
            self.start: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
            self.progress: messages.waiting_html("Starting"),
        }
        api_key = str(given[self.api_key] or "")
        try:
            if not given[self.clip]:
                yield self._refusal("clip", NO_CLIP)
                return
            clip = Path(given[self.clip])
            options = self._options(given)
            recipe = Recipe(
                options=options,
                clip_name=given[self.example] or clip.name,
                example=given[self.example],
                server_url=self._public_url(request),
                with_key=bool(api_key),
            )
            work = self.visits.make(session, clip, options, api_key=api_key, recipe=recipe)
            async with contextlib.aclosing(work):
                async for told in work:
                    if isinstance(told, Take):
                        yield self._finished(session, told)
                    else:
                        yield {self.progress: messages.progress_html(told)}
        except FoleyError as error:
            text = messages.error_sentence(error, key_given=bool(api_key))
            yield self._refusal(messages.place_of(error), text)
        except Exception:  # the outermost boundary: the page must go on
            log.exception("page_failed")
            yield self._refusal("start", BUG)

    def _options(self, given: dict[Any, Any]) -> RequestOptions:
        """Fields of the request.

        Raises:
            ParameterError: the seed is none.
        """
        fixed = str(given[self.seed] or "").strip() if given[self.seed_kind] == FIXED else None
        if fixed is not None and not re.fullmatch(r"\d+", fixed, re.ASCII):
            raise ParameterError("seed: write a whole number, such as 7, or choose Random")
        options = {
            "prompt": given[self.prompt] or "",
            "negative_prompt": given[self.negative_prompt] or "",
            "guidance_scale": given[self.guidance],
            "num_inference_steps": given[self.steps],
            "solver": given[self.solver],
            "num_variations": given[self.num_variations],
            "seed": None if fixed is None else int(fixed),
        }
        asked = GenerationRequest.parse(**options)
        file = {"format": OUTPUTS[given[self.output]], "trim": given[self.too_long] == TRIM}
        return cast(RequestOptions, {**asked.model_dump(), **file})

    def rest(self) -> tuple[Any, Any]:
        """The buttons while nothing is under way."""
        return gr.Button(interactive=True), gr.Button("Cancel", interactive=False)

    def _refusal(self, place: str, text: str) -> dict[Any, Any]:
        return {
            self.progress: "",
            self.errors[place]: messages.error_html(text),
            **({self.key_box: gr.Column(visible=True)} if place == "api_key" else {}),
        }

    def _finished(self, session: str, take: Take) -> dict[Any, Any]:
        titles = [take.title for take in self.visits.of(session).takes]
        return {
            self.progress: "",
            self.result: take_html(take, self._url_of),
            self.history: gr.Radio(choices=titles, value=titles[-1], visible=True),
            self.again_row: gr.Row(visible=True),
        }

    async def cancel(self, request: gr.Request) -> Any:
        """Drop what this visit has under way."""
        await self.visits.cancel(str(request.session_hash))
        return gr.Button("Cancel", interactive=False)

    def show(self, index: int | None, request: gr.Request) -> Any:
        """An earlier result of this visit."""
        takes = self.visits.of(str(request.session_hash)).takes
        if index is None or index >= len(takes):
            return gr.skip()
        return take_html(takes[index], self._url_of)

    def keep(self, index: int | None, request: gr.Request) -> tuple[Any, Any]:
        """Fix the seed of the result that is shown."""
        takes = self.visits.of(str(request.session_hash)).takes
        if index is None or index >= len(takes):
            return gr.skip(), gr.skip()
        return FIXED, gr.Textbox(value=str(takes[index].made.seeds[0]), visible=True)

    async def leave(self, request: gr.Request) -> None:
        """The tab is closed."""
        await self.visits.end(str(request.session_hash))

    def _url_of(self, path: Path) -> str:
        return f"{self.prefix}/made/{quote(path.relative_to(self.visits.root).as_posix())}"

    def _public_url(self, request: gr.Request) -> str:
        """Where this visitor reaches the service."""
        if not self.same_origin:
            return self.visits.server_url
        headers = request.headers
        host = headers.get("x-forwarded-host") or headers["host"]
        scheme = headers.get("x-forwarded-proto") or "http"
        return f"{scheme}://{host}"


def bounds(name: str) -> tuple[float, float]:
    """Least and greatest value of a number among the options."""
    rules = GenerationRequest.model_fields[name].metadata
    (least,) = (rule.ge for rule in rules if isinstance(rule, annotated_types.Ge))
    (most,) = (rule.le for rule in rules if isinstance(rule, annotated_types.Le))
    return float(least), float(most)  # type: ignore[arg-type]
