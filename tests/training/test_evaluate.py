"""What the evaluation asks of a model."""

import numpy as np

from training import clips, text
from training.evaluate import HELD_OUT_SEED, make_naming_prompts
from training.materials import MATERIALS


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
