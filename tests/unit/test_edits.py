"""Edits: ranges of a sound that are made anew, variations of it, and what follows its end."""

import io
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foley import FoleyPipeline
from foley.configs import SAMPLE_RATE, TINY
from foley.edits import EditPlan, plan_edit, prepare_source
from foley.errors import ParameterError
from foley.generation import Generation
from foley.marks.mark import Marks
from foley.media.inspection import inspect_file
from foley.media.mux import write_audio
from foley.request import Edit, GenerationRequest
from foley.types import NoPicture, SourceSound
from foley.weights.analysis import load_analysis
from tests.media.clips import add_sound
from tests.server import draw_clip
from tests.toys import toy_frames, toy_pipeline

FADE = 480  # samples of the crossfade
LONG_FADE = 4800  # at most, at the start of a range


def part(start: float, stop: float) -> dict[str, float]:
    return {"start_seconds": start, "stop_seconds": stop}


def plan(source: float, length: float, *ranges: tuple[float, float], **more: Any) -> EditPlan:
    edit = Edit(source="file", ranges=[part(*pair) for pair in ranges], **more)
    return plan_edit(edit, round(source * SAMPLE_RATE), round(length * SAMPLE_RATE))


def is_before(start: float, length: float) -> bool:
    return round(start * SAMPLE_RATE) < round(length * SAMPLE_RATE)


def noise(seconds: float, channels: int = 1, seed: int = 0) -> torch.Tensor:
    """Values that 24 bits hold."""
    generator = torch.Generator().manual_seed(seed)
    shape = (channels, round(seconds * SAMPLE_RATE))
    return (torch.rand(shape, generator=generator) * 2**20).round() / 2**22


def edit_toy(source: torch.Tensor, seconds: float, seed: int = 1, **edit: Any) -> torch.Tensor:
    request = GenerationRequest(
        prompt="tap",
        duration_seconds=seconds,
        seed=seed,
        num_inference_steps=2,
        edit={"source": "file", **edit},
    )
    sound = NoPicture(duration_seconds=seconds)
    made = toy_pipeline().generate(sound, request, source=SourceSound(waveform=source))
    return made.waveforms


spans = st.lists(st.tuples(st.floats(0, 12), st.floats(0.1, 12)), max_size=5)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(spans, st.floats(0.1, 12), st.floats(0.1, 6), st.integers(1, 2))
def test_outside_of_any_ranges_samples_are_those_of_the_source(
    pairs: list[tuple[float, float]], source: float, length: float, channels: int
) -> None:
    ranges = [(start, start + count) for start, count in pairs if is_before(start, length)]
    if not ranges and source >= length - 0.1:
        return  # refused
    planned = plan(source, length, *ranges)
    given_sound, made = noise(source, channels), noise(length, seed=1)[None]
    result = planned.splice(made, given_sound)
    assert result.shape == (1, channels, made.shape[-1])
    around = torch.zeros(channels, made.shape[-1])
    count = min(around.shape[1], given_sound.shape[1])
    around[:, :count] = given_sound[:, :count]
    outside = torch.ones(made.shape[-1], dtype=torch.bool)
    for start, stop in planned.spans:
        outside[start:stop] = False
        inside = slice(start + (LONG_FADE if start else 0), stop - FADE)
        if stop == made.shape[-1]:
            inside = slice(inside.start, stop)
        assert torch.equal(result[0, :, inside], made[0, :, inside].expand(channels, -1))
    assert torch.equal(result[0][:, outside], around[:, outside])
    # In order, within the sound, and apart.
    edges = [edge for span in planned.spans for edge in span]
    assert edges == sorted(set(edges))
    assert edges[-1] <= made.shape[-1]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(spans, st.floats(0.1, 12), st.floats(0.1, 6))
def test_no_latent_frame_is_kept_that_is_heard_in_a_range(
    pairs: list[tuple[float, float]], source: float, length: float
) -> None:
    ranges = [(start, start + count) for start, count in pairs if is_before(start, length)]
    if not ranges and source >= length - 0.1:
        return
    planned = plan(source, length, *ranges)
    kept = planned.find_kept(math.ceil(length * 50) + 3)
    for index in kept.nonzero().flatten().tolist():
        frame = (960 * index, 960 * (index + 1))
        assert frame[1] <= min(planned.num_sure, planned.num_samples)
        assert all(frame[1] <= start or frame[0] >= stop for start, stop in planned.spans)


def test_a_ringing_fades_into_a_range_until_something_begins() -> None:
    times = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    ringing = (0.2 * (2 * math.pi * 700 * times).sin() * (-2 * times).exp())[None]
    quieter = 0.3 * (0.2 * (2 * math.pi * 930 * times).sin() * (-2 * times).exp())[None, None]
    start = 24_000
    planned = plan(1, 1, (0.5, 1))

    def levels(sound: torch.Tensor) -> torch.Tensor:
        """Of 10 ms each, from 20 ms before the range to 150 ms after its start."""
        parts = sound[start - 960 : start + 7200].unflatten(0, (-1, 480))
        return 10 * parts.square().mean(1).log10()

    result = planned.splice(quieter, ringing)[0, 0]
    assert torch.equal(result[:start], ringing[0, :start])
    assert torch.equal(result[start + LONG_FADE :], quieter[0, 0, start + LONG_FADE :])
    steps = levels(result).diff()
    assert steps.abs().max() < 4  # of about 11 dB in all; measured: 3.0
    # What begins after 50 ms is not faded, and what begins in the source is not heard.
    hit = torch.zeros(SAMPLE_RATE)
    hit[start + 2400 :] = 2 * noise(1)[0, : -start - 2400]
    for made, source in ((quieter + hit, ringing), (quieter, ringing + hit)):
        result = planned.splice(made, source)[0, 0]
        assert torch.equal(result[start + 2400 :], made[0, 0, start + 2400 :])


def test_ranges_that_overlap_or_touch_are_one_and_ends_are_cut() -> None:
    planned = plan(2, 2, (1, 1.5), (0.2, 0.5), (0.5, 0.7), (1.2, 9))
    assert planned.spans == ((9600, 33600), (48000, 96000))
    whole = plan(2, 2, (0, 9))
    assert torch.equal(whole.make_envelope(), torch.ones(96000))
    assert not whole.find_kept(100).any()


def test_a_shorter_source_is_continued_from_its_end() -> None:
    planned = plan(1, 2)
    assert planned.spans == ((48000 - FADE, 96000),)
    # Of the last three frames of a source the encoder is not sure.
    assert planned.find_kept(104).nonzero().flatten().tolist() == list(range(47))
    assert plan(1.95, 2, (0.5, 1)).spans == ((24000, 48000),)  # containers round
    with pytest.raises(ParameterError, match=r"source lasts 2.00 s and the sound 2.00 s, so noth"):
        plan(2, 2)


def test_each_strength_has_a_noise_level_of_its_own_from_0_to_1() -> None:
    levels = [plan(2, 2, strength=i / 100).level for i in range(101)]
    assert levels[0] == 0
    assert levels[50] == pytest.approx(2 / 3)  # up to there timing stays
    assert levels[75] == pytest.approx(11 / 12)
    assert levels[100] == 1
    steps = np.diff(levels)
    assert steps.min() > 0
    assert np.diff(steps).max() < 1e-9  # the scale is finer towards its end
    assert plan(2, 2, (0, 1)).level == 1


@pytest.mark.parametrize(
    ("planned", "words"),
    [
        (lambda: plan(2, 2, (0, 1), (2, 3)), "range 2 starts at 2 s, the sound lasts 2.00 s"),
        (lambda: plan(1, 2, strength=0.5), "edit.strength: 0.5 .* edit.source lasts 1.00 s of 2"),
    ],
)
def test_what_does_not_fit_the_source_is_refused(planned: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        planned()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"edit": {"source": "original"}, "layers": [{"prompt": "a"}]},
            "edit: cannot be combined with layers",
        ),
        (
            {"edit": {"source": "original"}, "duration_seconds": 1, "prompt": "a"},
            "source original, which is a clip's own sound, and with duration_seconds",
        ),
        ({"edit": {"source": "../a"}}, "edit.source: must be original, file, the id"),
        ({"edit": {"source": "file", "strength": 1.1}}, "edit.strength: input should be less"),
        ({"edit": {"source": "file", "ranges": [part(1, 1.05)]}}, "at least 0.1 s after start"),
        ({"edit": {"ranges": []}}, "edit.source: field required"),
        ({"edit": "original"}, "edit: must be a JSON object such as"),
        ({"edit": {"source": "file", "ranges": [part(0, 1)] * 33}}, "at most 32"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        GenerationRequest.parse(**options)


@pytest.mark.slow
def test_a_range_is_made_anew_and_the_rest_is_the_source_to_the_bit() -> None:
    source = noise(2, channels=2)
    first, second = (edit_toy(source, 2, seed, ranges=[part(0.5, 1.2)]) for seed in (1, 2))
    assert first.shape == (1, 2, 96000)
    for made in (first, second):
        assert torch.equal(made[0, :, :24000], source[:, :24000])
        assert torch.equal(made[0, :, 57600:], source[:, 57600:])
    inside = slice(24000 + LONG_FADE, 57600 - FADE)
    assert not torch.equal(first[..., inside], second[..., inside])
    assert torch.equal(first[0, 0, inside], first[0, 1, inside])  # the new part is mono


@pytest.mark.slow
def test_what_is_kept_is_heard_by_what_is_made_anew() -> None:
    made = [edit_toy(noise(2, seed=seed), 2, ranges=[part(0.5, 1.2)]) for seed in (3, 4)]
    inside = slice(24000 + LONG_FADE, 57600 - FADE)
    assert not torch.equal(made[0][..., inside], made[1][..., inside])


@pytest.mark.slow
def test_strength_1_is_plain_generation_and_0_is_the_autoencoder() -> None:
    pipeline, source = toy_pipeline(), noise(2)
    plain = pipeline(None, "tap", duration_seconds=2, seed=1, num_inference_steps=2)
    assert torch.equal(edit_toy(source, 2, strength=1), plain.waveforms)
    weakest = edit_toy(source, 2, strength=0)
    latents = pipeline.encode_sound(prepare_source(source, 112))
    heard = pipeline.decode(latents)[..., :96000]
    ends = slice(96, -96)  # faded
    # Measured: 3e-8.
    torch.testing.assert_close(weakest[..., ends], heard[..., ends], atol=1e-5, rtol=0)
    middle = edit_toy(source, 2, strength=0.5)
    assert not torch.equal(middle, weakest)
    assert not torch.equal(middle, plain.waveforms)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["heun", "midpoint", "rk4", "ab2"])
def test_all_solvers_put_the_known_latents_back(solver: Any) -> None:
    pipeline, source = toy_pipeline(), noise(2)
    request = GenerationRequest(
        prompt="tap",
        duration_seconds=2,
        seed=1,
        num_inference_steps=3,
        solver=solver,
        edit={"source": "file", "ranges": [part(1, 1.5)]},
    )
    session = pipeline.start(NoPicture(duration_seconds=2), request, SourceSound(waveform=source))
    velocities = pipeline.make_velocity_model()
    with torch.inference_mode():
        while session.stage == "encode":
            session.encode()
        while session.stage == "sample":
            session.advance(*velocities([session.prepare_part()]))
    latents, known = session._latents, pipeline.encode_sound(prepare_source(source, 112))
    assert latents is not None
    # Measured: 1.4e-6.
    for frames in (slice(0, 50), slice(75, 100)):
        torch.testing.assert_close(latents[..., frames], known[..., frames], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_long_sounds_are_edited_across_windows() -> None:
    source = noise(16)
    made = edit_toy(source, 16.5, ranges=[part(7, 9)])
    assert torch.equal(made[0, :, : 7 * 48000], source[:, : 7 * 48000])
    end = 16 * 48000 - FADE
    assert torch.equal(made[0, :, 9 * 48000 : end], source[:, 9 * 48000 : end])
    assert made[0, :, 16 * 48000 + 960 : -960].abs().max() > 0


@pytest.mark.slow
def test_the_pieces_of_a_source_are_counted_before_the_session() -> None:
    pipeline, frames = toy_pipeline(), toy_frames(400)
    request = GenerationRequest(
        num_inference_steps=1, edit={"source": "file", "ranges": [part(1, 2)]}
    )
    session = pipeline.start(frames, request, SourceSound(waveform=noise(16)))
    count = 0
    with torch.inference_mode():
        while session.stage == "encode":
            session.encode()
            count += 1
    assert count == pipeline.count_pieces(len(frames.visual), 400, with_source=True)


@pytest.mark.slow
def test_the_encoder_of_tiny_gives_what_its_decoder_takes() -> None:
    pipeline = FoleyPipeline.from_preset("tiny", device="cpu")
    made = pipeline(None, "metal clangs", duration_seconds=1, seed=1, num_inference_steps=4)
    source = made.waveforms[0]
    latents = pipeline.encode_sound(prepare_source(source, 64))
    assert latents.shape == (1, 64, 64)
    grain = torch.randn(1, TINY.dit.latent_dim - 64, 64, generator=torch.Generator().manual_seed(1))
    heard = pipeline.decode(torch.cat([latents, grain], 1))[0, :, :48000]
    ends = slice(96, -96)
    levels = [10 * sound[:, ends].square().mean().log10() for sound in (source, heard)]
    assert abs(levels[0] - levels[1]) < 1.5  # dB; measured: 0.5
    assert torch.equal(load_analysis()(prepare_source(source, 64)), latents)


@pytest.mark.slow
def test_a_clip_s_own_sound_and_files_are_sources_with_24_bits(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mov"
    draw_clip(tmp_path / "plain.mp4")
    source = noise(1, channels=2)
    add_sound(tmp_path / "plain.mp4", clip, source.numpy())
    file = tmp_path / "a.wav"
    write_audio(source, file)
    pipeline, options = toy_pipeline(), {"seed": 1, "num_inference_steps": 1}
    ranges = [part(0.4, 0.6)]
    outputs = []
    opened = io.BytesIO(file.read_bytes())
    for number, given_source in enumerate(("original", file, str(file), opened)):
        made = pipeline(clip, edit={"source": given_source, "ranges": ranges}, **options)
        path = tmp_path / f"{number}.wav"
        made.save(path, marks=False)
        outputs.append(_read_24_bits(path))
    wanted = _read_24_bits(file)[:, : outputs[0].shape[1]]
    for values in outputs:
        outside = np.r_[0:19200, 28800 : values.shape[1]]
        assert np.array_equal(values[:, outside], wanted[:, outside])
        assert not np.array_equal(values, wanted)
    assert all(np.array_equal(values, outputs[1]) for values in outputs[2:])
    made.save(tmp_path / "marked.wav", marks=Marks())
    said = inspect_file(tmp_path / "marked.wav").made
    assert said is not None
    assert said["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")
    first = pipeline(clip, "tap", **options)
    again = pipeline(clip, edit={"source": first, "ranges": ranges}, **options)
    assert torch.equal(again.waveforms[..., :19200], first.waveforms[..., :19200])


def _read_24_bits(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        channels = container.streams.audio[0].channels
    return np.concatenate(frames, 1).reshape(-1, channels).T >> 8


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    pipeline = toy_pipeline()
    silent = tmp_path / "plain.mp4"
    draw_clip(silent)
    text = tmp_path / "a.wav"
    text.write_text("no sound")
    ranges = [part(0, 0.5)]
    for given_source, words in (
        ("original", "edit.source: the clip has no sound; use another source"),
        (silent, "edit.source: the file has no sound; send a wav, flac"),
        (text, "edit.source: cannot be read"),
        (3, "edit.source: must be original, a path, bytes, .* got int"),
    ):
        with pytest.raises(ParameterError, match=words):
            pipeline(silent, edit={"source": given_source, "ranges": ranges})
    with pytest.raises(ParameterError, match="there are only frames"):
        pipeline(toy_frames(), edit={"source": "original", "ranges": ranges})
    two = Generation(waveforms=torch.zeros(2, 1, 9), sample_rate=SAMPLE_RATE, seeds=(1, 2))
    with pytest.raises(ParameterError, match="a generation of 2 variations"):
        pipeline(silent, edit={"source": two, "ranges": ranges})


def test_the_original_is_not_mixed_in_twice(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mov"
    draw_clip(tmp_path / "plain.mp4")
    add_sound(tmp_path / "plain.mp4", clip, noise(1, channels=2).numpy())
    edit = {"source": "original", "ranges": [part(0, 0.5)]}
    made = toy_pipeline()(clip, edit=edit, seed=1, num_inference_steps=1)
    with pytest.raises(ParameterError, match=r"original_sound: mix adds .* an edit of source orig"):
        made.save(tmp_path / "a.wav", original_sound="mix")
