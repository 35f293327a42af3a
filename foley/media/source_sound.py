"""The sound that an edit starts from, decoded."""

from pathlib import Path

import torch

from foley.configs import MAX_CLIP_SECONDS
from foley.errors import ParameterError, VideoDecodeError, VideoError
from foley.media.original import OriginalTrack, read_original
from foley.media.source import MediaLimits
from foley.types import SourceSound


def read_source(path: Path, *, is_clip: bool, limits: MediaLimits | None = None) -> SourceSound:
    """Decode the first sound of a file; what is after the longest sound is left out.

    Sounds of more than two channels become stereo.

    Args:
        path: of a video or of a sound.
        is_clip: whether it is the clip itself, and not a file beside it; for errors.
        limits: on codecs and length; the defaults when None.

    Raises:
        ParameterError: it has no sound, or none that can be decoded.
    """
    try:
        track = read_original(path, fit=_fit, stop_seconds=_find_longest(limits), limits=limits)
    except (VideoDecodeError, VideoError) as error:
        raise ParameterError(
            f"edit.source: cannot be read ({error}); send a wav, flac, or a video with sound"
        ) from error
    if track is None or not track.sound.samples.shape[1]:
        remedy = "use another source" if is_clip else "send a wav, flac, or a video with sound"
        what = "the clip" if is_clip else "the file"
        raise ParameterError(f"edit.source: {what} has no sound; {remedy}")
    return SourceSound(
        waveform=torch.from_numpy(track.sound.samples),
        notices=(*track.notices, *_explain_channels(track)),
    )


def _find_longest(limits: MediaLimits | None) -> float:
    return MAX_CLIP_SECONDS if limits is None else limits.max_seconds


def _fit(layout: str) -> str:
    return layout if layout in ("mono", "stereo") else "stereo"


def _explain_channels(track: OriginalTrack) -> tuple[str, ...]:
    if track.layout in ("mono", "stereo"):
        return ()
    return (f"The source of the edit has {track.layout} channels: they are mixed to stereo.",)
