"""Cues as people write them."""

from pathlib import Path

import pytest

from foley.cli.cues import parse_cue, read_cues
from foley.cli.options import SoundOptions
from foley.errors import ParameterError


@pytest.mark.parametrize(
    ("text", "cue"),
    [
        ("1.2-3.5: glass shatters", ("1.2", "3.5", "glass shatters")),
        (" 0 - .5 :tap: tap ", ("0", ".5", "tap: tap")),
    ],
)
def test_a_cue_is_a_range_and_a_prompt(text: str, cue: tuple[str, str, str]) -> None:
    assert tuple(parse_cue(text).values()) == cue


def test_a_cue_may_be_an_object_with_a_gain() -> None:
    text = '{"start_seconds": 1, "stop_seconds": 2, "prompt": "rain", "gain_db": -6, "mode": "add"}'
    (cue,) = SoundOptions(cue=(text,)).parse().cues
    assert (cue.prompt, cue.gain_db, cue.mode) == ("rain", -6, "add")
    for wrong, words in (("{rain}", "--cue is not JSON"), ('{"prompt": "a"}', "field required")):
        with pytest.raises(ParameterError, match=words):
            SoundOptions(cue=(wrong,)).parse()


@pytest.mark.parametrize("text", ["", "rain", "1-2", "1-2:", "1-2: ", "-1-2: rain", "1_0-2: rain"])
def test_another_text_is_no_cue(text: str) -> None:
    with pytest.raises(ParameterError, match="write START-STOP: PROMPT"):
        parse_cue(text)


VTT = """\ufeffWEBVTT

NOTE what was seen

first
00:01.200 --> 00:03.500 align:start
<i>glass</i> shatters
on stone

01:00:04.000 --> 01:00:05.000
rain
"""
SRT = """1
00:00:01,200 --> 00:00:03,500
glass shatters
on stone

2
01:00:04,000 --> 01:00:05,000
rain"""


@pytest.mark.parametrize(("name", "text"), [("a.vtt", VTT), ("a.SRT", SRT)])
def test_subtitles_are_cues(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    assert [tuple(cue.values()) for cue in read_cues(tmp_path / name)] == [
        (1.2, 3.5, "glass shatters on stone"),
        (3604.0, 3605.0, "rain"),
    ]


def test_a_table_has_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,start_seconds,stop_seconds\n"tap, tap",1,2\n\nrain,2,3\n')
    assert [tuple(cue.values()) for cue in read_cues(path)] == [
        ("1", "2", "tap, tap"),
        ("2", "3", "rain"),
    ]
    path.write_text("start_seconds,stop_seconds,prompt,gain_db,mode\n1,2,rain,-6,\n2,3,tap,,add\n")
    first, second = SoundOptions(cues=path).parse().cues
    assert (first.gain_db, first.mode, second.gain_db, second.mode) == (-6, "replace", 0, "add")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "", "holds no cue"),
        ("a.csv", "start_seconds,prompt\n1,rain", "no column stop_seconds"),
        ("a.csv", "start_seconds,stop_seconds,prompt\n1,2,tap, tap", "line 2 has 4 values for 3"),
        ("a.csv", 'start_seconds,stop_seconds,prompt\n1,2,"tap', "line 2"),
        ("a.vtt", "WEBVTT\n", "holds no cue"),
        ("a.txt", "1-2: rain", "none of .csv, .vtt and .srt"),
    ],
)
def test_a_file_without_cues_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ParameterError, match=words):
        read_cues(tmp_path / name)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="No such file"):
        read_cues(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParameterError, match="is not UTF-8"):
        read_cues(tmp_path / "a.csv")


def test_options_and_files_are_joined_and_checked_together(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("start_seconds,stop_seconds,prompt\n0,1,rain\n")
    request = SoundOptions(cue=("1-2: tap",), cues=path).parse()
    assert [(c.start_seconds, c.stop_seconds, c.prompt) for c in request.cues] == [
        (0, 1, "rain"),
        (1, 2, "tap"),
    ]
    with pytest.raises(ParameterError, match="overlap"):
        SoundOptions(cue=("0.5-2: tap",), cues=path).parse()
    path.write_text("start_seconds,stop_seconds,prompt\none,1,rain\n")
    with pytest.raises(ParameterError, match=r"cues.0.start_seconds: .*, got 'one'"):
        SoundOptions(cues=path).parse()
