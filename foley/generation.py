"""What the library returns, the sounds of one clip, and how they become files."""

# N variations

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, get_args

from foley.errors import OutputError, ParameterError
from foley.marks.mark import Mark, Marks, load_marks
from foley.mix import MixOptions, choose_stem_path
from foley.request import AUDIO_FORMATS, Format, GenerationRequest
from foley.types import SourceSound

if TYPE_CHECKING:
    from torch import Tensor

    from foley.media.mux import MediaFile

SourceClip = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


@dataclass(frozen=True)
class GivenSource:
    """The sound that an edit starts from, as a caller of the library gives it.

    Attributes:
        sound: a file, a generation of one variation, or None for the clip's own sound.
    """

    sound: Path | bytes | Generation | None

    def read(self, clip: Path | bytes | None) -> SourceSound:
        """Return the sound.

        Args:
            clip: of the request; None where there is none, or its frames alone.

        Raises:
            ParameterError: there is no clip, or no sound that can be read.
        """
        # Imported here, so that sounds can be made on a machine without FFmpeg's libraries.
        from foley.media.source_sound import read_source

        if isinstance(self.sound, Generation):
            return SourceSound(waveform=self.sound.waveforms[0])
        file = clip if self.sound is None else self.sound
        if file is None:
            raise ParameterError(
                "edit.source: original is the clip's own sound, and there are only frames; give "
                "the pipeline the clip, or another source"
            )
        with store_clip(file) as path:
            return read_source(path, is_clip=self.sound is None)


def name_source(
    edit: Mapping[str, object] | None,
) -> tuple[dict[str, object] | None, GivenSource | None]:
    """Return an edit as a request holds it, and its source.

    Args:
        edit: of a caller of the library: the fields of `foley.request.Edit`, where the source may
            be a sound.

    Raises:
        ParameterError: the source is none of what it may be.
    """
    if edit is None:
        return None, None
    source = edit.get("source")
    if source in ("original", None):  # a missing one is an error of the request
        return dict(edit), GivenSource(None)
    if isinstance(source, Generation):
        if len(source) != 1:
            raise ParameterError(
                f"edit.source: is a generation of {len(source)} variations; give one of them, "
                "such as sounds[0]"
            )
        return {**edit, "source": "file"}, GivenSource(source)
    try:
        return {**edit, "source": "file"}, GivenSource(read_clip(source))  # type: ignore[arg-type]
    except ParameterError as error:
        raise ParameterError(
            "edit.source: must be original, a path, bytes, a file that is open in binary mode, or "
            f"a Generation, got {type(source).__name__}"
        ) from error


@dataclass(frozen=True, kw_only=True, repr=False)
class Generation:
    """The sounds generated for one clip: a sequence of variations, each of which is a `Generation`.

    Attributes:
        waveforms: float32 [N, C, samples] in [-1, 1], on the CPU; C is 2 where a layer has a pan
            or an edit's source is stereo, else 1.
        sample_rate: Hz.
        seeds: the seed of each variation; a request with the same seed repeats its sound.
        stems: float32 [L, C, samples], each layer as it is in the mix, which `waveforms` is then;
            None without layers.
        layer_seeds: the seed of each layer.
        speech_seconds: of each variation, where `avoid_speech` asked for it; of a mix, the most of
            the layers that are heard.
        layer_speech_seconds: of each layer.
        timings: seconds spent in each stage, in order.
        notices: sentences for the caller (clip trimmed, last frame repeated, prompt cut).
        clip: path of the clip, or its bytes; None if the caller gave its frames, or no clip.
        trimmed: whether the sounds end before the clip does.
        model: name of the preset that made the sounds.
        request: the options that they were made with.
    """

    waveforms: Tensor
    sample_rate: int
    seeds: tuple[int, ...]
    timings: dict[str, float] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    clip: Path | bytes | None = None
    trimmed: bool = False
    stems: Tensor | None = None
    layer_seeds: tuple[int, ...] = ()
    model: str = ""
    request: GenerationRequest = field(default_factory=GenerationRequest)
    speech_seconds: tuple[float, ...] = ()
    layer_speech_seconds: tuple[float, ...] = ()

    @property
    def duration_seconds(self) -> float:
        """Length of each waveform in seconds."""
        return self.waveforms.shape[-1] / self.sample_rate

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Generation:
        i = range(len(self))[index]  # an IndexError outside of -N to N - 1
        return replace(
            self,
            waveforms=self.waveforms[i : i + 1],
            seeds=self.seeds[i : i + 1],
            speech_seconds=self.speech_seconds[i : i + 1],
        )

    def __iter__(self) -> Iterator[Generation]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        count = f"{len(self)} sound" + ("s" if len(self) > 1 else "")
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"<Generation: {count} of {self.duration_seconds:.2f} s at {self.sample_rate} Hz, "
            f"seed {seeds}>"
        )

    def save(
        self, path: str | os.PathLike[str], *, marks: bool | Marks = True, **mix: Any
    ) -> list[MediaFile]:
        """Write each variation to a file, and return the files.

        A video is the clip with the sound in place of its own; its packets are copied. Layers are
        written beside their mix, as they are in it before the options of `mix`: out.mp4,
        out-layer-1.wav, out-layer-2.wav. All files are marked as machine-made.

        Args:
            path: ends in .mp4, .mov, .mkv or .webm, or in .wav or .flac for the sound alone. An
                existing file is replaced. Several variations get numbers: out-1.mp4, out-2.mp4.
            marks: True for marks signed with the certificate of this user, those of `load_marks`,
                or False for none. Who publishes machine-made sound must mark it: the law of the
                European Union and the licence of the official weights ask for it.
            mix: the options of `foley.mix.MixOptions`: what becomes of the clip's own sound,
                levels and tracks. The files' `loudness` then says what was measured.

        Raises:
            ParameterError: an option of the mix is unknown, out of range or does not fit.
            OutputError: an unknown suffix, the path is that of the clip, the clip is unknown since
                the sounds were made from frames, or the file cannot be written.
            VideoError: the clip cannot be read any more.
        """
        # Imported here, so that sounds can be made on a machine without FFmpeg's libraries.
        from foley.media.mux import write_audio, write_video

        path = Path(path)
        options = MixOptions.parse(**mix)
        suffix = path.suffix.lower().removeprefix(".")
        if suffix not in get_args(Format):
            known = " ".join(f".{name}" for name in get_args(Format))
            raise OutputError(f"{path.name} names no format of a result; end it in one of {known}")
        options.check_files(
            (suffix,),
            has_clip=self.clip is not None,
            is_stereo=self.request.is_stereo,
            has_original=self.request.has_original,
        )
        paths = [path]
        if len(self) > 1:
            paths = [path.with_stem(f"{path.stem}-{i}") for i in range(1, len(self) + 1)]
        stop_seconds = self.duration_seconds if self.trimmed else None
        policy = _load_own_marks() if marks is True else marks or None
        file_marks = [
            policy.make(self.model, seed, self.request, options) if policy else None
            for seed in self.seeds
        ]
        if suffix in AUDIO_FORMATS:
            with nullcontext() if self.clip is None else store_clip(self.clip) as source:
                sounds = [
                    write_audio(
                        waveform,
                        path,
                        sample_rate=self.sample_rate,
                        mix=options,
                        source=source,
                        stop_seconds=stop_seconds,
                        mark=mark,
                    )
                    for waveform, path, mark in zip(self.waveforms, paths, file_marks, strict=True)
                ]
                return [*sounds, *self._save_stems(path, options, source, file_marks[0])]
        if self.clip is None:
            raise OutputError(
                f"{path} needs the clip's picture, but the sounds were made from frames or from a "
                "prompt alone; give the pipeline the clip, or save a .wav"
            )
        if isinstance(self.clip, Path) and self.clip.resolve() in [p.resolve() for p in paths]:
            raise OutputError(f"{self.clip} is the clip itself; save to another path")
        with store_clip(self.clip) as clip:
            videos = [
                write_video(
                    clip,
                    waveform,
                    path,
                    sample_rate=self.sample_rate,
                    stop_seconds=stop_seconds,
                    mix=options,
                    mark=mark,
                )
                for waveform, path, mark in zip(self.waveforms, paths, file_marks, strict=True)
            ]
            return [*videos, *self._save_stems(path, options, clip, file_marks[0])]

    def _save_stems(
        self, path: Path, mix: MixOptions, clip: Path | None, mark: Mark | None
    ) -> list[MediaFile]:
        """Write each layer beside the file of the mix, and return the files."""
        from foley.media.stems import write_stem

        stems = () if self.stems is None else self.stems
        return [
            write_stem(
                stem,
                choose_stem_path(path, number),
                number=number,
                mark=mark,
                sample_rate=self.sample_rate,
                mix=mix,
                clip=clip,
            )
            for number, stem in enumerate(stems, start=1)
        ]


_load_own_marks = functools.cache(load_marks)


def read_clip(video: SourceClip) -> Path | bytes:
    """Return the path of a clip, or its bytes.

    Args:
        video: a path, bytes, or a file that is open in binary mode, which is read from its position
            to its end.

    Raises:
        ParameterError: none of these.
    """
    if isinstance(video, str | os.PathLike):
        return Path(video)
    if isinstance(video, bytes | bytearray | memoryview):
        return bytes(video)
    read = getattr(video, "read", None)
    if read is None:
        raise ParameterError(
            f"video has the type {type(video).__name__}; give a path, bytes or a file that is open "
            "in binary mode"
        )
    data = read()
    if not isinstance(data, bytes):
        raise ParameterError("video is a file of text; open it in binary mode ('rb')")
    return data


@contextmanager
def store_clip(clip: Path | bytes) -> Iterator[Path]:
    """Yield the path of a clip; bytes are written to a temporary file, which is removed afterwards.

    Args:
        clip: a path, or the content of a file.
    """
    if isinstance(clip, Path):
        yield clip
        return
    with tempfile.TemporaryDirectory(prefix="foley-") as folder:
        path = Path(folder, "clip")
        path.write_bytes(clip)
        yield path
