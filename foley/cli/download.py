"""`foley download`: the official weights, fetched once and verified."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from foley.errors import ConfigError
from foley.weights.licences import Licence, get_licence, is_accepted, record_acceptance
from foley.weights.sources import FILES, HubFile


def download(
    preset: Annotated[Literal["xl", "xxl"], Parameter(help="xl (10.6 GB) or xxl (15.0 GB).")],
    *,
    to: Annotated[
        Path | None,
        Parameter(
            env_var="FOLEY_WEIGHTS",
            help="Folder of the weights. Without it, the one where all commands look.",
        ),
    ] = None,
    accept_license: Annotated[
        bool,
        Parameter(
            env_var="FOLEY_ACCEPT_LICENSE",
            negative=(),
            help="Accept the licence that is shown, instead of being asked.",
        ),
    ] = False,
    quiet: Annotated[bool, Parameter(alias="-q", negative=(), help="No progress.")] = False,
) -> None:
    """Fetch the official weights of a preset, and verify them.

    Run again after an interruption, it goes on from there; after success, it fetches nothing.
    What the hub's cache holds is used, and HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE count.
    """
    from foley.weights.hub import default_folder

    obtain(preset, FILES[preset], to or default_folder(), accepted=accept_license, quiet=quiet)


def obtain(
    preset_name: str, files: Sequence[HubFile], folder: Path, *, accepted: bool, quiet: bool
) -> None:
    """Have the licence accepted and the files fetched, and say so.

    Raises:
        ConfigError: the licence was not accepted.
        DownloadError: a file could not be fetched, verified or stored.
    """
    from foley.weights.download import download_files
    from foley.weights.manifest import missing_files

    folder = folder.absolute()
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    require_acceptance(get_licence(preset_name), folder, accepted=accepted)
    if missing := missing_files(files, folder):
        console.print(f"{folder}: {len(missing)} files to fetch or verify")
        try:
            with _bars(console) as bars:
                download_files(
                    files,
                    folder,
                    on_progress=_Show(bars),
                    on_wait=lambda: console.print("another process fetches them: waiting"),
                )
        except KeyboardInterrupt:
            print("foley: interrupted; run again, and it goes on from there", file=sys.stderr)
            sys.exit(130)
    places = [folder / file.place for file in files]
    num_bytes = sum(path.stat().st_size for path in places if path.is_file())
    print(f"{folder}: preset {preset_name}, {num_bytes / 1e9:.2f} GB, verified")


def require_acceptance(licence: Licence, folder: Path, *, accepted: bool) -> None:
    """Show the licence's notice and have it accepted, once for each folder and text.

    Raises:
        ConfigError: it was not accepted.
        DownloadError: the acceptance cannot be recorded.
    """
    if is_accepted(licence, folder):
        return
    print(licence.notice, file=sys.stderr)
    how = "FOLEY_ACCEPT_LICENSE or --accept-license"
    if not accepted:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"the {licence.name} was not accepted, and there is no terminal to ask at; read "
                "the notice above, then set FOLEY_ACCEPT_LICENSE=yes"
            )
        print("Do you accept these terms? Type yes: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() != "yes":
            raise ConfigError(f"the {licence.name} was not accepted; nothing was fetched")
        how = "typed yes at a terminal"
    record_acceptance(licence, folder, how=how)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class _Show:
    """One bar for each file."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, int] = {}

    def __call__(self, place: str, num_done: int, num_bytes: int) -> None:
        """Show how far a file has come."""
        if place not in self._tasks:
            self._tasks[place] = self._bars.add_task(place, total=num_bytes)
        self._bars.update(self._tasks[place], completed=num_done)  # type: ignore[arg-type]
