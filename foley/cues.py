"""Cues: prompts for ranges of time, and the regions into which they split a sound."""

# A latent frames, V visual tokens, S samples

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foley.configs import LATENT_RATE, SAMPLE_RATE, VISUAL_FPS
from foley.errors import ParameterError
from foley.request import Cue
from foley.types import Region

# Of the text tokens, as `foley.request.Prompts.list_texts` orders them.
_NEGATIVE_ROW, _GENERAL_ROW = 0, 1
_RAMP = SAMPLE_RATE // 100  # samples, 10 ms
# What a hit is made of is decided by the latent frames after its onset: those up to 31 ms before a
# border were heard as what follows it. So a border of texts lies so much after that of the cue.
_LAG_SECONDS = 0.04


def split_regions(
    cues: Sequence[Cue], num_latents: int, num_visual: int, sound_seconds: float | None = None
) -> tuple[Region, ...]:
    """Return the regions of a sound, in order; none without cues.

    A visual token belongs to the region in which its middle lies, a latent frame to that in which
    its middle lay 40 ms before, so that a sound belongs to the cue in which it begins. A cue that
    lasts longer than the sound ends with it.

    Args:
        cues: in order, without overlap.
        num_latents: A, at least 1.
        num_visual: V.
        sound_seconds: length of the sound; None where no latent frame is of its padding.

    Raises:
        ParameterError: a cue starts after the end of the sound.
    """
    if not cues:
        return ()
    if sound_seconds is None:
        sound_seconds = num_latents / LATENT_RATE
    num_sounded = min(num_latents, math.ceil(round(sound_seconds * LATENT_RATE, 6)))
    # Where each region begins: in latent frames, in visual tokens, and which texts it hears.
    begins = [(0, 0, _GENERAL_ROW, _NEGATIVE_ROW)]
    next_negative = _GENERAL_ROW + len(cues) + 1
    for number, cue in enumerate(cues, start=1):
        if _count_before(cue.start_seconds, LATENT_RATE) >= num_sounded:
            raise ParameterError(
                f"cue {number} starts at {cue.start_seconds:g} s, the sound lasts "
                f"{sound_seconds:.2f} s; let it start earlier, or leave it out"
            )
        negative = _NEGATIVE_ROW
        if cue.negative_prompt is not None:
            negative, next_negative = next_negative, next_negative + 1
        for seconds, row, negative_row in (
            (cue.start_seconds, _GENERAL_ROW + number, negative),
            (cue.stop_seconds, _GENERAL_ROW, _NEGATIVE_ROW),
        ):
            latents = _find_border(seconds, num_latents, is_start=row != _GENERAL_ROW)
            visual = min(_count_before(seconds, VISUAL_FPS), num_visual)
            if begins[-1][0] >= latents:  # the last region has no latent frame
                visual = begins.pop()[1]
            begins.append((latents, visual, row, negative_row))
    if begins[-1][0] == num_latents:
        begins.pop()
    ends = [*begins[1:], (num_latents, num_visual, 0, 0)]
    return tuple(
        Region(end[0] - begin[0], end[1] - begin[1], begin[2], begin[3])
        for begin, end in zip(begins, ends, strict=True)
    )


def apply_gains(waveform: Tensor, cues: Sequence[Cue], start: int = 0) -> Tensor:
    """Return a sound, or a piece of it, with the gains of cues; without any, the sound itself.

    The gain changes over 10 ms around each edge, in even steps of its decibels.

    Args:
        waveform: float32 [..., S], 48 kHz.
        cues: in order, without overlap.
        start: of the piece in the sound, in samples.
    """
    if not any(cue.gain_db for cue in cues):
        return waveform
    times, gains = [], []
    previous = 0.0
    for at, gain_db in _list_steps(cues):
        times += [at - _RAMP / 2, at + _RAMP / 2]
        gains += [previous, gain_db]
        previous = gain_db
    samples = np.arange(start, start + waveform.shape[-1])
    levels = np.interp(samples, times, gains)
    return waveform * torch.from_numpy(10 ** (levels / 20)).float()


def _list_steps(cues: Sequence[Cue]) -> list[tuple[float, float]]:
    """Return the samples at which the gain changes, and the gain from there on."""
    steps: list[tuple[float, float]] = []
    for cue in cues:
        start, stop = cue.start_seconds * SAMPLE_RATE, cue.stop_seconds * SAMPLE_RATE
        if steps and start - steps[-1][0] < _RAMP:  # the cue before it ends here
            steps.pop()
        steps += [(start, cue.gain_db), (stop, 0.0)]
    return steps


def _find_border(seconds: float, num_latents: int, *, is_start: bool) -> int:
    """Return the first latent frame after a border of a cue, which has one before the end."""
    if seconds <= 0:
        return 0
    frame = _count_before(seconds + _LAG_SECONDS, LATENT_RATE)
    return min(frame, num_latents - 1 if is_start else num_latents)


def _count_before(seconds: float, rate: float) -> int:
    """Return how many tokens of `rate` a second have their middle before a time."""
    return max(0, math.ceil(round(seconds * rate, 6) - 0.5))
