"""The media tasks, each of which runs in a child process of the fork server."""

import base64
import ctypes
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

# Imported once in the fork server, not in each child: the libraries import these when needed.
import av.subtitles.stream  # noqa: F401
import numpy.ctypeslib  # noqa: F401
import safetensors.torch  # noqa: F401
import torch
from torch import Tensor

from foley.configs import PRESETS, SAMPLE_RATE, SYNC_FPS
from foley.errors import ParameterError, VideoError, make_error
from foley.marks.mark import Mark, Signer, can_sign
from foley.media.cut import cut_clip
from foley.media.decode import decode_pieces, join_piece
from foley.media.early import EarlySound, EncodedSound
from foley.media.hold import hold_picture
from foley.media.images import set_frame_rate
from foley.media.mix import measure_sound
from foley.media.mux import (
    MediaFile,
    OpenClip,
    choose_container,
    open_clip,
    start_flac_sound,
    start_video_sound,
    write_audio,
    write_video,
)
from foley.media.original import read_original
from foley.media.prepare import to_fraction
from foley.media.source import MediaLimits, codecs_by_decoder
from foley.media.source_sound import read_source
from foley.media.stems import write_stem
from foley.mix import MixOptions, choose_stem_path
from foley.sound_file import GrowingSound, read_samples
from foley.speech import load_detector, measure_speech
from foley.types import FramePiece, FramePlace, FrameStream
from runners.handoff import (
    CLIP,
    PART,
    SOUND,
    SOURCE,
    WAIT_SECONDS,
    FrameCounts,
    FrameFile,
    hand_on_piece,
    load_stems,
    load_waveforms,
    name_beginning,
    name_growing,
    read_end,
    save_frames,
    save_source,
    save_waveforms,
)
from runners.sandbox.fork_server import Tasks
from runners.sandbox.questions import WHEN_COMPLETE, ask

if can_sign():
    import foley.marks.manifest  # noqa: F401

SOUND_ONLY_FORMATS = ("wav", "flac")
# Memory that threads allocate from. By default each thread has its own, in parts of 64 MB, which
# count towards the limit of a child even if they are not used.
NUM_ARENAS = 4
M_ARENA_MAX = -8  # of <malloc.h>


def prepare() -> None:
    """Do what every task needs once in the fork server instead of in each child."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, NUM_ARENAS)
    codecs_by_decoder()
    load_detector()
    # PyTorch asks which processor there is at its first operation with several implementations.
    torch.ones(1).add_(1)


def decode(
    folder: Path,
    *,
    preset: str,
    container: str,
    trim: bool,
    limits: dict[str, Any],
    with_sound: bool = False,
    with_source: bool = False,
    start_seconds: float = 0.0,
    frame_rate: float | None = None,
    duration_seconds: float | None = None,
    ask_room: bool = False,
) -> dict[str, Any]:
    """Decode the folder's clip and save its frames at the sizes that the model's encoders take.

    Frames are written as they come. Those of a clip of over 15 s are handed on in pieces while it
    is decoded. The container and the clip's own sound are checked meanwhile, before the first of
    them is handed on.

    Args:
        folder: the request's folder, with the clip in it.
        preset: name of the model, a key of `PRESETS`.
        container: format asked for. A picture that the format cannot hold is refused here, before
            minutes of sampling.
        trim: whether to leave out what lies after the duration limit instead of refusing the clip.
        limits: the fields of `MediaLimits`, as JSON holds them.
        with_sound: whether the clip's own sound will be mixed in. One that cannot be decoded is
            refused here too.
        with_source: whether an edit starts from the clip's own sound, which is saved too.
        start_seconds: where the used part of the clip begins; see `cut_clip`.
        ask_room: whether to ask for the room of all files of the request before a frame is
            written, by `{"room": bytes of frames, "seconds": length of the sound}`. The answer
            may have the code and the message of an "error".
        frame_rate: of a zip of numbered pictures, in pictures per second.
        duration_seconds: how long a still picture is shown; None for a video.

    Returns:
        "trimmed": whether a part of the clip was left out; and, of a clip that is not handed on in
        pieces, the counts of the frames.

    Raises:
        ParameterError: there is nothing after the start, or a rate or a duration for a video.
        VideoError: as `decode_pieces`.
        VideoError: the container refuses a packet of the clip.
    """
    clip = folder / CLIP
    clip.stat()  # a missing file is no fault of the caller, as `decode_pieces` would have it
    model = PRESETS[preset]
    media_limits = _media_limits(limits)
    if duration_seconds is not None:
        hold_picture(clip, clip, duration_seconds, media_limits)
    if frame_rate is not None:
        set_frame_rate(clip, to_fraction(frame_rate))
    if start_seconds and not (folder / PART).exists():  # it exists after the death of a child
        stop_seconds = start_seconds + media_limits.max_seconds + 1 if trim else None
        cut_clip(clip, folder / PART, start_seconds, stop_seconds=stop_seconds, limits=media_limits)
    clip = _find_clip(folder)
    if with_source:
        save_source(read_source(clip, is_clip=True, limits=media_limits), folder)
    sizes = model.vision.image_size, model.synchformer.image_size
    file: FrameFile | None = None

    def open_places(num_visual: int, num_sync: int) -> tuple[FramePlace, FramePlace]:
        nonlocal file
        if ask_room:
            num_bytes = 3 * (num_visual * sizes[0] ** 2 + num_sync * sizes[1] ** 2)
            _ask_for(num_bytes, num_sync / SYNC_FPS)
        file = FrameFile(folder, sizes, FrameCounts(num_visual, num_sync))
        return file.places

    def check_rest() -> None:
        if container not in SOUND_ONLY_FORMATS:
            choose_container(clip, container, limits=media_limits)  # type: ignore[arg-type]
        if with_sound:
            read_original(clip, fit=lambda layout: layout, limits=media_limits)

    decoded = decode_pieces(
        clip,
        visual_size=sizes[0],
        sync_size=sizes[1],
        limits=media_limits,
        trim=trim,
        exact_clock=model.exact_clock,
        whole_segments=model.whole_segments,
        open_places=open_places,
    )
    stream = FrameStream(decoded)
    with ThreadPoolExecutor(1) as beside:
        checking = beside.submit(check_rest)
        piece = stream.read()
        checking.result()
    if file is not None and piece.is_placed:
        assert stream.facts is not None
        counts = FrameCounts(stream.num_visual, stream.num_sync)
        file.seal(counts, stream.facts)
        return {"trimmed": stream.facts.trimmed, **counts._asdict()}
    if file is not None:
        file.drop()
    if ask_room:
        _ask_for_room(piece)
    if stream.facts is not None:
        counts = save_frames(join_piece(piece), folder)
        return {"trimmed": stream.facts.trimmed, **counts._asdict()}
    hand_on_piece(piece, folder, 0)
    del piece  # its memory is free while the next one is decoded
    index = 1
    while stream.facts is None:
        hand_on_piece(stream.read(), folder, index)
        index += 1
    return {"trimmed": stream.facts.trimmed}


def decode_source(folder: Path, *, limits: dict[str, Any]) -> None:
    """Decode the file that an edit starts from, and save its sound.

    Args:
        folder: the request's folder, with the file in it.
        limits: the fields of `MediaLimits`, as JSON holds them.

    Raises:
        ParameterError: there is no sound, or none that can be decoded.
    """
    path = folder / SOURCE
    path.stat()  # a missing file is no fault of the caller
    save_source(read_source(path, is_clip=False, limits=_media_limits(limits)), folder)


def take_sound(folder: Path, *, limits: dict[str, Any]) -> dict[str, Any]:
    """Decode a sound that was sent, and save it where the model's sounds are.

    Args:
        folder: the request's folder, with the sound in it.
        limits: the fields of `MediaLimits`, as JSON holds them.

    Returns:
        "num_samples" of the sound, at 48 kHz.

    It asks for room as `decode` does, with the bytes of the samples in place of those of frames.

    Raises:
        ParameterError: it cannot be decoded, or has no samples.
        BusyError: as the answer says; so does StorageFullError.
    """
    path = folder / SOUND
    path.stat()  # a missing file is no fault of the caller
    try:
        track = read_original(path, fit=_fit_two_channels, limits=_media_limits(limits))
    except VideoError as error:
        # The rest of the message is about clips.
        why = getattr(error.__cause__, "strerror", None) or str(error).partition(";")[0]
        raise ParameterError(f"sound: cannot be read ({why}); send a wav or a flac") from error
    if track is None or not track.sound.samples.size:
        raise ParameterError("sound: has no samples; send a wav or a flac")
    samples = track.sound.samples
    _ask_for(samples.nbytes, samples.shape[1] / SAMPLE_RATE)
    save_waveforms(torch.from_numpy(samples)[None], folder)
    return {"num_samples": samples.shape[1]}


def _fit_two_channels(layout: str) -> str:
    return layout if layout in ("mono", "stereo") else "stereo"


def write(
    folder: Path,
    *,
    formats: list[str],
    sample_rate: int,
    stop_seconds: float | None,
    limits: dict[str, Any],
    mix: dict[str, Any] | None = None,
    marks: list[dict[str, Any]] | None = None,
    measure: bool = False,
    encoded: Mapping[tuple[int, str], EncodedSound] | None = None,
    opened: OpenClip | None = None,
) -> list[list[dict[str, Any]]]:
    """Write the files of each waveform that the model saved in the folder.

    Args:
        folder: the request's folder, with the clip and the waveforms in it.
        formats: names of the containers and sound formats, such as "mp4" and "wav".
        sample_rate: of the waveforms, Hz.
        stop_seconds: where the picture ends; None keeps all of it.
        limits: the fields of `MediaLimits`, as JSON holds them.
        mix: the fields of `MixOptions` that are not defaults.
        marks: for each waveform the fields of its `Mark`; None for no marks. Each signature is
            asked for by `{"sign": base64}`.
        measure: whether the loudness of each file is measured although no option needs it, and
            the seconds of speech in each waveform.
        encoded: what is encoded already, by variation, from 1, and format.
        opened: the clip, for the first video that is written; None if it is not open yet.

    Returns:
        For each waveform its files in the order of `formats`: name, container, notices, loudness,
        speech_seconds where they were measured, and why it is unsigned. The layers come after those
        of their mix, each with the number of its "layer".

    Raises:
        OutputError: a container does not take the clip's packets.
        ModelError: a waveform has values that are not finite.
        VideoError: the clip's timestamps cannot be read.
    """
    _use_one_thread()
    media_limits = _media_limits(limits)
    options = MixOptions(**(mix or {}))
    clip = _find_clip(folder)

    def find_clip() -> Path | None:
        return clip if clip.exists() and clip.stat().st_size else None

    def write_file(waveform: Tensor, variation: int, name: str, mark: Mark | None) -> MediaFile:
        nonlocal opened
        destination = folder / f"foley-{variation}.{name}"
        sound = (encoded or {}).get((variation, name))
        if destination.suffix[1:] in SOUND_ONLY_FORMATS:
            return write_audio(
                waveform,
                destination,
                sample_rate=sample_rate,
                mix=options,
                source=find_clip(),
                stop_seconds=stop_seconds,
                limits=media_limits,
                mark=mark,
                encoded=sound,
            )
        at_hand, opened = opened, None
        return write_video(
            clip,
            waveform,
            destination,
            sample_rate=sample_rate,
            stop_seconds=stop_seconds,
            limits=media_limits,
            mix=options,
            mark=mark,
            encoded=sound,
            opened=at_hand,
        )

    waveforms = load_waveforms(folder)
    made = [_make_mark(**mark) for mark in marks] if marks else [None] * len(waveforms)
    variations = []
    for index, (waveform, mark) in enumerate(zip(waveforms, made, strict=True), start=1):
        files = [write_file(waveform, index, name, mark) for name in formats]
        measured = _measure(waveform, sample_rate) if measure else None
        variations.append([_to_json(file, measured) for file in files])
    if (stems := load_stems(folder)) is not None:
        sound = next((name for name in formats if name in SOUND_ONLY_FORMATS), "wav")
        for number, stem in enumerate(stems, start=1):
            written = write_stem(
                stem,
                choose_stem_path(folder / f"foley-1.{sound}", number),
                number=number,
                mark=made[0],
                sample_rate=sample_rate,
                mix=options,
                clip=find_clip(),
                limits=media_limits,
            )
            measured = _measure(stem, sample_rate) if measure else None
            variations[0].append({**_to_json(written, measured), "layer": number})
    return variations


def _use_one_thread() -> None:
    """Have PyTorch and the detector of speech start no threads in this process from now on.

    Their pieces of work are so small here that threads mostly wait for one another, which takes
    eight times the processor time of the work on a busy machine. The detector's library has four
    of them for each 32 ms of sound, and no option.
    """
    with suppress(AttributeError):  # a build of PyTorch without OpenMP
        ctypes.CDLL(None).omp_set_max_active_levels(0)


def write_along(
    folder: Path,
    *,
    num_sounds: int,
    formats: list[str],
    sample_rate: int,
    limits: dict[str, Any],
) -> list[list[dict[str, Any]]]:
    """Encode long sounds while they are made, and write their files once they are complete.

    The end is told by `runners.handoff.announce_end`, with the arguments of `write`.

    Args:
        folder: the request's folder, in which the sounds grow.
        num_sounds: the variations.
        formats: names of the containers and sound formats.
        sample_rate: of the sounds, Hz.
        limits: the fields of `MediaLimits`, as JSON holds them.

    Returns:
        As `write`.

    Raises:
        FoleyError: as `write`.
    """
    media_limits = _media_limits(limits)

    def start(name: str) -> EarlySound:
        if name in SOUND_ONLY_FORMATS:
            return start_flac_sound(sample_rate=sample_rate)
        return start_video_sound(
            _find_clip(folder),
            name,  # type: ignore[arg-type]
            sample_rate=sample_rate,
            limits=media_limits,
        )

    variations = range(1, num_sounds + 1)
    coded = [name for name in formats if name != "wav"]
    sounds = [GrowingSound(name_growing(folder, variation)) for variation in variations]
    encoders = {(variation, name): start(name) for variation in variations for name in coded}
    arguments: dict[str, Any] | None = None
    while arguments is None:
        arguments = read_end(folder)  # first, so that what is read after it is all there is
        for variation, sound in zip(variations, sounds, strict=True):
            while len(samples := sound.read()):
                for name in coded:
                    encoders[variation, name].add(samples)
        if arguments is None:
            time.sleep(WAIT_SECONDS)
    return write(
        folder, **arguments, encoded={key: encoder.end() for key, encoder in encoders.items()}
    )


def write_ready(
    folder: Path, *, formats: list[str], limits: dict[str, Any]
) -> list[list[dict[str, Any]]]:
    """Open the clip, ask for the arguments of `write` by `WHEN_COMPLETE`, and write the files.

    So the process and the head of the clip are there when the sound is.

    Args:
        folder: the request's folder, with the clip in it.
        formats: names of the containers and sound formats.
        limits: the fields of `MediaLimits`, as JSON holds them.

    Returns:
        As `write`.

    Raises:
        FoleyError: as `write`.
    """
    video = next((name for name in formats if name not in SOUND_ONLY_FORMATS), None)
    if video is None:
        return write(folder, **ask(WHEN_COMPLETE))
    with open_clip(_find_clip(folder), video, limits=_media_limits(limits)) as opened:  # type: ignore[arg-type]
        return write(folder, **ask(WHEN_COMPLETE), opened=opened)


def _find_clip(folder: Path) -> Path:
    """The part of the clip that is used, or the clip."""
    part = folder / PART
    return part if part.exists() else folder / CLIP


def _ask_for_room(piece: FramePiece) -> None:
    """Ask for the room of a clip's files, given its first frames."""
    num_bytes = piece.visual.nbytes + piece.sync.nbytes
    seconds = len(piece.sync) / SYNC_FPS
    if piece.facts is None:  # of a long clip; the next piece has 4 s, and the first one 15 s
        num_bytes, seconds = num_bytes * 4 // 3, piece.expected_seconds
    _ask_for(num_bytes, seconds)


def _ask_for(num_bytes: int, seconds: float) -> None:
    answer = ask({"room": num_bytes, "seconds": seconds})
    if "error" in answer:
        raise make_error(*answer["error"])


def write_piece(
    folder: Path,
    *,
    variation: int,
    number: int,
    start_sample: int,
    num_samples: int,
    sample_rate: int,
    is_beginning: bool = False,
    marks: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write a piece of a sound that is being made in the folder, as wav.

    Args:
        folder: the request's folder.
        variation: from 1.
        number: of the piece, from 1.
        start_sample: of the sound, where the piece begins.
        num_samples: of the piece.
        sample_rate: Hz.
        is_beginning: whether it is that of a short sound, which has a file of its own.
        marks: the fields of its `Mark`, alone in a list; None for no mark.

    Returns:
        Its name, and why it is unsigned.

    Raises:
        ModelError: the waveform has values that are not finite.
    """
    name_sound = name_beginning if is_beginning else name_growing
    written = write_audio(
        read_samples(name_sound(folder, variation), start_sample, num_samples),
        folder / f"foley-{variation}-piece-{number}.wav",
        sample_rate=sample_rate,
        mark=_make_mark(**marks[0]) if marks else None,
    )
    return {"name": written.path.name, "unsigned": written.unsigned}


def _make_mark(*, signer: dict[str, Any] | None, **fields: Any) -> Mark:
    return Mark(**fields, signer=Signer(**signer, sign=_ask_for_signature) if signer else None)


def _ask_for_signature(data: bytes) -> bytes:
    answer = ask({"sign": base64.b64encode(data).decode()})
    return base64.b64decode(answer["signature"])


def _media_limits(limits: dict[str, Any]) -> MediaLimits:
    return MediaLimits(**{**limits, "codecs": frozenset(limits["codecs"])})  # JSON has no sets


def _measure(waveform: Tensor, sample_rate: int) -> dict[str, Any]:
    """Measure a waveform [1, S] or [2, S], as the fields that `_to_json` returns of a file."""
    return {
        "loudness": measure_sound(waveform.clamp(-1, 1).numpy(), sample_rate).model_dump(),
        "speech_seconds": measure_speech(waveform, sample_rate),
    }


def _to_json(file: MediaFile, measured: dict[str, Any] | None = None) -> dict[str, Any]:
    described = {
        "name": file.path.name,
        "container": file.container,
        "notices": file.notices,
        "loudness": None,
        **(measured or {}),
        "unsigned": file.unsigned,
    }
    if file.loudness is not None:  # of the finished sound, and not of the waveform
        described["loudness"] = file.loudness.model_dump()
    return described


TASKS: Tasks = {
    "decode": decode,
    "decode_source": decode_source,
    "take_sound": take_sound,
    "write": write,
    "write_along": write_along,
    "write_ready": write_ready,
    "write_piece": write_piece,
}
