"""Projects of the editor on the command line: `--project clip.foley.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foley.cli.option_files import read_option_file
from foley.errors import ParameterError
from foley.mix import MixOptions
from foley.request import GenerationRequest

VERSION = 1
_FIELDS = {"foley_project", "clip", "request", "mix"}


@dataclass(frozen=True, kw_only=True)
class Project:
    """What the editor saves: how the sound of a clip is made.

    Attributes:
        clip: beside the project's file; None where the project names none.
        request: the options of the generation.
        mix: how its sound is finished.
    """

    clip: Path | None
    request: GenerationRequest
    mix: MixOptions


def read_project(path: Path) -> Project:
    """Return the project of a file.

    Args:
        path: of a file that the editor saved; UTF-8.

    Raises:
        ParameterError: it cannot be read, is no project, or has options out of bounds.
    """
    name = f"--project {path}"
    try:
        content = json.loads(read_option_file(path, "--project"))
    except (ValueError, RecursionError) as error:
        raise ParameterError(
            f"{name} is not JSON ({error}); save it in the editor again"
        ) from error
    if not isinstance(content, dict) or content.get("foley_project") != VERSION:
        raise ParameterError(
            f"{name} is no project of version {VERSION}; save it in the editor of this version"
        )
    if unknown := sorted(content.keys() - _FIELDS):
        raise ParameterError(f"{name} has {unknown[0]!r}, which this version does not know")
    clip = content.get("clip") or None
    # A project may come from somebody else: it names a file beside it, and no other.
    if clip is not None and (not isinstance(clip, str) or Path(clip).name != clip):
        raise ParameterError(f"{name} names the clip {clip!r:.200}; it must be a file's name alone")
    try:
        return Project(
            clip=None if clip is None else path.parent / clip,
            request=GenerationRequest.parse(**_read_options(content, "request")),
            mix=MixOptions.parse(**_read_options(content, "mix")),
        )
    except ParameterError as error:
        raise ParameterError(f"{name}: {error}") from error


def _read_options(content: dict[str, Any], field: str) -> dict[str, Any]:
    options = content.get(field, {})
    if not isinstance(options, dict):
        raise ParameterError(f"{field} is no object; save the project in the editor again")
    return options
