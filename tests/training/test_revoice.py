"""Takes that sound as their prompt asks: judged by ear, since pictures stay as they are."""

import numpy as np
import torch

from training import clips, judge, revoice, text
from training.clips import Batch
from training.materials import MATERIALS
from training.revoice import Shares
from training.scene import LAYERS
from training.settings import load_state
from training.unpack import CHECKPOINTS

CLIPS = 6


def make_hits() -> Batch:
    """Clips of 1.2 s with taps alone."""
    batch = clips.make_batch(5, 0, CLIPS, 1.2, action="tap", quiet=True)
    batch.layers["kind"] = torch.full_like(batch.layers["kind"], -1)
    return batch


def find_named(prompt: str) -> set[str]:
    return {name for name in MATERIALS if any(word in prompt for word in text.WORDS[name])}


def test_a_judge_hears_the_material_that_the_prompt_names() -> None:
    batch = make_hits()
    take = revoice.revoice(batch, np.random.default_rng(0), Shares(1.0, 0.0))
    for name in ("seconds", "force", "level", "size", "screen"):
        torch.testing.assert_close(take.hits[name], batch.hits[name])
    materials = take.hits["material"].long()
    for clip, prompt in enumerate(take.prompts):
        mine = set(materials[take.owner == clip].tolist())
        assert len(mine) == 1
        assert MATERIALS[mine.pop()] in find_named(prompt)
    assert (materials != batch.hits["material"].long()).any()
    heard = judge.MaterialJudge().eval()
    heard.load_state_dict(load_state(CHECKPOINTS / "judge.safetensors"))
    windows = judge.cut_hit_windows(take.waveform(), take.owner, take.hits["seconds"])
    with torch.no_grad():
        found = heard(heard.features(windows)).argmax(1)
    assert (found == materials).float().mean() > 0.9


def test_a_continuous_sound_replaces_the_hits() -> None:
    take = revoice.revoice(make_hits(), np.random.default_rng(0), Shares(0.0, 1.0))
    assert len(take.owner) == 0
    for clip, prompt in enumerate(take.prompts):
        name = LAYERS[int(take.layers["kind"][clip, 0])]
        assert any(said in prompt for said in text.TEXTURES[name])
    assert (take.waveform().square().mean(1) > 1e-8).all()


def test_what_rubs_or_hums_keeps_its_sound() -> None:
    batch = make_hits()
    batch.layers["kind"][:, 1] = LAYERS.index("friction")
    take = revoice.revoice(batch, np.random.default_rng(0), Shares(0.0, 1.0))
    assert take.prompts == batch.prompts
    torch.testing.assert_close(take.hits, batch.hits)
