"""Edits: which part of a sound is made anew, from what noise level, and how it joins its source."""

# N variations, C channels, S samples, A latent frames

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foley.configs import LATENT_RATE, SAMPLE_RATE
from foley.errors import ParameterError
from foley.request import Edit

_HOP = SAMPLE_RATE // LATENT_RATE
_CROSSFADE = SAMPLE_RATE // 100  # 10 ms
# Where the source rings on into a span, and neither sound begins anything, so much of it fades out.
_LONG_CROSSFADE = SAMPLE_RATE // 10
_STEP = SAMPLE_RATE // 200  # 5 ms, of levels
_STEPS_BEFORE = 8  # with which a level is compared
_ONSET_DB = 2.5  # over the highest of those; beats of partials stay below
_FLOOR = 1e-6  # of a mean square, -60 dB
# A source that lacks less than this at its end counts as whole: containers round.
_ROUNDING_SECONDS = 0.1
# The encoder's frames before the end of a source hear what follows it, which is not there.
_UNSURE_FRAMES = 3


class Span(NamedTuple):
    """Samples from `start` to `stop`."""

    start: int
    stop: int


class EditPlan(NamedTuple):
    """What an edit makes anew.

    Attributes:
        spans: of samples that are made anew, in order, at least one; they do not touch.
        num_samples: S, of the whole sound.
        num_sure: samples of the source, from its start, of whose latents the encoder is sure.
        level: noise level, 0 to 1, at which sampling starts.
        is_spliced: whether the source is heard outside the spans; else nothing of it is.
    """

    spans: tuple[Span, ...]
    num_samples: int
    num_sure: int
    level: float
    is_spliced: bool

    def find_kept(self, num_latents: int) -> Tensor:
        """Return which latent frames are those of the source, bool [A].

        Args:
            num_latents: A, of the sound and of what pads it.
        """
        starts = torch.arange(num_latents) * _HOP
        kept = starts + _HOP <= self.num_sure
        for start, stop in self.spans:
            kept &= (starts + _HOP <= start) | (starts >= stop)
        return kept

    def make_envelope(self) -> Tensor:
        """Return the share of the new sound in each sample, float32 [S]: 1 inside, 0 outside.

        It rises and falls inside the spans, as half a cosine of 10 ms. `splice` may take longer.
        """
        envelope = torch.zeros(self.num_samples)
        for span in self.spans:
            envelope[span.start : span.stop] = self._make_share(span)
        return envelope

    def _make_share(self, span: Span) -> Tensor:
        """Return the share of the new sound in each sample of a span, float32."""
        count = min(_CROSSFADE, span.stop - span.start)
        ramp = (1 - ((torch.arange(count) + 0.5) / count * torch.pi).cos()) / 2
        share = torch.ones(span.stop - span.start)
        if span.start > 0:
            share[:count] *= ramp
        if span.stop < self.num_samples:
            share[-count:] *= ramp.flip(0)
        return share

    def splice(self, made: Tensor, source: Tensor) -> Tensor:
        """Return the new sounds inside the spans, and the source outside.

        Outside the spans the samples are those of the source to the bit. At the start of a span
        the source fades out over 10 ms, or over up to 100 ms while neither sound has an onset.

        Args:
            made: float32 [N, 1, S].
            source: float32 [C, S'], of any length.

        Returns:
            [N, C, S], or `made` where the source is not heard.
        """
        if not self.is_spliced:
            return made
        count = min(source.shape[1], self.num_samples)
        spliced = torch.zeros(len(made), len(source), self.num_samples)
        spliced[..., :count] = source[:, :count]
        for span in self.spans:
            share = self._make_share(span)
            inside = spliced[..., span.start : span.stop]
            new = made[..., span.start : span.stop].expand_as(inside)
            inside.copy_(torch.where(share == 1, new, inside + share * (new - inside)))
            if span.start > 0:
                for sound, one in zip(spliced, made, strict=True):
                    _fade_long(sound, one[0], source, span)
        return spliced


def plan_edit(edit: Edit, num_source: int, num_samples: int) -> EditPlan:
    """Return what an edit makes anew.

    Args:
        edit: of the request.
        num_source: samples of the source, at least 1.
        num_samples: S, of the sound.

    Raises:
        ParameterError: a range starts after the end of the sound, the edit changes nothing, or the
            source is too short for a variation of it.
    """
    strength = 1.0 if edit.strength is None else edit.strength
    length, source_length = num_samples / SAMPLE_RATE, num_source / SAMPLE_RATE
    for number, part in enumerate(edit.ranges, start=1):
        if round(part.start_seconds * SAMPLE_RATE) >= num_samples:
            raise ParameterError(
                f"edit.ranges: range {number} starts at {part.start_seconds:g} s, the sound lasts "
                f"{length:.2f} s; let it start earlier, or leave it out"
            )
    is_short = num_source < num_samples - round(_ROUNDING_SECONDS * SAMPLE_RATE)
    if is_short and strength < 1:
        raise ParameterError(
            f"edit.strength: {strength:g} varies a source as long as the sound, and edit.source "
            f"lasts {source_length:.2f} s of {length:.2f} s; leave strength out, which extends the "
            "source, or use a longer source"
        )
    spans = [
        Span(round(part.start_seconds * SAMPLE_RATE), round(part.stop_seconds * SAMPLE_RATE))
        for part in edit.ranges
    ]
    num_sure = num_samples
    if is_short:
        num_sure = max(0, num_source - _UNSURE_FRAMES * _HOP)
        spans.append(Span(max(0, num_source - _CROSSFADE), num_samples))
    if not spans:
        if edit.strength is None:
            raise ParameterError(
                f"edit: source lasts {source_length:.2f} s and the sound {length:.2f} s, so "
                "nothing is made anew; give edit.ranges, or edit.strength for all of it"
            )
        whole = Span(0, num_samples)
        return EditPlan((whole,), num_samples, num_sure, _find_level(strength), is_spliced=False)
    return EditPlan(
        _merge(spans, num_samples), num_samples, num_sure, _find_level(strength), is_spliced=True
    )


def _fade_long(spliced: Tensor, made: Tensor, source: Tensor, span: Span) -> None:
    """Let the source ring on at the start of a span, in place, if nothing begins there.

    Args:
        spliced: float32 [C, S].
        made: float32 [S].
        source: float32 [C, S'].
        span: that does not begin with the sound.
    """
    most = min(_LONG_CROSSFADE, (span.stop - span.start) // 2, source.shape[1] - span.start)
    mono = source.mean(0)
    count = min(_count_calm(sound, span.start, most) for sound in (mono, made))
    if count <= _CROSSFADE:
        return
    part = slice(span.start, span.start + count)
    share = (1 - ((torch.arange(count) + 0.5) / count * torch.pi).cos()) / 2
    old, new = mono[part], made[part]
    alike = (old @ new / (old.norm() * new.norm()).clamp_min(1e-9)).clamp(0, 1)
    # The power of sounds that are not alike would sink by 3 dB in the middle.
    gain = (share**2 + (1 - share) ** 2 + 2 * alike * share * (1 - share)).rsqrt()
    spliced[:, part] = gain * torch.lerp(source[:, part], new.expand(len(source), -1), share)


def _count_calm(sound: Tensor, start: int, most: int) -> int:
    """Return after how many samples from `start` on the level of a sound [S] rises, or `most`."""
    before = min(_STEPS_BEFORE, start // _STEP)
    steps = max(0, most // _STEP)
    if not before or not steps:
        return 0
    part = sound[start - before * _STEP : start + steps * _STEP].unflatten(0, (-1, _STEP))
    levels = 10 * part.square().mean(1).clamp_min(_FLOOR).log10()
    for step in range(before, before + steps):
        if levels[step] > levels[max(0, step - _STEPS_BEFORE) : step].max() + _ONSET_DB:
            return (step - before) * _STEP
    return steps * _STEP


def _find_level(strength: float) -> float:
    """Return the noise level at which a variation of a strength starts; both are 0 to 1.

    When a sound is heard stays up to a level of two thirds, even without a picture, so that is the
    middle of the scale. What it is made of is decided above 0.9, where the scale is finer. The two
    parts meet with one slope.
    """
    if strength <= 0.5:
        return 4 / 3 * strength
    return 1 - 4 / 3 * (1 - strength) ** 2


def _merge(spans: Sequence[Span], num_samples: int) -> tuple[Span, ...]:
    """Return spans in order and within the sound; those that overlap or touch become one."""
    merged: list[Span] = []
    for start, stop in sorted(spans):
        stop = min(stop, num_samples)
        if merged and start <= merged[-1].stop:
            merged[-1] = Span(merged[-1].start, max(stop, merged[-1].stop))
        else:
            merged.append(Span(start, stop))
    return tuple(merged)


def prepare_source(source: Tensor, num_latents: int) -> Tensor:
    """Return a source as the encoder takes it: mono, as long as the sound with its padding.

    Where it is too short, it is continued by its own reflection, since silence after its end would
    be heard in the latents before it.

    Args:
        source: float32 [C, S'].
        num_latents: A.

    Returns:
        float32 [1, 960 A].
    """
    count = num_latents * _HOP
    mono = source.mean(0)[:count]
    if len(mono) < count:
        there_and_back = torch.cat([mono.flip(0), mono])
        repeats = -(-(count - len(mono)) // len(there_and_back))
        mono = torch.cat([mono, there_and_back.repeat(repeats)])[:count]
    return mono[None]
