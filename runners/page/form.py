"""The form: from the values of the controls to the request's options, and from a link to controls.

Gradio passes the values of the controls as a dictionary from component to value.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import gradio as gr

from foley.client import RequestOptions
from foley.errors import ParameterError
from foley.mix import MixOptions
from foley.request import AUDIO_FORMATS, GenerationRequest, check_part
from runners.page.controls import (
    DEFAULTS,
    EXAMPLES_FOLDER,
    FIXED,
    LOUDNESSES,
    OUTPUTS,
    OWN_SOUNDS,
    REFUSE,
    SOUND_ALONE,
    SPEECH,
    TRIM,
    VIDEO,
)
from runners.page.layout import PageLayout

NO_CLIP = (
    "clip: there is no clip yet. Upload one, record one, or choose an example; or press No picture "
    "for a sound of the prompt alone"
)
_DIRECT = ("cues", "layers", "edit")  # options that have texts


def list_inputs(layout: PageLayout) -> set[gr.components.Component]:
    """Return the controls whose values a generation reads.

    Args:
        layout: the page's controls.
    """
    return {
        layout.clip.video,
        layout.clip.example,
        layout.clip.pictures,
        layout.clip.frame_rate,
        layout.clip.length,
        layout.sound.prompt,
        layout.sound.num_variations,
        layout.sound.seed_kind,
        layout.sound.seed,
        layout.sound.output,
        layout.settings.negative_prompt,
        layout.settings.steps.slider,
        layout.settings.guidance.slider,
        layout.settings.solver,
        *layout.settings.adapters.inputs,
        *layout.settings.direct.inputs,
        layout.settings.speech,
        layout.settings.own_sound,
        layout.settings.loudness,
        layout.settings.too_long,
        layout.settings.start_seconds,
        layout.model.api_key,
    }


def find_clip(layout: PageLayout, values: Mapping[Any, Any]) -> Path | None:
    """Return the clip: a video, a still picture, or a zip of numbered ones; None for none.

    Args:
        layout: the page's controls.
        values: the value of each control of `list_inputs`.

    Raises:
        ParameterError: there is no clip, and no length of a sound without one.
    """
    clip = layout.clip
    if chosen := values[clip.pictures] or values[clip.video]:
        return Path(chosen)
    if values[clip.length] is None:
        raise ParameterError(NO_CLIP)
    return None


def read_options(layout: PageLayout, values: Mapping[Any, Any]) -> RequestOptions:
    """Return the options of a request.

    Args:
        layout: the page's controls.
        values: the value of each control of `list_inputs`.

    Raises:
        ParameterError: an option is malformed or out of bounds.
    """
    sound, settings = layout.sound, layout.settings
    clip = find_clip(layout, values)
    is_zip = (
        bool(values[layout.clip.pictures]) and clip is not None and clip.suffix.lower() == ".zip"
    )
    has_length = clip is None or (bool(values[layout.clip.pictures]) and not is_zip)
    length = float(values[layout.clip.length] or 0) if has_length else None
    scales = settings.adapters.read(values)
    used = [{"name": name, "scale": scale} for name, scale in scales.items() if scale]
    speech = SPEECH[values[settings.speech]]
    request = GenerationRequest.parse(
        **({"adapters": used} if used else {}),
        **({} if speech == "off" else {"avoid_speech": speech}),
        **settings.direct.read(values),
        prompt=values[sound.prompt] or "",
        negative_prompt=values[settings.negative_prompt] or "",
        guidance_scale=values[settings.guidance.slider],
        num_inference_steps=values[settings.steps.slider],
        solver=values[settings.solver],
        num_variations=values[sound.num_variations],
        seed=_read_seed(values[sound.seed]) if values[sound.seed_kind] == FIXED else None,
        **({} if length is None else {"duration_seconds": length}),
    )
    if clip is None:
        request.check_without_clip()
    mix = MixOptions.parse(
        original_sound=OWN_SOUNDS[values[settings.own_sound]],
        loudness_lufs=LOUDNESSES[values[settings.loudness]],
    )
    start_seconds = float(values[settings.start_seconds] or 0)
    frame_rate = float(values[layout.clip.frame_rate] or 0) if is_zip else None
    check_part(start_seconds, frame_rate, length)
    answer = {
        **mix.changed(),
        "format": OUTPUTS[SOUND_ALONE if clip is None else values[sound.output]],
        "trim": values[settings.too_long] == TRIM,
        **({"start_seconds": start_seconds} if start_seconds else {}),
        **({} if frame_rate is None else {"frame_rate": frame_rate}),
    }
    # The page has no controls for the options that are not set.
    return cast(RequestOptions, {**request.model_dump(exclude_unset=True), **answer})


def _read_seed(text: object) -> int:
    digits = str(text or "").strip()
    if not re.fullmatch(r"\d+", digits, re.ASCII):
        raise ParameterError("seed: write a whole number, such as 7, or choose Random")
    return int(digits)


def list_link_outputs(layout: PageLayout) -> list[gr.components.Component]:
    """Return the controls that a link can set.

    Args:
        layout: the page's controls.
    """
    sound, settings = layout.sound, layout.settings
    return [
        layout.clip.video,
        layout.clip.example,
        layout.clip.pictures,
        layout.clip.pictures_box,
        layout.clip.frame_rate,
        layout.clip.length,
        layout.clip.length_box,
        sound.prompt,
        sound.num_variations,
        sound.seed_kind,
        sound.seed,
        sound.output,
        settings.negative_prompt,
        settings.steps.slider,
        settings.steps.preset_value,
        settings.guidance.slider,
        settings.guidance.preset_value,
        settings.solver,
        *settings.adapters.inputs,
        settings.adapters.box,
        *settings.direct.inputs,
        settings.speech,
        settings.own_sound,
        settings.loudness,
        settings.too_long,
        settings.start_seconds,
        layout.errors["start"],
    ]


def read_link(
    layout: PageLayout, query: Mapping[str, str], adapters: Iterable[str] = ()
) -> dict[Any, Any]:
    """Return the new value of each control that a link sets.

    Args:
        layout: the page's controls.
        adapters: those that the page shows.
        query: the parameters of the page's address, or of an earlier result; unknown ones are
            ignored. See `snippets.ResultSettings.query`.

    Raises:
        ParameterError: an option is malformed or out of bounds.
    """
    sound, settings = layout.sound, layout.settings
    controls = {
        "prompt": sound.prompt,
        "negative_prompt": settings.negative_prompt,
        "num_inference_steps": settings.steps.slider,
        "guidance_scale": settings.guidance.slider,
        "solver": settings.solver,
        "num_variations": sound.num_variations,
    }
    others = ("seed", "duration_seconds", "adapters", "avoid_speech", *_DIRECT)
    names = [name for name in (*controls, *others) if name in query]
    request = GenerationRequest.parse(**{name: query[name] for name in names})
    updates: dict[Any, Any] = {
        controls[name]: getattr(request, name) for name in names if name in controls
    }
    if request.duration_seconds is not None:
        updates[layout.clip.length] = request.duration_seconds
        updates[layout.clip.length_box] = gr.Column(visible=True)
    if "adapters" in query:
        scales = dict.fromkeys(adapters, 0.0) | {use.name: use.scale for use in request.adapters}
        updates |= settings.adapters.show(scales)
    if not request.model_fields_set.isdisjoint(_DIRECT):
        updates |= settings.direct.show(request)
    if "avoid_speech" in query:
        updates[settings.speech] = next(k for k, v in SPEECH.items() if v == request.avoid_speech)
    if request.num_inference_steps is not None:
        updates[settings.steps.preset_value] = None
    if request.guidance_scale is not None:
        updates[settings.guidance.preset_value] = None
    if request.seed is not None:
        updates[sound.seed_kind] = FIXED
        updates[sound.seed] = gr.Textbox(value=str(request.seed), visible=True)
    mix = MixOptions.parse(
        **{name: query[name] for name in ("original_sound", "loudness_lufs") if name in query}
    )
    for label, own_sound in OWN_SOUNDS.items():
        if "original_sound" in query and own_sound == mix.original_sound:
            updates[settings.own_sound] = label
    for label, loudness in LOUDNESSES.items():
        if "loudness_lufs" in query and loudness == mix.loudness_lufs:
            updates[settings.loudness] = label
    if "format" in query:
        is_sound = query["format"] in AUDIO_FORMATS
        updates[sound.output] = SOUND_ALONE if is_sound else VIDEO
    if "trim" in query:
        updates[settings.too_long] = TRIM if query["trim"] == "true" else REFUSE
    if "start_seconds" in query:
        updates[settings.start_seconds] = _read_number("start_seconds", query["start_seconds"])
        check_part(updates[settings.start_seconds], None)
    if "frame_rate" in query:
        updates[layout.clip.frame_rate] = _read_number("frame_rate", query["frame_rate"])
        check_part(0.0, updates[layout.clip.frame_rate])
    if (name := query.get("example", "")) in layout.clip.example_buttons:
        updates[layout.clip.video] = str(EXAMPLES_FOLDER / name)
        updates[layout.clip.example] = name
        updates |= _drop_pictures(layout)
    return updates


def _drop_pictures(layout: PageLayout) -> dict[Any, Any]:
    clip = layout.clip
    return {clip.pictures: "", clip.pictures_box: gr.Column(visible=False)}


def _read_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ParameterError(f"{name}: must be a number, got {text[:40]!r}") from error


def read_settings(
    layout: PageLayout, query: Mapping[str, str], adapters: Iterable[str], *, has_clip: bool = True
) -> dict[Any, Any]:
    """Return the new value of each control for the settings of an earlier result.

    Args:
        layout: the page's controls.
        adapters: those that the page shows.
        query: the settings; see `snippets.ResultSettings.query`. What it lacks has its default.
        has_clip: whether the result has one. The page keeps its own in that case.
    """
    no_clip = {layout.clip.video: None, layout.clip.example: "", **_drop_pictures(layout)}
    defaults = {
        layout.settings.speech: next(iter(SPEECH)),
        layout.settings.own_sound: next(iter(OWN_SOUNDS)),
        layout.settings.loudness: next(iter(LOUDNESSES)),
        layout.settings.start_seconds: 0,
        layout.clip.length: None,
        layout.clip.length_box: gr.Column(visible=False),
        **({} if has_clip else no_clip),
        **layout.settings.direct.show(DEFAULTS),
    }
    return {**defaults, **read_link(layout, {"adapters": "", **query}, adapters)}
