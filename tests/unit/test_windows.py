"""Windows of long sounds."""

import ctypes
import gc
import itertools
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foley.denoise import Denoising, EvaluationPart, VelocityModel
from foley.media.clock import num_latents
from foley.request import GenerationRequest
from foley.sampling import make_sigmas
from foley.session import Session
from foley.types import Conditions, NoPicture, Region, TextConditions
from foley.windows import (
    MAX_WINDOW,
    Group,
    Window,
    cut_conditions,
    make_weights,
    plan_decoding,
    plan_group,
    plan_groups,
    plan_windows,
)
from tests.toys import toy_frames, toy_pipeline

long_sounds = st.integers(MAX_WINDOW + 1, 50 * 3600)


def count_frames(window: Window) -> int:
    return window.stop - window.start


@settings(deadline=None)
@given(st.integers(1, MAX_WINDOW))
def test_a_sound_of_up_to_fifteen_seconds_is_one_window(num_latents: int) -> None:
    assert plan_windows(num_latents) == (Window(0, num_latents),)


def test_a_clip_of_fifteen_seconds_is_one_window_in_whole_segments_too() -> None:
    # 375 frames at 25 fps are filled up to 376 for `tiny`, and the clock of the official weights
    # picks the frame at 15 s too.
    assert plan_windows(num_latents(376)) == (Window(0, 752),)
    assert [len(plan_decoding(group)) for group in plan_groups(num_latents(376))] == [1]


@st.composite
def shots(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A long sound, and where the shots of its clip begin."""
    num_latents = draw(st.integers(MAX_WINDOW + 1, 8000))
    cuts = draw(st.lists(st.integers(1, num_latents - 1), max_size=40, unique=True))
    return num_latents, sorted(cuts)


@settings(deadline=None)
@given(shots())
def test_windows_cover_the_sound_on_the_grid_of_the_sync_encoder(
    sound: tuple[int, list[int]],
) -> None:
    num_latents, cuts = sound
    windows = plan_windows(num_latents, cuts)
    assert windows[0].start == 0
    assert windows[-1].stop == num_latents
    assert all(window.start % 16 == 0 for window in windows)
    assert all(window.stop % 16 == 0 for window in windows[:-1])
    assert all(64 <= count_frames(window) <= 560 for window in windows)
    if not cuts:
        assert all(count_frames(window) >= 280 for window in windows)


@settings(deadline=None)
@given(shots())
def test_neighbours_overlap_a_little_and_others_do_not(sound: tuple[int, list[int]]) -> None:
    windows = plan_windows(*sound)
    assert {a.stop - b.start for a, b in pairwise(windows)} == {32}
    assert all(a.stop <= b.start for a, b in zip(windows, windows[2:], strict=False))


@settings(deadline=None)
@given(st.lists(st.integers(75, 2000), min_size=2, max_size=20))
def test_no_window_mixes_shots_beyond_a_short_blend(lengths: list[int]) -> None:
    ends = list(itertools.accumulate(lengths))
    if ends[-1] <= MAX_WINDOW:
        return
    windows = plan_windows(ends[-1], ends[:-1])
    for cut in ends[:-1]:
        # Half of the overlap, and half a step of the grid.
        assert not [w for w in windows if w.start + 24 < cut < w.stop - 24]
        assert len([w for w in windows if w.start < cut < w.stop]) == 2


@pytest.mark.slow
@settings(deadline=None)
@given(shots(), st.integers(1, 400))
def test_groups_are_the_same_however_the_clip_arrives(
    sound: tuple[int, list[int]], step: int
) -> None:
    num_latents, cuts = sound
    groups = list(plan_groups(num_latents, cuts))
    assert len(groups[0].windows) == 1  # whose sound is there soon
    start = 0
    for group in groups:
        told = (
            plan_group(start, known, [cut for cut in cuts if cut < known], is_end=False)
            for known in range(start + 1, num_latents, step)
        )
        assert {early for early in told if early is not None} <= {group}
        start = group.following


def test_the_first_group_of_a_long_clip_is_known_with_its_first_piece() -> None:
    # Whether a shot begins at the last two of its 376 frames is not known yet.
    assert plan_group(0, 2 * (376 - 2), is_end=False) == Group((Window(0, 384),), is_last=False)


@settings(deadline=None)
@given(st.integers(MAX_WINDOW + 1, 10_000))
def test_the_weights_of_a_frame_have_the_sum_one_and_change_slowly(num_latents: int) -> None:
    windows = plan_windows(num_latents)
    total = torch.zeros(num_latents)
    for window, weights in zip(windows, make_weights(windows), strict=True):
        total[window.start : window.stop] += weights
        assert (weights > 0).all()
        assert weights.diff().abs().max() <= 1 / 32 + 1e-6
    torch.testing.assert_close(total, torch.ones(num_latents), rtol=0, atol=1e-6)


@settings(deadline=None)
@given(st.integers(1, 50 * 3600))
def test_pieces_of_sound_are_kept_once_with_context_on_both_sides(num_latents: int) -> None:
    pieces = [piece for group in plan_groups(num_latents) for piece in plan_decoding(group)]
    ends = [0, *(piece.kept.stop for piece in pieces)]
    assert [piece.kept.start for piece in pieces] == ends[:-1]
    assert ends[-1] == num_latents
    for decoded, kept in pieces:
        assert decoded.start == max(0, kept.start - 16)
        assert decoded.stop == min(num_latents, kept.stop + 16)
        assert count_frames(decoded) <= MAX_WINDOW
        assert count_frames(kept) > 0


def make_conditions(num_sync: int, regions: tuple[Region, ...] = ()) -> Conditions:
    """Return conditions whose tokens are their own indices."""
    num_visual, num_segments = round(num_sync * 8 / 25), (num_sync - 16) // 8 + 1
    return Conditions(
        visual_tokens=torch.arange(num_visual)[:, None],
        sync_tokens=torch.arange(8 * num_segments)[:, None],
        text_tokens=torch.zeros(2, 1, 1),
        num_latents=2 * num_sync,
        regions=regions,
    )


@settings(deadline=None)
@given(st.integers(376, 5000))
def test_a_window_has_the_tokens_of_a_clip_of_its_own(num_sync: int) -> None:
    conditions = make_conditions(num_sync)
    for window in plan_windows(conditions.num_latents):
        cut = cut_conditions(conditions, window)
        alone = make_conditions(count_frames(window) // 2)
        assert cut.num_latents == alone.num_latents == count_frames(window)
        first_sync = window.start // 2
        assert torch.equal(cut.sync_tokens, alone.sync_tokens + first_sync)
        # The first visual token lies at most half a token from the window's start.
        first_visual = int(cut.visual_tokens[0])
        assert abs(first_visual / 8 - window.start / 50) <= 1 / 16
        assert torch.equal(
            cut.visual_tokens[:, 0] - first_visual, torch.arange(len(cut.visual_tokens))
        )
        assert abs(len(cut.visual_tokens) - len(alone.visual_tokens)) <= 1


def test_visual_tokens_of_all_windows_reach_the_end() -> None:
    conditions = make_conditions(1003)
    cut = [cut_conditions(conditions, w) for w in plan_windows(conditions.num_latents)]
    assert int(cut[0].visual_tokens[0]) == 0
    assert int(cut[-1].visual_tokens[-1]) == len(conditions.visual_tokens) - 1
    assert int(cut[-1].sync_tokens[-1]) == len(conditions.sync_tokens) - 1


def test_a_prompt_without_a_clip_is_cut_like_a_clip() -> None:
    sound = NoPicture(duration_seconds=30.0)
    clip = make_conditions(sound.num_sync)
    prompt = TextConditions(
        num_visual=len(clip.visual_tokens),
        num_sync=len(clip.sync_tokens),
        text_tokens=clip.text_tokens,
        num_latents=clip.num_latents,
    )
    for window in plan_windows(clip.num_latents):
        of_clip, of_prompt = cut_conditions(clip, window), cut_conditions(prompt, window)
        assert of_prompt.num_visual == len(of_clip.visual_tokens)
        assert of_prompt.num_sync == len(of_clip.sync_tokens)
        assert of_prompt.num_latents == of_clip.num_latents


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 900), st.integers(0, 150)), min_size=1, max_size=20))
def test_a_window_hears_the_prompts_of_its_time(sizes: list[tuple[int, int]]) -> None:
    num_sync = max(251, sum(latents for latents, _ in sizes) // 2 + 1)
    plain = make_conditions(num_sync)
    left = plain.num_latents - sum(latents for latents, _ in sizes)
    num_visual = len(plain.visual_tokens)
    shares = [
        min(v, max(0, num_visual - sum(u for _, u in sizes[:i]))) for i, (_, v) in enumerate(sizes)
    ]
    regions = tuple(
        Region(latents, share, row)
        for row, ((latents, _), share) in enumerate(zip(sizes, shares, strict=True), start=1)
    )
    regions += (Region(left, num_visual - sum(shares), len(sizes) + 1),) if left else ()
    heard = [r.text_row for r in regions for _ in range(r.num_latents)]
    for window in plan_windows(plain.num_latents):
        cut = cut_conditions(make_conditions(num_sync, regions), window)
        assert [r.text_row for r in cut.regions for _ in range(r.num_latents)] == heard[
            window.start : window.stop
        ]
        assert sum(r.num_visual for r in cut.regions) == len(cut.visual_tokens)
        assert all(r.num_visual >= 0 for r in cut.regions)


NUM_SYNC = 384  # 15.36 s, the shortest whole segments that are two windows


def sample(session: Session, velocities: VelocityModel) -> list[EvaluationPart]:
    """Run a session alone until its latents are done; returns the parts."""
    while session.stage == "encode":
        session.encode()
    parts = []
    while session.stage == "sample":
        parts.append(session.prepare_part())
        session.advance(*velocities([parts[-1]]))
    return parts


@torch.inference_mode()
def test_a_step_of_a_long_sound_is_that_of_its_windows_blended() -> None:
    pipeline = toy_pipeline()
    conditions = pipeline.condition(toy_frames(NUM_SYNC), "tap", "")
    noise = torch.randn(1, pipeline.preset.dit.latent_dim, conditions.num_latents)
    windows = plan_windows(conditions.num_latents)
    model = VelocityModel(pipeline.dit)

    def integrate(path: Denoising) -> torch.Tensor:
        while path.point is not None:
            path.advance(*model([path.prepare_part()]))
        assert path.latents is not None
        return path.latents

    sigmas = make_sigmas(1)
    made = integrate(
        Denoising(pipeline.dit, conditions, noise, sigmas, guidance_scale=2, windows=windows)
    )
    expected = torch.zeros_like(made)
    for window, weights in zip(windows, make_weights(windows), strict=True):
        part = slice(window.start, window.stop)
        alone = Denoising(
            pipeline.dit,
            cut_conditions(conditions, window),
            noise[..., part],
            sigmas,
            guidance_scale=2,
        )
        expected[..., part] += weights * integrate(alone)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    whole = integrate(Denoising(pipeline.dit, conditions, noise, sigmas, guidance_scale=2))
    assert (made - whole).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"solver": "heun"}, {"guidance_interval": 0.6}])
@torch.inference_mode()
def test_a_long_sound_beside_a_short_one_is_that_of_the_long_one_alone(
    options: dict[str, object],
) -> None:
    pipeline = toy_pipeline()
    long = GenerationRequest.parse(seed=5, num_inference_steps=3, guidance_scale=2, **options)
    short = GenerationRequest.parse(seed=6, num_inference_steps=3, guidance_scale=2)
    alone = pipeline.start(toy_frames(NUM_SYNC), long)
    parts = sample(alone, VelocityModel(pipeline.dit))
    assert {part.latents.shape[-1] for part in parts} == {384}  # of the first group
    assert {part.guidance_scale for part in parts} == (
        {2.0, 1.0} if "guidance_interval" in options else {2.0}
    )
    mixed = [pipeline.start(toy_frames(NUM_SYNC), long), pipeline.start(toy_frames(48), short)]
    velocities = VelocityModel(pipeline.dit)
    for session in mixed:
        while session.stage == "encode":
            session.encode()
    while running := [s for s in mixed if s.stage == "sample"]:
        made = velocities([s.prepare_part() for s in running])
        for session, velocity in zip(running, made, strict=True):
            session.advance(velocity)
    for session in (alone, *mixed):
        while session.stage is not None:
            sample(session, velocities)
            while session.stage == "decode_audio":
                session.decode()
    # Measured: below 1e-6.
    torch.testing.assert_close(
        mixed[0].result().waveforms, alone.result().waveforms, rtol=0, atol=1e-5
    )


@pytest.mark.slow
def test_a_list_of_clips_may_have_long_and_short_ones() -> None:
    pipeline = toy_pipeline()
    clips = [toy_frames(NUM_SYNC), toy_frames(48)]
    made = pipeline(clips, seed=1, num_inference_steps=2)
    alone = [pipeline(clip, seed=1, num_inference_steps=2) for clip in clips]
    for one, other in zip(made, alone, strict=True):
        torch.testing.assert_close(one.waveforms, other.waveforms, rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.inference_mode()
def test_sound_that_is_decoded_in_pieces_equals_the_whole() -> None:
    """With 16 latent frames of context a piece has no click at its borders."""
    pipeline = toy_pipeline()
    session = pipeline.start(
        NoPicture(duration_seconds=16.0),
        GenerationRequest(seed=2, num_inference_steps=1, num_variations=2),
    )
    velocities, latents, calls = VelocityModel(pipeline.dit), list[torch.Tensor](), 0
    while session.stage is not None:
        sample(session, velocities)
        assert session._latents is not None
        # A group begins with the end of the one before it.
        if latents:
            assert torch.equal(latents[-1][..., -32:], session._latents[..., :32])
        latents += [session._latents[..., 32 if latents else 0 :]]
        while session.stage == "decode_audio":
            session.decode()
            calls += 1
    assert calls == 2 * len(plan_windows(sum(part.shape[-1] for part in latents))) == 4
    whole = pipeline.decode(torch.cat(latents, -1))[..., : 16 * 48_000]
    middle = slice(96, -96)  # without the fades
    made = session.result().waveforms
    torch.testing.assert_close(made[..., middle], whole[..., middle], rtol=0, atol=1e-5)


def measure_peak_bytes(seconds: float, folder: Path) -> int:
    """Return the peak of this process's memory while it makes and saves a sound."""
    request = GenerationRequest(seed=2, num_inference_steps=1, guidance_scale=1)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    made = toy_pipeline().generate(NoPicture(duration_seconds=seconds), request)
    made.save(folder / "out.wav", marks=False)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@pytest.fixture
def steady_memory() -> Iterator[None]:
    """Let every array of 64 KiB or more go back to the system when it is freed.

    Otherwise the peak depends on what earlier tests left free.
    Each thread has working memory of its own, so there is one.
    """
    count, set_option, threshold = torch.get_num_threads(), ctypes.CDLL(None).mallopt, -3
    torch.set_num_threads(1)
    set_option(threshold, 64 * 1024)
    yield
    set_option(threshold, 32 * 1024**2)
    torch.set_num_threads(count)


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_long_sound_is_held_once(tmp_path: Path, steady_memory: None) -> None:
    for seconds in (60.0, 180.0):  # what a first call loads and keeps
        measure_peak_bytes(seconds, tmp_path)
    more = [
        measure_peak_bytes(180.0, tmp_path) - measure_peak_bytes(60.0, tmp_path) for _ in range(3)
    ]
    # Measured: 0.5 of the difference. Each copy more would add 1, and one of float64 2.
    assert sorted(more)[1] < 120 * 48_000 * 4, more
