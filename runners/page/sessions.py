"""The sessions of the page. One session is one tab: its results, files and running generation."""

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from pathlib import Path

from foley.client import (
    AsyncFoleyClient,
    RemoteGeneration,
    RemotePiece,
    RemoteUpdate,
    RequestOptions,
)
from foley.errors import CancelledRequestError, FoleyError
from foley.request import AUDIO_FORMATS
from runners.page.results import PageResult, SoundPieces, collect_result
from runners.page.snippets import ResultSettings
from runners.sandbox.pool import Sandbox

MAX_RESULTS = 20  # of one session; older ones are removed
# Anybody may invent sessions. Of more than these the one that was used least recently ends.
MAX_SESSIONS = 100
KEEP_SECONDS = 7200.0
# Of one session's results, and of those of all, in uploads of the largest size. One result has the
# clip once for its original and once for each variation.
NUM_LARGEST_OF_SESSION = 10
NUM_LARGEST = 40
CANCEL_TIMEOUT_SECONDS = 1.0


@dataclass
class RunningGeneration:
    """A generation that has not ended.

    Attributes:
        request_id: names it to the service.
        client: the connection that it uses.
        task: the call of the service.
    """

    request_id: str
    client: AsyncFoleyClient
    task: asyncio.Task[RemoteGeneration]


@dataclass
class PageSession:
    """What belongs to one tab, from its first generation until it is closed.

    Attributes:
        folder: holds a folder for each result.
        results: the latest ones, oldest first: `MAX_RESULTS` at most, and fewer if they are large.
        sizes: bytes of each of them.
        num_results: how many results there have been.
        running: the generation that has not ended, if there is one.
        last_used: by `time.monotonic`.
    """

    folder: Path
    results: list[PageResult] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    num_results: int = 0
    running: RunningGeneration | None = None
    last_used: float = field(default_factory=time.monotonic)


class PageSessions:
    """All sessions of the page.

    The folders have names of 128 random bits, because anyone who knows a name can read the files.

    Args:
        root: parent of the sessions' folders.
        server_url: address of the service.
        sandbox: draws the pictures of the results.
        max_clip_bytes: the largest upload, which bounds what the results take.
    """

    def __init__(
        self, root: Path, server_url: str, sandbox: Sandbox, *, max_clip_bytes: int
    ) -> None:
        self._max_clip_bytes = max_clip_bytes
        self.root = root
        self.server_url = server_url
        self._sandbox = sandbox
        self._sessions: dict[str, PageSession] = {}

    def get(self, session_id: str) -> PageSession:
        """Return a session; create it if it is new.

        Args:
            session_id: the id that Gradio gives each tab.
        """
        if session_id not in self._sessions:
            folder = self.root / secrets.token_urlsafe(16)
            folder.mkdir(parents=True)
            self._sessions[session_id] = PageSession(folder=folder)
        session = self._sessions[session_id]
        session.last_used = time.monotonic()
        return session

    def find(self, session_id: str) -> PageSession | None:
        """Return a session, or None if there is none of this id.

        Args:
            session_id: any id.
        """
        return self._sessions.get(session_id)

    async def sweep_forever(self) -> None:
        """End the sessions that were not used for `KEEP_SECONDS`."""
        while True:
            await asyncio.sleep(KEEP_SECONDS / 60)
            await self.end_idle(KEEP_SECONDS, MAX_SESSIONS)

    async def end_idle(self, keep_seconds: float, max_sessions: int) -> None:
        """End sessions without a running generation.

        Args:
            keep_seconds: a session that was not used for longer ends.
            max_sessions: of more, those end that were used least recently.
        """
        idle = sorted(
            (session.last_used, session_id)
            for session_id, session in self._sessions.items()
            if session.running is None
        )
        num_over = len(self._sessions) - max_sessions
        now = time.monotonic()
        for index, (last_used, session_id) in enumerate(idle):
            if index < num_over or now - last_used > keep_seconds:
                await self.end(session_id)

    async def end(self, session_id: str) -> None:
        """Cancel the session's running generation and remove its files.

        Args:
            session_id: any id; nothing happens if there is no such session.
        """
        session = self._sessions.pop(session_id, None)
        if session is not None:
            await _cancel_running(session)
            await asyncio.to_thread(shutil.rmtree, session.folder, ignore_errors=True)

    async def cancel(self, session_id: str) -> None:
        """Cancel the session's running generation, if there is one.

        Args:
            session_id: the id that Gradio gives each tab.
        """
        if (session := self.find(session_id)) is not None:
            await _cancel_running(session)

    async def generate(
        self, session_id: str, clip: Path | None, settings: ResultSettings, *, api_key: str
    ) -> AsyncGenerator[RemoteUpdate | SoundPieces | PageResult, None]:
        """Generate a sound; yield its progress, its pieces so far and, at the end, its result.

        The pieces are those of the first variation. Their files are removed at the end.

        Args:
            session_id: the session that the result belongs to.
            clip: the video or pictures; None for a sound of the prompt alone.
            settings: the options, and what the result's snippets name.
            api_key: the user's key; empty if the service asks for none.

        Raises:
            FoleyError: the service refused or failed, or the user cancelled.
        """
        if self.find(session_id) is None:
            await self.end_idle(KEEP_SECONDS, MAX_SESSIONS - 1)
        session = self.get(session_id)
        updates: asyncio.Queue[RemoteUpdate | RemotePiece | None] = asyncio.Queue()
        request_id = f"page-{secrets.token_hex(12)}"
        folder = session.folder / request_id
        start_seconds = float(settings.options.get("start_seconds", 0.0))
        pieces = SoundPieces(files=(), start_seconds=start_seconds)
        async with AsyncFoleyClient(self.server_url, api_key=api_key or None) as client:
            task = asyncio.create_task(
                client.generate(
                    clip,
                    request_id=request_id,
                    on_update=updates.put_nowait,
                    on_sound=updates.put_nowait,
                    # The page draws wav files and offers both formats for download.
                    **RequestOptions({**settings.options, "also": AUDIO_FORMATS}),
                )
            )
            task.add_done_callback(lambda _: updates.put_nowait(None))
            running = session.running = RunningGeneration(request_id, client, task)
            try:
                while (update := await updates.get()) is not None:
                    if isinstance(update, RemoteUpdate):
                        yield update
                    elif update.variation == 1:
                        pieces = await _fetch_piece(client, update, pieces, folder)
                        yield pieces
                if task.cancelled():
                    raise CancelledRequestError("Cancelled. Nothing was kept.")
                result = await self._collect(session, client, task.result(), settings, clip)
            finally:
                task.cancel()  # the tab may have been closed
                if session.running is running:
                    session.running = None
                shutil.rmtree(folder, ignore_errors=True)
        await self._add_result(session, result)
        yield result

    async def _add_result(self, session: PageSession, result: PageResult) -> None:
        """Keep a result; older ones of its session, and idle other sessions, make room."""
        num_bytes = await asyncio.to_thread(result.measure_bytes)
        session.results.append(result)
        session.sizes.append(num_bytes)
        while len(session.results) > 1 and (
            len(session.results) > MAX_RESULTS
            or sum(session.sizes) > NUM_LARGEST_OF_SESSION * self._max_clip_bytes
        ):
            del session.sizes[0]
            old = session.results.pop(0)
            await asyncio.to_thread(shutil.rmtree, old.folder, ignore_errors=True)
        for _, session_id in sorted(
            (other.last_used, session_id)
            for session_id, other in self._sessions.items()
            if other.running is None and other is not session
        ):
            kept_bytes = sum(sum(other.sizes) for other in self._sessions.values())
            if kept_bytes <= NUM_LARGEST * self._max_clip_bytes:
                break
            await self.end(session_id)

    async def _collect(
        self,
        session: PageSession,
        client: AsyncFoleyClient,
        generation: RemoteGeneration,
        settings: ResultSettings,
        clip: Path | None,
    ) -> PageResult:
        session.num_results += 1
        number = session.num_results
        return await collect_result(
            client,
            generation,
            settings.with_seed(generation.seeds[0]),
            number=number,
            clip=clip,
            folder=session.folder / str(number),
            sandbox=self._sandbox,
        )


async def _fetch_piece(
    client: AsyncFoleyClient, piece: RemotePiece, before: SoundPieces, folder: Path
) -> SoundPieces:
    """Return the pieces with a further one; without it where the service has it no more."""
    # A piece that is missing would shift those after it, so they are left out too.
    if piece.number != len(before.files) + 1:
        return before
    try:
        file = await client.download(piece, folder / f"{piece.number}.wav")
    except FoleyError:  # the result has it too
        return before
    return replace(before, files=(*before.files, file))


async def _cancel_running(session: PageSession) -> None:
    if (running := session.running) is None:
        return
    session.running = None
    running.task.cancel()
    try:
        # Closing the connection cancels the request too, unless a proxy keeps it open.
        async with asyncio.timeout(CANCEL_TIMEOUT_SECONDS):
            await running.client.cancel(running.request_id)
    except (FoleyError, TimeoutError):
        return
