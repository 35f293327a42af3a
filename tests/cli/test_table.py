"""The tables that `foley generate --csv` reads, as spreadsheets and people write them."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from foley.cli.plan import ClipTask, refuse_collisions
from foley.cli.table import read_table
from foley.errors import ParameterError
from foley.request import GenerationRequest

ROWS = "clip,prompt,seed\r\nä.mp4,Schritte auf Kies,7\r\nb.mp4,pluie d'été,\r\n"


def read(
    tmp_path: Path,
    content: bytes | str,
    output: Path | None = None,
    said: io.StringIO | None = None,
) -> list[ClipTask]:
    table = tmp_path / "clips.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    console = Console(file=said or io.StringIO(), soft_wrap=True)
    return read_table(table, GenerationRequest(seed=5), output, console)


def check_rows(tmp_path: Path, tasks: list[ClipTask]) -> None:
    assert [task.clip for task in tasks] == [tmp_path / "ä.mp4", tmp_path / "b.mp4"]
    assert [task.request.prompt for task in tasks] == ["Schritte auf Kies", "pluie d'été"]
    assert [task.request.seed for task in tasks] == [7, 5]  # an empty value takes the option


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"],
)
def test_a_table_is_read_in_every_encoding_of_spreadsheets(tmp_path: Path, encoding: str) -> None:
    said = io.StringIO()
    check_rows(tmp_path, read(tmp_path, ROWS.encode(encoding), said=said))
    guessed = encoding in ("latin-1", "cp1252")
    assert ("Windows-1252; save it as UTF-8" in said.getvalue()) == guessed


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("newline", ["\r\n", "\n", "\r"])
def test_a_table_is_read_with_every_separator_and_line_end(
    tmp_path: Path, separator: str, newline: str
) -> None:
    rows = ROWS.replace(",", separator).replace("\r\n", newline)
    check_rows(tmp_path, read(tmp_path, rows))


def test_the_separator_that_excel_names_is_used(tmp_path: Path) -> None:
    check_rows(tmp_path, read(tmp_path, "sep=;\r\n" + ROWS.replace(",", ";")))
    with pytest.raises(ParameterError, match="line 3: seed"):
        read(tmp_path, "sep=;\nclip;seed\na.mp4;x\n")


def test_headers_have_any_case_and_empty_columns_and_rows_are_skipped(tmp_path: Path) -> None:
    content = '\n"Clip";Negative Prompt; PROMPT ;;\n\n;;;;\na.mp4; wind ;"rain; far";;\n;;;;\n'
    (task,) = read(tmp_path, content)
    assert task.clip == tmp_path / "a.mp4"
    assert (task.request.prompt, task.request.negative_prompt) == ("rain; far", "wind")


def test_a_clip_with_several_prompts_has_several_results(tmp_path: Path) -> None:
    content = "clip,prompt,output\na.mp4,x,\n./a.mp4,y,\nb.mp4,x,\na.mp4,z,own.wav\na.mp4,z,\n"
    names = ["a.foley.mp4", "a.foley-2.mp4", "b.foley.mp4", "own.wav", "a.foley-3.mp4"]
    tasks = read(tmp_path, content, tmp_path / "out")
    assert [task.output.name for task in tasks] == names
    refuse_collisions(tasks)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty; its first line names the columns"),
        ("clip,prompt\n,\n", "has a header only; add a line"),
        ("a.mp4,rain\nb.mp4,wind\n", "first line must name the columns, such as clip,prompt"),
        ("clip,promt\na.mp4,x\n", "the column promt (is prompt meant?); rename it or leave it out"),
        ("clip,Clip\na.mp4,b.mp4\n", "the column clip twice; leave one out"),
        ("clip,seed\na.mp4,-4\n", "line 2: seed"),
        ("clip,prompt\na.mp4,x,y\n", "line 2: the value 'y' has no column; a text that holds"),
        ('clip,prompt\n\n"a.mp4","two\nlines"\nb.mp4,x,y\n', "line 5: the value 'y'"),
        ("clip,prompt\n,x\n", "line 2: clip is empty; name a video file"),
        ("clip,output\na.mp4,x.avi\n", "line 2: output x.avi ends in none of .mp4"),
        ('clip,prompt\na.mp4,"x\nb.mp4,y\n', "close each quotation mark"),
        ("sep=\nclip\n", "leave that line out"),
        (b"PK\x03\x04rest", "is a spreadsheet; save it as CSV"),
        (b"\x81\xff\x00\x01", "is no text"),
        (b"clip\na\x00.mp4\n", "is no text; save it as UTF-8"),
        (b"\xff\xfex\x00", "no column clip"),
        (b"\xff\xfec", "save it as UTF-8"),
    ],
)
def test_a_wrong_table_is_refused_with_a_remedy(
    tmp_path: Path, content: bytes | str, words: str
) -> None:
    with pytest.raises(ParameterError) as refusal:
        read(tmp_path, content)
    assert words in str(refusal.value)
    assert "clips.csv" in str(refusal.value)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="name a CSV file"):
        read_table(tmp_path, GenerationRequest(), None, Console(file=io.StringIO()))


def test_an_output_with_a_suffix_is_the_file_of_a_single_row(tmp_path: Path) -> None:
    (task,) = read(tmp_path, "clip\na.mp4\n", tmp_path / "x.wav")
    assert task.output == tmp_path / "x.wav"
    with pytest.raises(ParameterError, match="is one file for 2 clips; name a folder"):
        read(tmp_path, ROWS, tmp_path / "x.mp4")
