"""What the trainings are fed with: drawn clips are changed before they are used."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from training import clips, features, film, train_encoders
from training.clips import Batch
from training.features import CacheFiller
from training.revoice import Shares
from training.train_encoders import CropPool

CLIPS, SECONDS, FRAMES = 2, 4.0, 5


def draw_taps() -> Iterator[Batch]:
    """Yield clips with taps alone."""
    while True:
        batch = clips.make_batch(5, 0, CLIPS, SECONDS, action="tap", quiet=True)
        batch.layers["kind"] = torch.full_like(batch.layers["kind"], -1)
        yield batch


def test_a_drawn_clip_may_have_the_lasting_sound_that_its_prompt_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Batch] = []
    cache = SimpleNamespace(
        encode_batch=lambda batch: (seen.append(batch), {}), put=lambda *_: None, rendered_share=0.0
    )
    filler = CacheFiller(cache, draw_taps(), 1.0)  # type: ignore[arg-type]
    filler.fill()
    monkeypatch.setattr(features, "DRAWN", Shares(0.0, 1.0))
    filler.fill()
    plain, changed = seen
    assert len(plain.owner) > 0
    assert len(changed.owner) == 0
    assert (changed.layers["kind"][:, 0] >= 0).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_drawn_crops_may_be_other_takes(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_encoders, "FRAMES", FRAMES)
    monkeypatch.setattr(train_encoders, "FILMED_SHARE", share)
    monkeypatch.setattr(film, "PLAIN_SHARE", 0.0)
    torch.manual_seed(0)
    crops, pictures = CropPool(draw_taps(), 1, torch.device("cpu"), 0).draw()
    assert pictures.shape == (CLIPS, FRAMES, 3, 224, 224)
    as_drawn = replace(crops, drawn=None).pictures()
    same = (pictures == as_drawn).flatten(1).all(1)
    assert same.all() if share == 0 else not same.any()
    assert (crops.hits["screen"].abs() < 1).all()  # what hits is still in the picture
