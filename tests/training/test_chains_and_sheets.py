"""Rendered chains, cloths, paper and cards; and the scenes that came before them are the same."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.training.drawing import require_drawing
from training import text
from training.rendered import camera, chain, contacts, sheets, simulate
from training.rendered.clip import KINDS, make_clip
from training.rendered.world import Release, World

TEXT = Path(__file__).parents[2] / "foley/weights/tiny/text"
# Of the scenes of all kinds that there were before chains, in MJCF.
BEFORE = "4fccac3f399b19cb5e63b2f995dffa985aea7a3254c676c35cdc183027544657"


def test_scenes_of_earlier_kinds_stay_the_same() -> None:
    digest = hashlib.sha256()
    for kind in list(KINDS)[:26]:
        world = World(np.random.default_rng((12, 5)))
        world.add_floor()
        KINDS[kind](world, 3.0)
        digest.update(world.xml(45).encode() + repr(world.rng.integers(2**31)).encode())
    assert digest.hexdigest() == BEFORE


def test_a_chain_that_falls_is_heard_when_gravity_says_and_comes_to_rest() -> None:
    world = World(np.random.default_rng(2), resting=True)
    world.add_floor()
    links = chain._draw_links(world, "metal", "free", (0, 0, 1.2, 0))
    world.add_body(links.xml)
    world.releases[links.first] = Release(0.2)
    motion = simulate.simulate(world, world.xml(45), 2.5, np.arange(62) / 25)
    heard = contacts.find_impacts(world, motion)
    bodies = sorted(motion.model.body(name).id for name in world.parts if "link" in name)
    last = motion.places[0, bodies[-1], 2]  # of the joint of the lowest link
    pitch = links.reach / len(bodies)
    fall = last - 0.85 * pitch - links.half_width
    assert heard[0].seconds == pytest.approx(0.2 + math.sqrt(2 * fall / 9.81), abs=0.01)
    assert len(heard) > len(bodies) / 2
    assert max(impact.seconds for impact in heard) < 2.0  # it does not rattle for ever
    gaps = np.linalg.norm(np.diff(motion.places[:, bodies], axis=1), axis=-1)
    np.testing.assert_allclose(gaps, pitch, rtol=0.05)  # no link leaves the next one
    assert np.ptp(motion.places[-10:, bodies], axis=0).max() < 0.02


def test_a_cloth_falls_over_what_is_below_it_and_stays_in_one_piece() -> None:
    world = World(np.random.default_rng((500, 2, 0)))
    world.add_floor()
    sheets._drape(world, 2.0)
    motion = simulate.simulate(world, world.xml(45), 2.0, np.arange(50) / 25)
    model = motion.model
    points = [model.body(name).id for name in world.parts if name.startswith("point")]
    first, last = motion.places[0][points], motion.places[-1][points]
    assert (last[:, 2] > 0).all()
    assert last[:, 2].max() - last[:, 2].min() > 0.1  # some points lie on the thing
    assert first[:, 2].mean() - last[:, 2].mean() > 0.3
    stretched = motion.data.flexedge_length / model.flexedge_length0
    assert 0.5 < stretched.min() < stretched.max() < 1.3
    assert contacts.find_impacts(world, motion) == []


@pytest.mark.parametrize("kind", ["cloth", "paper"])
def test_a_sheet_sounds_as_fast_as_it_moves(kind: str) -> None:
    clip = make_clip((8, 1), 2.0, kind=kind, size=None)
    layers, sprites = clip.scene.layers, clip.scene.frames["sprites"]
    (slot,) = np.flatnonzero(layers["kind"] >= 0)
    places = sprites[:, clip.scene.still["sounding"] > 0, :2]
    assert places.shape[1] == 5  # corners and the middle
    moved = np.linalg.norm(np.diff(places, axis=0), axis=-1).mean(1)  # between two frames
    level = layers["level"][slot].reshape(-1, 2).mean(1)
    assert level.max() > 0.3
    assert np.corrcoef(moved, level[1:])[0, 1] > 0.6


def test_a_card_is_heard_once_or_twice_when_it_lands() -> None:
    world = World(np.random.default_rng((8, 6)))
    world.add_floor()
    sheets.cards(world, 3.0)
    motion = simulate.simulate(world, world.xml(45), 3.0, np.arange(75) / 25)
    heard = [
        impact
        for impact in contacts.find_impacts(world, motion)
        if contacts.force_of(world, motion, impact, 1.0)
    ]
    down = sum(release.seconds < 1.5 for release in world.releases.values())
    assert down <= len(heard) <= 3 * len(world.releases)


def test_pictures_show_a_sheet_that_moves() -> None:
    require_drawing()
    from training.rendered.draw import draw_frames

    world = World(np.random.default_rng(5))
    world.add_floor()
    sheets._fly(world, 0.6)
    motion = simulate.simulate(world, world.xml(45), 0.6, np.arange(3) / 5)
    view = camera.place_camera(world, motion, [], 45, 25)
    view.views[:] = view.views[:1] * 3  # it does not shake
    pictures = draw_frames(motion, view, world.rng, 48, motion.positions[:, None]).astype(int)
    changes = np.abs(np.diff(pictures, axis=0)).max(-1)  # [2, 48, 48]
    assert (changes > 40).mean((1, 2)).min() > 0.01  # nothing but the flag moves


def test_the_tokenizer_of_the_package_can_write_the_words_of_later_scenes() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TEXT)
    assert set(text.LATER_ACTIONS) <= set(KINDS)
    for words in [said for group in text.LATER_ACTIONS.values() for said in group]:
        ids = tokenizer(words)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == words
    said = {text.describe(np.random.default_rng(k), [("chain", "metal")], []) for k in range(60)}
    assert any("metal chain" in words for words in said)
