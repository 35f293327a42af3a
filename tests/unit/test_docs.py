"""The documents against the code: what they name exists, and what they state is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from foley.types import Stage
from runners.http.openapi import build_document
from runners.settings import KNOWN_ELSEWHERE, PREFIX, Settings
from scripts import reference

ROOT = Path(__file__).parents[2]
FOLDERS = (
    *("foley", "runners", "tests", "docs", "benchmarks", "training", "scripts", "containerize"),
    *("deploy", "proto", "requirements", "research", "examples", ".github", ".runpod", ".ci"),
)
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("*/README.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "research").rglob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
        *(ROOT / ".github").rglob("*.md"),
    ]
)
DOCUMENTS = list(dict.fromkeys(DOCUMENTS))
# Files that the style page names because the project does not have them.
ABSENT = {"utils.py", "helper.py", "constants.py"}
RECORDS = [*(ROOT / "benchmarks/records").iterdir(), *(ROOT / "training/records").iterdir()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


def spans_of(text: str) -> list[str]:
    """The inline code of a document, and the words of its fenced blocks."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", prose) + " ".join(fenced).split()


def anchors_of(path: Path) -> set[str]:
    """The anchors that the headings of a document make."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("name", reference.pages())
def test_the_reference_is_what_the_code_says(name: str) -> None:
    kept = (ROOT / "docs" / "reference" / name).read_text()
    assert kept == reference.pages()[name], "run `python -m scripts.reference`"


def test_every_default_of_the_reference_is_accepted_as_a_setting() -> None:
    text = (ROOT / "docs" / "reference" / "settings.md").read_text()
    described = dict(re.findall(r"^\| `(FOLEY_\w+)` \| `?([^|`]+)`? \| ", text, re.MULTILINE))
    for name, field in Settings.model_fields.items():
        stated = described[PREFIX + name.upper()].strip()
        if field.default is None:
            assert stated == "none", name
        else:
            setting = Settings.model_validate({name: stated})
            assert getattr(setting, name) == field.default, name


def test_every_variable_that_is_read_elsewhere_is_described() -> None:
    assert set(reference.ELSEWHERE) == set(KNOWN_ELSEWHERE)


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text()
    text = text.partition("## Other problems")[0]
    folders = (ROOT / "foley", ROOT / "runners")
    files = [ROOT / "service.py", *(path for folder in folders for path in folder.rglob("*.py"))]
    code = "\n".join(path.read_text() for path in files)
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # texts that go on in the next line
    code = code.replace("{PREFIX}", "FOLEY_")
    codes = build_document(Settings())["components"]["schemas"]["Error"]["properties"]["error"]
    known = codes["properties"]["code"]["enum"]
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    assert len(cells) > 20
    for said in (said for cell in cells for said in re.findall(r"`([^`]+)`", cell)):
        if " " not in said:
            assert said in known, said
        for piece in re.split(r"\.\.\.|FOLEY_\*| N ", said):
            assert piece.strip(" :;?()") in code, piece


@every_document
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_of(file), target


@every_document
def test_paths_that_a_document_names_exist(path: Path) -> None:
    inside = re.compile(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*")
    for span in spans_of(path.read_text()):
        if inside.fullmatch(span):
            assert list(ROOT.glob(span.rstrip("/"))), span
        elif re.fullmatch(r"[\w./-]+\.py", span) and span not in ABSENT | {"__init__.py"}:
            places = (ROOT / span, path.parent / span)
            assert any(place.is_file() for place in places), span


@every_document
def test_modules_that_a_document_names_exist(path: Path) -> None:
    packages = "foley|runners|benchmarks|training|scripts|tests"
    for span in spans_of(path.read_text()):
        if not re.fullmatch(rf"(?:{packages})(?:\.[A-Za-z_]\w*)+", span):
            continue
        # A file, and the services of proto/.
        if span not in {"foley.json", "foley.v1.FoleyService", "foley.v1.JobService"}:
            assert is_defined(span), span


@every_document
def test_names_that_a_document_places_in_a_file_stand_there(path: Path) -> None:
    # `Name`, `Other` (`folder/file.py`)
    placed = re.findall(r"((?:`\w+`, )*`\w+`) \(`([\w/]+\.py)`\)", path.read_text())
    for names, file in placed:
        words = set(re.findall(r"\w+", (ROOT / file).read_text()))
        assert set(re.findall(r"\w+", names)) <= words, file


def is_defined(name: str) -> bool:
    """Whether a dotted name is a module, or a word in the deepest module that it names."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:count])
        files = [place.with_suffix(".py"), place / "__init__.py"]
        for file in (file for file in files if file.is_file()):
            words = set(re.findall(r"\w+", file.read_text()))
            return all(part in words for part in parts[count:])
    return False


@every_document
def test_settings_that_a_document_names_exist(path: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {*KNOWN_ELSEWHERE, "FOLEY_API_KEY"}  # the last one is the command line's
    named = set(re.findall(rf"{PREFIX}[A-Z][A-Z_]*[A-Z]", path.read_text()))
    assert named <= known


@every_document
def test_make_targets_that_a_document_names_exist(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = path.read_text()
    fenced = "".join(re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S))
    named = re.findall(r"`make ([\w-]+)`", text) + re.findall(r"\bmake ([\w-]+)", fenced)
    assert set(named) <= targets


@every_document
def test_stages_that_a_document_shows_exist(path: Path) -> None:
    shown = re.findall(r'"stage": "(\w+)"', path.read_text())
    assert set(shown) <= {stage.value for stage in Stage}


def test_the_glossary_has_every_stage_in_order() -> None:
    text = (ROOT / "docs" / "concepts" / "glossary.md").read_text()
    table = text.partition("## Stages")[2].partition("## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert rows == [stage.value for stage in Stage]


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.name)
def test_every_record_is_cited_by_a_document(record: Path) -> None:
    assert any(record.name in path.read_text() for path in DOCUMENTS)


def test_every_decision_is_listed_and_is_in_the_journal() -> None:
    folder = ROOT / "docs" / "decisions"
    index, journal = (folder / "README.md").read_text(), (ROOT / "JOURNAL.md").read_text()
    decisions = sorted(folder.glob("[0-9]*.md"))
    numbers = [path.name[:4] for path in decisions]  # one may be kept free for what is under way
    assert numbers == sorted(set(numbers))
    for path in decisions:
        assert f"({path.name})" in index
        assert f"(docs/decisions/{path.name})" in journal
        headings = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 80


@pytest.mark.slow
def test_issue_templates_are_forms_that_github_accepts() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    forms = [form for form in forms if form.name != "config.yml"]
    assert {form.stem for form in forms} == {"bug", "feature", "question"}
    schema = ["--builtin-schema", "vendor.github-issue-forms"]
    command = [sys.executable, "-m", "check_jsonschema", *schema, *map(str, forms)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
