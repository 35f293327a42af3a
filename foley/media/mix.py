"""The finished sound: the new sound placed, mixed with the clip's own, and brought to a level."""

# C channels, S samples

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from av import AudioLayout

from foley.configs import SAMPLE_RATE
from foley.media.filters import (
    Samples,
    Sound,
    limit_peaks,
    measure_loudness,
    measure_true_peak,
    run_filters,
)
from foley.mix import MAX_PEAK_DBTP, Loudness, LoudnessReport, MixOptions

_MAX_GAIN_RUNS = 5
_MAX_LIMITER_RUNS = 8
_MIN_SLOPE = 0.2
_LOUDNESS_STEP_DB = 0.05  # a limiter that is nearer to the loudness asked for is not run again
# By FFmpeg's names; each pair is left and right.
_FRONT, _SURROUND = ("FL", "FR"), ("SL", "SR", "BL", "BR")
_PLACES = {
    "front": _FRONT,
    "center": ("FC",),
    "surround": _SURROUND,
    "all": (*_FRONT, "FC", *_SURROUND),
}
_DUCK_THRESHOLD = 0.01
_DUCK_KEY_GAIN = 4  # so that what is over -52 dB counts as heard
_DUCK_RATIO = 20
_DUCK_ATTACK_MS = 10


@dataclass(frozen=True, kw_only=True)
class FinishedSound:
    """The sound of a result.

    Attributes:
        main: what is heard.
        stem: the new sound alone, as it is in the mix; None without stems.
        loudness: before and after levelling.
        notices: sentences for the caller about what was changed.
    """

    main: Sound
    stem: Sound | None
    loudness: LoudnessReport
    notices: tuple[str, ...] = ()


def choose_layout(
    mix: MixOptions, original: str | None, num_channels: int, *, is_video: bool
) -> str:
    """The channels of a result's sound, by FFmpeg's names.

    Args:
        mix: the options.
        original: channels of the clip's own sound, if it is mixed in.
        num_channels: of the new sound.
        is_video: whether the result has a picture.
    """
    if mix.channels is not None:
        return mix.channels
    alone = "stereo" if is_video or num_channels == 2 else "mono"
    layout = original or alone
    return "stereo" if layout == "mono" and mix.pan else layout


def finish_sound(
    samples: Samples,
    mix: MixOptions,
    layout: str,
    original: Sound | None = None,
    sample_rate: int = SAMPLE_RATE,
    *,
    headroom_db: float = 0.0,
) -> FinishedSound:
    """Return the sound of a result.

    The mix never passes full scale: where gains would bring its true peak over the ceiling, the
    whole is lowered and a notice says so.

    Args:
        samples: of the new sound, [1, S] or [2, S], in [-1, 1].
        mix: the options.
        layout: of the result, by `choose_layout`.
        original: the clip's own sound in that layout, if it is mixed in.
        sample_rate: of both, Hz.
        headroom_db: by how much the ceiling is lowered for an encoder that raises peaks.
    """
    effect = _shape(samples, mix, layout, sample_rate)
    place = _explain_place(mix, layout)
    mixed = effect
    if original is not None:
        effect, own = _pad_to_equal(effect, original)
        own = Sound(own.samples * _factor(mix.original_gain_db), layout)
        if mix.original_sound == "duck":
            own = _duck(own, effect, mix, sample_rate)
        mixed = Sound(effect.samples + own.samples, layout)
    stem = effect if mix.stems and original is not None else None
    loudness = measure_loudness(mixed, sample_rate)
    peak = measure_true_peak(mixed, sample_rate)
    before = _describe(loudness, peak)
    if not mix.has_level:
        report = LoudnessReport(before=before, after=before, gain_db=0)
        return FinishedSound(main=mixed, stem=stem, loudness=report, notices=place)
    ceiling_db = _choose_ceiling_db(mix) - headroom_db
    gain_db = 0.0
    if mix.loudness_lufs is not None and loudness is not None:
        gain_db = _find_gain_db(mixed, mix.loudness_lufs, loudness, sample_rate)
    stem_peak_db = -math.inf if stem is None else _decibels(measure_true_peak(stem, sample_rate))
    over_db = gain_db + max(_decibels(peak), stem_peak_db) - ceiling_db
    is_held = over_db > 0
    if over_db > 0 and mix.limiter:
        main, peak, gain_db = _limit(mixed, gain_db, mix, ceiling_db, sample_rate)
    else:
        gain_db -= max(0.0, over_db)
        main = Sound(mixed.samples * _factor(gain_db), layout)
        peak *= float(_factor(gain_db))
    if stem is not None:
        stem = Sound(stem.samples * _factor(min(gain_db, ceiling_db - stem_peak_db)), layout)
    after = _describe(measure_loudness(main, sample_rate), peak)
    return FinishedSound(
        main=main,
        stem=stem,
        loudness=LoudnessReport(before=before, after=after, gain_db=round(gain_db, 2)),
        notices=(*place, *_explain_level(mix, after, gain_db, ceiling_db if is_held else None)),
    )


def measure_sound(samples: Samples, sample_rate: int = SAMPLE_RATE) -> LoudnessReport:
    """Return the loudness of a sound that is written as it is.

    Args:
        samples: [1, S] or [2, S], in [-1, 1].
        sample_rate: Hz.
    """
    sound = Sound(samples, "mono" if len(samples) == 1 else "stereo")
    measured = _describe(
        measure_loudness(sound, sample_rate), measure_true_peak(sound, sample_rate)
    )
    return LoudnessReport(before=measured, after=measured, gain_db=0)


def _shape(samples: Samples, mix: MixOptions, layout: str, sample_rate: int) -> Sound:
    """The new sound with its gain, its fades and its place among the channels."""
    num_samples = samples.shape[1]
    envelope = np.full(num_samples, _factor(mix.gain_db), np.float32)
    seconds = np.arange(num_samples) / sample_rate
    if mix.fade_in_seconds:
        envelope *= _ease(seconds / mix.fade_in_seconds)
    if mix.fade_out_seconds:
        envelope *= _ease((num_samples / sample_rate - seconds) / mix.fade_out_seconds)
    shaped = samples * envelope  # [C, S]
    if layout == "mono":
        return Sound(shaped.mean(axis=0, keepdims=True), layout)
    names = [channel.name for channel in AudioLayout(layout).channels]
    placed = np.zeros((len(names), num_samples), np.float32)
    left = shaped[0] * np.float32(min(1.0, 1.0 - mix.pan))
    right = shaped[-1] * np.float32(min(1.0, 1.0 + mix.pan))
    for name in _find_places(mix, names) or _PLACES["front"]:
        is_center = name == "FC"
        placed[names.index(name)] = (
            shaped.mean(axis=0) if is_center else left if name.endswith("L") else right
        )
    return Sound(placed, layout)


def _find_places(mix: MixOptions, names: Sequence[str]) -> list[str]:
    """Return the channels on which the new sound is asked for, of those that there are."""
    return [name for name in _PLACES[mix.placement] if name in names]


def _explain_place(mix: MixOptions, layout: str) -> tuple[str, ...]:
    """A sentence about channels that there are not."""
    names = [channel.name for channel in AudioLayout(layout).channels]
    if mix.placement in ("front", "all") or _find_places(mix, names):
        return ()
    return (
        f"The clip's own sound, {layout}, has no {mix.placement} channels; the new sound is heard "
        "in front.",
    )


def _ease(position: np.ndarray) -> np.ndarray:
    """A gain that rises from 0 to 1 while the position does, with the slope of a cosine."""
    return (0.5 - 0.5 * np.cos(np.pi * position.clip(0, 1))).astype(np.float32)


def _pad_to_equal(first: Sound, second: Sound) -> tuple[Sound, Sound]:
    length = max(first.samples.shape[1], second.samples.shape[1])

    def pad(sound: Sound) -> Sound:
        missing = length - sound.samples.shape[1]
        return Sound(np.pad(sound.samples, ((0, 0), (0, missing))), sound.layout)

    return pad(first), pad(second)


def _duck(own: Sound, effect: Sound, mix: MixOptions, sample_rate: int) -> Sound:
    """The clip's own sound, lowered while the new sound is heard."""
    key = Sound(np.abs(effect.samples).max(axis=0, keepdims=True), "mono")
    # The compressor lowers by far more than is wanted, and the part that it does not reach stays.
    share = 1 - _factor(-mix.duck_depth_db)
    arguments = (
        f"threshold={_DUCK_THRESHOLD}:ratio={_DUCK_RATIO}:attack={_DUCK_ATTACK_MS}"
        f":release={mix.duck_release_ms:g}:link=maximum:level_sc={_DUCK_KEY_GAIN}:mix={share:.6f}"
    )
    ducked = run_filters([own, key], [("sidechaincompress", arguments)], own.layout, sample_rate)
    num_samples = own.samples.shape[1]
    missing = num_samples - ducked.samples.shape[1]
    assert missing >= 0
    return Sound(np.pad(ducked.samples, ((0, 0), (0, missing))), own.layout)


def _find_gain_db(mixed: Sound, wanted: float, loudness: float, sample_rate: int) -> float:
    """The gain in dB that brings a sound to a loudness.

    Parts under -70 LUFS do not count (EBU R 128), and which parts these are changes with the gain.

    Args:
        mixed: the sound.
        wanted: LUFS.
        loudness: of the sound without a gain, LUFS.
        sample_rate: of the sound, Hz.
    """
    gain_db = wanted - loudness
    for _ in range(_MAX_GAIN_RUNS):
        moved = Sound(mixed.samples * _factor(gain_db), mixed.layout)
        reached = measure_loudness(moved, sample_rate)
        if reached is None or abs(wanted - reached) < _LOUDNESS_STEP_DB:
            break
        gain_db += wanted - reached
    return gain_db


def _limit(
    mixed: Sound, gain_db: float, mix: MixOptions, ceiling_db: float, sample_rate: int
) -> tuple[Sound, float, float]:
    """The sound with limited peaks, its true peak, and its gain in dB.

    A limiter takes loudness away, so the gain is raised until the loudness is right.
    """
    slope = 1.0  # of the loudness over the gain, which falls as more is limited
    last: tuple[float, float] | None = None  # gain and loudness of the run before
    for run in range(_MAX_LIMITER_RUNS):
        louder = Sound(mixed.samples * _factor(gain_db), mixed.layout)
        main, peak = limit_peaks(louder, float(_factor(ceiling_db)), sample_rate)
        reached = measure_loudness(main, sample_rate)
        if mix.loudness_lufs is None or reached is None or run == _MAX_LIMITER_RUNS - 1:
            break
        missing_db = mix.loudness_lufs - reached
        if abs(missing_db) < _LOUDNESS_STEP_DB:
            break
        if last is not None and gain_db != last[0]:
            slope = min(1.0, max(_MIN_SLOPE, (reached - last[1]) / (gain_db - last[0])))
        last = gain_db, reached
        gain_db += missing_db / slope
    return main, peak, gain_db


def _describe(loudness: float | None, peak: float) -> Loudness:
    return Loudness(
        integrated_lufs=None if loudness is None else round(loudness, 2),
        true_peak_dbtp=round(_decibels(peak), 2) if peak else None,
    )


def _decibels(peak: float) -> float:
    return 20 * math.log10(peak) if peak else -math.inf


def _choose_ceiling_db(mix: MixOptions) -> float:
    return MAX_PEAK_DBTP if mix.true_peak_dbtp is None else mix.true_peak_dbtp


def _factor(gain_db: float) -> np.float32:
    return np.float32(10 ** (gain_db / 20))


def _explain_level(
    mix: MixOptions, after: Loudness, gain_db: float, ceiling_db: float | None
) -> tuple[str, ...]:
    """Sentences about a loudness that was not reached, or a mix that had to be lowered.

    Args:
        mix: the options.
        after: of the result.
        gain_db: of the result.
        ceiling_db: at which the peaks are; None where they are lower.
    """
    if mix.loudness_lufs is None:
        if gain_db > -0.05 or ceiling_db is None:
            return ()
        return (
            f"The sound was lowered by {-gain_db:.1f} dB to a true peak of {ceiling_db:.1f} dBTP.",
        )
    wanted = f"{mix.loudness_lufs:g} LUFS"
    if after.integrated_lufs is None:
        return (f"The sound is too quiet or too short to be brought to {wanted}.",)
    if abs(after.integrated_lufs - mix.loudness_lufs) < 0.1:
        return ()
    reached = f"The loudness is {after.integrated_lufs:.1f} and not {wanted}, because"
    if ceiling_db is None:
        return (f"{reached} much of the sound is under -70 LUFS there, which does not count.",)
    remedy = "" if mix.limiter else "; limiter=true would limit them"
    return (f"{reached} its peaks are at {ceiling_db:.1f} dBTP{remedy}.",)
