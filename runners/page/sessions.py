"""What belongs to one visit: a tab's results, its files and its work. No visit sees another's."""

import asyncio
import secrets
import shutil
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

from foley.client import AsyncFoleyClient, RemoteGeneration, RemoteUpdate, RequestOptions
from foley.errors import CancelledRequestError, FoleyError
from runners.page.results import Take, gather_take
from runners.page.snippets import Recipe

MAX_TAKES = 20  # a visit's older results go, for their files take space


@dataclass
class Work:
    """A generation under way."""

    request_id: str
    client: AsyncFoleyClient
    task: asyncio.Task[RemoteGeneration]


@dataclass
class Visit:
    """One tab, from its first result until it is closed."""

    folder: Path
    takes: list[Take] = field(default_factory=list)
    num_made: int = 0
    work: Work | None = None


class Visits:
    """All visits. Their folders have names that cannot be guessed: who knows one may read it.

    Args:
        root: folder for the files of all visits.
        server_url: where the service is.
    """

    def __init__(self, root: Path, server_url: str) -> None:
        self.root = root
        self.server_url = server_url
        self._visits: dict[str, Visit] = {}

    def of(self, session: str) -> Visit:
        """The visit of a session, which begins with the first question for it."""
        if session not in self._visits:
            folder = self.root / secrets.token_urlsafe(16)
            folder.mkdir(parents=True)
            self._visits[session] = Visit(folder=folder)
        return self._visits[session]

    async def end(self, session: str) -> None:
        """Drop what the visit has under way, and its files."""
        visit = self._visits.pop(session, None)
        if visit is not None:
            await self._drop_work(visit)
            await asyncio.to_thread(shutil.rmtree, visit.folder, ignore_errors=True)

    async def cancel(self, session: str) -> None:
        """Drop what the visit has under way."""
        await self._drop_work(self.of(session))

    async def make(
        self, session: str, clip: Path, options: RequestOptions, *, api_key: str, recipe: Recipe
    ) -> AsyncGenerator[RemoteUpdate | Take, None]:
        """Tell how far a generation has come, and its outcome last.

        Args:
            session: whose it is.
            clip: the video.
            options: of the generation.
            api_key: the visitor's; empty where the service wants none.
            recipe: the same options; the seed that was used is added to it.

        Raises:
            FoleyError: the service refused or failed, or the visitor gave up.
        """
        visit = self.of(session)
        updates: asyncio.Queue[RemoteUpdate | None] = asyncio.Queue()
        request_id = f"page-{secrets.token_hex(12)}"
        async with AsyncFoleyClient(self.server_url, api_key=api_key or None) as client:
            task = asyncio.create_task(
                client.generate(
                    clip, request_id=request_id, on_update=updates.put_nowait, **options
                )
            )
            task.add_done_callback(lambda _: updates.put_nowait(None))
            work = visit.work = Work(request_id=request_id, client=client, task=task)
            try:
                while (update := await updates.get()) is not None:
                    yield update
                if task.cancelled():
                    raise CancelledRequestError("Cancelled. Nothing was kept.")
                made = task.result()
                visit.num_made += 1
                take = await gather_take(
                    client,
                    made,
                    recipe.with_seed(made.seeds[0]),
                    number=visit.num_made,
                    clip=clip,
                    folder=visit.folder / str(visit.num_made),
                )
            finally:
                task.cancel()  # whoever waited has left
                if visit.work is work:
                    visit.work = None
        visit.takes.append(take)
        for old in visit.takes[:-MAX_TAKES]:
            visit.takes.remove(old)
            await asyncio.to_thread(shutil.rmtree, old.film_strip.parent, ignore_errors=True)
        yield take

    async def _drop_work(self, visit: Visit) -> None:
        if (work := visit.work) is None:
            return
        visit.work = None
        work.task.cancel()
        try:  # leaving is enough where nothing stands between; this is for where something does
            await asyncio.wait_for(work.client.cancel(work.request_id), timeout=1)
        except (FoleyError, TimeoutError):
            return
