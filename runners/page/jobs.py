"""Durable jobs on the page: submitted as a sound is made, and still listed after a reload.

The browser keeps the ids of its jobs, and the page asks the service about each.
"""

import re
from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from foley.client import AsyncFoleyClient, RemoteJob
from foley.errors import FoleyError, NotFoundError
from runners.page.form import find_clip, list_inputs, read_options
from runners.page.layout import PageLayout
from runners.page.messages import STAGE_TEXTS, describe_error, locate_error, render_error

MAX_LISTED = 20
MAX_TITLE_CHARACTERS = 40  # of the prompt, which stands for the job in the list
ID = re.compile(r"[0-9a-f]{32}", re.ASCII)

Entry = dict[str, str]  # `id` and `title` of a job, as the browser keeps them


class PageJobs:
    """The event handlers of the jobs.

    Args:
        layout: the page's controls, with those of jobs.
        server_url: address of the service.
        same_origin: whether the service has the page's own address, and serves the files to it.
    """

    def __init__(self, layout: PageLayout, server_url: str, *, same_origin: bool) -> None:
        assert layout.jobs is not None
        self._layout = layout
        self._controls = layout.jobs
        self._server_url = server_url
        self._same_origin = same_origin

    @property
    def inputs(self) -> set[Any]:
        """The controls whose values `submit` reads."""
        return {*list_inputs(self._layout), self._controls.kept}

    @property
    def outputs(self) -> list[Any]:
        """The controls that `submit` changes."""
        controls = self._controls
        return [controls.kept, controls.list, controls.timer, *self._layout.errors.values()]

    async def submit(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Submit a job of the page's options, and show it among the others.

        Args:
            values: the value of each control of `inputs`.
        """
        layout = self._layout
        api_key = str(values[layout.model.api_key] or "")
        cleared = dict.fromkeys(layout.errors.values(), "")
        try:
            options = read_options(layout, values)
            clip = find_clip(layout, values)
            async with AsyncFoleyClient(self._server_url, api_key=api_key or None) as client:
                job = await client.jobs.submit(clip, **options)
        except FoleyError as error:
            text = describe_error(error, key_given=bool(api_key))
            return {**cleared, layout.errors[locate_error(error)]: render_error(text)}
        title = str(options.get("prompt") or "no prompt")[:MAX_TITLE_CHARACTERS]
        kept = [{"id": job.id, "title": title}, *read_kept(values[self._controls.kept])]
        shown = await self.show(kept[:MAX_LISTED], api_key)
        names = (self._controls.kept, self._controls.list, self._controls.timer)
        return {**cleared, **dict(zip(names, shown, strict=True))}

    async def show(self, kept: object, api_key: str | None) -> tuple[list[Entry], str, gr.Timer]:
        """Return the jobs that the browser keeps, without those that are gone, and their list.

        Args:
            kept: what the browser has stored; any value.
            api_key: of the page's field.
        """
        entries, lines, runs = [], [], False
        async with AsyncFoleyClient(self._server_url, api_key=api_key or None) as client:
            for entry in read_kept(kept):
                try:
                    job = await client.jobs.get(entry["id"])
                except NotFoundError:  # it has expired, or the key is another
                    continue
                except FoleyError as error:  # such as a service that is restarted
                    entries.append(entry)
                    lines.append(
                        _render_line(entry["title"], describe_error(error, key_given=bool(api_key)))
                    )
                    runs = True
                    continue
                entries.append(entry)
                lines.append(_render_line(entry["title"], *self._describe(job, bool(api_key))))
                runs |= not job.has_ended
        listed = f'<ul class="foley-jobs">{"".join(lines)}</ul>' if lines else ""
        return entries, listed, gr.Timer(active=runs)

    def _describe(self, job: RemoteJob, has_key: bool) -> tuple[str, str]:
        """Return the state of a job as text, and what leads to its files as HTML."""
        if job.error is not None:
            return f"failed: {job.error.message}", ""
        if job.result is None:
            return _describe_progress(job), ""
        if job.output is not None:
            return f"succeeded, in {job.output}", ""
        if has_key:  # a link sends no key
            return f"succeeded: foley jobs fetch {job.id}", ""
        root = ".." if self._same_origin else self._server_url
        links = (
            f'<a href="{escape(root)}/v1/jobs/{job.id}/result/{file.name}" download>'
            f"{escape(file.name)}</a>"
            for file in job.result.files
        )
        return "succeeded", " ".join(links)


def connect_job_events(
    blocks: gr.Blocks, layout: PageLayout, handlers: PageJobs, quiet: dict[str, Any]
) -> None:
    """Connect the controls of jobs with their handlers.

    Args:
        blocks: the Gradio application, which must be open.
        layout: the page's controls.
        handlers: the functions that run.
        quiet: options of events that show no progress.
    """
    controls = layout.jobs
    assert controls is not None
    show: dict[str, Any] = {
        "fn": handlers.show,
        "inputs": [controls.kept, layout.model.api_key],
        "outputs": [controls.kept, controls.list, controls.timer],
        **quiet,
    }
    blocks.load(**show)
    controls.timer.tick(**show)
    layout.model.api_key.submit(**show)
    controls.submit.click(handlers.submit, handlers.inputs, handlers.outputs, **quiet)


def read_kept(kept: object) -> list[Entry]:
    """Return the entries of what a browser has stored, which may be anything.

    Args:
        kept: any value.
    """
    if not isinstance(kept, list):
        return []
    entries = [
        {"id": entry["id"], "title": str(entry.get("title", ""))[:MAX_TITLE_CHARACTERS]}
        for entry in kept
        if isinstance(entry, dict) and ID.fullmatch(str(entry.get("id")))
    ]
    return entries[:MAX_LISTED]


def _describe_progress(job: RemoteJob) -> str:
    if job.queue_position is not None:
        return f"queued, {job.queue_position} before"
    told = job.progress
    if "message" in told:
        return f"{job.state}, waiting: {told['message']}"
    step = f" {told['step']}/{told['num_steps']}" if "num_steps" in told else ""
    stage = STAGE_TEXTS.get(str(told.get("stage")), "")
    return f"{job.state}, {stage}{step}" if stage else job.state


def _render_line(title: str, state: str, links: str = "") -> str:
    return f"<li><strong>{escape(title)}</strong> {escape(state)} {links}</li>"
