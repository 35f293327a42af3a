import dataclasses
import itertools
import resource
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from foley.configs import TINY, XXL
from foley.denoise import TIMES_AT_ONCE, Denoising, KeptLatents, VelocityModel
from foley.errors import OutputError
from foley.media.clock import num_latents
from foley.request import GenerationRequest
from foley.sampling import NoiseLine, compute_evaluation_sigmas, make_sigmas
from foley.session import Session, SoundPiece, count_samples, fade_ends
from foley.types import FramePiece, FrameStream, NoPicture, split_frames
from foley.windows import plan_windows
from tests.toys import toy_frames, toy_pipeline


def drive(session: Session) -> dict[str, int]:
    """Run a session alone to its end; returns the number of calls of each stage."""
    velocities, counts = VelocityModel(toy_pipeline().dit), {"encode": 0, "step": 0, "decode": 0}
    with torch.inference_mode():
        while session.stage is not None:  # the stages of a long sound come again for each group
            if session.stage == "encode":
                session.encode()
                counts["encode"] += 1
            elif session.stage == "sample":
                session.advance(*velocities([session.prepare_part()]))
                counts["step"] += 1
            else:
                session.decode()
                counts["decode"] += 1
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("num_sync", [16, 25, 47, 48, 57, 120, 375, 473])
def test_the_number_of_pieces_is_known_before_the_session(num_sync: int) -> None:
    frames = toy_frames(num_sync)
    request = GenerationRequest(num_inference_steps=2, solver="heun", num_variations=3)
    counts = drive(toy_pipeline().start(frames, request))
    assert counts == {
        "encode": toy_pipeline().count_pieces(len(frames.visual), num_sync),
        "step": len(compute_evaluation_sigmas(make_sigmas(2), "heun"))
        * len(plan_windows(num_latents(num_sync))),
        "decode": 3 * len(plan_windows(num_latents(num_sync))),
    }


@torch.inference_mode()
def test_the_conditions_of_a_long_clip_are_those_of_its_whole() -> None:
    pipeline, frames = toy_pipeline(), toy_frames(376 + 96 + 7)
    made = pipeline.condition(frames, "tap", "")
    encoders = pipeline._encoders
    assert made.num_latents == 2 * len(frames.sync)
    # As many as of the whole: no segment is lost at a border, nor taken twice.
    assert len(made.sync_tokens) == 8 * ((len(frames.sync) - 16) // 8 + 1)
    assert len(made.visual_tokens) == len(frames.visual)
    for index in (0, 45, 46, 47, 57):  # segments at the border of the first two pieces, and ends
        alone = encoders.sync(frames.sync[8 * index : 8 * index + 16])
        # Measured: below 1e-6; the sizes of the batches differ.
        torch.testing.assert_close(
            made.sync_tokens[8 * index : 8 * index + 8], alone, rtol=0, atol=1e-5
        )
    alone = encoders.visual(frames.visual[119:123])
    torch.testing.assert_close(made.visual_tokens[119:123], alone, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_frames_that_were_encoded_are_let_go() -> None:
    frames = toy_frames(376 + 2 * 96)
    read: list[weakref.ref[torch.Tensor]] = []

    def pieces() -> Iterator[FramePiece]:
        stream = split_frames(frames)
        while stream.facts is None:
            piece = stream.read()
            copy = dataclasses.replace(piece, visual=piece.visual.clone(), sync=piece.sync.clone())
            assert [ref() for ref in read[:-2]] == [None] * len(read[:-2])
            read.extend((weakref.ref(copy.visual), weakref.ref(copy.sync)))
            yield copy
            del piece, copy

    request = GenerationRequest(prompt="tap", seed=3, num_inference_steps=1)
    session = toy_pipeline().start(FrameStream(pieces()), request)
    drive(session)
    assert len(read) == 6
    assert [ref() for ref in read] == [None] * 6
    made = toy_pipeline().generate(frames, request)
    assert torch.equal(session.result().waveforms, made.waveforms)


@pytest.mark.slow
def test_a_long_clip_is_heard_while_it_is_read() -> None:
    frames, read = toy_frames(376 + 2 * 96), list[FramePiece]()

    def pieces() -> Iterator[FramePiece]:
        stream = split_frames(frames)
        while stream.facts is None:
            read.append(stream.read())
            yield read[-1]

    heard: list[tuple[int, SoundPiece]] = []
    made = toy_pipeline().generate(
        FrameStream(pieces()),
        GenerationRequest(seed=3, num_inference_steps=2, num_variations=2),
        on_sound=lambda piece: heard.append((len(read), piece)),
    )
    assert heard[0][0] == 1  # piece of the clip
    assert [(p.variation, p.number) for _, p in heard] == [
        (1, 1),
        (2, 1),
        (1, 2),
        (1, 3),
        (2, 2),
        (2, 3),
    ]
    for variation in (1, 2):
        own = [piece for _, piece in heard if piece.variation == variation]
        starts = itertools.accumulate((p.waveform.shape[-1] for p in own), initial=0)
        assert [piece.start_seconds * 48_000 for piece in own] == list(starts)[:-1]
        joined = torch.cat([piece.waveform for piece in own], -1)
        assert torch.equal(joined, made.waveforms[variation - 1])


@pytest.mark.slow
def test_a_long_sound_is_in_a_file_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    frames, seen = toy_frames(376 + 96), list[list[Path]]()
    request = GenerationRequest(seed=3, num_inference_steps=1)
    made = toy_pipeline().generate(
        frames, request, on_sound=lambda piece: seen.append(list(tmp_path.rglob("*.f32")))
    )
    assert {len(files) for files in seen} == {1}
    assert not list(tmp_path.iterdir())
    session = toy_pipeline().start(frames, request)
    drive(session)
    assert torch.equal(made.waveforms, session.result().waveforms)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may have more than 4 KB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_long_sound_without_room_for_its_file_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_files: None
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    request = GenerationRequest(seed=3, num_inference_steps=1)
    with pytest.raises(OutputError, match=r"cannot be stored .* set TMPDIR to another folder"):
        toy_pipeline().generate(toy_frames(376 + 96), request)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_failure_of_who_takes_the_pieces_is_not_the_folder_s() -> None:
    def fail(piece: SoundPiece) -> None:
        raise OSError(28, "No space left on device", "own.wav")

    with pytest.raises(OSError, match=r"own\.wav"):
        toy_pipeline().generate(
            toy_frames(376 + 96), GenerationRequest(seed=3, num_inference_steps=1), on_sound=fail
        )


@pytest.mark.slow
def test_the_beginning_of_a_short_sound_comes_ahead_of_the_whole() -> None:
    sound = NoPicture(duration_seconds=6)
    cue = {"start_seconds": 1, "stop_seconds": 2, "prompt": "rain", "gain_db": -6}
    request = GenerationRequest.parse(
        prompt="rain", seed=3, num_inference_steps=1, num_variations=2, cues=[cue]
    )
    session, plain = (toy_pipeline().start(sound, request) for _ in range(2))
    session.begins_early = True
    assert drive(session)["decode"] == 2 * drive(plain)["decode"] == 4
    made, beginnings = session.result().waveforms, session.take_finished()
    assert torch.equal(made, plain.result().waveforms)
    assert [(p.variation, p.number, p.start_seconds) for p in beginnings] == [(1, 1, 0), (2, 1, 0)]
    assert tuple(piece.seed for piece in beginnings) == session.seeds
    for piece, whole in zip(beginnings, made, strict=True):
        assert piece.waveform.shape == (1, round(2.56 * 48_000))
        same = whole[:, : piece.waveform.shape[-1]]
        # Measured: 4e-7 with tiny.
        torch.testing.assert_close(piece.waveform, same, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "options"),
    [
        (4, {"prompt": "rain"}),  # decoded soon as it is
        (17, {"prompt": "rain"}),  # comes in pieces
        (6, {"prompt": "rain", "avoid_speech": "retry"}),
        (6, {"layers": [{"prompt": "rain"}, {"prompt": "wind"}]}),
    ],
)
def test_there_is_no_beginning_of(seconds: float, options: dict[str, object]) -> None:
    request = GenerationRequest.parse(num_inference_steps=1, **options)
    session = toy_pipeline().start(NoPicture(duration_seconds=seconds), request)
    session.begins_early = True
    drive(session)
    assert [piece for piece in session.take_finished() if piece.waveform.shape[-1] == 122_880] == []


def test_a_window_begins_where_a_shot_does() -> None:
    frames = toy_frames(500)
    still = torch.arange(500) // 300 * 200  # the second shot begins at 12 s
    dark = dataclasses.replace(
        frames, sync=still[:, None, None, None].expand_as(frames.sync).byte()
    )
    conditions = toy_pipeline().condition(dark, "tap", "")
    assert conditions.cuts == (600,)
    (second,) = [w for w in plan_windows(1000, conditions.cuts) if w.start <= 600 < w.stop - 24]
    assert abs(second.start + 16 - 600) <= 8
    assert toy_pipeline().condition(toy_frames(376), "tap", "").cuts == ()


def test_noise_of_an_unknown_length_is_one_line() -> None:
    line, again = (NoiseLine((1, 2), 8) for _ in range(2))
    parts = [line.draw(0, 384), line.draw(352, 1440), line.draw(1408, 1500)]
    whole = again.draw(0, 1500)
    for part, start in zip(parts, (0, 352, 1408), strict=True):
        assert torch.equal(part, whole[..., start : start + part.shape[-1]])
    assert not torch.equal(whole[0], whole[1])
    assert whole.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "rk4", "ab2"])
@torch.inference_mode()
def test_what_is_known_stays_as_it_is_with_every_solver(solver: str) -> None:
    dit = toy_pipeline().dit
    conditions = toy_pipeline().condition(toy_frames(40), "tap", "")
    noise, known = torch.randn(1, 8, 80), torch.randn(1, 8, 32)
    latents = torch.cat([known, noise[..., 32:]], -1)
    kept = KeptLatents(noise - latents, torch.arange(80) < 32)
    path = Denoising(dit, conditions, noise, make_sigmas(4), solver=solver, kept=kept)  # type: ignore[arg-type]
    model = VelocityModel(dit)
    while (point := path.point) is not None:
        expected = (1 - point.sigma) * known + point.sigma * noise[..., :32]
        torch.testing.assert_close(point.latents[..., :32], expected, rtol=0, atol=1e-5)
        path.advance(*model([path.prepare_part()]))
    assert path.latents is not None
    torch.testing.assert_close(path.latents[..., :32], known, rtol=0, atol=1e-5)


def test_a_session_gives_the_sound_of_the_pipeline() -> None:
    request = GenerationRequest(prompt="tap", seed=3, num_inference_steps=3)
    session = toy_pipeline().start(toy_frames(), request)
    drive(session)
    made = toy_pipeline().generate(toy_frames(), request)
    assert torch.equal(session.result().waveforms, made.waveforms)
    assert session.result().seeds == made.seeds == (3,)


@pytest.mark.slow
def test_every_evaluation_of_a_long_schedule_has_its_own_time() -> None:
    num_steps = TIMES_AT_ONCE + 6
    request = GenerationRequest(seed=1, num_inference_steps=num_steps, guidance_scale=1)
    session = toy_pipeline().start(toy_frames(16), request)
    dit, velocities = toy_pipeline().dit, VelocityModel(toy_pipeline().dit)
    with torch.inference_mode():
        while session.stage == "encode":
            session.encode()
        for sigma in make_sigmas(num_steps)[:-1]:
            part = session.prepare_part()
            expected = dit.make_time_modulation(sigma[None])
            # Measured: at most 1.1e-7; neighbours in this schedule differ by 0.05 or more.
            torch.testing.assert_close(part.time.audio, expected.audio, rtol=0, atol=1e-5)
            session.advance(*velocities([part]))
    assert session.stage == "decode_audio"


def test_the_sound_of_a_padded_clip_is_cut_to_the_clip() -> None:
    frames = dataclasses.replace(toy_frames(48), num_picked=43)
    assert count_samples(TINY, frames) == 43 * 1920
    assert count_samples(XXL, frames) is None  # official models: no padding and no cut
    # The sound of a clip that is shorter than a segment ends with its picture.
    short = dataclasses.replace(toy_frames(16), num_picked=3)
    assert [count_samples(preset, short) for preset in (TINY, XXL)] == [3 * 1920] * 2


def test_a_faded_sound_begins_and_ends_at_zero_without_a_step() -> None:
    made = torch.ones(2, 1, 4800)
    fade_ends(made)
    assert made[..., [0, -1]].abs().max() == 0
    assert made.diff().abs().max() < 0.02  # of a step of 1: spread over 2 ms
    assert torch.equal(made[..., 96:-96], torch.ones(2, 1, 4800 - 192))
    start = torch.ones(1, 4800)
    fade_ends(start, stop=False)  # of the first piece of several
    assert start[0, 0] == 0
    assert start[0, -1] == 1
    fade_ends(torch.ones(1, 7))


def test_a_sound_without_a_picture_is_the_same_beside_a_clip() -> None:
    request = GenerationRequest(prompt="rain", seed=4, num_inference_steps=2)
    nothing = NoPicture(duration_seconds=1.0)
    alone = toy_pipeline().generate(nothing, request).waveforms
    sessions = [toy_pipeline().start(frames, request) for frames in (nothing, toy_frames(40))]
    velocities = toy_pipeline().make_velocity_model()
    with torch.inference_mode():
        for session in sessions:
            while session.stage == "encode":
                session.encode()
        while sessions[0].stage == "sample":
            parts = [session.prepare_part() for session in sessions]
            for session, velocity in zip(sessions, velocities(parts), strict=True):
                session.advance(velocity)
        sessions[0].decode()
    torch.testing.assert_close(sessions[0].result().waveforms, alone, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_who_passes_files_on_reads_none_of_them(tmp_path: Path) -> None:
    request = GenerationRequest(prompt="rain", num_inference_steps=1, num_variations=2)
    whole = NoPicture(duration_seconds=16)
    session = toy_pipeline().start(whole, request, None, lambda number: tmp_path / f"{number}.f32")
    drive(session)
    assert session.is_in_files
    made = session.result().waveforms
    assert made.shape == (2, 1, 16 * 48_000)
    assert made.abs().max() > 0
    for path in tmp_path.iterdir():
        path.unlink()
    passed_on = session.result(reads_files=False)
    assert passed_on.waveforms.shape == made.shape
    assert passed_on.duration_seconds == 16
