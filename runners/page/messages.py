"""The texts of the page: errors, the model, progress. The functions return HTML unless stated."""

import re
import zipfile
from html import escape
from pathlib import Path

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

# Where an error stands: beside one of these controls, or beside the button that starts.
PLACES = (
    "clip",
    "frame_rate",
    "duration_seconds",
    "prompt",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "solver",
    "adapters",
    "cues",
    "layers",
    "edit",
    "original_sound",
    "start_seconds",
    "seed",
    "num_variations",
    "api_key",
    "start",
)
DOT = " \u00b7 "
STAGE_TEXTS: dict[str, str] = {
    Stage.UPLOAD: "Uploading the clip",
    Stage.DECODE_VIDEO: "Decoding the clip",
    Stage.ENCODE: "Analysing the picture and the prompt",
    Stage.SAMPLE: "Generating the sound",
    Stage.DECODE_AUDIO: "Decoding the sound",
    Stage.MUX: "Writing the files",
}


def locate_error(error: FoleyError) -> str:
    """Return the place in `PLACES` where an error stands.

    Args:
        error: any error of the package.
    """
    if isinstance(error, VideoError | UploadTooLargeError):
        return "clip"
    if isinstance(error, UnauthorizedError):
        return "api_key"
    if isinstance(error, PromptTooLongError):
        return "prompt"
    field = re.match(r"\w+", str(error))
    if isinstance(error, ParameterError) and field and field[0] in PLACES:
        return field[0]
    return "start"


def describe_error(error: FoleyError, *, key_given: bool) -> str:
    """Return what was wrong and what to do, as plain text that ends with a full stop.

    Args:
        error: any error of the package.
        key_given: whether the user has entered an API key.
    """
    if isinstance(error, UnauthorizedError):
        if key_given:
            return "The service does not know this key. Check it for missing characters."
        return "The service requires a key. Ask its operator for one."
    if isinstance(error, ConnectionFailedError):
        return "The service cannot be reached at the moment. Your entries are kept: try again."
    text = str(error).removeprefix(f"{locate_error(error)}: ").strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def render_error(text: str, *, is_copy: bool = False) -> str:
    """Return an error for the place beside a control; empty if there is none.

    Args:
        text: plain text, which may hold what other people wrote.
        is_copy: whether screen readers announce it elsewhere.
    """
    role = "" if is_copy else ' role="alert"'
    return f'<p class="foley-error"{role}>{escape(text)}</p>' if text else ""


def render_still(path: Path) -> str:
    """Return a sentence about the still picture that is the clip.

    Args:
        path: of the picture.
    """
    return f"<p>{escape(path.name)} is the clip, a still picture.</p>"


def render_pictures(path: Path) -> str:
    """Return a sentence about the numbered pictures that are the clip.

    Args:
        path: of their zip.
    """
    with zipfile.ZipFile(path) as archive:
        count = len(archive.namelist())
    return render_status(f"{path.name}: {count} files are the clip.")


def render_model(model: RemoteModel) -> str:
    """Return the model's name, what it can do, and the licence of its weights.

    Args:
        model: as the service describes it.
    """
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


def render_status(text: str) -> str:
    """Return a sentence that screen readers announce.

    Args:
        text: plain text.
    """
    return f'<p class="foley-model" role="status">{escape(text)}</p>'


def render_progress(update: RemoteUpdate) -> str:
    """Return a sentence about the progress of a generation, and a bar.

    Args:
        update: as the service reports it.
    """
    if update.stage == Stage.QUEUE:
        before = update.queue_position or 0
        return _render_bar(
            f"In the queue: {before} before yours" if before else "Next in the queue"
        )
    if update.stage != Stage.SAMPLE or not update.num_steps:
        return _render_bar(STAGE_TEXTS.get(update.stage, update.stage))
    step = update.step or 0
    text = f"Step {step} of {update.num_steps}"
    if update.seconds_left is not None:
        text += f", about {format_duration(update.seconds_left)} left"
    return _render_bar(text, f' value="{step}" max="{update.num_steps}"')


def format_duration(seconds: float) -> str:
    """Return a duration as plain text, rounded to seconds or minutes.

    Args:
        seconds: not negative.
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


def _render_bar(text: str, value: str = "") -> str:
    # Without a value the bar is animated, and does not say how much is left.
    return (
        f'<div class="foley-progress"><p role="status">{escape(text)}</p>'
        f'<progress aria-label="Progress"{value}></progress></div>'
    )
