"""The documents against the code."""

import re
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram

from runners import metrics
from runners.http.openapi import document
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
    for name in schemas["GenerationOptions"]["properties"]:
        assert f"| `{name}` |" in text, name
    codes = schemas["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    for code in codes:
        assert f"`{code}`" in text, code


def test_every_metric_is_described() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    ours = [m for m in vars(metrics).values() if isinstance(m, Counter | Gauge | Histogram)]
    assert len(ours) > 5
    for metric in ours:
        (described,) = metric.describe()
        name = described.name + ("_total" if isinstance(metric, Counter) else "")
        assert f"`{name}`" in text, name


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Otherwise")[0]
    folders = (ROOT / "foley", ROOT / "runners")
    files = [ROOT / "service.py", *(path for folder in folders for path in folder.rglob("*.py"))]
    code = "\n".join(path.read_text() for path in files)
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # texts that go on in the next line
    code = code.replace("{PREFIX}", "FOLEY_")
    codes = document(Settings())["components"]["schemas"]["Error"]["properties"]["error"]
    known = codes["properties"]["code"]["enum"]
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    assert len(cells) > 20
    for said in (said for cell in cells for said in re.findall(r"`([^`]+)`", cell)):
        if " " not in said:
            assert said in known, said
        for piece in re.split(r"\.\.\.|FOLEY_\*| N ", said):
            assert piece.strip(" :;?()") in code, piece


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (path.parent / target).exists(), target
