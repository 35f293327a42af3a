import ast
import dataclasses
from pathlib import Path

import pytest

from foley import configs
from foley.configs import PRESETS, TINY, XL, XXL, DiTConfig, Preset, parse_preset
from foley.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_is_restored_from_its_description(preset: Preset) -> None:
    assert parse_preset(preset.as_dict()) == preset


def test_an_incomplete_description_is_refused() -> None:
    values = TINY.as_dict()
    del values["dit"]["num_heads"]
    with pytest.raises(ConfigError, match="num_heads"):
        parse_preset(values)


def test_conv_mlp_width_follows_the_published_rule() -> None:
    assert XXL.dit.conv_mlp_dim == 4096
    assert XL.dit.conv_mlp_dim == 3840


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="got 102 and 5"):
        DiTConfig(**(vars(TINY.dit) | {"hidden_dim": 102}))


def test_parts_must_fit_together() -> None:
    with pytest.raises(ConfigError, match="takes text width 128, got 64"):
        dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, hidden_dim=64))


@pytest.mark.long
def test_every_field_is_read() -> None:
    nodes = [
        node
        for path in (ROOT / "foley").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
    ]
    # A module that takes a configuration's fields as arguments reads them as plain names.
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    for name in ("DiTConfig", "VAEConfig", "SynchformerConfig", "VisionConfig", "TextConfig"):
        for field in dataclasses.fields(getattr(configs, name)):
            assert field.name in read, f"{name}.{field.name} is never read"
