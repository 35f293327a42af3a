"""From a row of a source to a task: options, prompt by template, and names of results."""

import json
import string
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from foley.bulk import BulkTask
from foley.cli.plan import SUFFIXES, VIDEO_SUFFIXES
from foley.errors import ParameterError
from foley.media.numbering import is_pattern
from foley.mix import MixOptions, choose_stem_path
from foley.request import AUDIO_FORMATS, GenerationRequest, check_part
from foley.storage import is_remote

_TEXTS = ("prompt", "negative_prompt")
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_PART = ("start_seconds", "frame_rate")
OPTIONS = (*GenerationRequest.model_fields, *MixOptions.model_fields, "trim", *_PART)
COLUMNS = ("clip", "output", *OPTIONS)
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class SourceRow:
    """A row as its source has it.

    Attributes:
        place: for messages, such as `clips.csv, line 3`.
        values: by column, without the empty ones.
        clip: absolute path or s3:// address of its clip; None without a clip.
        stem: where its result goes, without a suffix, relative to the output; empty where the
            clip's name says nothing, or there is no clip.
    """

    place: str
    values: Mapping[str, Any]
    clip: str | None
    stem: str


@dataclass(frozen=True)
class BadRow:
    """A row whose options are refused.

    Attributes:
        id: of the row, as of `BulkTask`.
        error: why.
    """

    id: str
    error: ParameterError


@dataclass(frozen=True)
class Defaults:
    """What holds for rows that say nothing else.

    Attributes:
        request: options of the generation; its prompt is a template.
        mix: how sounds are finished.
        trim: whether to cut clips that are too long.
        start_seconds: where the used part of each clip begins.
        frame_rate: of numbered pictures; other clips have their own.
        format: of results, without a dot; None for the clip's own container, or wav without one.
        output: absolute path of the folder, or s3:// address, of all results.
    """

    request: GenerationRequest
    mix: MixOptions
    trim: bool
    format: str | None
    output: str
    start_seconds: float = 0.0
    frame_rate: float | None = None


def list_fields(template: str) -> list[str]:
    """Return the columns that a template of a prompt names, such as `animal` in `a {animal}`.

    Args:
        template: where `{{` stands for a brace.

    Raises:
        ParameterError: a brace is open, or holds more than a column's name.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ParameterError(
            f"--prompt {template!r}: {error}; write {{column}} for a column, and {{{{ for a brace"
        ) from error
    names = []
    for _, name, format_spec, conversion in parts:
        if name is None:
            continue
        if not name or format_spec or conversion:
            raise ParameterError(
                f"--prompt {template!r}: braces hold the name of a column only, such as {{column}}"
            )
        names.append(name)
    return names


def fill_template(template: str, values: Mapping[str, Any]) -> str:
    """Return a template with the values of a row.

    Args:
        template: with columns in braces.
        values: of the row, by column.

    Raises:
        ParameterError: the row has no value for a column.
    """
    filled = ""
    for text, name, _, _ in string.Formatter().parse(template):
        filled += text
        if name is None:
            continue
        if name not in values:
            raise ParameterError(f"prompt: the row has no value in {name}, which --prompt names")
        filled += str(values[name])
    return filled


def make_tasks(rows: list[SourceRow], defaults: Defaults) -> tuple[list[BulkTask], list[BadRow]]:
    """Return the task of each row whose options hold, and the other rows.

    Args:
        rows: in order. Results whose names would be equal are numbered from the second on.
        defaults: what a row does not say.

    Raises:
        ParameterError: two rows name the same output.
    """
    tasks: list[BulkTask] = []
    bad: list[BadRow] = []
    places: dict[str, str] = {}
    used: Counter[str] = Counter()
    num_sounds = 0
    for row in rows:
        stem = row.stem
        if row.clip is None and "output" not in row.values:
            num_sounds += 1
            stem = f"sound-{num_sounds}"
        # Before anything is refused, so that a name does not depend on the rows above.
        used[stem] += 1
        if used[stem] > 1:
            stem = f"{stem}-{used[stem]}"
        identity = str(row.values.get("output", stem))
        try:
            task = _make_task(replace(row, stem=stem), defaults)
        except ParameterError as error:
            bad.append(BadRow(identity, ParameterError(f"{row.place}: {error}")))
            continue
        for name in task.names:
            if name in places:
                raise ParameterError(
                    f"{places[name]} and {row.place} would both be written to {name}; name other "
                    "outputs"
                )
            places[name] = row.place
        tasks.append(task)
    return tasks, bad


def _make_task(row: SourceRow, defaults: Defaults) -> BulkTask:
    values = dict(row.values)
    options = {key: _read_value(key, values[key]) for key in OPTIONS if key in values}
    trim = _read_flag(options.pop("trim", defaults.trim))
    mix = {key: options.pop(key) for key in MixOptions.model_fields if key in options}
    part = {key: _read_number(key, options.pop(key)) for key in _PART if key in options}
    start_seconds, frame_rate = _choose_part(row.clip, part, defaults)
    request = defaults.request.model_dump()
    # A prompt of the row's own, or of its layers, takes the place of the command's.
    has_prompt = "prompt" in options or bool(options.get("layers"))
    request["prompt"] = "" if has_prompt else fill_template(request["prompt"], values)
    if row.clip is None:
        if "duration_seconds" not in options and request["duration_seconds"] is None:
            raise ParameterError(
                "clip is empty; name a video file, or give duration_seconds for a sound without one"
            )
    elif not _is_still(row.clip):
        if "duration_seconds" in options:
            raise ParameterError(
                "duration_seconds: is the length of a sound without a clip or of a still picture "
                f"({' '.join(_PICTURE_SUFFIXES)}); leave it or the clip out"
            )
        request["duration_seconds"] = None  # that of the command is for other rows
    parsed = GenerationRequest.parse(**request | options)
    if row.clip is None:
        parsed.check_without_clip()
    finished = MixOptions.parse(**defaults.mix.model_dump() | mix)
    name = _choose_name(row, defaults)
    suffix = PurePosixPath(name).suffix[1:].lower()
    finished.check_files(
        (suffix,),
        has_clip=row.clip is not None,
        is_stereo=parsed.is_stereo,
        has_original=parsed.has_original,
    )
    if parsed.edit is not None and not parsed.edit.is_original:
        raise ParameterError(
            f"edit.source: is {parsed.edit.source[:40]}, and many clips at once are edited only "
            "from their own sound; use original, or foley generate"
        )
    if row.clip is None and suffix not in AUDIO_FORMATS:
        raise ParameterError(
            f"output {name} is a video, and the row has no clip; use {' or '.join(AUDIO_FORMATS)}"
        )
    return BulkTask(
        id=str(row.values.get("output", row.stem)),
        clip=row.clip,
        request=parsed,
        mix=finished,
        trim=trim,
        start_seconds=start_seconds,
        frame_rate=frame_rate,
        output=defaults.output,
        names=_list_names(name, parsed),
    )


def _read_value(key: str, value: Any) -> Any:
    """Return a value that stands as JSON in a text, such as a list of cues."""
    if key in _TEXTS or not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{key}: is no JSON ({error}), got {value[:60]!r}") from error


def _read_flag(value: Any) -> bool:
    word = str(value).lower()
    if word not in _TRUE + _FALSE:
        raise ParameterError(f"trim: must be true or false, got {value!r}")
    return word in _TRUE


def _read_number(key: str, value: Any) -> float:
    try:
        return float(str(value))  # of a boolean this is none
    except ValueError as error:
        raise ParameterError(f"{key}: must be a number, got {value!r}") from error


def _choose_part(
    clip: str | None, part: Mapping[str, float], defaults: Defaults
) -> tuple[float, float | None]:
    """Return the start and the frame rate of a row, given what it says of them itself."""
    for name, value in part.items():
        if clip is None and value:
            raise ParameterError(f"{name}: is of a clip, and the row has none; leave it out")
    if clip is None:
        return 0.0, None
    # The command's start is for videos, and its rate for pictures, which may lie beside them.
    start_seconds = part.get("start_seconds", 0.0 if _is_still(clip) else defaults.start_seconds)
    default_rate = defaults.frame_rate if _is_of_pictures(clip) else None
    frame_rate = part.get("frame_rate", default_rate)
    check_part(start_seconds, frame_rate)
    if frame_rate is None and not is_remote(clip) and is_pattern(Path(clip)):
        raise ParameterError(
            f"frame_rate: {clip} names pictures, which have no rate of their own; set it, or "
            "--frame-rate for all"
        )
    return start_seconds, frame_rate


def _is_still(clip: str) -> bool:
    return PurePosixPath(clip).suffix.lower() in _PICTURE_SUFFIXES and not is_pattern(Path(clip))


def _is_of_pictures(clip: str) -> bool:
    return clip.lower().endswith(".zip") or (not is_remote(clip) and is_pattern(Path(clip)))


def _choose_name(row: SourceRow, defaults: Defaults) -> str:
    given = row.values.get("output")
    if given is None:
        suffix = f".{defaults.format}" if defaults.format else _default_suffix(row.clip)
        return f"{row.stem}.foley{suffix}" if row.clip is not None else f"{row.stem}{suffix}"
    path = PurePosixPath(str(given))
    if path.is_absolute() or ".." in path.parts or is_remote(str(given)) or not path.name:
        raise ParameterError(f"output {given} leaves the folder of results; name a path below it")
    if path.parts[0].startswith(".foley-bulk"):
        raise ParameterError(f"output {given} is where records are kept; name another path")
    if path.suffix.lower() not in SUFFIXES:
        raise ParameterError(
            f"output {given} ends in none of {' '.join(SUFFIXES)}; give it one of these"
        )
    return str(path)


def _default_suffix(clip: str | None) -> str:
    if clip is None:
        return ".wav"
    suffix = PurePosixPath(clip).suffix.lower()
    return suffix if suffix in VIDEO_SUFFIXES else ".mp4"


def _list_names(name: str, request: GenerationRequest) -> tuple[str, ...]:
    path, count = Path(name), request.num_variations
    names = [name]
    if count > 1:
        names = [str(path.with_stem(f"{path.stem}-{index}")) for index in range(1, count + 1)]
    layers = range(1, len(request.layers) + 1)
    return (*names, *(str(choose_stem_path(path, number)) for number in layers))
