"""Which handler runs on which event of which control."""

from typing import Any

import gradio as gr

from runners.page.controls import EXAMPLES, EXAMPLES_FOLDER, FIXED, TRIM
from runners.page.form import list_inputs, list_link_outputs
from runners.page.handlers import PageHandlers
from runners.page.layout import PageLayout

# The page adds no API of its own, and shows its own progress.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
UNQUEUED: dict[str, Any] = {**QUIET, "queue": False}
# Runs in the browser, so that a value that the user sets meanwhile is kept. A slider that still has
# the value that the page set last moves to the model's default.
USE_MODEL_DEFAULT = (
    "(value, preset, model) => model && value === preset ? [model, model] : [value, preset]"
)

DISABLE = "() => ({interactive: false, __type__: 'update'})"
CLICK_START = "() => { document.querySelector('#start').click(); }"
# Cancel can be clicked while a generation runs.
ENABLE_UNLESS_RUNNING = (
    "() => ({interactive: document.querySelector('#cancel').disabled, __type__: 'update'})"
)


def connect_events(blocks: gr.Blocks, layout: PageLayout, handlers: PageHandlers) -> None:
    """Connect all controls with their handlers.

    Args:
        blocks: the Gradio application, which must be open.
        layout: the page's controls.
        handlers: the functions that run.
    """
    _connect_model(blocks, layout, handlers)
    _connect_clip(layout, handlers)
    _connect_sound(layout)
    _connect_generation(layout, handlers)
    _connect_results(layout, handlers)
    blocks.unload(handlers.end_session)


def _connect_model(blocks: gr.Blocks, layout: PageLayout, handlers: PageHandlers) -> None:
    model, settings = layout.model, layout.settings
    sliders = (settings.steps, settings.guidance)
    show: dict[str, Any] = {
        "fn": handlers.show_model,
        "inputs": {model.api_key, *settings.adapters.inputs},
        "outputs": [
            model.summary,
            model.key_box,
            layout.errors["api_key"],
            model.timer,
            *(slider.model_value for slider in sliders),
            layout.sound.suggestions,
            *layout.sound.prompt_buttons,
            *settings.adapters.inputs,
            settings.adapters.box,
        ],
        **QUIET,
    }
    linked = blocks.load(handlers.fill_from_link, None, list_link_outputs(layout), **UNQUEUED)
    shown = [
        model.timer.tick(**show),
        linked.then(**show),  # afterwards: a link's values have priority over the model's
        model.api_key.change(**show, trigger_mode="always_last"),
    ]
    for event in shown:
        for slider in sliders:
            values = [slider.slider, slider.preset_value]
            event.then(
                None, [*values, slider.model_value], values, js=USE_MODEL_DEFAULT, **UNQUEUED
            )


def _connect_clip(layout: PageLayout, handlers: PageHandlers) -> None:
    clip, start = layout.clip, layout.actions.start
    # What said something about the clip before, and its numbered pictures.
    cleared = [
        *(layout.actions.part, layout.errors["clip"], layout.errors["start"]),
        *(clip.pictures, clip.pictures_box, clip.length, clip.length_box),
    ]

    def clear() -> tuple[Any, ...]:
        hidden = gr.Column(visible=False)
        return gr.Row(visible=False), "", "", "", hidden, None, hidden

    for name, button in clip.example_buttons.items():
        path = str(EXAMPLES_FOLDER / name)
        outputs = [clip.video, clip.example, layout.sound.prompt, *cleared]
        # Until the server has answered, a click on Generate would take the clip before this one.
        button.click(None, None, start, js=DISABLE, **UNQUEUED)
        loaded = button.click(
            lambda prompt, path=path, name=name: (
                *(path, name, choose_prompt(name, prompt)),
                *clear(),
            ),
            layout.sound.prompt,
            outputs,
            **UNQUEUED,
        )
        loaded.then(None, None, start, js=ENABLE_UNLESS_RUNNING, **UNQUEUED)
    for listen in (
        clip.video.upload,
        clip.video.clear,
        clip.video.stop_recording,
        clip.drop_pictures.click,
        clip.drop_length.click,
    ):
        listen(lambda: ("", *clear()), None, [clip.example, *cleared], **UNQUEUED)
    clip.choose_pictures.upload(
        handlers.take_pictures,
        clip.choose_pictures,
        [clip.video, clip.example, clip.pictures_name, clip.frame_rate, *cleared],
        **UNQUEUED,
    )
    clip.choose_alone.click(
        handlers.take_no_clip, None, [clip.video, clip.example, *cleared], **UNQUEUED
    )


def choose_prompt(example: str, prompt: str) -> str:
    """Return the prompt with an example: its own, unless the user has written one.

    Args:
        example: a key of `EXAMPLES`.
        prompt: in the field.
    """
    prompts = {name: words for name, (_, words) in EXAMPLES.items()}
    return prompts[example] if prompt.strip() in ("", *prompts.values()) else prompt


def _connect_sound(layout: PageLayout) -> None:
    sound = layout.sound
    for button in sound.prompt_buttons:
        button.click(lambda text: text, button, sound.prompt, **UNQUEUED)
    sound.seed_kind.change(
        lambda kind: gr.Textbox(visible=kind == FIXED), sound.seed_kind, sound.seed, **UNQUEUED
    )


def _connect_generation(layout: PageLayout, handlers: PageHandlers) -> None:
    actions, results = layout.actions, layout.results
    generated = gr.on(
        [actions.start.click, layout.sound.prompt.submit],
        handlers.generate,
        list_inputs(layout),
        [
            results.player,
            results.pieces,
            results.history,
            results.seed_row,
            actions.progress,
            actions.start,
            actions.cancel,
            actions.part,
            layout.model.key_box,
            *layout.errors.values(),
        ],
        trigger_mode="once",
        concurrency_limit=None,
        **QUIET,
    )
    # In an event of its own: Gradio ignores clicks until `generate` has ended.
    generated.then(handlers.reset_buttons, None, [actions.start, actions.cancel], **UNQUEUED)
    settings = layout.settings
    chosen = actions.use_part.click(
        lambda start: (TRIM, start or 0),
        actions.part_start,
        [settings.too_long, settings.start_seconds],
        **UNQUEUED,
    )
    chosen.then(None, None, None, js=CLICK_START, **UNQUEUED)
    actions.cancel.click(handlers.cancel, None, actions.cancel, **UNQUEUED)


def _connect_results(layout: PageLayout, handlers: PageHandlers) -> None:
    results, sound = layout.results, layout.sound
    results.history.input(
        handlers.show_result,
        [results.history, layout.settings.adapters.names],
        [results.player, *list_link_outputs(layout)],
        **UNQUEUED,
    )
    results.keep_seed.click(
        handlers.keep_seed, results.history, [sound.seed_kind, sound.seed], **UNQUEUED
    )
    results.edit.click(
        handlers.edit_result, results.history, layout.settings.direct.source, **UNQUEUED
    )
