"""Projects of the editor as the command line reads them."""

import json
from pathlib import Path
from typing import Any

import pytest

from foley.cli.generate import generate
from foley.cli.options import SoundOptions
from foley.cli.projects import read_project
from foley.errors import ParameterError

PROJECT: dict[str, Any] = {
    "foley_project": 1,
    "clip": "clip.mp4",
    "request": {"layers": [{"prompt": "rain", "seed": 7, "gain_db": -6}]},
    "mix": {"original_sound": "duck", "duck_depth_db": 6},
}


def write(folder: Path, content: object) -> Path:
    path = folder / "a.foley.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_project_holds_the_options_and_its_clip_lies_beside_it(tmp_path: Path) -> None:
    project = read_project(write(tmp_path, PROJECT))
    assert project.clip == tmp_path / "clip.mp4"
    assert [(one.prompt, one.seed, one.gain_db) for one in project.request.layers] == [
        ("rain", 7, -6)
    ]
    assert project.mix.duck_depth_db == 6
    assert read_project(write(tmp_path, {"foley_project": 1})).clip is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([], "is no project of version 1"),
        ({"foley_project": 2}, "is no project of version 1"),
        (PROJECT | {"edits": []}, "has 'edits'"),
        (PROJECT | {"clip": "../clip.mp4"}, "a file's name alone"),
        (PROJECT | {"clip": 3}, "a file's name alone"),
        (PROJECT | {"mix": []}, "mix is no object"),
        (PROJECT | {"request": {"seed": -1}}, "seed: .* -1"),
        (PROJECT | {"mix": {"gain_db": 99}}, "gain_db: .* 99"),
    ],
)
def test_what_is_no_project_is_refused(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        read_project(write(tmp_path, content))


def test_a_project_and_options_of_the_sound_exclude_one_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, PROJECT)
    with pytest.raises(ParameterError, match="--project has its own prompts"):
        generate(project_file=path, sound=SoundOptions(prompt="wind"))
    assert generate(project_file=path, output=tmp_path / "out.mp4") == 1
    assert f"there is no file {tmp_path / 'clip.mp4'}" in capsys.readouterr().err
