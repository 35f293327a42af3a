"""Foreign styles change how a clip looks, and nothing else."""

from dataclasses import replace

import pytest
import torch

from training import clips
from training.foreign import BLOCK, STYLES, restyle_batch

STILL = [name for name in STYLES if name != "pencil"]


def test_a_style_changes_pictures_and_keeps_events_and_sound() -> None:
    batch = clips.make_batch(909, 3, 1, 0.4, quiet=True)
    drawn = replace(batch, drawn=batch.pictures())
    for name in STILL:
        restyled = restyle_batch(drawn, STYLES[name][1])
        own, other = drawn.pictures().float(), restyled.pictures().float()
        assert other.shape == own.shape
        assert (own - other).abs().mean() > 8
        assert restyled.hits is batch.hits
        assert restyled.layers is batch.layers


@pytest.mark.parametrize("name", STILL)
def test_what_moves_is_seen_in_a_style(name: str) -> None:
    grey = torch.full((2, 3, 224, 224), 0.2)
    grey[0, :, 60:100, 60:100] = 0.8
    grey[1, :, 60:100, 68:108] = 0.8
    one, two = STYLES[name][1](grey)
    changed = (one - two).abs().amax(0)
    assert changed[60:100, 56:112].max() > 0.3
    assert changed[120:, 120:].max() < 0.02


def test_pixels_are_blocks_of_few_colours() -> None:
    pictures = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    blocks = STYLES["pixels"][1](pictures).unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)
    assert torch.equal(blocks.amin((-1, -2)), blocks.amax((-1, -2)))
    assert set(blocks.unique().tolist()) <= {0.0, 0.5, 1.0}
