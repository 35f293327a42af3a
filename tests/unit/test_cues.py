"""Prompts for ranges of time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foley.configs import LATENT_RATE
from foley.cues import apply_gains, split_regions
from foley.errors import ParameterError, PromptTooLongError
from foley.request import MAX_CUES, Cue, GenerationRequest, Prompts
from foley.types import NoPicture, Region, VideoFrames
from foley.windows import plan_windows
from tests.toys import toy_frames, toy_pipeline

STEPS = 2


def cue(start: float, stop: float, prompt: str = "rain") -> dict[str, Any]:
    return {"start_seconds": start, "stop_seconds": stop, "prompt": prompt}


def split(*cues: dict[str, Any], num_latents: int = 100, num_visual: int = 16) -> list[Region]:
    parsed = GenerationRequest.parse(cues=cues).cues
    return list(split_regions(parsed, num_latents, num_visual))


def test_a_cue_splits_a_sound_where_it_starts_and_stops() -> None:
    # 2 s: latent frames at 0.01, 0.03, ... s and visual tokens at 0.0625, 0.1875, ... s. A border
    # lies two latent frames later, so that a hit before it is heard as what the cue says.
    assert split(cue(0.5, 1.5)) == [Region(27, 4, 1), Region(50, 8, 2), Region(23, 4, 1)]
    assert split(cue(0, 1)) == [Region(52, 8, 2), Region(48, 8, 1)]
    assert split(cue(1, 2)) == [Region(52, 8, 1), Region(48, 8, 2)]
    assert split(cue(0, 2)) == [Region(100, 16, 2)]
    assert split(cue(1.97, 9)) == [Region(99, 16, 1), Region(1, 0, 2)]
    assert split() == []


def test_cues_may_touch_and_come_in_any_order() -> None:
    both = [Region(27, 4, 1), Region(25, 4, 2), Region(25, 4, 3), Region(23, 4, 1)]
    assert split(cue(1, 1.5), cue(0.5, 1)) == both
    # Less than a latent frame lies between them.
    assert split(cue(1.005, 1.5), cue(0.5, 1)) == both


def test_a_cue_that_begins_at_the_end_leaves_no_gap_after_the_one_before() -> None:
    # The first stops with the sound, 40 ms later than asked; the second has the last latent frame.
    assert split(cue(0, 1.96), cue(1.96, 3)) == [Region(99, 16, 2), Region(1, 0, 3)]


def test_a_cue_that_lasts_too_long_ends_with_the_sound() -> None:
    assert split(cue(1.5, 15)) == [Region(77, 12, 1), Region(23, 4, 2)]


def test_a_cue_after_the_end_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"cue 2 starts at 2 s, the sound lasts 2.00 s"):
        split(cue(1, 1.5), cue(2, 3))
    # What pads the sound to whole segments does not count.
    with pytest.raises(ParameterError, match=r"cue 1 starts at 1\.9 s, the sound lasts 1\.88 s"):
        split_regions(GenerationRequest.parse(cues=[cue(1.9, 3)]).cues, 100, 16, 1.88)


def test_a_cue_in_what_pads_a_clip_or_a_sound_is_refused() -> None:
    late = [{"start_seconds": 0.5, "stop_seconds": 2, "prompt": "taps"}]
    short = replace(toy_frames(), num_picked=12)
    for video, options in ((short, {}), (None, {"duration_seconds": 0.48})):
        with pytest.raises(ParameterError, match=r"starts at 0\.5 s, the sound lasts 0\.48 s"):
            toy_pipeline()(video, "rain", cues=late, num_inference_steps=1, **options)


@pytest.mark.slow
@given(
    st.lists(st.integers(0, 1500), min_size=2, max_size=20),
    st.integers(2, 750),
    st.integers(1, 120),
)
def test_regions_have_all_tokens_and_no_empty_sound(
    times: list[int], num_latents: int, num_visual: int
) -> None:
    times = sorted(times)
    pairs = [(a / 100, b / 100) for a, b in zip(times[::2], times[1::2], strict=False)]
    cues = [cue(a, b) for a, b in pairs if b - a >= 0.1 and a < num_latents / 50 - 0.02]
    regions = split(*cues, num_latents=num_latents, num_visual=num_visual)
    if not cues:
        assert regions == []
        return
    assert sum(region.num_latents for region in regions) == num_latents
    assert sum(region.num_visual for region in regions) == num_visual
    assert all(region.num_latents >= 1 and region.num_visual >= 0 for region in regions)
    heard = [region.text_row for region in regions if region.text_row > 1]
    assert heard == list(range(2, 2 + len(cues)))


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 60)), min_size=1, max_size=6),
    st.integers(1, 100),
)
def test_any_cues_are_refused_or_heard_where_they_were_given(
    pairs: list[tuple[int, int]], tenths: int
) -> None:
    """They overlap, touch, lie outside or come in any order; times are tenths of seconds."""
    cues = [cue(a / 10, (a + b) / 10, str(i)) for i, (a, b) in enumerate(pairs)]
    owners = [[i for i, (a, b) in enumerate(pairs) if a <= t < a + b] for t in range(160)]
    num_latents, num_visual = 5 * tenths, -(-8 * tenths // 10)
    if max(map(len, owners)) > 1:
        with pytest.raises(ParameterError, match=r"^cues: .* and .* overlap; end the first one"):
            GenerationRequest.parse(cues=cues)
        return
    parsed = GenerationRequest.parse(cues=cues).cues
    if max(a for a, _ in pairs) >= tenths:
        with pytest.raises(ParameterError, match=r"starts at .*, the sound lasts"):
            split_regions(parsed, num_latents, num_visual)
        return
    heard = [
        None if region.text_row == 1 else int(parsed[region.text_row - 2].prompt)
        for region in split_regions(parsed, num_latents, num_visual)
        for _ in range(region.num_latents)
    ]
    late = [max(frame - 2, 0) // 5 for frame in range(num_latents)]
    assert heard == [owners[tenth][0] if owners[tenth] else None for tenth in late]


@pytest.mark.parametrize(
    ("cues", "words"),
    [
        ([cue(1, 2, "a"), cue(1.5, 3, "b")], r"1-2 s \(a\) and 1.5-3 s \(b\) overlap"),
        ([cue(1, 1.05)], "stop_seconds: must be at least 0.1 s after start_seconds, which is 1"),
        ([cue(2, 1)], "at least 0.1 s after start_seconds, which is 2"),
        ([cue(-1, 1)], "start_seconds: input should be greater than or equal to 0, got -1"),
        ([cue(1, 3601)], "stop_seconds: input should be less than or equal to 3600, got 3601"),
        ([cue(0, float("nan"))], "finite"),
        ([cue(0, 1, "")], "cues.0.prompt: must not be empty, got ''"),
        ([cue(0, 1) | {"gain": 1}], "cues.0.gain"),
        ([cue(0, 1)] * (MAX_CUES + 1), "^cues: at most 32 are possible, got 33$"),
        ("{", "must be a JSON list"),
        ("[" * 100_000, "must be a JSON list"),
        ("1", "^cues: input should be a list, got 1$"),
    ],
)
def test_cues_that_do_not_fit_are_refused(cues: object, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        GenerationRequest.parse(cues=cues)


def test_cues_are_read_from_json_and_from_objects() -> None:
    read = GenerationRequest.parse(
        cues='[{"start_seconds": 1, "stop_seconds": 2, "prompt": "rain"}]'
    )
    assert read.cues == (Cue(start_seconds=1, stop_seconds=2, prompt="rain"),)
    assert GenerationRequest.parse(cues=read.cues) == read
    assert GenerationRequest.parse(**read.model_dump()) == read


def make(*cues: dict[str, Any], **options: Any) -> torch.Tensor:
    options = {"prompt": "wind", "seed": 1, "num_inference_steps": STEPS} | options
    return toy_pipeline()(toy_frames(48), cues=cues, **options).waveforms


@pytest.mark.slow
def test_a_cue_changes_the_sound_and_each_of_its_parts_counts() -> None:
    plain, rain = make(), make(cue(0.5, 1))
    assert rain.shape == plain.shape
    assert torch.equal(make(cue(0.5, 1)), rain)
    for other in (plain, make(cue(0.5, 1, "tap")), make(cue(0.5, 1.2)), make(cue(0.6, 1))):
        assert (other - rain).abs().max() > 1e-4


@pytest.mark.slow
def test_without_guidance_and_without_a_clip_cues_are_heard() -> None:
    assert not torch.equal(make(cue(0.5, 1), guidance_scale=1), make(guidance_scale=1))
    request = GenerationRequest(prompt="wind", seed=1, num_inference_steps=STEPS)
    with_cue = request.model_copy(update={"cues": (Cue(**cue(0.2, 0.8)),)})
    nothing = NoPicture(duration_seconds=1)
    made = [toy_pipeline().generate(nothing, r).waveforms for r in (request, with_cue)]
    assert not torch.equal(*made)


def test_a_cue_is_heard_in_its_range_alone_where_only_the_text_tells_regions_apart() -> None:
    """One step of one block: what another cue says cannot reach the general part by any way."""
    pipeline = toy_pipeline()
    (one, other) = (
        next_velocity(pipeline, cue(0.5, 1, prompt)) for prompt in ("rain", "tap tap tap")
    )
    changed = (one - other).abs().amax((0, 1))  # [A]
    inside = changed[25:50].mean()
    outside = torch.cat((changed[:20], changed[55:])).mean()
    assert inside > 3 * outside


def test_without_a_picture_a_cue_leaks_less() -> None:
    """Nothing must be in time, so the joint attention is cut too."""
    leaks = []
    for frames in (toy_frames(48), NoPicture(duration_seconds=1.92)):
        one, other = (
            next_velocity(toy_pipeline(), cue(0.5, 1, prompt), frames=frames)
            for prompt in ("rain", "tap tap tap")
        )
        changed = (one - other).abs().amax((0, 1))  # [A]
        leaks.append(float(torch.cat((changed[:15], changed[60:])).mean() / changed[32:47].mean()))
    assert leaks[1] < leaks[0] / 3, leaks  # measured: 0.035 and 0.004


@pytest.mark.slow
def test_a_cue_holds_across_windows_of_a_long_sound() -> None:
    def hear(prompt: str) -> torch.Tensor:
        options = {"seed": 1, "num_inference_steps": 1, "cues": [cue(6, 10, prompt)]}
        request = GenerationRequest.parse(prompt="wind", **options)
        return toy_pipeline().generate(NoPicture(duration_seconds=16), request).waveforms[0, 0]

    first, second = plan_windows(16 * LATENT_RATE)
    assert 7 * LATENT_RATE < second.start < first.stop < 9 * LATENT_RATE
    changed = (hear("rain") - hear("tap tap tap")).abs().unflatten(0, (16, -1)).mean(-1)
    assert changed[6:10].min() > 50 * torch.cat((changed[:5], changed[11:])).max()


def next_velocity(
    pipeline: Any, *cues: dict[str, Any], frames: VideoFrames | NoPicture | None = None
) -> torch.Tensor:
    request = GenerationRequest.parse(prompt="wind", seed=1, num_inference_steps=1, cues=cues)
    session = pipeline.start(frames or toy_frames(48), request)
    with torch.inference_mode():
        while session.stage == "encode":
            session.encode()
        (velocity,) = pipeline.make_velocity_model()([session.prepare_part()])
    result: torch.Tensor = velocity
    return result


@pytest.mark.slow
def test_a_cue_has_a_negative_prompt_of_its_own() -> None:
    regions = split(
        cue(0, 0.5) | {"negative_prompt": "hiss"},
        cue(0.5, 1),
        cue(1.5, 2) | {"negative_prompt": ""},
    )
    rows = [(region.text_row, region.negative_row) for region in regions]
    assert rows == [(2, 5), (3, 0), (1, 0), (4, 6)]
    texts = GenerationRequest.parse(
        prompt="wind", negative_prompt="buzz", cues=[cue(0, 1) | {"negative_prompt": "hiss"}]
    ).list_prompts()[0]
    assert [*texts.list_texts().values()] == ["buzz", "wind", "rain", "hiss"]
    plain, own = make(cue(0.5, 1)), make(cue(0.5, 1) | {"negative_prompt": "hiss"})
    assert not torch.equal(plain, own)
    same = make(cue(0.5, 1) | {"negative_prompt": "noisy, harsh"})
    torch.testing.assert_close(same, plain, rtol=0, atol=1e-4)  # measured: 2e-6


@pytest.mark.slow
def test_a_cue_that_is_added_is_heard_with_the_prompt() -> None:
    added = make(cue(0.5, 1) | {"mode": "add"})
    assert torch.equal(added, make(cue(0.5, 1, "wind, rain")))
    assert torch.equal(make(cue(0.5, 1) | {"mode": "add"}, prompt=""), make(cue(0.5, 1), prompt=""))


def test_the_gain_of_a_cue_holds_in_its_range_with_soft_edges() -> None:
    loud = cue(0.2, 0.5) | {"gain_db": 6}
    cues = GenerationRequest.parse(cues=[loud, cue(0.5, 0.8) | {"gain_db": -60}]).cues
    sound = torch.ones(1, 1, 48_000)
    levels = 20 * apply_gains(sound, cues)[0, 0].log10()
    for start, stop, gain_db in (
        (0, 0.195, 0),
        (0.205, 0.495, 6),
        (0.505, 0.795, -60),
        (0.805, 1, 0),
    ):
        inside = levels[round(start * 48_000) : round(stop * 48_000)]
        torch.testing.assert_close(inside, torch.full_like(inside, gain_db), rtol=0, atol=1e-3)
    assert levels.diff().abs().max() < 66 / 480 + 0.01  # even steps over 10 ms
    pieces = [apply_gains(sound[..., i : i + 7000], cues, i) for i in range(0, 48_000, 7000)]
    torch.testing.assert_close(torch.cat(pieces, -1), apply_gains(sound, cues))
    assert apply_gains(sound, GenerationRequest.parse(cues=[cue(0, 1)]).cues) is sound
    plain, made = make(cue(0.2, 0.5)), make(loud)
    assert torch.equal(made[..., :9300], plain[..., :9300])
    assert torch.equal(made[..., 10_000:20_000], plain[..., 10_000:20_000] * 10 ** (6 / 20))


def test_a_cue_with_too_many_words_is_named() -> None:
    with pytest.raises(PromptTooLongError, match="cue 2 has"):
        make(cue(0, 0.5), cue(0.5, 1, "tap " * 499))
    with pytest.raises(PromptTooLongError, match="the negative_prompt of cue 1 has"):
        make(cue(0, 0.5) | {"negative_prompt": "tap " * 499})


def test_the_encoder_takes_prompts_in_pairs_and_gives_each_its_own_tokens() -> None:
    def tokens(*prompts: str) -> torch.Tensor:
        cues = [Cue(**cue(i / 2, i / 2 + 0.5, prompt)) for i, prompt in enumerate(prompts)]
        encoding = toy_pipeline().encode(toy_frames(48), [Prompts("a", "b", tuple(cues))])
        with torch.inference_mode():
            try:
                while True:
                    next(encoding)
            except StopIteration as stop:
                result: torch.Tensor = stop.value[0].text_tokens
                return result

    for count in (1, 2, 3):
        made = tokens(*"cde"[:count])
        assert len(made) == 2 + count
        for row, prompt in enumerate("bacde"[: 2 + count]):
            alone = tokens(prompt)[2]
            torch.testing.assert_close(made[row], alone, rtol=0, atol=1e-5)
