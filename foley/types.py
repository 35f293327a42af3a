"""The stages of a generation, and the data that passes between them."""

# V frames at 8 fps, n25 frames at 25 fps, S sync tokens, T text tokens, A latent frames

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the API's processes need `Stage` and must not load torch
    from torch import Tensor


class Stage(StrEnum):
    """The stages of one request, in order.

    Progress, events, timings, headers, metrics, the scheduler, the command line and the page all
    use these names. The library itself runs `DECODE_VIDEO`, and `ENCODE` to `DECODE_AUDIO`.
    """

    UPLOAD = "upload"  # receive the clip
    DECODE_VIDEO = "decode_video"  # pick and scale the frames
    QUEUE = "queue"  # wait for a device
    ENCODE = "encode"  # frames and prompts -> conditions
    SAMPLE = "sample"  # noise -> latents
    DECODE_AUDIO = "decode_audio"  # latents -> waveform
    MUX = "mux"  # write the files


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """The frames of a clip, scaled to the sizes of the encoders.

    Attributes:
        visual: uint8 [V, H, W, 3], RGB, picked at 8 fps.
        sync: uint8 [n25, H, W, 3], RGB, picked at 25 fps.
        num_picked: frames that the 25 fps clock picked. It is less than n25 where the last frame
            was repeated to fill whole segments, or the shortest clip that the sync encoder takes.
        source_seconds: the clip's duration by its container or its last frame.
        trimmed: whether frames past the limit were left out.
        notices: sentences for the caller about changes to the clip.
    """

    visual: Tensor
    sync: Tensor
    num_picked: int
    source_seconds: float
    trimmed: bool = False
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The tokens that condition the transformer on one clip and its prompts.

    Attributes:
        visual_tokens: [V, visual_dim].
        sync_tokens: [S, sync_dim], S a multiple of 8.
        text_tokens: [2, T, text_dim]; row 0 the negative prompt, row 1 the prompt, padded to one
            length.
        num_latents: A, latent frames of the sound at 50 Hz.
        notices: sentences for the caller about changes to the prompts.
    """

    visual_tokens: Tensor
    sync_tokens: Tensor
    text_tokens: Tensor
    num_latents: int
    notices: tuple[str, ...] = ()
