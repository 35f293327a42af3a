"""Requests of any lengths, schedules and guidance share a forward pass without any effect."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foley.denoise import Denoising, EvaluationPart, VelocityModel, make_clip_context
from foley.models.attention import attend
from foley.models.context import DiTContext
from foley.models.layers import TokenConv
from foley.models.packing import SOFT_TOKENS, Borders, Lengths, Packing, Regions, Segments
from foley.plans import SOLVERS, Solver
from foley.sampling import SolverPoint, guide, integrate, make_sigmas
from foley.types import Conditions, Region, TextConditions
from tests.toys import toy_components

DIT = toy_components().dit


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Asked:
    """A request: the sizes of its clip, and its options."""

    num_latents: int
    num_visual: int
    num_segments: int
    num_text: int
    num_variations: int
    num_steps: int
    solver: Solver
    guidance_scale: float
    shift: float = 1.0
    guidance_interval: float = 0.0
    has_picture: bool = True
    has_cues: bool = False

    def conditions(self, seed: int) -> Conditions | TextConditions:
        if not self.has_picture:
            return TextConditions(
                num_visual=self.num_visual,
                num_sync=8 * self.num_segments,
                text_tokens=draw(4, self.num_text, 16, seed=seed),
                num_latents=self.num_latents,
                regions=self.regions(),
            )
        return Conditions(
            visual_tokens=draw(self.num_visual, 24, seed=seed),
            sync_tokens=draw(8 * self.num_segments, 16, seed=seed),
            text_tokens=draw(4, self.num_text, 16, seed=seed),
            num_latents=self.num_latents,
            regions=self.regions(),
        )

    def regions(self) -> tuple[Region, ...]:
        if not self.has_cues or self.num_latents < 3:
            return ()
        first, second = self.num_latents // 3, self.num_visual // 3
        return (
            Region(first, second, 2),
            Region(1, 0, 1),
            Region(self.num_latents - first - 1, self.num_visual - second, 3),
        )

    def noise(self, seed: int) -> torch.Tensor:
        return draw(self.num_variations, 8, self.num_latents, seed=seed)

    def path(self, seed: int) -> Denoising:
        return Denoising(
            DIT,
            self.conditions(seed),
            self.noise(seed),
            make_sigmas(self.num_steps, self.shift),
            solver=self.solver,
            guidance_scale=self.guidance_scale,
            guidance_interval=self.guidance_interval,
        )


ASKED = st.builds(
    Asked,
    num_latents=st.integers(1, 40),
    num_visual=st.integers(1, 12),  # also more than there are latents
    num_segments=st.integers(1, 4),
    num_text=st.integers(1, 7),
    num_variations=st.integers(1, 2),
    num_steps=st.integers(1, 4),
    solver=st.sampled_from(SOLVERS),
    guidance_scale=st.sampled_from([1.0, 4.5]),
    shift=st.sampled_from([1.0, 4.0]),
    guidance_interval=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    has_picture=st.booleans(),
    has_cues=st.booleans(),
)


def together(asked: list[Asked]) -> list[torch.Tensor]:
    """Latents of requests that share every evaluation until each has ended."""
    model = VelocityModel(DIT)
    paths = [one.path(i) for i, one in enumerate(asked)]
    while running := [path for path in paths if path.point is not None]:
        velocities = model([path.prepare_part() for path in running])
        for path, velocity in zip(running, velocities, strict=True):
            path.advance(velocity)
    return [path.latents for path in paths if path.latents is not None]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(ASKED, min_size=2, max_size=4))
@torch.no_grad()
def test_a_request_in_a_batch_gives_what_it_gives_alone(asked: list[Asked]) -> None:
    for i, (one, latents) in enumerate(zip(asked, together(asked), strict=True)):
        path, model = one.path(i), VelocityModel(DIT)
        while path.point is not None:
            path.advance(*model([path.prepare_part()]))
        alone = path.latents
        assert alone is not None
        scale = max(1.0, alone.abs().max().item())
        # Measured: 7.5e-7 of the largest value, over 836 requests in 300 mixtures.
        torch.testing.assert_close(latents / scale, alone / scale, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_variations", [1, 2])
@torch.no_grad()
def test_after_the_interval_only_the_conditional_half_decides(
    solver: Solver, num_variations: int
) -> None:
    asked = Asked(37, 6, 3, 5, num_variations, 6, solver, 4.5, 4.0, 0.8)
    path, model = asked.path(0), VelocityModel(DIT)
    clips = []
    while path.point is not None:
        part = path.prepare_part()
        clips.append(len(part.context.lengths))
        path.advance(*model([part]))
    per_step = len(clips) // 6
    assert clips == [2 * num_variations] * 4 * per_step + [num_variations] * 2 * per_step

    # The same with the two halves as requests of their own.
    halves = make_clip_context(DIT, asked.conditions(0), num_variations, guided=True)
    cond = make_clip_context(DIT, asked.conditions(0), num_variations, guided=False)

    def velocity(point: SolverPoint) -> torch.Tensor:
        context = halves if point.step < 4 else cond
        num_clips = len(context.lengths)
        time = DIT.make_time_modulation(torch.full((num_clips,), point.sigma))
        out = DIT(point.latents.repeat(num_clips // num_variations, 1, 1), time, context)
        if point.step >= 4:
            return out
        uncond, conditional = out.chunk(2)
        return guide(uncond, conditional, 4.5)

    expected = integrate(velocity, asked.noise(0), make_sigmas(6, 4.0), solver, 4)
    assert path.latents is not None
    torch.testing.assert_close(path.latents, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_batch_is_concatenated_once_more_where_guidance_ends() -> None:
    asked = [Asked(n, 6, 3, 5, 1, 6, "euler", 4.5, 4.0, 0.8) for n in (37, 20)]
    paths, model = [one.path(i) for i, one in enumerate(asked)], VelocityModel(DIT)
    seen: list[DiTContext] = []
    handle = DIT.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    while paths[0].point is not None:
        velocities = model([path.prepare_part() for path in paths])
        for path, velocity in zip(paths, velocities, strict=True):
            path.advance(velocity)
    handle.remove()
    assert [len(context.lengths) for context in seen] == [4] * 4 + [2] * 2
    assert len({id(context) for context in seen}) == 2


def part(
    num_latents: int, num_visual: int, seed: int, guidance_scale: float = 4.5
) -> EvaluationPart:
    asked = Asked(num_latents, num_visual, 3, 5, 1, 1, "euler", guidance_scale)
    context = make_clip_context(DIT, asked.conditions(seed), 1, guided=guidance_scale > 1)
    return EvaluationPart(
        seed,
        asked.noise(seed),
        DIT.make_time_modulation(torch.tensor([0.7])),
        context,
        guidance_scale,
    )


@torch.no_grad()
def test_clips_of_equal_lengths_can_be_packed_too() -> None:
    contexts = [part(37, 6, seed).context for seed in range(2)]
    rows, packed = (DiTContext.concatenate(contexts, packed=p) for p in (False, True))
    assert rows.packing is None
    assert packed.visual.shape[:2] == (1, 4 * 6)
    latents, times = draw(4, 8, 37), DIT.make_time_modulation(torch.tensor([1.0, 0.7, 0.4, 0.1]))
    flat = latents.transpose(0, 1).flatten(1)[None]  # [1, L, 4 * A]
    out = DIT(flat, times, packed)[0].unflatten(1, (4, 37)).transpose(0, 1)
    # Measured: 4e-7.
    torch.testing.assert_close(out, DIT(latents, times, rows), rtol=0, atol=1e-5)


@torch.no_grad()
def test_requests_that_join_or_leave_a_batch_change_nothing_for_the_others() -> None:
    one, two, three = part(37, 6, 0), part(12, 2, 1, 1.0), part(20, 30, 2)
    model = VelocityModel(DIT)
    (alone,) = VelocityModel(DIT)([one])
    for members in ([one], [one, two], [one, two], [three, one, two], [three, one], [one]):
        (actual,) = (v for v, p in zip(model(members), members, strict=True) if p is one)
        torch.testing.assert_close(actual, alone, rtol=0, atol=1e-5)  # measured: 7e-7


@torch.no_grad()
def test_contexts_are_concatenated_once_while_the_same_paths_come_in_any_order() -> None:
    one, two, three = (part(37, 6, 0), part(12, 2, 1), part(20, 30, 2))
    model = VelocityModel(DIT)
    seen: list[DiTContext] = []
    handle = DIT.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    forwards, backwards = model([one, two]), model([two, one])
    model([one, three])
    handle.remove()
    assert seen[0] is seen[1]
    assert seen[2] is not seen[0]
    for velocity, same in zip(forwards, reversed(backwards), strict=True):
        assert torch.equal(velocity, same)


@torch.no_grad()
def test_a_context_of_another_path_is_never_taken_for_the_last_one() -> None:
    one, other = part(37, 6, 0), part(37, 6, 1)
    model = VelocityModel(DIT)
    model([one])
    (velocity,), (alone,) = model([other]), VelocityModel(DIT)([other])
    assert torch.equal(velocity, alone)


@torch.no_grad()
def test_an_evaluation_takes_one_part_of_a_path() -> None:
    one = part(37, 6, 0)
    with pytest.raises(AssertionError, match="two parts of one path"):
        VelocityModel(DIT)([one, one])


@pytest.mark.parametrize("lengths", [[5], [3, 3], [1, 4, 4, 2], [1, 1, 1]])
def test_a_convolution_stops_at_the_borders(lengths: list[int]) -> None:
    torch.manual_seed(0)
    conv = TokenConv(6, 10, 3, bias=True).requires_grad_(False)
    clips = [draw(1, n, 6, seed=n) for n in lengths]
    packed = conv(torch.cat(clips, dim=1), Borders.of(lengths))
    alone = torch.cat([conv(clip) for clip in clips], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-6)  # measured: 1e-7


def test_attention_stays_within_the_segments() -> None:
    queries, keys = [3, 3, 1, 4], [5, 5, 2, 1]
    query, key, value = draw(1, 11, 2, 8), draw(1, 13, 2, 8, seed=1), draw(1, 13, 2, 8, seed=2)
    segments = Segments.of(queries, keys)
    assert segments.runs() == [(2, 3, 5), (1, 1, 2), (1, 4, 1)]
    pieces = zip(
        *(x.split(n, dim=1) for x, n in ((query, queries), (key, keys), (value, keys))), strict=True
    )
    alone = torch.cat([attend(*piece) for piece in pieces], dim=1)
    together = attend(query, key, value, segments)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)  # measured: 1e-7


def test_the_joint_sequence_is_ordered_clip_by_clip() -> None:
    packing = Packing.of([Lengths(2, 1, 3), Lengths(1, 3, 2)])
    # Visual tokens 0 and 1 to 3, then audio tokens 0 and 1, and 2.
    assert packing.joint.tolist() == [0, 4, 5, 1, 2, 3, 6]
    assert packing.joint[packing.visual_place].tolist() == [0, 1, 2, 3]
    assert packing.joint[packing.audio_place].tolist() == [4, 5, 6]


@dataclass(frozen=True)
class Place:
    """Where a token is: its clip, its region, and of an audio token its number in the clip."""

    clip: int
    region: int
    number: int | None = None


def share_of_keys(query: Place, key: Place, clips: list[Regions]) -> float:
    """Return how much a token hears of another region, 1 of its own, by its distance to it."""
    if query.clip != key.clip:
        return 0
    if query.region == key.region:
        return 1
    parts, are_apart = clips[query.clip]
    if not are_apart or abs(query.region - key.region) > 1 or query.number is None:
        return 0
    border = sum(part.audio for part in parts[: max(query.region, key.region)])
    reach = min(SOFT_TOKENS, parts[query.region].audio // 2)
    distance = abs(query.number + 0.5 - border)
    return max(0, 0.5 - 0.5 * distance / reach) if reach else 0


@pytest.mark.parametrize("are_apart", [False, True])
def test_regions_attend_as_masks_of_all_pairs_would(are_apart: bool) -> None:
    """Of two clips, the second with four regions, one of which has no visual token."""
    regions = [
        Regions((Lengths(4, 2, 3),)),
        Regions(
            (Lengths(13, 1, 2), Lengths(1, 0, 2), Lengths(5, 3, 2), Lengths(9, 1, 4)), are_apart
        ),
    ]
    lengths = [Lengths(*map(sum, zip(*clip.parts, strict=True))) for clip in regions]
    packing = Packing.of(lengths, regions=regions)
    parts = [(c, r, part) for c, clip in enumerate(regions) for r, part in enumerate(clip.parts)]
    owners = [(c, r) for c, r, part in parts for _ in range(part.audio)]
    audio = [Place(c, r, [o[0] for o in owners[:i]].count(c)) for i, (c, r) in enumerate(owners)]
    visual = [Place(c, r) for c, r, part in parts for _ in range(part.visual)]
    text = [Place(c, r) for c, r, part in parts for _ in range(part.text)]
    joint = [[*visual, *audio][i] for i in packing.joint]
    assert [joint[i] for i in packing.visual_place] == visual
    assert [joint[i] for i in packing.audio_place] == audio
    assert packing.audio_owner.tolist() == [place.clip for place in audio]
    for segments, queries, keys, is_whole in (
        (packing.joint_self, joint, joint, not are_apart),
        (packing.audio_joint, audio, joint, not are_apart),
        (packing.joint_text, joint, text, False),
        (packing.audio_text, audio, text, False),
        (packing.audio_self, audio, audio, False),
    ):
        query, key, value = (
            draw(1, len(places), 2, 8, seed=seed)
            for seed, places in enumerate((queries, keys, keys))
        )
        scores = torch.einsum("nhd,mhd->hnm", query[0], key[0]) / 8**0.5
        expected = torch.zeros(len(queries), 2, 8)
        for step in range(-1, 2):  # what is heard of the region before, of the own one, after it
            share = torch.tensor(
                [
                    [
                        float(q.clip == k.clip and step == 0)
                        if is_whole
                        else share_of_keys(q, k, regions) * (k.region - q.region == step)
                        for k in keys
                    ]
                    for q in queries
                ]
            )
            weights = scores.masked_fill(share == 0, -torch.inf).softmax(-1).nan_to_num()
            expected += (
                torch.einsum("hnm,mhd->nhd", weights, value[0]) * share.amax(1)[:, None, None]
            )
            if step:  # the own region has the rest
                own = share.amax(1)[:, None, None]
                mine = torch.tensor(
                    [[q.clip == k.clip and q.region == k.region for k in keys] for q in queries]
                )
                weights = scores.masked_fill(~mine, -torch.inf).softmax(-1).nan_to_num()
                expected -= torch.einsum("hnm,mhd->nhd", weights, value[0]) * own
        found = attend(query, key, value, segments)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # Convolutions reach across regions, and not across clips.
    assert packing.borders.first[:, 0].nonzero().flatten().tolist() == [0, 4]
