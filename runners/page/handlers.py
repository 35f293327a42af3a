"""What the page does when a control is used. Every request goes through the public HTTP API."""

import contextlib
import itertools
import zipfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
import structlog

from foley.client import AsyncFoleyClient, RemoteAdapter
from foley.errors import (
    ConnectionFailedError,
    FoleyError,
    NotReadyError,
    ParameterError,
    StorageFullError,
    UnauthorizedError,
    VideoTooLongError,
)
from foley.media.numbering import check_numbers, pack_files, split_numbers
from runners.page import messages
from runners.page.controls import DEFAULT_SECONDS, FIXED, NUM_SUGGESTIONS
from runners.page.form import find_clip, read_link, read_options, read_settings
from runners.page.layout import PageLayout
from runners.page.player import render_end, render_pieces, render_player
from runners.page.public_url import GRADIO_SERVER
from runners.page.results import PageResult, SoundPieces
from runners.page.sessions import PageSessions
from runners.page.snippets import ResultSettings
from runners.storage import is_storage_full

log = structlog.get_logger(__name__)

PAGE_FAILED = "Something went wrong inside the page. Your entries are kept: try again."

Updates = dict[Any, Any]  # new values of components


def pack_upload(files: list[Path]) -> Path:
    """Return the clip of uploaded pictures: a zip, a still picture, or a zip of numbered ones.

    A zip of several is written beside the first of them.

    Args:
        files: that were uploaded together.

    Raises:
        VideoDecodeError: a number is missing between the pictures.
        ParameterError: a zip came with other files.
        OutputError: there is no room for a zip.
    """
    is_zip = [file.suffix.lower() == ".zip" for file in files]
    if is_zip == [True]:
        return files[0]
    if any(is_zip):
        raise ParameterError("choose one zip, or pictures without a zip")
    if len(files) == 1:
        return files[0]
    files = sorted(files, key=lambda file: split_numbers(file.name))
    check_numbers([file.name for file in files])
    destination = files[0].with_name("pictures.zip")
    pack_files(files, destination)
    return destination


class PageHandlers:
    """The event handlers of one page.

    Args:
        layout: the page's controls.
        sessions: the results of each tab; it knows the service's address.
        prefix: path below which the page is served: empty, or such as /ui.
        same_origin: whether the service has the page's own address, which the commands that
            repeat a result then name.
    """

    def __init__(
        self, layout: PageLayout, sessions: PageSessions, *, prefix: str, same_origin: bool
    ) -> None:
        self._layout = layout
        self._sessions = sessions
        self._prefix = prefix
        self._same_origin = same_origin

    async def show_model(self, values: dict[Any, Any]) -> Updates:
        """Show the model's name, defaults and adapters, or why they are not known.

        Args:
            values: of the key's field and of the adapters' controls.
        """
        model = self._layout.model
        api_key = str(values[model.api_key] or "")
        key_error = self._layout.errors["api_key"]
        url = self._sessions.server_url
        try:
            async with AsyncFoleyClient(url, api_key=api_key or None) as client:
                (found, *_) = await client.list_models()
        except (UnauthorizedError, ParameterError) as error:
            text = messages.describe_error(error, key_given=True) if api_key else ""
            return {
                **self._show_status("Enter a key to see the model."),
                model.key_box: gr.Column(visible=True),
                key_error: messages.render_error(text),
            }
        except NotReadyError:
            text = "The model is loading. You can choose a clip and settings meanwhile."
            return self._show_status(text, ask_again=True)
        except FoleyError as error:
            text = messages.describe_error(error, key_given=bool(api_key))
            return self._show_status(text, ask_again=isinstance(error, ConnectionFailedError))
        settings = self._layout.settings
        return {
            model.summary: messages.render_model(found),
            key_error: "",
            model.timer: gr.Timer(active=False),
            settings.steps.model_value: found.num_inference_steps or None,
            settings.guidance.model_value: found.guidance_scale or None,
            **self._suggest(found.prompts),
            **self._show_adapters(found.adapters, settings.adapters.read(values)),
        }

    def _show_adapters(
        self, adapters: tuple[RemoteAdapter, ...], scales: dict[str, float]
    ) -> Updates:
        """Show the model's adapters, with the scales that a link or the user has set."""
        names = [adapter.name for adapter in adapters]
        chosen = {name: scale for name, scale in scales.items() if scale}
        return self._layout.settings.adapters.show(
            {**dict.fromkeys(names, 0.0), **chosen},
            {adapter.name: adapter.about for adapter in adapters},
        )

    def _suggest(self, prompts: tuple[str, ...]) -> Updates:
        """Show the model's prompts as buttons."""
        sound = self._layout.sound
        shown = itertools.zip_longest(sound.prompt_buttons, prompts[:NUM_SUGGESTIONS])
        return {
            sound.suggestions: gr.Row(visible=bool(prompts)),
            **{button: gr.Button(text or "", visible=bool(text)) for button, text in shown},
        }

    def _show_status(self, text: str, *, ask_again: bool = False) -> Updates:
        """Show a sentence in the model's place; ask for the model again later or not."""
        model = self._layout.model
        return {
            model.summary: messages.render_status(text),
            model.timer: gr.Timer(active=ask_again),
            self._layout.errors["api_key"]: "",
        }

    def fill_from_link(self, request: gr.Request) -> Updates:
        """Set the controls to what the page's address says.

        Args:
            request: the request for the page.
        """
        error = self._layout.errors["start"]
        try:
            return read_link(self._layout, dict(request.query_params)) or {error: ""}
        except ParameterError as found:
            text = f"This link has a setting that the page cannot use: {found}."
            return {error: messages.render_error(text)}

    async def generate(
        self, values: dict[Any, Any], request: gr.Request
    ) -> AsyncGenerator[Updates, None]:
        """Generate the sound; yield progress, and the result or an error beside its cause.

        Args:
            values: the value of each control of `form.list_inputs`.
            request: identifies the session.
        """
        layout = self._layout
        yield {
            **dict.fromkeys(layout.errors.values(), ""),
            layout.actions.start: gr.Button(interactive=False),
            layout.actions.cancel: gr.Button(interactive=True),
            layout.actions.part: gr.Row(visible=False),
            layout.actions.progress: messages.render_status("Starting"),
            layout.results.pieces: "",
        }
        api_key = str(values[layout.model.api_key] or "")
        try:
            updates = self._run(values, request, api_key)
            async with contextlib.aclosing(updates):
                async for update in updates:
                    yield update
        except FoleyError as error:
            text = messages.describe_error(error, key_given=bool(api_key))
            place = messages.locate_error(error)
            offers_part = isinstance(error, VideoTooLongError) or place == "start_seconds"
            yield {
                **self._show_error(place, text),
                layout.actions.part: gr.Row(visible=offers_part),
            }
        except Exception as error:  # the outermost boundary: the page must remain usable
            log.exception("page_failed")
            text = messages.describe_error(StorageFullError(), key_given=bool(api_key))
            yield self._show_error("start", text if is_storage_full(error) else PAGE_FAILED)

    async def _run(
        self, values: dict[Any, Any], request: gr.Request, api_key: str
    ) -> AsyncGenerator[Updates, None]:
        layout = self._layout
        session_id = str(request.session_hash)
        clip = find_clip(layout, values)
        example = values[layout.clip.example] if clip is not None else ""
        settings = ResultSettings(
            options=read_options(layout, values),
            clip_name=example or (clip.name if clip is not None else ""),
            example=example,
            server_url=self._find_public_url(request),
            with_key=bool(api_key),
        )
        progress = self._sessions.generate(session_id, clip, settings, api_key=api_key)
        async with contextlib.aclosing(progress):
            async for item in progress:
                if isinstance(item, PageResult):
                    yield self._show_new_result(session_id, item)
                elif isinstance(item, SoundPieces):
                    yield {layout.results.pieces: render_pieces(item, self._make_url)}
                else:
                    yield {layout.actions.progress: messages.render_progress(item)}

    def take_pictures(self, files: list[str]) -> Updates:
        """Take a still picture, numbered ones, or a zip of them in place of a video.

        Args:
            files: paths of what was uploaded.
        """
        clip, error = self._layout.clip, self._layout.errors["clip"]
        try:
            path = pack_upload([Path(file) for file in files])
            is_still = path.suffix.lower() != ".zip"
            told = messages.render_still(path) if is_still else messages.render_pictures(path)
        except (FoleyError, zipfile.BadZipFile) as found:
            text = str(found) if isinstance(found, FoleyError) else "This is not a whole zip"
            return {error: messages.render_error(f"{text[:1].upper()}{text[1:]}.")}
        return {
            error: "",
            self._layout.errors["start"]: "",
            self._layout.actions.part: gr.Row(visible=False),
            clip.video: None,
            clip.example: "",
            clip.pictures: str(path),
            clip.pictures_name: told,
            clip.pictures_box: gr.Column(visible=True),
            clip.frame_rate: gr.Number(visible=not is_still),
            clip.length: DEFAULT_SECONDS if is_still else None,
            clip.length_box: gr.Column(visible=is_still),
        }

    def take_no_clip(self) -> Updates:
        """Drop the clip, for a sound of the prompt alone."""
        clip = self._layout.clip
        return {
            self._layout.errors["clip"]: "",
            self._layout.errors["start"]: "",
            self._layout.actions.part: gr.Row(visible=False),
            clip.video: None,
            clip.example: "",
            clip.pictures: "",
            clip.pictures_box: gr.Column(visible=False),
            clip.length: DEFAULT_SECONDS,
            clip.length_box: gr.Column(visible=True),
        }

    def reset_buttons(self) -> tuple[Any, Any]:
        """Return the buttons "Make the sound" and "Cancel" as they are between generations."""
        return gr.Button(interactive=True), gr.Button("Cancel", interactive=False)

    async def cancel(self, request: gr.Request) -> Any:
        """Cancel the session's running generation.

        Args:
            request: identifies the session.
        """
        await self._sessions.cancel(str(request.session_hash))
        return gr.Button("Cancel", interactive=False)

    def show_result(
        self, index: int | None, adapters: tuple[str, ...], request: gr.Request
    ) -> Updates:
        """Show an earlier result of this session, and set the controls to its settings.

        Args:
            index: its place in the list, from 0; None if nothing is chosen.
            adapters: those that the page shows.
            request: identifies the session.
        """
        result = self._find_result(index, request)
        player = self._layout.results.player
        if result is None:
            return {player: gr.skip()}
        return {
            **read_settings(
                self._layout,
                result.settings.query,
                adapters,
                has_clip=bool(result.settings.clip_name),
            ),
            player: render_player(result, self._make_url),
        }

    def keep_seed(self, index: int | None, request: gr.Request) -> tuple[Any, Any]:
        """Set the seed to that of the result that is shown.

        Args:
            index: the result's place in the list, from 0; None if nothing is chosen.
            request: identifies the session.
        """
        result = self._find_result(index, request)
        if result is None:
            return gr.skip(), gr.skip()
        return FIXED, gr.Textbox(value=str(result.generation.seeds[0]), visible=True)

    def edit_result(self, index: int | None, request: gr.Request) -> Any:
        """Let the next sound start from the result that is shown.

        Args:
            index: the result's place in the list, from 0; None if nothing is chosen.
            request: identifies the session.
        """
        result = self._find_result(index, request)
        return gr.skip() if result is None else result.generation.request_id

    async def end_session(self, request: gr.Request) -> None:
        """Cancel and remove what belongs to a tab that was closed.

        Args:
            request: identifies the session.
        """
        await self._sessions.end(str(request.session_hash))

    def _find_result(self, index: int | None, request: gr.Request) -> PageResult | None:
        session = self._sessions.find(str(request.session_hash))
        if session is None or index is None or not 0 <= index < len(session.results):
            return None
        return session.results[index]

    def _show_error(self, place: str, text: str) -> Updates:
        layout = self._layout
        updates: Updates = {
            layout.actions.progress: "",
            layout.results.pieces: "",
            # The control may be outside the screen, so the button has a copy beside it.
            layout.errors["start"]: messages.render_error(text, is_copy=True),
            layout.errors[place]: messages.render_error(text),
        }
        if place == "api_key":
            updates[layout.model.key_box] = gr.Column(visible=True)
        return updates

    def _show_new_result(self, session_id: str, result: PageResult) -> Updates:
        layout = self._layout
        titles = [item.title for item in self._sessions.get(session_id).results]
        return {
            layout.actions.progress: "",
            layout.results.player: render_player(result, self._make_url),
            layout.results.pieces: render_end(result),
            layout.results.history: gr.Radio(choices=titles, value=titles[-1], visible=True),
            layout.results.seed_row: gr.Row(visible=True),
        }

    def _make_url(self, path: Path) -> str:
        # Relative to the page, which a proxy may serve anywhere.
        return f"results/{quote(path.relative_to(self._sessions.root).as_posix())}"

    def _find_public_url(self, request: gr.Request) -> str:
        """Return the address at which this user reaches the service."""
        if not self._same_origin:
            return self._sessions.server_url
        return str(request.headers[GRADIO_SERVER]).removesuffix(self._prefix)
