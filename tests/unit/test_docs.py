"""The documents against the code."""

import re
from pathlib import Path

import pytest

from runners.openapi import document
from runners.settings import KNOWN_ELSEWHERE, PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_setting_is_described_with_its_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    described = dict(re.findall(r"^\| `(FOLEY_\w+)` \| `?([^|`]+)`? \|", text, re.MULTILINE))
    assert described.keys() == {PREFIX + name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        stated = described[PREFIX + name.upper()].strip()
        if field.default is None:
            assert stated == "none", name
        else:
            setting = Settings.model_validate({name: stated})
            assert getattr(setting, name) == field.default, name
    for name in KNOWN_ELSEWHERE:
        assert name in text


def test_every_field_and_error_code_is_described() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    schemas = document(Settings())["components"]["schemas"]
    for name in schemas["GenerationForm"]["properties"]:
        assert f"| `{name}` |" in text, name
    codes = schemas["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    for code in codes:
        assert f"`{code}`" in text, code


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (path.parent / target).exists(), target
