"""The request to make sound: its options, its form and the names of its result files.

Nothing here opens a connection: both clients use it.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from foley.client.results import RemoteFile, RemoteGeneration, RemotePiece, RemoteUpdate
from foley.errors import OutputError, ParameterError, VideoDecodeError
from foley.mix import Channels, MixOptions, OriginalSound, Placement
from foley.plans import Quality, Solver
from foley.request import (
    AdapterUse,
    AudioFormat,
    AvoidSpeech,
    Cue,
    Edit,
    Format,
    GenerationRequest,
    Layer,
)

Clip = Path | str | bytes
OnUpdate = Callable[[RemoteUpdate], None]
OnSound = Callable[[RemotePiece], None]

EVENT_STREAM = "text/event-stream"


class RequestOptions(TypedDict, total=False):
    """The options of `generate`.

    `foley.GenerationRequest` and `foley.mix.MixOptions` have their ranges and defaults.
    """

    prompt: str
    negative_prompt: str
    guidance_scale: float | None
    num_inference_steps: int | None
    solver: Solver | None
    schedule_shift: float | None
    guidance_interval: float | None
    quality: Quality | None  # chooses the four sampler's options above
    seed: int | None
    num_variations: int
    duration_seconds: float | None  # of a sound without a clip, or of a still picture
    clip_url: str | None  # where the service finds the clip, if it is not sent
    cues: Sequence[Cue | Mapping[str, object]]  # prompts for ranges of time
    layers: Sequence[Layer | Mapping[str, object]]  # sounds that are mixed
    # A sound to start from. Its source may be a Path or bytes, which are sent.
    edit: Edit | Mapping[str, object] | None
    adapters: Sequence[AdapterUse | Mapping[str, object]]  # that change the model
    avoid_speech: AvoidSpeech  # measure speech, or draw other seeds while there is some
    max_retries: int  # with avoid_speech retry
    original_sound: OriginalSound  # what becomes of the clip's own sound; drop by default
    original_gain_db: float
    duck_depth_db: float
    duck_release_ms: float
    gain_db: float  # of the new sound
    fade_in_seconds: float
    fade_out_seconds: float
    channels: Channels | None
    pan: float
    placement: Placement  # of the new sound on the channels of a clip's own sound of 5.1 or more
    loudness_lufs: float | None
    true_peak_dbtp: float | None
    limiter: bool
    stems: bool
    broadcast_wave: bool
    trim: bool  # cut a clip that is too long instead of refusing it
    start_seconds: float  # where the used part of the clip begins; 0 by default
    frame_rate: float | None  # of a clip that is a zip of numbered pictures
    format: Format  # of the files; mp4 by default, wav without a clip
    also: Sequence[AudioFormat]  # formats of the sound alone, written too; none by default
    pieces: bool  # tell of each piece of a long sound as soon as it is final
    priority: Literal["interactive", "bulk"]  # bulk lets interactive requests go first


class PreparedRequest:
    """A request to `POST /v1/generate`, checked before anything is sent.

    Args:
        clip: path of the video, or its bytes; None for a `clip_url`, or a sound without a clip.
        options: a mapping with the keys of `RequestOptions`. A value of None is not sent.
        request_id: 1 to 64 letters, digits, `.`, `_` and `-`. The service chooses one if it is
            None.
        destination: folder for the files; None for none.
        output: file for the sound of one variation; None for none.
        more_fields: of the form, which are not checked. A value of None is not sent.

    Raises:
        ParameterError: an option is unknown or out of bounds, `output` does not fit them, or there
            is neither a clip nor a `clip_url` nor a `duration_seconds`, or two clips.
    """

    def __init__(
        self,
        clip: Clip | None,
        options: Mapping[str, Any],
        *,
        request_id: str | None,
        destination: Path | str | None = None,
        output: Path | str | None = None,
        more_fields: Mapping[str, str | None] | None = None,
    ) -> None:
        self._folder = None if destination is None else Path(destination)
        self._output = None if output is None else Path(output)
        if self._output is not None:
            options = _check_output(self._output, options, with_folder=destination is not None)
        options, self._source = _take_source(options)
        known = GenerationRequest.model_fields
        request = GenerationRequest.parse(**{k: v for k, v in options.items() if k in known})
        mix_names = MixOptions.model_fields
        MixOptions.parse(**{k: v for k, v in options.items() if k in mix_names})
        unknown = sorted(options.keys() - RequestOptions.__annotations__.keys())
        if unknown:
            raise ParameterError(f"{unknown[0]}: no such option")
        num_clips = (clip is not None) + (options.get("clip_url") is not None)
        if num_clips == 2:
            raise ParameterError("got an address and a clip; leave one of them out")
        if num_clips == 0 and request.duration_seconds is None:
            raise ParameterError(
                "clip: missing; give a clip, its address, or a duration and a prompt for a sound "
                "without one"
            )
        if num_clips == 0:
            request.check_without_clip()
        self._clip = clip if clip is None or isinstance(clip, bytes) else Path(clip)
        if request.edit is not None and request.edit.is_sent and self._source is None:
            raise ParameterError("edit.source: is file; give its path as a Path, or its bytes")
        objects = {"cues", "layers", "adapters", "edit"}
        lists = request.model_dump(include=objects, exclude_unset=True)
        options = {
            **options,
            **{name: value or None for name, value in lists.items()},
            **(more_fields or {}),
        }
        self._fields = {k: format_field(v) for k, v in options.items() if v is not None}
        self._headers = {"Accept": EVENT_STREAM}
        if request_id is not None:
            self._headers["X-Request-Id"] = request_id

    @property
    def clip(self) -> Path | bytes | None:
        """The clip that is sent; None without one."""
        return self._clip

    def replace_clip(self, field: str, value: str) -> None:
        """Name the clip by a field, in place of sending it.

        Args:
            field: of the form.
            value: of the field.
        """
        self._clip = None
        self._fields[field] = value

    @contextlib.contextmanager
    def open_form(self) -> Iterator[dict[str, Any]]:
        """Yield the form and the headers as arguments of httpx.

        The files stay open inside the block, because httpx reads them while it sends.

        Raises:
            VideoDecodeError: a file cannot be opened.
        """
        files = {"clip": self._clip, "edit_source": self._source}
        given = {name: file for name, file in files.items() if file is not None}
        if not given:
            # Parts without a file name, since httpx sends a form without files in another encoding.
            fields = {name: (None, value) for name, value in self._fields.items()}
            yield {"files": fields, "headers": self._headers}
            return
        with contextlib.ExitStack() as stack:
            parts: dict[str, Any] = {}
            for name, file in given.items():
                try:
                    content = (
                        file if isinstance(file, bytes) else stack.enter_context(file.open("rb"))
                    )
                except OSError as error:
                    raise VideoDecodeError(
                        f"{file!s} cannot be read ({error.strerror}); check the path"
                    ) from error
                # The file's real name is not sent.
                parts[name] = (name, content, "application/octet-stream")
            yield {"data": self._fields, "files": parts, "headers": self._headers}

    def pair_result_paths(self, result: RemoteGeneration) -> list[tuple[RemoteFile, Path]]:
        """Pair each file of the result with the path at which the caller wants it.

        Args:
            result: the service's answer to this request.

        Returns:
            Without a folder and an output, nothing. With an output, one pair. With a folder, one
            pair for each file: CLIP.foley.FORMAT, or CLIP.foley-N.FORMAT if there are several
            variations. A layer has its number: CLIP.foley-layer-N.FORMAT.

        Raises:
            OutputError: the service chose another container than that of the output.
        """
        if self._output is not None:
            wanted = self._output.suffix.lower().removeprefix(".")
            file, *_ = result.select_files(wanted)
            if file.format != wanted:
                raise OutputError(
                    f"{self._output} cannot hold the clip's picture, so the service wrote "
                    f"{file.format}; name an output that ends in .{file.format}"
                )
            return [(file, self._output)]
        if self._folder is None:
            return []
        stem = "clip" if isinstance(self._clip, bytes) else "sound"
        if isinstance(self._clip, Path):
            stem = self._clip.stem
        pairs = []
        for file in result.files:
            number = f"-{file.variation}" if len(result.seeds) > 1 else ""
            layer = "" if file.layer is None else f"-layer-{file.layer}"
            pairs.append((file, self._folder / f"{stem}.foley{number}{layer}.{file.format}"))
        return pairs


def _take_source(options: Mapping[str, Any]) -> tuple[Mapping[str, Any], Path | bytes | None]:
    """Return the options with a source of text, and the file that an edit starts from, if any."""
    edit = options.get("edit")
    if not isinstance(edit, Mapping) or not isinstance(edit.get("source"), Path | bytes):
        return options, None
    return {**options, "edit": {**edit, "source": "file"}}, edit["source"]


def _check_output(
    output: Path, options: Mapping[str, Any], *, with_folder: bool
) -> Mapping[str, Any]:
    """Return the options with the format of the output file."""
    if with_folder:
        raise ParameterError("output: give a file or a destination folder, and not both")
    if options.get("num_variations", 1) != 1 or options.get("also") or options.get("layers"):
        raise ParameterError(
            "output: is one file, and several were asked for; give a destination folder"
        )
    suffix = output.suffix.lower().removeprefix(".")
    if suffix not in get_args(Format):
        raise ParameterError(
            f"output: {output} ends in {output.suffix or 'no suffix'}; use one of "
            f"{' '.join(f'.{name}' for name in get_args(Format))}"
        )
    if options.get("format", suffix) != suffix:
        raise ParameterError(f"output: {output} does not end in .{options['format']}, the format")
    return {**options, "format": suffix}


def format_field(value: object) -> str:
    """Return an option as a form holds it: `true` or `false`, lists with commas, objects as JSON.

    Args:
        value: a number, a text, a boolean, a mapping, or a list or tuple of texts without commas,
            or of mappings.
    """
    items = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, dict) for item in items):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
