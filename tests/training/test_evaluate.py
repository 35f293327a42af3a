"""What the evaluation asks of a model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality import table
from benchmarks.quality.held_out import make_frames
from foley.pipeline import FoleyPipeline
from foley.plans import QUALITIES
from training import clips, text
from training.evaluate import (
    HELD_OUT_SEED,
    NEGATIVE,
    Sampling,
    generate_sounds,
    load_trained,
    make_naming_prompts,
)
from training.materials import MATERIALS
from training.unpack import unpack_state


def test_prompts_name_the_material_that_is_seen() -> None:
    batch = clips.make_batch(HELD_OUT_SEED, 0, 6, 3.0, action="tap", quiet=True)
    prompts = make_naming_prompts(batch, np.random.default_rng(0))
    told = dict(zip(batch.owner.tolist(), batch.hits["material"].long().tolist(), strict=True))
    assert told
    for clip, material in told.items():
        name = MATERIALS[material]
        words = {name, *text.WORDS[name], *text.SHORT[name]} | (
            {"drum"} if name == "skin" else set()
        )
        assert any(word in prompts[clip] for word in words), (name, prompts[clip])


def test_a_clip_without_hits_keeps_its_prompt() -> None:
    batch = clips.make_batch(HELD_OUT_SEED, 0, 24, 3.0)
    silent = set(range(len(batch))) - set(batch.owner.tolist())
    assert silent
    prompts = make_naming_prompts(batch, np.random.default_rng(0))
    assert all(prompts[clip] == batch.prompts[clip] for clip in silent)


def test_sounds_are_those_of_the_pipeline_with_any_plan(tmp_path: Path) -> None:
    unpack_state(tmp_path / "state")
    parts = load_trained(tmp_path / "state", torch.device("cpu"))
    pipeline = FoleyPipeline.from_preset("tiny", "cpu")
    batch = clips.make_batch(HELD_OUT_SEED, 0, 1, 0.64, action="tap", quiet=True)
    batch = replace(batch, drawn=batch.pictures())
    assert batch.drawn is not None
    frames = make_frames(batch.drawn[0], pipeline.preset)
    conditions = pipeline.condition(frames, batch.prompts[0], NEGATIVE)
    for name in ("fast", "balanced"):
        plan = QUALITIES[name]
        served = table.generate_sound(pipeline, frames, conditions, plan, 2.0, 5)
        sound = generate_sounds(parts, batch, Sampling(plan, 2.0, 5))[0]
        # measured: 4e-7; with guidance in all steps 2e-5
        torch.testing.assert_close(sound, served, rtol=0, atol=2e-6)
