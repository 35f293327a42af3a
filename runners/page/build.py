"""Build the page: its controls, their handlers and the events between them."""

import gradio as gr

from runners.page.bounds import PageBounds
from runners.page.events import UNQUEUED, connect_events
from runners.page.handlers import PageHandlers
from runners.page.jobs import PageJobs, connect_job_events
from runners.page.layout import PageLayout
from runners.page.sessions import PageSessions

# Gradio also removes the files that its own components have copied, after an hour.
DELETE_CACHE_SECONDS = (600, 3600)


def build_page(
    sessions: PageSessions, bounds: PageBounds, *, prefix: str, same_origin: bool
) -> gr.Blocks:
    """Return the page as a Gradio application.

    Args:
        sessions: the results of each tab; it knows the service's address.
        bounds: what the service accepts of a clip.
        prefix: path below which the page is served: empty, or such as /ui.
        same_origin: whether the service has the page's own address.
    """
    with gr.Blocks(
        title="Foley",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=DELETE_CACHE_SECONDS,
    ) as blocks:
        layout = PageLayout(bounds, same_origin=same_origin)
        handlers = PageHandlers(layout, sessions, prefix=prefix, same_origin=same_origin)
        connect_events(blocks, layout, handlers)
        if layout.jobs is not None:
            jobs = PageJobs(layout, sessions.server_url, same_origin=same_origin)
            connect_job_events(blocks, layout, jobs, UNQUEUED)
    return blocks
