"""What the page says: errors beside the control that caused them, which model answers, progress."""

import re
from html import escape

from foley.client import RemoteModel, RemoteUpdate
from foley.errors import (
    ConnectionFailedError,
    FoleyError,
    ParameterError,
    PromptTooLongError,
    UnauthorizedError,
    UploadTooLargeError,
    VideoError,
)
from foley.types import Stage

# Where a sentence stands: beside one of these controls, or beside the button that starts the work.
PLACES = (
    "clip",
    "prompt",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "solver",
    "seed",
    "num_variations",
    "api_key",
    "start",
)
DOT = " \u00b7 "
STAGES: dict[str, str] = {
    Stage.UPLOAD: "Sending the clip",
    Stage.DECODE_VIDEO: "Reading the clip",
    Stage.ENCODE: "Looking at the picture and the words",
    Stage.DECODE_AUDIO: "Turning the result into sound",
    Stage.MUX: "Writing the files",
}


def place_of(error: FoleyError) -> str:
    """Which control an error is about: one of `PLACES`."""
    if isinstance(error, VideoError | UploadTooLargeError):
        return "clip"
    if isinstance(error, UnauthorizedError):
        return "api_key"
    if isinstance(error, PromptTooLongError):
        return "prompt"
    named = re.match(r"\w+", str(error))
    if isinstance(error, ParameterError) and named and named[0] in PLACES:
        return named[0]
    return "start"


def error_sentence(error: FoleyError, *, key_given: bool) -> str:
    """What was wrong and what to do, in plain text."""
    if isinstance(error, UnauthorizedError):
        if key_given:
            return "The service does not know this key. Check it for missing characters."
        return "The service answers only with a key. Whoever runs it gives you one."
    if isinstance(error, ConnectionFailedError):
        return "The service cannot be reached at the moment. Your entries stay here: try again."
    text = str(error).removeprefix(f"{place_of(error)}: ").strip()
    text = text[:1].upper() + text[1:]
    if text.endswith((".", "!", "?")):
        return text
    return text + "."


def error_html(text: str) -> str:
    """A sentence as it stands beside a control; empty where there is none."""
    return f'<p class="foley-error" role="alert">{escape(text)}</p>' if text else ""


def model_html(model: RemoteModel) -> str:
    """Which model answers, what to expect of it, and the terms of its weights."""
    about = f"<strong>{escape(model.preset)}</strong>"
    about += f", {escape(model.about)}." if model.about else "."
    terms = [f"Weights under {escape(model.licence)}"] if model.licence else []
    if model.territory:
        terms.append(escape(model.territory))
    if model.revision:
        terms.append(f"revision <code>{escape(model.revision[:12])}</code>")
    if model.preset in ("xl", "xxl"):
        terms.append("what you publish must be marked as machine-generated")
    return f'<p class="foley-model">Model: {about}</p><p class="foley-terms">{DOT.join(terms)}</p>'


def waiting_html(text: str) -> str:
    """What stands in the model's place while it cannot tell of itself."""
    return f'<p class="foley-model" role="status">{escape(text)}</p>'


def progress_html(update: RemoteUpdate) -> str:
    """How far the work has come: a sentence and a bar."""
    if update.stage == Stage.QUEUE:
        before = update.queue_position or 0
        text = f"In the queue: {before} before yours" if before else "Next in the queue"
        return _progress(text, "")
    if update.stage != Stage.SAMPLE or not update.num_steps:
        return _progress(STAGES.get(update.stage, update.stage), "")
    step = update.step or 0
    text = f"Step {step} of {update.num_steps}"
    if update.seconds_left is not None:
        text += f", about {duration_text(update.seconds_left)} left"
    return _progress(text, f' value="{step}" max="{update.num_steps}"')


def duration_text(seconds: float) -> str:
    """A duration as one says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


def _progress(text: str, value: str) -> str:
    # A bar without a value moves: it says that something happens, and not how much is left.
    return (
        f'<div class="foley-progress"><p role="status">{escape(text)}</p>'
        f'<progress aria-label="Progress"{value}></progress></div>'
    )
