import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from foley.configs import TINY, TINY_GUIDANCE, XL, XXL
from foley.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    ModelError,
    ParameterError,
    PromptTooLongError,
)
from foley.media.clock import num_latents
from foley.media.decode import probe
from foley.pipeline import FoleyPipeline, Progress
from foley.plans import SOLVERS, TINY_PLAN, SamplingPlan, Solver
from foley.request import GenerationRequest
from foley.weights.selection import choose_device
from tests.toys import toy_components, toy_frames, toy_pipeline, toy_preset

STEPS = 3


def sound(**options: object) -> torch.Tensor:
    options = {"seed": 5, "num_inference_steps": STEPS} | options
    return toy_pipeline()(toy_frames(), "a dog barks", **options).waveforms  # type: ignore[arg-type]


@pytest.mark.parametrize("num_sync", [16, 29, 40, 57])
def test_sound_lasts_as_long_as_the_clip(num_sync: int) -> None:
    made = toy_pipeline()(toy_frames(num_sync), num_inference_steps=1)
    assert made.sample_rate == 48000
    assert made.waveforms.shape == (1, 1, 960 * num_latents(num_sync))
    assert made.waveforms.dtype == torch.float32
    assert made.waveforms.abs().max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.64, 1.02, 3.1, 15])
def test_a_sound_without_a_clip_lasts_as_long_as_asked(seconds: float) -> None:
    made = toy_pipeline()(None, "rain", duration_seconds=seconds, num_inference_steps=1)
    assert made.waveforms.shape == (1, 1, round(48000 * seconds))
    assert made.duration_seconds == pytest.approx(seconds)
    assert not made.notices


@pytest.mark.slow
def test_without_a_clip_the_prompt_decides_and_a_seed_repeats_its_sound() -> None:
    def make(prompt: str, seed: int) -> torch.Tensor:
        options = {"duration_seconds": 1.0, "num_inference_steps": STEPS, "num_variations": 2}
        return toy_pipeline()(None, prompt, seed=seed, **options).waveforms  # type: ignore[arg-type]

    assert torch.equal(make("rain", 1), make("rain", 1))
    assert not torch.equal(make("rain", 1), make("wind", 1))
    assert not torch.equal(make("rain", 1), make("rain", 3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": "rain"}, "video: missing; give a clip, or duration_seconds"),
        (
            {"prompt": "rain", "duration_seconds": 3600.1},
            "duration_seconds: input should be less than or equal to 3600, got 3600.1",
        ),
        (
            {"prompt": "rain", "duration_seconds": math.nan},
            "duration_seconds: input should be a finite number, got nan",
        ),
        (
            {"prompt": " ", "duration_seconds": 1.0},
            "duration_seconds: needs a prompt or layers, which without a clip",
        ),
    ],
)
def test_a_sound_without_a_clip_needs_a_length_and_a_prompt(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(ParameterError, match=re.escape(words)):
        toy_pipeline()(None, **options)  # type: ignore[arg-type]


def test_a_length_may_be_a_text() -> None:
    made = toy_pipeline()(None, "rain", duration_seconds="1")  # type: ignore[call-overload]
    assert made.duration_seconds == 1


def test_a_clip_decides_its_own_length() -> None:
    with pytest.raises(ParameterError, match="duration_seconds: only for a sound without a clip"):
        toy_pipeline()(toy_frames(), "rain", duration_seconds=1.0)


def test_a_still_picture_is_sounded_for_as_long_as_asked(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 48), "green").save(photo)
    made = toy_pipeline()(photo, duration_seconds=1.6, num_inference_steps=1)
    assert made.waveforms.shape == (1, 1, 76_800)
    (video,) = made.save(tmp_path / "out.mp4")
    assert probe(video.path).duration_seconds == pytest.approx(1.6, abs=0.03)
    made.save(tmp_path / "out.wav")
    with pytest.raises(ParameterError, match="start_seconds: got 1 and duration_seconds"):
        toy_pipeline()(photo, duration_seconds=1.6, start_seconds=1.0)


def test_a_seed_repeats_its_sound_and_another_does_not() -> None:
    assert torch.equal(sound(), sound())
    assert not torch.equal(sound(), sound(seed=6))


def test_the_seed_that_was_drawn_is_returned_and_repeats_the_sound() -> None:
    first = toy_pipeline()(toy_frames(), num_inference_steps=STEPS)
    again = toy_pipeline()(toy_frames(), num_inference_steps=STEPS, seed=first.seeds[0])
    assert torch.equal(first.waveforms, again.waveforms)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "guidance_scale"),
    [*((solver, 4.5) for solver in SOLVERS), ("euler", 1.0)],
)
def test_a_variation_is_the_sound_of_its_seed(solver: Solver, guidance_scale: float) -> None:
    options = {"solver": solver, "guidance_scale": guidance_scale, "num_inference_steps": 2}
    three = sound(num_variations=3, **options)
    for i in range(3):
        alone = sound(seed=5 + i, **options)
        # Measured: at most 3e-7.
        torch.testing.assert_close(three[i : i + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_options_change_the_sound() -> None:
    base = sound()
    for options in (
        {"guidance_scale": 2.0},
        {"guidance_scale": 1.0},
        {"num_inference_steps": STEPS + 1},
        {"solver": "heun"},
        {"negative_prompt": "music"},
    ):
        assert not torch.equal(sound(**options), base), options


def test_without_guidance_the_negative_prompt_has_no_effect() -> None:
    # Both have the same length, because the length of the padding changes the sound.
    one = sound(guidance_scale=1.0, negative_prompt="abcd")
    two = sound(guidance_scale=1.0, negative_prompt="wxyz")
    assert torch.equal(one, two)


def test_progress_counts_every_stage_to_its_end() -> None:
    seen: list[Progress] = []
    toy_pipeline()(toy_frames(), num_inference_steps=STEPS, on_progress=seen.append)
    assert [p.stage for p in seen if p.step == p.num_steps] == ["encode", "sample", "decode_audio"]
    steps = [p.step for p in seen if p.stage == "sample"]
    assert steps == list(range(STEPS + 1))


def test_an_error_of_the_progress_callback_ends_the_work() -> None:
    class CancelledError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == "sample" and progress.step == 1:
            raise CancelledError

    with pytest.raises(CancelledError):
        toy_pipeline()(toy_frames(), num_inference_steps=STEPS, on_progress=stop)
    assert sound().isfinite().all()  # and the pipeline is as good as before


def test_a_result_has_timings_and_notices() -> None:
    frames = dataclasses.replace(toy_frames(), notices=("cut",))
    made = toy_pipeline()(frames, num_inference_steps=1)
    assert list(made.timings) == ["encode", "sample", "decode_audio"]
    assert made.notices == ("cut",)


def test_a_prompt_over_77_tokens_is_cut_with_a_notice() -> None:
    made = toy_pipeline()(toy_frames(), "x" * 76, num_inference_steps=1)
    assert "prompts are cut after 77 tokens, one has 78" in made.notices
    whole = toy_pipeline()(toy_frames(), "x" * 75, num_inference_steps=1)
    assert not any("cut" in notice for notice in whole.notices)


def test_values_that_are_not_finite_are_an_error() -> None:
    components = toy_components()
    components.dit.velocity_out.bias.data.fill_(float("nan"))
    pipeline = FoleyPipeline(components, torch.device("cpu"))
    with pytest.raises(ModelError, match="not finite"):
        pipeline(toy_frames(), num_inference_steps=1)


def test_a_prompt_over_the_encoders_limit_is_refused() -> None:
    with pytest.raises(PromptTooLongError, match="prompt has 602 tokens, the limit is 512"):
        toy_pipeline()(toy_frames(), "x" * 600)


def test_options_out_of_range_are_refused_before_any_work() -> None:
    with pytest.raises(ParameterError, match="num_variations"):
        toy_pipeline()("no/such/file.mp4", num_variations=0)


def test_warm_up_runs() -> None:
    toy_pipeline().warm_up()


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:7", "sees"), ("gpu", "is not known"), ("mps", "is not supported")],
)
def test_a_missing_device_is_refused(device: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        choose_device(device)


def test_unknown_presets_and_missing_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="tiny, xl, xxl and auto"):
        FoleyPipeline.from_preset("huge")
    with pytest.raises(ConfigError, match="xxl needs weights"):
        FoleyPipeline.from_preset("xxl")
    with pytest.raises(CheckpointError, match="holds neither"):
        FoleyPipeline.from_preset("auto", weights="no/such/folder")


def test_requests_default_to_the_published_settings() -> None:
    request = GenerationRequest()
    assert request.choose_sampling(XXL) == request.choose_sampling(XL) == SamplingPlan(50)
    assert request.choose_guidance(XXL) == request.choose_guidance(XL) == 4.5
    assert request.negative_prompt == "noisy, harsh"


@pytest.mark.slow
def test_the_preset_decides_steps_that_a_request_does_not_give() -> None:
    assert GenerationRequest().choose_sampling(TINY) == TINY_PLAN
    assert GenerationRequest(num_inference_steps=3).choose_sampling(TINY).num_inference_steps == 3
    components = dataclasses.replace(
        toy_components(), preset=dataclasses.replace(toy_preset(), name="tiny")
    )
    seen: list[Progress] = []
    pipeline = FoleyPipeline(components, torch.device("cpu"))
    pipeline(toy_frames(), on_progress=seen.append)
    assert {p.num_steps for p in seen if p.stage == "sample"} == {TINY_PLAN.num_inference_steps}


def test_the_preset_decides_guidance_that_a_request_does_not_give() -> None:
    assert GenerationRequest().choose_guidance(TINY) == TINY_GUIDANCE == 2.0
    assert GenerationRequest(guidance_scale=1).choose_guidance(TINY) == 1
    components = dataclasses.replace(
        toy_components(), preset=dataclasses.replace(toy_preset(), name="tiny")
    )
    pipeline = FoleyPipeline(components, torch.device("cpu"))
    options = {"seed": 5, "num_inference_steps": STEPS}
    unnamed, own, other = (
        pipeline(toy_frames(), "tap", **options, **scale).waveforms  # type: ignore[arg-type]
        for scale in ({}, {"guidance_scale": 2.0}, {"guidance_scale": 4.5})
    )
    assert torch.equal(unnamed, own)
    assert not torch.equal(unnamed, other)


def test_a_list_of_clips_gives_the_sound_of_each() -> None:
    pipeline, frames = toy_pipeline(), [toy_frames(), toy_frames(29)]
    options = {"seed": 5, "num_inference_steps": STEPS}
    made = pipeline(frames, ["rain", "wind"], **options)  # type: ignore[call-overload]
    for clip, prompt, result in zip(frames, ["rain", "wind"], made, strict=True):
        alone = pipeline(clip, prompt, **options)  # type: ignore[call-overload]
        assert result.waveforms.shape == alone.waveforms.shape
        # A product of matrices of another height is summed in another order: 1e-6 measured.
        assert torch.allclose(result.waveforms, alone.waveforms, atol=1e-4)
    assert pipeline([], "rain") == []


def test_a_list_of_prompts_has_one_for_each_clip() -> None:
    with pytest.raises(ParameterError, match="1 prompts and 2 clips"):
        toy_pipeline()([toy_frames(), toy_frames()], ["rain"])
    with pytest.raises(ParameterError, match="there is one clip"):
        toy_pipeline()(toy_frames(), ["rain"])  # type: ignore[call-overload]
    with pytest.raises(ParameterError, match="prompt: None, but there is one clip"):
        toy_pipeline()(toy_frames(), None)  # type: ignore[call-overload]


def test_a_folder_that_is_none_is_refused_with_the_presets() -> None:
    with pytest.raises(CheckpointError, match=r"neither a folder nor a preset.*tiny, xl, xxl"):
        FoleyPipeline.from_pretrained("tencent/no-such-folder")


def test_a_pipeline_shows_its_model_and_device() -> None:
    assert repr(toy_pipeline()) == "<FoleyPipeline: toy on cpu>"


def test_a_loaded_pipeline_stays_on_its_device_and_one_of_components_cannot_move() -> None:
    pipeline = FoleyPipeline.from_pretrained("tiny", "cpu")
    assert pipeline.to("cpu") is pipeline
    with pytest.raises(DeviceError, match="meta"):
        pipeline.to("meta")
    made = FoleyPipeline(toy_components(), torch.device("cpu"))
    assert made.to(torch.device("cpu")) is made


# Other libraries remark on each other's versions while they are imported. Which of them do depends
# on what is installed, so this program always has one that does.
REMARKING_IMPORT = """
import importlib.abc, logging, sys
class Remark(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "diffusers":
            print("asked")
            logging.warning("This version of a library is another one than that of its kernels.")
sys.meta_path.insert(0, Remark())
from foley.pipeline import FoleyPipeline
"""


@pytest.mark.long
def test_the_pipeline_is_imported_without_a_remark_of_other_libraries() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REMARKING_IMPORT],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout + done.stderr == "asked\n"
