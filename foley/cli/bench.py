"""`foley bench`: the latency and the throughput of a running service, as its callers see them."""

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from rich.console import Console
from rich.table import Column, Table

from foley.atomic import atomic_path
from foley.cli.options import ServerOptions, SoundOptions
from foley.cli.plan import create_folder
from foley.cli.svg import draw_bars, draw_counts, draw_document
from foley.cli.whole import WHOLE
from foley.client import AsyncFoleyClient, RemoteGeneration
from foley.errors import BusyError, FoleyError, OutputError, ParameterError, ServerError
from foley.request import GenerationRequest

MAX_CALLERS = 256
DEFAULT_SECONDS = 4.0
DEFAULT_PROMPT = "rain"


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """What callers saw that each wait for an answer before their next request.

    Attributes:
        callers: how many.
        num_done: requests that were answered with a sound.
        errors: how often each error came, by its code.
        seconds: from the first request to the last answer.
        sound_seconds: length of all sounds together.
        latencies: seconds of each request with a sound, from its first byte to its result.
    """

    callers: int
    num_done: int
    errors: dict[str, int]
    seconds: float
    sound_seconds: float
    latencies: tuple[float, ...]

    def quantile(self, share: float) -> float | None:
        """Return the latency that this share of the requests did not exceed; None without any."""
        return float(np.quantile(self.latencies, share)) if self.latencies else None


def bench(
    clip: Annotated[
        Path | None, Parameter(help="Video that is sent; without it, sounds of the prompt alone.")
    ] = None,
    *,
    sound: SoundOptions = SoundOptions(),  # noqa: B008 - it is frozen
    callers: Annotated[
        tuple[int, ...],
        WHOLE,
        Parameter(
            negative=(), consume_multiple=True, help="Callers at once, one load after another."
        ),
    ] = (1, 4, 16),
    requests: Annotated[int, WHOLE, Parameter(help="Requests of each load.")] = 32,
    output: Annotated[Path | None, Parameter(alias="-o", help="Picture to write, .svg.")] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative=(), help="Write the figures as JSON instead.")
    ] = False,
    server: ServerOptions = ServerOptions(),  # noqa: B008
) -> int:
    """Run `foley bench`, whose help `foley.cli.commands` holds; return the exit status."""
    if server.url is None:
        raise ParameterError("foley bench measures a service; name it with --server")
    if clip is None:
        sound = replace(
            sound,
            prompt=sound.prompt or DEFAULT_PROMPT,
            duration_seconds=sound.duration_seconds or DEFAULT_SECONDS,
        )
    elif not clip.is_file():
        raise ParameterError(f"there is no file {clip}; name a video file")
    elif sound.duration_seconds is not None:
        raise ParameterError("--seconds is the length of a sound without a clip; leave one out")
    request = sound.parse()
    if not callers:
        raise ParameterError("--callers is empty; give one number for each load, such as 1 4 16")
    for count in callers:
        if not 1 <= count <= MAX_CALLERS:
            raise ParameterError(f"--callers: {count} is not possible; give 1 to {MAX_CALLERS}")
    if requests < 1:
        raise ParameterError(f"--requests: {requests} measure nothing; give 1 or more")
    if output is not None and output.suffix.lower() != ".svg":
        raise ParameterError(f"--output ends in {output.suffix or 'nothing'}; name a .svg file")
    if output is not None and output.is_dir():
        raise ParameterError(f"--output {output} is a folder; name a .svg file")
    if output is not None:
        create_folder(output.parent)
    results = asyncio.run(_measure_all(server, clip, request, callers, requests))
    if as_json:
        figures = [
            {**asdict(one), "p50_seconds": one.quantile(0.5), "p95_seconds": one.quantile(0.95)}
            for one in results
        ]
        print(json.dumps(figures))
    else:
        Console(file=sys.stdout, highlight=False).print(make_table(results))
    if output is not None:
        try:
            with atomic_path(output) as partial:
                partial.write_text(draw_loads(results, title=f"foley bench {server.url}"))
        except OSError as error:
            raise OutputError(f"{output} cannot be written ({error.strerror})") from error
    return 1 if any(one.errors for one in results) else 0


async def _measure_all(
    server: ServerOptions,
    clip: Path | None,
    request: GenerationRequest,
    callers: Sequence[int],
    num_requests: int,
) -> list[LoadResult]:
    assert server.url is not None
    async with AsyncFoleyClient(server.url, api_key=server.api_key) as client:
        await client.list_models()  # an address or a key that is wrong ends it here
        # The first request compiles and allocates what the others find. What is wrong with it would
        # be wrong with all.
        with contextlib.suppress(BusyError, ServerError):
            await _send(client, clip, request.model_dump())
        return [
            await _measure(client, clip, request, count, max(count, num_requests))
            for count in callers
        ]


async def _measure(
    client: AsyncFoleyClient,
    clip: Path | None,
    request: GenerationRequest,
    callers: int,
    num_requests: int,
) -> LoadResult:
    """Send requests from concurrent callers, and return what they saw."""
    left = iter(range(num_requests))
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    sound_seconds = 0.0
    options = request.model_dump()

    async def call() -> None:
        nonlocal sound_seconds
        for _ in left:
            sent = time.perf_counter()
            try:
                result = await _send(client, clip, options)
            except FoleyError as error:
                errors[error.code] += 1
                # A service that refuses at once would else get all requests in a moment.
                await asyncio.sleep(error.retry_after_seconds or 0.1)
                continue
            latencies.append(time.perf_counter() - sent)
            sound_seconds += result.duration_seconds * len(result.seeds)

    began = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return LoadResult(
        callers=callers,
        num_done=len(latencies),
        errors=dict(errors),
        seconds=time.perf_counter() - began,
        sound_seconds=sound_seconds,
        latencies=tuple(latencies),
    )


async def _send(
    client: AsyncFoleyClient, clip: Path | None, options: Mapping[str, Any]
) -> RemoteGeneration:
    """Return what was made, after its sound was received."""
    result = await client.generate(clip, format="wav", **options)
    await client.read(result.files[0])
    return result


def make_table(results: Sequence[LoadResult]) -> Table:
    """Return a row of figures for each load.

    Args:
        results: of each load.
    """
    errors = Column("errors", no_wrap=True)  # a code that is cut off says nothing
    rest = ("sounds/s", "s of sound/s", "p50 s", "p95 s")
    table = Table("callers", "sounds", errors, *rest)
    for one in results:
        named = "\n".join(f"{count} {code}" for code, count in one.errors.items())
        p50, p95 = one.quantile(0.5), one.quantile(0.95)
        table.add_row(
            str(one.callers),
            str(one.num_done),
            named or "0",
            f"{one.num_done / one.seconds:.2f}",
            f"{one.sound_seconds / one.seconds:.2f}",
            "-" if p50 is None else f"{p50:.2f}",
            "-" if p95 is None else f"{p95:.2f}",
        )
    return table


def draw_loads(results: Sequence[LoadResult], *, title: str) -> str:
    """Return an SVG document of loads.

    Args:
        results: of each load.
        title: of the picture.
    """
    labels = [str(one.callers) for one in results]
    errors = sum((Counter(one.errors) for one in results), Counter())
    rates = [one.sound_seconds / one.seconds for one in results]
    return draw_document(
        title,
        [
            draw_bars("seconds of sound made a second", rates, labels, "callers"),
            draw_bars(
                "95 % of the answers within seconds",
                [one.quantile(0.95) or 0.0 for one in results],
                labels,
                "callers",
            ),
            draw_counts("errors", errors.most_common(), "none"),
        ],
    )
