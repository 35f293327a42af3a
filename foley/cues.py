"""Cues: prompts for ranges of time, and the regions into which they split a sound."""

# A latent frames, V visual tokens

import math
from collections.abc import Sequence

from foley.configs import LATENT_RATE, VISUAL_FPS
from foley.errors import ParameterError
from foley.request import Cue
from foley.types import Region

_GENERAL_ROW = 1  # of the text tokens; row 0 is the negative prompt's


def split_regions(cues: Sequence[Cue], num_latents: int, num_visual: int) -> tuple[Region, ...]:
    """Return the regions of a sound, in order; none without cues.

    A token belongs to the region in which its middle lies. A cue that lasts longer than the sound
    ends with it.

    Args:
        cues: in order, without overlap.
        num_latents: A, at least 1.
        num_visual: V.

    Raises:
        ParameterError: a cue starts after the end of the sound.
    """
    if not cues:
        return ()
    # Where each region begins: in latent frames, in visual tokens, and which text it hears.
    begins = [(0, 0, _GENERAL_ROW)]
    for number, cue in enumerate(cues, start=1):
        start = _count_before(cue.start_seconds, LATENT_RATE)
        if start >= num_latents:
            raise ParameterError(
                f"cue {number} starts at {cue.start_seconds:g} s, the sound lasts "
                f"{num_latents / LATENT_RATE:.2f} s; let it start earlier, or leave it out"
            )
        for seconds, row in (
            (cue.start_seconds, _GENERAL_ROW + number),
            (cue.stop_seconds, _GENERAL_ROW),
        ):
            latents = min(_count_before(seconds, LATENT_RATE), num_latents)
            visual = min(_count_before(seconds, VISUAL_FPS), num_visual)
            if begins[-1][0] == latents:  # the last region has no latent frame
                visual = begins.pop()[1]
            begins.append((latents, visual, row))
    if begins[-1][0] == num_latents:
        begins.pop()
    ends = [*begins[1:], (num_latents, num_visual, 0)]
    return tuple(
        Region(end[0] - begin[0], end[1] - begin[1], begin[2])
        for begin, end in zip(begins, ends, strict=True)
    )


def _count_before(seconds: float, rate: float) -> int:
    """Return how many tokens of `rate` a second have their middle before a time."""
    return max(0, math.ceil(round(seconds * rate, 6) - 0.5))
