"""A deeper sync encoder begins where the shallower one stood."""

import dataclasses

import torch

from foley.models.synchformer import build_synchformer
from tests.toys import toy_preset
from training.grow import grow_encoders

SHALLOW = toy_preset().synchformer


def test_new_blocks_change_no_token_and_can_learn() -> None:
    torch.manual_seed(0)
    shallow = build_synchformer(SHALLOW)
    for parameter in shallow.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = {f"sync.{name}": value for name, value in shallow.state_dict().items()}
    state |= {"vision.weight": torch.ones(1)}
    held = grow_encoders(state, SHALLOW.num_layers + 2)
    assert held["vision.weight"] is state["vision.weight"]

    deep = build_synchformer(dataclasses.replace(SHALLOW, num_layers=SHALLOW.num_layers + 2))
    own = {k.removeprefix("sync."): v for k, v in held.items() if k.startswith("sync.")}
    deep.load_state_dict(own, strict=True)
    frames = torch.rand(SHALLOW.segment_frames, 3, SHALLOW.image_size, SHALLOW.image_size)
    tokens = [model.encode_segments(model.embed_patches(frames)[None]) for model in (shallow, deep)]
    assert torch.equal(*tokens)
    tokens[1].square().sum().backward()
    added = deep.blocks[-1].mlp[2].weight.grad
    assert added is not None
    assert added.abs().max() > 0


def test_enough_blocks_are_left_alone() -> None:
    state = {"sync.blocks.0.mlp.2.weight": torch.ones(2, 2)}
    assert grow_encoders(state, 1) == state
