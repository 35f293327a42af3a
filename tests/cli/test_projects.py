"""Projects of the editor as the command line reads them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foley.cli.generate import generate
from foley.cli.options import ServerOptions, SoundOptions
from foley.cli.projects import Project, read_project
from foley.errors import ParameterError
from foley.parts import make_with_parts
from tests.toys import toy_frames, toy_pipeline

PROJECT: dict[str, Any] = {
    "foley_project": 1,
    "clip": "clip.mp4",
    "request": {"layers": [{"prompt": "rain", "seed": 7, "gain_db": -6}]},
    "mix": {"original_sound": "duck", "duck_depth_db": 6},
}

PART = {"start_seconds": 0.2, "stop_seconds": 0.5, "prompt": "hail", "seed": 9}


def write(folder: Path, content: object) -> Path:
    path = folder / "a.foley.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def replace_parts(project: Project, count: int) -> Project:
    """Return a project with its first parts alone."""
    return replace(project, parts=project.parts[:count])


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
        (PROJECT | {"parts": {}}, "parts is no list"),
        (PROJECT | {"parts": [3]}, "part 1 is no object"),
        (PROJECT | {"parts": [PART | {"gain": 1}]}, "part 1 has 'gain'"),
        (PROJECT | {"parts": [PART | {"layer": 2}]}, "part 1 is of layer 2, .* layers 1 to 1"),
        (PROJECT | {"parts": [PART | {"stop_seconds": 0.1}]}, "part 1: edit.ranges"),
        (
            {"foley_project": 1, "request": {"num_variations": 2}, "parts": [PART]},
            "num_variations is 2",
        ),
        (PROJECT | {"mix": {"gain_db": 99}}, "gain_db: .* 99"),
    ],
)
def test_what_is_no_project_is_refused(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        read_project(write(tmp_path, content))


def test_parts_have_a_request_of_their_own_and_share_the_steps(tmp_path: Path) -> None:
    request = PROJECT["request"] | {"num_inference_steps": 3}
    (part,) = read_project(write(tmp_path, PROJECT | {"request": request, "parts": [PART]})).parts
    assert (part.layer, part.request.prompt, part.request.seed) == (1, "hail", 9)
    assert part.request.num_inference_steps == 3
    assert part.request.layers == ()
    assert part.request.edit is not None
    (edges,) = part.request.edit.ranges
    assert (edges.start_seconds, edges.stop_seconds) == (0.2, 0.5)


def test_parts_are_made_over_their_layer_and_leave_the_rest(tmp_path: Path) -> None:
    layers = [{"prompt": "rain", "seed": 7, "gain_db": -6}, {"prompt": "wind", "seed": 8}]
    parts = [
        PART | {"layer": 1, "prompt": "rain", "start_seconds": 0.4, "stop_seconds": 0.8},
        PART | {"layer": 1, "start_seconds": 0.5, "stop_seconds": 0.9},
    ]
    content = {"foley_project": 1, "request": {"layers": layers, "num_inference_steps": 2}}
    project = read_project(write(tmp_path, content | {"parts": parts}))
    pipeline, frames = toy_pipeline(), toy_frames()
    made = make_with_parts(
        pipeline, lambda: frames, project.request, project.parts, lambda progress: None
    )
    plain = pipeline.generate(frames, project.request)
    assert made.stems is not None
    assert plain.stems is not None
    assert made.layer_seeds == (7, 8)
    torch.testing.assert_close(made.waveforms[0], made.stems.sum(0))
    # Both may be lowered for their peaks, by one factor.
    before, change = slice(0, 19_000), slice(20_000, 43_000)
    shares = (made.stems[:, 0, before] / plain.stems[:, 0, before]).nan_to_num(1.0)
    assert shares.std() < 1e-3
    assert (made.stems[0, 0, change] - shares.mean() * plain.stems[0, 0, change]).abs().max() > 1e-3
    alone = replace_parts(project, 1)
    first = make_with_parts(
        pipeline, lambda: frames, alone.request, alone.parts, lambda progress: None
    )
    assert first.stems is not None
    kept, second = slice(19_200, 24_000), slice(24_500, 43_000)
    ratio = made.stems[0, 0, kept].norm() / first.stems[0, 0, kept].norm()
    torch.testing.assert_close(
        made.stems[0, 0, kept], ratio * first.stems[0, 0, kept], rtol=0, atol=1e-5
    )
    assert (made.stems[0, 0, second] - ratio * first.stems[0, 0, second]).abs().max() > 1e-3


def test_parts_need_the_model_in_this_process(tmp_path: Path) -> None:
    path = write(tmp_path, PROJECT | {"parts": [PART]})
    with pytest.raises(ParameterError, match="leave out --server"):
        generate(project_file=path, server=ServerOptions(url="http://127.0.0.1:1"))
    with pytest.raises(ParameterError, match="--project with parts"):
        generate(project_file=path, pieces=True)


def test_a_project_and_options_of_the_sound_exclude_one_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, PROJECT)
    with pytest.raises(ParameterError, match="--project has its own prompts"):
        generate(project_file=path, sound=SoundOptions(prompt="wind"))
    assert generate(project_file=path, output=tmp_path / "out.mp4") == 1
    assert f"there is no file {tmp_path / 'clip.mp4'}" in capsys.readouterr().err
