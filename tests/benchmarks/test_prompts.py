"""What the judge of prompts learns from: clips with the exact sound of a class."""

import numpy as np
import pytest
import torch

from benchmarks.quality.prompts import CLASSES, count_right, draw_batches, voice_clips
from training.materials import MATERIALS
from training.scene import LAYERS


@pytest.mark.parametrize("name", CLASSES)
def test_a_clip_has_the_sound_of_the_class_at_its_own_times(name: str) -> None:
    batch = draw_batches(5, 1, 2.0)[0]
    made = voice_clips(batch, name, np.random.default_rng(1))
    kinds = set(made.layers["kind"].flatten().tolist()) - {-1}
    if name in MATERIALS:
        assert kinds == set()
        assert set(made.hits["material"].tolist()) == {MATERIALS.index(name)}
        assert torch.equal(made.hits["seconds"], batch.hits["seconds"])
    else:
        assert kinds == {LAYERS.index(name)}
        assert float(made.layers["level"][:, 0].min()) > 0.2


def test_the_clip_itself_stays_as_it_is() -> None:
    batch = draw_batches(5, 1, 2.0)[0]
    kept = {key: value.clone() for key, value in batch.hits.items()}
    for name in CLASSES:
        voice_clips(batch, name, np.random.default_rng(2))
    assert all(torch.equal(batch.hits[key], value) for key, value in kept.items())


def test_a_model_that_ignores_prompts_gets_one_class_right() -> None:
    figures = count_right(["rain"] * len(CLASSES), CLASSES)
    assert figures["right"] == pytest.approx(1 / len(CLASSES), abs=1e-3)
    assert figures["by_class"]["rain"] == 1
    assert figures["materials"] == 0
    assert count_right(CLASSES, CLASSES)["right"] == 1
