"""`foley bulk`: rows from sources, what earlier runs left to do, and the report."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import av
import psutil
import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from foley.bulk import BulkOutcome, BulkTask, name_record
from foley.cli.app import main
from foley.cli.bulk.command import _Run
from foley.cli.bulk.estimate import print_estimate
from foley.cli.bulk.picture import draw_picture
from foley.cli.bulk.records import Plan, lock_output, make_report, plan_rows, write_report
from foley.cli.bulk.rows import BadRow, Defaults, list_fields, make_tasks
from foley.cli.bulk.sources import read_source
from foley.errors import ConflictError, ParameterError
from foley.media.inspection import inspect_file
from foley.mix import Loudness, LoudnessReport, MixOptions
from foley.request import GenerationRequest
from foley.storage import Folder, open_storage
from tests.media.test_images import draw_picture as draw_numbered
from tests.patience import scale
from tests.s3 import serve_bucket
from tests.server import ROOT, draw_clip

ROWS_IN_HAND = 6
CUES = [{"start_seconds": 0.0, "stop_seconds": 0.5, "prompt": "glass"}]
LAYERS = [{"prompt": "rain", "seed": 5}, {"prompt": "wind", "gain_db": -6.0}]
TABLE = [
    {"clip": "a/one.mp4", "animal": "dog", "seed": 3, "cues": CUES, "num_variations": 2},
    {"clip": "b/one.mp4", "prompt": "own {animal}", "gain_db": -3.5, "animal": "cat"},
    {"clip": "a/one.mp4", "animal": "cow", "trim": True, "output": "named/cow.wav"},
    {"duration_seconds": 1.5, "animal": "owl", "layers": LAYERS},
]


def read(
    source: Path | str,
    prompt: str = "",
    file_format: str | None = None,
    output: str = "/out",
    start_seconds: float = 0.0,
    frame_rate: float | None = None,
) -> tuple[list[BulkTask], list[BadRow], str]:
    """The tasks and the refused rows of a source, and what was printed."""
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    rows = read_source(
        str(source), output, list_fields(prompt), console, with_zips=frame_rate is not None
    )
    defaults = Defaults(
        GenerationRequest.parse(prompt=prompt),
        MixOptions(),
        trim=False,
        format=file_format,
        output=output,
        start_seconds=start_seconds,
        frame_rate=frame_rate,
    )
    return *make_tasks(rows, defaults), printed.getvalue()


def write_table(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"clips{suffix}"
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        table = {name: [row.get(name) for row in rows] for name in columns}
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for row in rows:
                texts = {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
                writer.writerow(texts)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_s_rows_have_any_option(tmp_path: Path, suffix: str) -> None:
    tasks, bad, _ = read(write_table(tmp_path, suffix, TABLE), "a {animal}")
    assert not bad
    first, second, third, fourth = tasks
    assert first.clip == str(tmp_path / "a" / "one.mp4")
    assert (first.request.prompt, first.request.seed) == ("a dog", 3)
    assert [cue.model_dump(exclude_defaults=True) for cue in first.request.cues] == CUES
    assert first.names == ("a/one.foley-1.mp4", "a/one.foley-2.mp4")
    assert second.request.prompt == "own {animal}"  # a row's own prompt is no template
    assert (second.mix.gain_db, second.names) == (-3.5, ("b/one.foley.mp4",))
    assert (third.trim, third.names, third.id) == (True, ("named/cow.wav",), "named/cow.wav")
    assert (fourth.clip, fourth.request.duration_seconds) == (None, 1.5)
    assert [layer.prompt for layer in fourth.request.layers] == ["rain", "wind"]
    assert fourth.names == ("sound-1.wav", "sound-1-layer-1.wav", "sound-1-layer-2.wav")


def test_a_folder_s_clips_keep_their_place_and_results_are_no_clips(tmp_path: Path) -> None:
    for name in ("dog/one.mp4", "cat/one.MOV", ".hidden/x.mp4", "notes.txt", "out/dog/one.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    output = str(tmp_path / "out")
    tasks, _, _ = read(tmp_path, "{folder}: {name} {{}}", output=output)
    assert [task.names for task in tasks] == [("cat/one.foley.mov",), ("dog/one.foley.mp4",)]
    assert [task.request.prompt for task in tasks] == ["cat: one {}", "dog: one {}"]
    found, _, _ = read(f"{tmp_path}/*/one.*", "x", "flac", output)
    assert [task.names for task in found] == [("cat/one.foley.flac",), ("dog/one.foley.flac",)]
    with pytest.raises(ParameterError, match="is the source and the output"):
        read(tmp_path, output=str(tmp_path))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_row_says_which_part_and_which_rate(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, Any]] = [
        {"clip": "a/one.mp4", "start_seconds": 1.5},
        {"clip": "a/shots.zip", "frame_rate": 23.976},
        {"clip": "a/frames/%04d.png"},
        {"clip": "a/frames/walk_%d.png", "start_seconds": 0.0, "frame_rate": 12.0},
        {"duration_seconds": 1.0, "prompt": "x"},
        {"clip": "a/photo.JPG", "duration_seconds": 2.0},
    ]
    table = write_table(tmp_path, suffix, rows)
    tasks, bad, _ = read(table, "a {name}", start_seconds=7, frame_rate=25)
    assert not bad
    assert [(task.start_seconds, task.frame_rate) for task in tasks] == [
        (1.5, None),  # the command's rate is for pictures
        (7, 23.976),
        (7, 25),
        (0, 12),
        (0, None),
        (0, None),
    ]
    assert tasks[5].request.duration_seconds == 2
    assert [task.names[0] for task in tasks] == [
        *("a/one.foley.mp4", "a/shots.foley.mp4", "a/frames/frames.foley.mp4"),
        *("a/frames/walk.foley.mp4", "sound-1.wav", "a/photo.foley.mp4"),
    ]
    assert tasks[3].request.prompt == "a walk"
    tasks, bad, _ = read(table, "a {name}")
    assert len(tasks) == 5
    assert "frames/%04d.png names pictures" in str(bad[0].error)
    # Records of runs before there were these options hold.
    assert BulkTask(**tasks[4].model_dump(exclude={"start_seconds"})).digest == tasks[4].digest
    assert tasks[0].digest != tasks[0].model_copy(update={"start_seconds": 1.6}).digest


def test_zips_in_a_folder_are_clips_with_a_rate(tmp_path: Path) -> None:
    for name in ("one.mp4", "two.ZIP"):
        (tmp_path / name).touch()
    tasks, _, _ = read(tmp_path, frame_rate=30)
    assert [(task.names, task.frame_rate) for task in tasks] == [
        (("one.foley.mp4",), None),
        (("two.foley.mp4",), 30),
    ]
    alone, _, _ = read(tmp_path)
    assert len(alone) == 1
    (pictures,), _, _ = read(tmp_path / "shot_%03d.png", frame_rate=30)
    assert (pictures.names, pictures.frame_rate) == (("shot.foley.mp4",), 30)


def test_the_second_result_of_a_clip_is_numbered(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"clip": "one.mp4"},
        {"clip": "one.mp4", "seed": -1},
        {"clip": "one.mp4"},
    ]
    tasks, bad, _ = read(write_table(tmp_path, ".jsonl", rows))
    # The refused row has its number too, so that mending it renames no result.
    assert [task.names for task in tasks] == [("one.foley.mp4",), ("one-3.foley.mp4",)]
    assert [row.id for row in bad] == ["one-2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"clip": "one.mp4", "seed": -1}, "line 1: seed: input should be greater"),
        ({"clip": "one.mp4", "cues": "[{"}, "cues: is no JSON"),
        ({"clip": "one.mp4", "trim": "perhaps"}, "trim: must be true or false, got 'perhaps'"),
        ({"clip": "one.mp4", "output": "../x.mp4"}, "leaves the folder of results"),
        ({"clip": "one.mp4", "output": "/x.mp4"}, "leaves the folder of results"),
        ({"clip": "one.mp4", "output": ".foley-bulk/x.mp4"}, "is where records are kept"),
        ({"clip": "one.mp4", "output": "x.avi"}, "ends in none of"),
        ({"prompt": "rain"}, "clip is empty"),
        ({"clip": "one.mp4", "start_seconds": -1}, "start_seconds: must be from 0 to 86400"),
        ({"clip": "one.mp4", "start_seconds": "soon"}, "start_seconds: must be a number, got 'soo"),
        ({"clip": "one.mp4", "start_seconds": True}, "start_seconds: must be a number, got True"),
        ({"clip": "one.mp4", "start_seconds": "nan"}, "start_seconds: must be from 0"),
        ({"clip": "one.zip", "frame_rate": 0}, "frame_rate: must be from 1 to 240, got 0"),
        (
            {"duration_seconds": 2, "prompt": "x", "start_seconds": 1},
            "start_seconds: is of a clip, and the row has none",
        ),
        ({"clip": "one.mp4", "duration_seconds": 2, "prompt": "x"}, "length of a sound without"),
        ({"duration_seconds": 2}, "duration_seconds: needs a prompt or layers"),
        ({"duration_seconds": 2, "prompt": "x", "output": "x.mp4"}, "is a video"),
        ({"duration_seconds": 2, "prompt": "x", "original_sound": "mix"}, "there is no clip"),
    ],
)
def test_a_row_that_cannot_be_made_is_refused_alone(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    tasks, bad, _ = read(write_table(tmp_path, ".jsonl", [row, {"clip": "other.mp4"}]))
    assert [task.id for task in tasks] == ["other"]
    (refused,) = bad
    assert message in str(refused.error)


@pytest.mark.parametrize(
    ("text", "prompt", "message"),
    [
        ("clip,promt\na.mp4,x\n", "", "has the column promt (is prompt meant?)"),
        ("clip,kind\na.mp4,x\n", "a {sort}", "names the column sort, and"),
        ("clip,output\na.mp4,x.mp4\nb.mp4,x.mp4\n", "", "would both be written to x.mp4"),
        ("clip,seed\n", "", "has no row"),
        ("clip\na.mp4,x\n", "", "line 2: the value 'x' has no column"),
        ("clip\na.mp4\n", "a {kind!r}", "hold the name of a column only"),
        ("clip\na.mp4\n", "a {kind.real}", "names the column kind.real"),
        ("clip\na.mp4\n", "a {kind", "write {column} for a column"),
    ],
)
def test_a_source_that_is_wrong_as_a_whole_is_refused(
    tmp_path: Path, text: str, prompt: str, message: str
) -> None:
    table = tmp_path / "clips.csv"
    table.write_text(text)
    with pytest.raises(ParameterError) as refused:
        read(table, prompt)
    assert message in str(refused.value)


def test_other_columns_are_named_and_left_out(tmp_path: Path) -> None:
    rows = [{"clip": "one.mp4", "licence": "CC0", "Num Inference Steps": 3}]
    tasks, _, printed = read(write_table(tmp_path, ".csv", rows))
    assert "columns that are no option are left out: licence\n" in printed
    assert tasks[0].request.num_inference_steps == 3


def make_task(name: str, output: Path, **options: Any) -> BulkTask:
    request = GenerationRequest(**options)
    return BulkTask(id=name, clip="x.mp4", request=request, output=str(output), names=(name,))


def make_outcome(task: BulkTask, **changed: Any) -> BulkOutcome:
    outcome = BulkOutcome(
        id=task.id,
        state="done",
        digest=task.digest,
        names=task.names,
        seeds=(1,),
        duration_seconds=1.0,
        seconds=2.0,
        finished=time.time(),
    )
    return outcome.model_copy(update=changed)


def plan(tasks: list[BulkTask], output: Path, *, retry_failed: bool = False) -> Plan:
    return plan_rows(tasks, Folder(output), str(output), retry_failed=retry_failed)


def test_a_row_is_done_when_its_results_are_there(tmp_path: Path) -> None:
    storage = Folder(tmp_path)
    names = ("kept", "cut off", "alone", "failed", "changed", "renamed", "new")
    tasks = {name: make_task(f"{name}.mp4", tmp_path, prompt=name) for name in names}
    for name in ("kept", "cut off", "renamed"):
        outcome = make_outcome(tasks[name])
        if name == "renamed":  # mp4 could not hold its picture
            outcome = outcome.model_copy(update={"names": ("renamed.mkv",)})
        storage.write(name_record(f"{name}.mp4"), outcome.model_dump_json().encode())
    failure = BulkOutcome.from_error(tasks["failed"], ParameterError("no"), finished=1.0)
    storage.write(name_record("failed.mp4"), failure.model_dump_json().encode())
    earlier = make_outcome(make_task("changed.mp4", tmp_path, prompt="earlier"))
    storage.write(name_record("changed.mp4"), earlier.model_dump_json().encode())
    for name in ("kept.mp4", "alone.mp4", "changed.mp4", "renamed.mkv"):
        (tmp_path / name).touch()
    (tmp_path / ".foley-0123.partial").touch()

    found = plan([*tasks.values()], tmp_path)
    assert [task.id for task in found.waiting] == ["cut off.mp4", "new.mp4"]
    assert found.num_changed == 1
    assert found.finished["kept.mp4"].seeds == (1,)
    assert found.finished["failed.mp4"].error == "no"
    assert not (tmp_path / ".foley-0123.partial").exists()
    again = plan([*tasks.values()], tmp_path, retry_failed=True)
    assert [task.id for task in again.waiting] == ["cut off.mp4", "failed.mp4", "new.mp4"]
    # A row that failed with other options is another row.
    mended = tasks["failed"].model_copy(update={"trim": True})
    assert [task.id for task in plan([mended], tmp_path).waiting] == ["failed.mp4"]


def test_a_part_of_a_row_s_results_is_replaced(tmp_path: Path) -> None:
    task = make_task("x-1.wav", tmp_path).model_copy(update={"names": ("x-1.wav", "x-2.wav")})
    (tmp_path / "x-1.wav").touch()
    (waiting,) = plan([task], tmp_path).waiting
    assert waiting.replace
    (tmp_path / "x-1.wav").unlink()
    (waiting,) = plan([task], tmp_path).waiting
    assert not waiting.replace


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    with (
        lock_output(str(tmp_path)),
        pytest.raises(ConflictError, match="another run writes"),
        lock_output(str(tmp_path)),
    ):
        pass
    with lock_output(str(tmp_path)):
        pass


def test_the_reports_have_what_was_measured_of_each_sound(tmp_path: Path) -> None:
    task = make_task("x.wav", tmp_path).model_copy(update={"names": ("x-1.wav", "x-2.wav")})
    quiet = Loudness(true_peak_dbtp=-9.5)  # of less than 0.4 s
    loud = Loudness(integrated_lufs=-20.25, true_peak_dbtp=-3.0)
    outcome = make_outcome(
        task,
        seeds=(1, 2),
        device_seconds=1.25,
        speech_seconds=(0.0, 0.75),
        loudness=tuple(LoudnessReport(before=one, after=one, gain_db=0) for one in (quiet, loud)),
    )
    earlier = make_task("earlier.wav", tmp_path)  # of a version that measured nothing
    lines = make_report(
        [task, earlier], [], {"x.wav": outcome, "earlier.wav": make_outcome(earlier)}
    )
    assert write_report(Folder(tmp_path), lines) == ["report.csv", "report.parquet"]
    table = pyarrow.parquet.read_table(tmp_path / "report.parquet").to_pydict()
    assert table["speech_seconds"] == [0.0, 0.75, None]
    assert table["integrated_lufs"] == [None, -20.25, None]
    assert table["true_peak_dbtp"] == [-9.5, -3.0, None]
    assert table["device_seconds"] == [1.25, 1.25, None]
    assert table["seed"] == [1, 2, 1]
    assert [line["speech_seconds"] for line in read_report(tmp_path)] == ["0.0", "0.75", ""]


@pytest.mark.parametrize("price", ["-1", "nan", "inf"])
def test_a_price_that_is_none_is_refused(
    price: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = (tmp_path, tmp_path / "out", "--hourly-price", price)
    code, printed = run_command(monkeypatch, capfd, *arguments)
    assert code == 2
    assert f"--hourly-price: {price} is no price; give 0 or more" in printed


def test_a_log_has_the_progress_and_the_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foley.cli.bulk.command.LINE_SECONDS", 0.0)
    tasks = [make_task(f"{index}.wav", tmp_path) for index in range(3)]
    printed = io.StringIO()
    run = _Run(
        Console(file=printed, soft_wrap=True),
        Folder(tmp_path),
        {},
        max_errors=None,
        num_failed=1,  # a refused row of the table
        hourly_price=3.6e6,
    )
    done = [make_outcome(task, device_seconds=0.5) for task in tasks[:2]]
    failed = BulkOutcome.from_error(tasks[2], ParameterError("no"), finished=1.0)
    run.work(iter([*done, failed]), tasks)
    run.print_summary([])
    lines = printed.getvalue().splitlines()
    assert re.match(r"1 of 3 rows, 1.0 s of sound, .* s a second, cost \d.*, 1 failed$", lines[0])
    assert re.match(r"3 of 3 rows, 2.0 s of sound, .*, 2 failed$", lines[3])
    assert lines[5] == "devices worked 30.00 s for a minute of sound"
    cost = re.match(r"cost ([\d.e+]+) at 3.6e\+06 an hour, ([\d.e+]+) a minute of sound$", lines[6])
    assert cost
    assert run.describe_cost().startswith("cost ")
    assert float(cost[2]) == pytest.approx(30 * float(cost[1]), rel=0.1)


def test_a_dry_run_says_what_the_rest_costs(tmp_path: Path) -> None:
    tasks = [
        make_task(f"{index}.wav", tmp_path, prompt="rain", duration_seconds=6.0).model_copy(
            update={"clip": None}
        )
        for index in range(10)
    ]
    # Two seconds of sound were made a second.
    earlier = [make_outcome(tasks[0], finished=float(end), seconds=9.0) for end in (10, 11)]
    printed = io.StringIO()
    console = Console(file=printed, soft_wrap=True)
    print_estimate(console, tasks, earlier, hourly_price=120.0)
    assert "about 60 s of sound" in printed.getvalue()
    assert "about 0.5 min and a cost of 1, at the rate" in printed.getvalue()


def test_the_picture_has_every_failure(tmp_path: Path) -> None:
    task = make_task("x.wav", tmp_path)
    outcomes = [make_outcome(task, duration_seconds=1 + i / 10, finished=i) for i in range(1, 9)]
    failed = BulkOutcome(id="y", state="failed", error_code="video<empty>")
    texts = [
        element.text
        for element in ElementTree.fromstring(
            draw_picture([*outcomes, failed], title="a & b")
        ).iter()
        if element.text
    ]
    assert "a & b" in texts
    assert "video<empty>: 1" in texts
    assert ElementTree.fromstring(draw_picture([], title="none")) is not None


def run_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str]:
    """The exit code of `foley bulk` in this process, and what it printed."""
    monkeypatch.setattr(sys, "argv", ["foley", "bulk", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capfd.readouterr().err


def read_report(output: Path) -> list[dict[str, str]]:
    with (output / "report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_a_run_is_reported_and_the_next_one_makes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clips, output = tmp_path / "clips", tmp_path / "out"
    (clips / "dog").mkdir(parents=True)
    draw_clip(clips / "dog" / "one.mp4")
    (clips / "bad.mp4").write_bytes(b"not a video")
    for number in range(10):
        (clips / f"{number:02}.png").write_bytes(draw_numbered(number))
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    rows: list[dict[str, Any]] = [
        {"clip": "dog/one.mp4", "seed": 7, "loudness_lufs": -30},
        {"clip": "bad.mp4"},
        {"duration_seconds": 0.5, "prompt": "rain", "num_variations": 2, "seed": 4},
        {"clip": "dog/one.mp4", "seed": -7},
        {"duration_seconds": 0.5, "layers": LAYERS},
        {"clip": "dog/one.mp4", "start_seconds": 0.6, "output": "part.wav"},
        {"clip": "%02d.png", "frame_rate": 10},
        {"clip": "03.png", "duration_seconds": 1.2},
    ]
    table = write_table(clips, ".jsonl", rows)
    command = (table, output, "-p", "steps of a {folder}", "--steps", 1, "--guidance-scale", 1)
    command += ("--hourly-price", 3600)
    code, printed = run_command(monkeypatch, capfd, *command, "--dry-run")
    assert code == 1
    assert "8 rows, 7 to make, 1 refused\n" in printed
    assert "about 5 s of sound" in printed
    assert "of 7 rows that were opened 1 will fail:\n" in printed
    assert "bad.mp4: " in printed
    assert not output.exists()

    code, printed = run_command(monkeypatch, capfd, *command)
    assert code == 1
    assert "6 rows done, 2 failed: 5.10 s of sound" in printed
    assert "the extra 'bulk' adds clusters (--address), s3:// and Parquet" in printed
    lines = read_report(output)
    states = [line["state"] for line in lines]
    assert states == ["done", "failed", *["done"] * 8, "failed"]
    assert [float(line["duration_seconds"]) for line in lines[-4:-1]] == [0.4, 1.0, 1.2]
    assert [line["seed"] for line in lines][:4] == ["7", "", "4", "5"]
    assert [(line["layer"], line["seed"]) for line in lines][5] == ("1", "5")
    assert lines[1]["error_code"] == "video_unreadable"
    assert lines[0]["prompt"] == "steps of a dog"
    assert float(lines[0]["integrated_lufs"]) == pytest.approx(-30, abs=0.2)
    made_lines = [line for line in lines if line["state"] == "done"]
    assert all(float(line["true_peak_dbtp"]) < 1 for line in made_lines)
    assert all(float(line["speech_seconds"]) >= 0 for line in made_lines)
    assert all(float(line["device_seconds"]) > 0 for line in made_lines)
    assert "for a minute of sound\ncost " in printed  # of so many seconds, at 1 a second
    made = {line["path"]: os.stat(line["path"]).st_mtime_ns for line in lines if line["path"]}
    assert sorted(Path(path).relative_to(output).as_posix() for path in made) == [
        "03.foley.mp4",
        "clips.foley.mp4",
        "dog/one.foley.mp4",
        "part.wav",
        "sound-1-1.wav",
        "sound-1-2.wav",
        "sound-2-layer-1.wav",
        "sound-2-layer-2.wav",
        "sound-2.wav",
    ]
    assert {inspect_file(Path(path)).state for path in made} == {"valid"}
    with av.open(str(output / "03.foley.mp4")) as reader:  # of a still picture
        assert reader.streams.video
        assert reader.streams.audio
    layer = inspect_file(output / "sound-2-layer-2.wav").made
    assert layer is not None
    assert layer["settings"]["layer"] == 2
    assert pyarrow.parquet.read_table(output / "report.parquet").num_rows == len(lines)

    # Everything is done or has failed, so no model is loaded.
    code, printed = run_command(monkeypatch, capfd, *command)
    assert code == 1
    assert "8 rows, 0 to make, 6 done, 1 failed earlier (--retry-failed), 1 refused\n" in printed
    assert {path: os.stat(path).st_mtime_ns for path in made} == made
    assert read_report(output) == lines
    assert not list(output.rglob("*.partial"))


@pytest.mark.soak
def test_a_bucket_is_source_and_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve_bucket() as bucket:
        storage = open_storage(bucket)
        storage.write("clips/dog/one.mp4", draw_clip(tmp_path / "one.mp4"))
        storage.write("clips/bad.mp4", b"not a video")
        storage.write("clips/all.jsonl", b'{"clip": "dog/one.mp4", "output": "x/two.wav"}\n')
        fast = ("-p", "a {folder}", "--steps", 1, "--guidance-scale", 1)
        command = (f"{bucket}/clips/", f"{bucket}/out", *fast)
        code, printed = run_command(monkeypatch, capfd, *command)
        assert code == 1
        assert "1 row done, 1 failed" in printed
        made = storage.list_sizes("out/dog")
        assert list(made) == ["out/dog/one.foley.mp4"]
        report = list(csv.DictReader(storage.read("out/report.csv").decode().splitlines()))
        assert [line["state"] for line in report] == ["failed", "done"]
        code, printed = run_command(monkeypatch, capfd, *command)
        assert "0 to make, 1 done, 1 failed earlier" in printed
        code, printed = run_command(
            monkeypatch, capfd, f"{bucket}/clips/all.jsonl", f"{bucket}/out", *fast
        )
        assert code == 0, printed
        assert "out/x/two.wav" in storage.list_sizes("out")


def run_over_a_kill(
    tmp_path: Path, options: list[str], find: Callable[[psutil.Process], list[psutil.Process]]
) -> str:
    """Kill one of the processes found once a quarter of the clips is made; returns the log."""
    num_clips = int(os.environ.get("SOAK_ROWS", "200")) // 4
    clips, output = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    draw_clip(clips / "0.mp4")
    for index in range(1, num_clips):
        shutil.copy(clips / "0.mp4", clips / f"{index}.mp4")
    (clips / "bad.mp4").write_bytes(b"not a video")
    command = [sys.executable, "-m", "foley.cli.app", "bulk", str(clips), str(output)]
    command += ["-p", "taps", "--steps", "2", "--guidance-scale", "1", "--preset", "tiny"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    path = tmp_path / "log"
    with path.open("w") as log:
        run = subprocess.Popen([*command, *options], env=environment, stderr=log)
        made: list[Path] = []
        while len(made) < num_clips // 4:
            assert run.poll() is None, path.read_text()
            time.sleep(0.5)
            made = sorted(output.glob("*.foley.mp4"))
        times = {path: path.stat().st_mtime_ns for path in made}
        victims = find(psutil.Process(run.pid))
        assert victims
        victims[0].kill()
        run.wait()
    assert run.returncode == 1, path.read_text()  # bad.mp4
    assert {path: path.stat().st_mtime_ns for path in made} == times, "made twice"
    states = Counter(line["state"] for line in read_report(output))
    assert states == {"done": num_clips, "failed": 1}, path.read_text()
    return path.read_text()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_cluster_s_killed_worker_loses_what_was_in_hand(tmp_path: Path) -> None:
    """Two workers of Ray on this machine, one of which is killed with its process."""

    def find(run: psutil.Process) -> list[psutil.Process]:
        return [
            process
            for process in run.children(recursive=True)
            if "MapWorker" in process.name() or "MapWorker" in " ".join(process.cmdline()[:1])
        ]

    run_over_a_kill(tmp_path, ["--address", "local", "--workers", "2"], find)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_one_of_two_processes_that_is_killed_loses_what_was_in_hand(tmp_path: Path) -> None:
    """Two processes with a model, without Ray, as on a machine with two GPUs."""
    jobs = 4
    options = ["--workers", "2", "-j", str(jobs), "-v"]
    log = run_over_a_kill(tmp_path, options, psutil.Process.children)
    assert "2 processes of " in log
    begun = Counter(re.findall(r'"row": "([^"]+)", "event": "row_begun"', log))
    repeated = sum(begun.values()) - len(begun)
    print(f"{repeated} of {len(begun)} rows were begun again, of {jobs} that were in hand")
    assert repeated <= jobs


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_no_row_is_lost_or_made_twice_by_kills(tmp_path: Path) -> None:
    """Kills the command, the process of the model, or all processes: five times at random."""
    num_clips = int(os.environ.get("SOAK_ROWS", "200"))
    draw = Random(int(os.environ.get("SOAK_SEED", "0")))
    victims = ["command", "model", "tree", *draw.choices(["command", "model", "tree"], k=2)]
    draw.shuffle(victims)
    clips, output = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    draw_clip(clips / "0.mp4")
    for index in range(1, num_clips):
        shutil.copy(clips / "0.mp4", clips / f"{index}.mp4")
    # Verbose, since the logs then have a line for each row that is begun.
    command = [sys.executable, "-m", "foley.cli.app", "bulk", str(clips), str(output), "-v"]
    command += ["-p", "taps", "--steps", "2", "--guidance-scale", "1", "--preset", "tiny"]
    command += ["-j", str(ROWS_IN_HAND)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    path = tmp_path / "log"
    made: dict[str, int] = {}  # the time of each result: one that is made twice changes it

    def list_made() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in output.glob("*.foley.mp4")}

    began = time.monotonic()
    with path.open("a") as log:
        run: subprocess.Popen[bytes] | None = None
        for victim in victims:
            run = run or subprocess.Popen(command, env=environment, stderr=log)
            goal = len(list_made()) + draw.randint(num_clips // 25, num_clips // 8)
            while len(list_made()) < goal:
                assert run.poll() is None, path.read_text()
                time.sleep(draw.uniform(0.05, 0.5))
            if victim == "model":
                (model,) = psutil.Process(run.pid).children()
                model.kill()
            else:
                below = psutil.Process(run.pid).children(recursive=True)
                run.kill()
                for process in below if victim == "tree" else ():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                run.wait()
                run = None
            before, made = made, list_made()
            assert all(made[name] == when for name, when in before.items()), "made twice"
        run = run or subprocess.Popen(command, env=environment, stderr=log)
        run.wait(scale(3600))
    seconds = time.monotonic() - began
    assert run.returncode == 0, path.read_text()
    after = list_made()
    assert len(after) == num_clips
    assert all(after[name] == when for name, when in made.items()), "made twice"
    lines = read_report(output)
    assert [line["state"] for line in lines] == ["done"] * num_clips
    assert all(line["seed"] and line["speech_seconds"] for line in lines)
    assert not list(output.rglob("*.partial"))
    begun = Counter(re.findall(r'"row": "([^"]+)", "event": "row_begun"', path.read_text()))
    assert len(begun) == num_clips
    repeated = sum(begun.values()) - num_clips
    assert repeated <= len(victims) * ROWS_IN_HAND
    print(
        f"{num_clips} rows in {seconds:.0f} s over kills of {', '.join(victims)}: {len(after)} "
        f"results, each made once; {repeated} rows were begun again, of at most "
        f"{len(victims) * ROWS_IN_HAND} that were in hand"
    )
