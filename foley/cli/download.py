"""`foley download`: download and verify the official weights."""

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
            help="Folder of the weights. By default the folder that all commands use.",
        ),
    ] = None,
    accept_license: Annotated[
        bool,
        Parameter(
            env_var="FOLEY_ACCEPT_LICENSE",
            negative=(),
            help="Accept the licence that is shown, without a question.",
        ),
    ] = False,
    quiet: Annotated[bool, Parameter(alias="-q", negative=(), help="Show no progress.")] = False,
) -> None:
    """Download the official weights of a preset and verify them.

    A download that was interrupted continues when the command runs again. Files that are complete
    are not downloaded again. Files in the hub's cache are used. The command reads HF_TOKEN,
    HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE.
    """
    from foley.weights.hub import default_folder

    if to is None and str(default_folder()).startswith("~"):
        raise ConfigError(
            "this user has no home folder for weights: name a folder with --to, or set HF_HOME"
        )
    download_preset(
        preset, FILES[preset], to or default_folder(), accepted=accept_license, quiet=quiet
    )


def download_preset(
    preset_name: str, files: Sequence[HubFile], folder: Path, *, accepted: bool, quiet: bool
) -> None:
    """Ask for acceptance of the licence, download the missing files and print the result.

    Args:
        preset_name: xl or xxl; it decides the licence.
        files: the files that the preset needs.
        folder: where they are stored.
        accepted: whether the user has accepted the licence already.
        quiet: whether to hide progress.

    Raises:
        ConfigError: the licence was not accepted.
        DownloadError: a file could not be downloaded, verified or stored.
    """
    from foley.weights.download import download_files
    from foley.weights.manifest import missing_files

    folder = folder.absolute()
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    require_acceptance(get_licence(preset_name), folder, accepted=accepted)
    if missing := missing_files(files, folder):
        console.print(f"{folder}: {len(missing)} files to download or verify")
        try:
            with _bars(console) as bars:
                download_files(
                    files,
                    folder,
                    on_progress=_FileBars(bars),
                    on_wait=lambda: console.print(
                        "waiting for another process that downloads them"
                    ),
                )
        except KeyboardInterrupt:
            print("foley: interrupted; run the command again to continue", file=sys.stderr)
            sys.exit(130)
    places = [folder / file.place for file in files]
    num_bytes = sum(path.stat().st_size for path in places if path.is_file())
    print(f"{folder}: preset {preset_name}, {num_bytes / 1e9:.2f} GB, verified")


def require_acceptance(licence: Licence, folder: Path, *, accepted: bool) -> None:
    """Show the licence's notice and ask for acceptance, once for each folder and text.

    Args:
        licence: the licence of the weights.
        folder: where the weights and the record of the acceptance are stored.
        accepted: whether the user has accepted the licence already.

    Raises:
        ConfigError: the licence was not accepted.
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
            raise ConfigError(f"the {licence.name} was not accepted; nothing was downloaded")
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


class _FileBars:
    """One progress bar for each file."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, int] = {}

    def __call__(self, place: str, num_done: int, num_bytes: int) -> None:
        """Move the bar of a file.

        Args:
            place: the file's path in the folder.
            num_done: bytes that are stored.
            num_bytes: size of the file.
        """
        if place not in self._tasks:
            self._tasks[place] = self._bars.add_task(place, total=num_bytes)
        self._bars.update(self._tasks[place], completed=num_done)  # type: ignore[arg-type]
