"""Projects of the editor on the command line: `--project clip.foley.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foley.cli.option_files import read_option_file
from foley.errors import ParameterError
from foley.mix import MixOptions
from foley.parts import Part
from foley.request import GenerationRequest

VERSION = 1
_FIELDS = {"foley_project", "clip", "request", "mix", "parts"}
_PART_FIELDS = {
    "layer",
    "start_seconds",
    "stop_seconds",
    "prompt",
    "negative_prompt",
    "cues",
    "seed",
}
_RANGE = ("start_seconds", "stop_seconds")
# Options of the request that a part has of its own, or that are about several sounds.
_OWN = {"layers", "prompt", "negative_prompt", "cues", "seed", "num_variations"}


@dataclass(frozen=True, kw_only=True)
class Project:
    """What the editor saves: how the sound of a clip is made.

    Attributes:
        clip: beside the project's file; None where the project names none.
        request: the options of the generation.
        mix: how its sound is finished.
        parts: of its layers that are made again, in the order in which they were made.
    """

    clip: Path | None
    request: GenerationRequest
    mix: MixOptions
    parts: tuple[Part, ...] = ()


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
    except RecursionError as error:
        raise ParameterError(
            f"{name} is not JSON of a depth that a project has; save it in the editor again"
        ) from error
    except ValueError as error:
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
        request = GenerationRequest.parse(**_read_options(content, "request"))
        return Project(
            clip=None if clip is None else path.parent / clip,
            request=request,
            mix=MixOptions.parse(**_read_options(content, "mix")),
            parts=_read_parts(content, request),
        )
    except ParameterError as error:
        raise ParameterError(f"{name}: {error}") from error


def _read_options(content: dict[str, Any], field: str) -> dict[str, Any]:
    options = content.get(field, {})
    if not isinstance(options, dict):
        raise ParameterError(f"{field} is no object; save the project in the editor again")
    return options


def _read_parts(content: dict[str, Any], request: GenerationRequest) -> tuple[Part, ...]:
    """Return the parts that are made again, each with the request that makes it."""
    parts = content.get("parts", [])
    if not isinstance(parts, list):
        raise ParameterError("parts is no list; save the project in the editor again")
    if parts and request.num_variations > 1:
        raise ParameterError(
            f"parts: are of one sound, and num_variations is {request.num_variations}; leave one "
            "of them out"
        )
    return tuple(_read_part(part, number, request) for number, part in enumerate(parts, start=1))


def _read_part(part: object, number: int, request: GenerationRequest) -> Part:
    if not isinstance(part, dict) or (unknown := sorted(part.keys() - _PART_FIELDS)):
        what = f"has {unknown[0]!r}" if isinstance(part, dict) else "is no object"
        raise ParameterError(
            f"parts: part {number} {what}; save the project in the editor of this version"
        )
    layer, count = part.get("layer", 1), max(1, len(request.layers))
    if type(layer) is not int or not 1 <= layer <= count:
        raise ParameterError(
            f"parts: part {number} is of layer {layer!r:.50}, and there are layers 1 to {count}"
        )
    shared = {
        name: value
        for name, value in request.model_dump(exclude_defaults=True).items()
        if name not in _OWN
    }
    own = {name: value for name, value in part.items() if name not in ("layer", *_RANGE)}
    edges = {name: part[name] for name in _RANGE if name in part}
    try:
        made = GenerationRequest.parse(**shared, **own, edit={"source": "file", "ranges": [edges]})
    except ParameterError as error:
        raise ParameterError(f"parts: part {number}: {error}") from error
    return Part(layer=layer, request=made)
