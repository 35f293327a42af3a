"""The small model as it is served, on a few held-out clips, in few steps.

The bounds lie well below what benchmarks/quality measures on many clips: these tests find a model
that is broken, not one that is a little worse. tests/assets/drawn is what
`python -m benchmarks.quality.make_clips --first 201 --count 5 --crf 30` writes, and with
`--unseen-style --first 301 --count 2`.
"""

# S samples

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.quality import table, text_alone
from benchmarks.quality.held_out import HELD_OUT_SEED
from foley.pipeline import FoleyPipeline
from foley.plans import SamplingPlan
from foley.types import Conditions, VideoFrames
from training import clips, judge
from training.judge import Match, detect_onsets, merge_close_events
from training.materials import MATERIALS
from training.settings import load_state

pytestmark = pytest.mark.long

ASSETS = Path(__file__).parents[1] / "assets" / "drawn"
CHECKPOINTS = Path(__file__).parents[2] / "training" / "checkpoints"
STEPS = 10
SECONDS = 4.0


@dataclass
class Clip:
    """A clip, what is known of it, and what the model is conditions."""

    index: int
    frames: VideoFrames
    prompt: str
    events: list[float]
    conditions: Conditions


@pytest.fixture(scope="module")
def pipeline() -> FoleyPipeline:
    return FoleyPipeline.from_preset("tiny", "cpu")


def read(pipeline: FoleyPipeline, pattern: str) -> list[Clip]:
    found = []
    for path in sorted(ASSETS.glob(pattern)):
        described = json.loads(path.with_suffix(".json").read_text())
        frames, prompt = pipeline.decode_video(path), described["prompt"]
        found.append(
            Clip(
                index=int(re.sub(r"\D", "", path.stem)),
                frames=frames,
                prompt=prompt,
                events=merge_close_events([event["time"] for event in described["events"]]),
                conditions=pipeline.condition(frames, prompt, table.NEGATIVE),
            )
        )
    assert found
    return found


@pytest.fixture(scope="module")
def plain(pipeline: FoleyPipeline) -> list[Clip]:
    return read(pipeline, "clip*.mp4")


def sound(pipeline: FoleyPipeline, clip: Clip, conditions: Conditions | None = None) -> Tensor:
    """A sound [S] for a clip, of other conditions where there are some."""
    scale = pipeline.preset.default_guidance
    return table.generate_sound(
        pipeline, clip.frames, conditions or clip.conditions, SamplingPlan(STEPS), scale, seed=0
    )


@pytest.fixture(scope="module")
def sounds(pipeline: FoleyPipeline, plain: list[Clip]) -> list[Tensor]:
    return [sound(pipeline, clip) for clip in plain]


def match_sounds(found: list[Tensor], of: list[Clip]) -> Match:
    match = Match()
    for waveform, clip in zip(found, of, strict=True):
        match.add(detect_onsets(waveform), clip.events)
    return match


def test_sounds_start_when_things_touch(sounds: list[Tensor], plain: list[Clip]) -> None:
    match = match_sounds(sounds, plain)
    assert match.truth > 30
    assert match.f1 > 0.75
    assert match.median_error_ms < 15


def test_the_motion_of_another_clip_is_not_that_of_the_sound(
    pipeline: FoleyPipeline, plain: list[Clip], sounds: list[Tensor]
) -> None:
    others = [*plain[1:], plain[0]]
    mixed = [
        sound(
            pipeline,
            clip,
            dataclasses.replace(clip.conditions, sync_tokens=other.conditions.sync_tokens),
        )
        for clip, other in zip(plain, others, strict=True)
    ]
    # Chance finds about a quarter; the sound is that of the motion, not of the words or images.
    assert match_sounds(mixed, plain).f1 < 0.5
    assert match_sounds(mixed, others).f1 > 0.6


@pytest.mark.soak
def test_a_style_that_training_never_saw_is_followed(pipeline: FoleyPipeline) -> None:
    unseen = read(pipeline, "unseen*.mp4")
    assert match_sounds([sound(pipeline, clip) for clip in unseen], unseen).f1 > 0.5


def test_between_events_it_is_silent(sounds: list[Tensor], plain: list[Clip]) -> None:
    depths = []
    for waveform, clip in zip(sounds, plain, strict=True):
        batch = clips.make_batch(HELD_OUT_SEED, clip.index, 1, SECONDS, quiet=True)
        assert merge_close_events(batch.hits["seconds"].tolist()) == pytest.approx(
            clip.events, abs=1e-3
        )
        real = batch.waveform()[0]
        depths.append(judge.silence_db(real[: len(waveform)], waveform[: len(real)]))
    assert torch.tensor(depths).nanmedian() > 20


def test_a_prompt_chooses_the_material(pipeline: FoleyPipeline, plain: list[Clip]) -> None:
    model = judge.MaterialJudge().eval()
    model.load_state_dict(load_state(CHECKPOINTS / "judge.safetensors"))
    heard: list[bool] = []
    for clip, material in zip(plain, ("metal", "wood", "glass"), strict=False):
        prompt = f"{material} impacts"
        conditions = pipeline.condition(clip.frames, prompt, table.NEGATIVE)
        waveform = sound(pipeline, clip, conditions)
        owner = torch.zeros(len(clip.events), dtype=torch.long)
        windows = judge.cut_hit_windows(waveform[None], owner, torch.tensor(clip.events))
        with torch.no_grad():
            found = model(model.features(windows)).argmax(1)
        heard += (found == MATERIALS.index(material)).tolist()
    # One of seven by chance.
    assert sum(heard) / len(heard) > 0.5


def test_a_picture_that_does_not_move_is_nearly_silent(
    pipeline: FoleyPipeline, plain: list[Clip], sounds: list[Tensor]
) -> None:
    frames = plain[0].frames
    still = dataclasses.replace(
        frames,
        visual=frames.visual[:1].expand_as(frames.visual).contiguous(),
        sync=frames.sync[:1].expand_as(frames.sync).contiguous(),
    )
    conditions = pipeline.condition(still, plain[0].prompt, table.NEGATIVE)
    waveform = sound(pipeline, plain[0], conditions)
    assert len(detect_onsets(waveform)) <= 2
    assert waveform.square().mean() < sounds[0].square().mean() / 10


@pytest.mark.soak
def test_without_a_clip_the_prompt_chooses_the_material(pipeline: FoleyPipeline) -> None:
    options = {"num_inference_steps": STEPS}
    figures = text_alone.measure(pipeline, num_prompts=1, num_variations=1, seed=0, **options)
    assert figures["num_sounds"] == len(MATERIALS)
    assert figures["hits"] > 0.7, figures  # on more sounds 0.97; chance 0.14
