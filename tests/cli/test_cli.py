"""The commands: exit codes, messages and files."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
from cyclopts import App
from huggingface_hub import constants
from rich.console import Console

from foley.cli.app import main
from foley.cli.backends import ClipResult
from foley.cli.commands import app
from foley.cli.plan import ClipTask
from foley.cli.report import Report
from foley.cli.serve import override_settings, page_address, serve
from foley.cli.whole import parse_whole
from foley.configs import OFFICIAL_GUIDANCE, TINY, TINY_GUIDANCE
from foley.errors import ConfigError, ParameterError
from foley.models.dit import build_dit
from foley.request import GenerationRequest
from foley.version import __version__
from runners.process import find_free_ports
from tests.adapters import write_random_adapter
from tests.http.test_generate import packets, samples
from tests.media.clips import list_packets
from tests.patience import wait_for_exit

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples" / "bigbuckbunny.mp4"
FAST = ("--steps", "1", "--guidance-scale", "1")


@dataclass(frozen=True)
class CommandResult:
    """The exit code of a command and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def foley(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., CommandResult]:
    """A function that runs the entry point in this process, where torch is imported only once."""

    def run(*arguments: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["foley", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return CommandResult(code, out, err)

    return run


RunFoley = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def short(short_clip: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a clip of 1 s."""
    path = tmp_path_factory.mktemp("clips") / "short.mp4"
    path.write_bytes(short_clip)
    return path


def streams(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return {stream.type: stream.codec_context.name for stream in container.streams}


def test_generate_writes_a_clip_with_sound_and_nothing_else(
    foley: RunFoley, tmp_path: Path
) -> None:
    out = tmp_path / "new folder" / "out.mp4"
    result = foley("generate", CLIP, "-p", "birds", "--seed", 7, "-o", out, *FAST)
    assert result.returncode == 0, result.stderr
    assert streams(out) == {"video": "h264", "audio": "aac"}
    assert "seed 7" in result.stderr
    assert result.stdout == f"{out}\n"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.long
def test_an_adapter_is_used_and_an_unknown_one_named(
    foley: RunFoley, short: Path, tmp_path: Path
) -> None:
    dit = build_dit(TINY.dit)
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    write_random_adapter(adapters / "rattle.safetensors", dit, "tiny", rank=1)
    sounds = []
    for name, options in {
        "plain": (),
        "zero": ("--adapter", "rattle:0"),
        "half": ("--adapter", "rattle:0.5"),
    }.items():
        out = tmp_path / f"{name}.wav"
        given = ("--adapters", adapters, *options)
        result = foley("generate", short, "--seed", 7, "-o", out, *FAST, *given)
        assert result.returncode == 0, result.stderr
        sounds.append(packets(out.read_bytes(), "audio"))  # marks differ from file to file
    assert sounds[0] == sounds[1] != sounds[2]
    for given, message, code in (
        (("--adapter", "glass"), "there are rattle", 1),
        (("--adapter", "rattle:3"), "less than or equal to 2", 2),
    ):
        out = tmp_path / "no.wav"
        result = foley("generate", short, "-o", out, *FAST, "--adapters", adapters, *given)
        assert result.returncode == code, result.stderr
        assert message in result.stderr
        assert not out.exists()


def test_a_result_states_its_loudness(foley: RunFoley, voiced_clip: bytes, tmp_path: Path) -> None:
    voiced, out = tmp_path / "voiced.mov", tmp_path / "out.wav"
    voiced.write_bytes(voiced_clip)
    options = ("--original-sound", "duck", "--loudness-lufs", -30, "--json")
    result = foley("generate", voiced, "--seed", 7, "-o", out, *FAST, *options)
    assert result.returncode == 0, result.stderr
    (file,) = json.loads(result.stdout)["files"]
    assert file["loudness"]["after"]["integrated_lufs"] == pytest.approx(-30, abs=0.1)
    assert "-30.0 LUFS" in result.stderr


@pytest.mark.long
def test_guidance_defaults_to_the_model_s(foley: RunFoley, short: Path, tmp_path: Path) -> None:
    for name, options in {
        "unnamed": (),
        "own": ("--guidance-scale", TINY_GUIDANCE),
        "other": ("--guidance-scale", OFFICIAL_GUIDANCE),
    }.items():
        out = tmp_path / f"{name}.wav"
        result = foley("generate", short, "-o", out, "--seed", 7, "--steps", 1, *options)
        assert result.returncode == 0, result.stderr
    files = (tmp_path / f"{name}.wav" for name in ("unnamed", "own", "other"))
    unnamed, own, other = (list_packets(file.read_bytes()) for file in files)
    assert unnamed == own != other


def test_variations_are_numbered_and_audio_alone_is_written(
    foley: RunFoley, short: Path, tmp_path: Path
) -> None:
    result = foley("generate", short, "-o", tmp_path / "x.flac", "--variations", 2, *FAST)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-1.flac", "x-2.flac"]
    assert streams(tmp_path / "x-1.flac") == {"audio": "flac"}


def test_layers_are_written_beside_their_mix(foley: RunFoley, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    options = ("--layer", "wind", "--layer", '{"prompt": "taps", "seed": 9}', "--seed", 7)
    report = ("--json", "--avoid-speech", "report")
    result = foley("generate", "--seconds", 1, "-o", out, *options, *FAST, *report)
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)
    assert made["files"][0]["speech_seconds"] >= 0
    assert [(Path(file["path"]).name, file["seed"]) for file in made["files"]] == [("out.wav", 7)]
    layers = [(Path(file["path"]).name, file["seed"]) for file in made["layers"]]
    assert layers == [("out-layer-1.wav", 7), ("out-layer-2.wav", 9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out-layer-1.wav", "out-layer-2.wav", "out.wav"
    ]  # fmt: skip
    again = foley("generate", "--seconds", 1, "-o", out, *options, *FAST, "--skip-existing")
    assert "1 of 1 results exist: skipped" in again.stderr
    (tmp_path / "out-layer-2.wav").unlink()
    again = foley("generate", "--seconds", 1, "-o", out, *options, *FAST, "--skip-existing")
    assert "out-layer-2.wav" in again.stdout
    piped = foley("generate", "--seconds", 1, "-o", "-", *options)
    assert piped.returncode == 2
    assert "standard output holds one result" in piped.stderr


def test_a_table_continues_after_a_bad_clip_and_skips_existing_results(
    foley: RunFoley, short: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    table = tmp_path / "clips.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "prompt", "seed", "output"])
        writer.writerow(["bad.mp4", "x", "", ""])
        writer.writerow(["gone.mp4", "x", "", ""])
        writer.writerow([str(short), "y", "3", "good.wav"])
    result = foley("generate", "--csv", table, *FAST)
    assert result.returncode == 1
    assert "bad.mp4" in result.stderr
    assert "there is no file" in result.stderr
    assert "2 of 3 clips failed" in result.stderr
    assert "seed 3" in result.stderr
    assert (tmp_path / "good.wav").is_file()

    written_at = (tmp_path / "good.wav").stat().st_mtime_ns
    again = foley("generate", "--csv", table, "--skip-existing", *FAST)
    assert "1 of 3 results exist: skipped" in again.stderr
    assert (tmp_path / "good.wav").stat().st_mtime_ns == written_at


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate"], 2, "no clip was named"),
        (["generate", "gone.mp4"], 1, "there is no file gone.mp4"),
        (["generate", CLIP, "-o", "x.avi"], 2, "use one of .mp4"),
        (["generate", CLIP, CLIP, "-o", "x.mp4"], 2, "one file for 2 clips"),
        (["generate", CLIP, "rain on tin", "-o", "x.mp4"], 2, "write -p 'rain on tin' if it is"),
        (["generate", "gone.mp4", CLIP], 2, "there is no file gone.mp4; check the path"),
        (["generate", "rain on tin"], 2, "write -p 'rain on tin' if it is"),
        (["generate", "."], 1, "is a folder; name a clip in it"),
        (["generate", CLIP, "--server", "foo"], 2, "for --server. "),
        (["generate", CLIP, "--edit-source", "a.wav", "--edit-range", "0-1"], 2, "no file a.wav"),
        (["generate", CLIP, "-o", "/proc/x.mp4"], 1, "written in the folder /proc (No such file"),
        (["generate", CLIP, CLIP], 2, "would both be written"),
        (["generate", CLIP, "-o", CLIP], 2, "would overwrite"),
        (["generate", CLIP, "--guidance-scale", "99"], 2, "--guidance-scale: "),
        (["generate", CLIP, "--steps", "0"], 2, "foley: --steps: "),
        (["generate", CLIP, "--num-inference-steps=0"], 2, "foley: --num-inference-steps: "),
        (["generate", CLIP, "--seed", "abc"], 2, "abc"),
        (["generate", CLIP, "--stems"], 2, "foley: --stems: cannot be combined with original_so"),
        (["generate", CLIP, "-o", "x.wav", "--original-sound", "keep"], 2, "format wav holds one"),
        (["generate", CLIP, "--loudness-lufs", "0"], 2, "foley: --loudness-lufs: "),
        (["generate", CLIP, "--frobnicate"], 2, "--frobnicate"),
        (["generate", CLIP, "--preset", "huge"], 3, "tiny, xl, xxl and auto"),
        (["generate", CLIP, "--device", "cuda:9"], 3, "cuda:9 is not there"),
        (["generate", CLIP, "--weights", "/nowhere"], 3, "/nowhere"),
        (["generate", "--csv", "gone.csv"], 2, "gone.csv"),
        (["convert", "/nowhere", "out"], 3, "/nowhere"),
        (["frob"], 2, "frob"),
    ],
)
def test_wrong_arguments_end_with_a_message_and_no_files(
    foley: RunFoley,
    arguments: list[object],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = foley(*arguments)
    assert result.returncode == code, result.stderr
    assert words in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
    assert "preset tiny" not in result.stderr  # no model was loaded for it
    assert list(tmp_path.iterdir()) == []


def test_a_result_never_overwrites_a_clip(foley: RunFoley, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(CLIP, tmp_path / name)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    table = tmp_path / "clips.csv"
    table.write_text("clip,output\na.mp4,b.mp4\nb.mp4,c.mp4\n")
    for arguments in (
        [tmp_path / "sub" / ".." / "a.mp4", "-o", tmp_path / "a.mp4"],
        [tmp_path / "a.mp4", "-o", tmp_path / "link.mp4"],
        ["--csv", table],
    ):
        result = foley("generate", *arguments, *FAST)
        assert result.returncode == 2
        assert "would overwrite" in result.stderr
    for name in ("a.mp4", "b.mp4"):
        assert (tmp_path / name).read_bytes() == CLIP.read_bytes()


def write_vp8_clip(path: Path) -> None:
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            writer.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        writer.mux(stream.encode(None))


def test_another_container_overwrites_no_file(foley: RunFoley, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    write_vp8_clip(clip)
    before = clip.read_bytes()
    result = foley("generate", clip, "-o", tmp_path / "clip.mp4", *FAST)
    assert result.returncode == 2
    assert "would overwrite" in result.stderr
    assert clip.read_bytes() == before

    result = foley("generate", clip, "-o", tmp_path / "new.mp4", *FAST)
    assert result.returncode == 0, result.stderr
    assert streams(tmp_path / "new.mkv") == {"video": "vp8", "audio": "flac"}
    assert "mp4 cannot hold its video stream" in result.stderr
    again = foley("generate", clip, "-o", tmp_path / "new.mp4", "--skip-existing", *FAST)
    assert "1 of 1 results exist: skipped" in again.stderr


def test_a_folder_that_cannot_be_created_is_refused_before_the_model_loads(
    foley: RunFoley, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "out.mp4", tmp_path / "file" / "deeper" / "out.mp4"):
        result = foley("generate", CLIP, "-o", output, *FAST)
        assert result.returncode == 1
        assert "cannot be made" in result.stderr
        assert "preset" not in result.stderr


def test_brackets_in_a_name_are_not_markup(foley: RunFoley, short: Path, tmp_path: Path) -> None:
    clip = tmp_path / "[final] clip [/b].mp4"
    clip.parent.mkdir(exist_ok=True)
    shutil.copy(short, clip)
    out = clip.with_suffix(".wav")
    result = foley("generate", clip, "-o", out, *FAST)
    assert result.returncode == 0, result.stderr
    assert str(clip) in result.stderr
    assert result.stdout == f"{out}\n"


def test_pieces_of_a_long_sound_are_files_that_make_up_the_whole(
    foley: RunFoley, tmp_path: Path
) -> None:
    out = tmp_path / "rain.wav"
    arguments = ("--seconds", 16, "-p", "rain", "-o", out, "--pieces", *FAST)
    result = foley("generate", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    *pieces, whole = map(json.loads, result.stdout.splitlines())
    assert [line["piece"]["number"] for line in pieces] == [1, 2]
    paths = [Path(line["piece"]["path"]) for line in pieces]
    assert paths == [tmp_path / "rain-piece-1.wav", tmp_path / "rain-piece-2.wav"]
    assert sum(line["piece"]["duration_seconds"] for line in pieces) == whole["duration_seconds"]
    read = [sound_file.read_bytes() for sound_file in (*paths, out)]
    first, second, made = (samples(file) for file in read)
    assert (np.concatenate([first, second]) == made).all()
    for refused in (("-j", 2), ("--avoid-speech", "retry")):
        assert "--pieces and --" in foley("generate", *arguments, *refused).stderr


def test_a_prompt_alone_becomes_a_sound(foley: RunFoley, tmp_path: Path) -> None:
    arguments = ["--seconds", 0.5, "-p", "rain", "--seed", 7, "--variations", 2, "--json"]
    result = foley("generate", *arguments, "-o", tmp_path / "rain.flac", *FAST)
    assert result.returncode == 0, result.stderr
    line = json.loads(result.stdout)
    assert line["clip"] is None
    assert line["duration_seconds"] == 0.5
    assert "decode_video" not in line["timings_seconds"]
    paths = [tmp_path / "rain-1.flac", tmp_path / "rain-2.flac"]
    assert [file["path"] for file in line["files"]] == list(map(str, paths))
    with av.open(paths[1]) as reader:
        assert sum(frame.samples for frame in reader.decode(audio=0)) == 24_000
    assert foley("generate", *arguments, "-o", tmp_path, *FAST).returncode == 0
    assert (tmp_path / "sound-2.wav").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seconds", 1), "needs a prompt"),
        (("--seconds", 3601, "-p", "rain"), "less than or equal to 3600, got 3601"),
        (("--seconds", 1, "-p", "rain", "-o", "x.mp4"), "no picture; use .wav or .flac"),
        (("--seconds", 1, "-p", "rain", "--csv", "x.csv"), "leave it or --csv out"),
        (("--seconds", 1, "-p", "rain", "--start", 1, CLIP), "--start: got 1 and --seconds"),
    ],
)
def test_a_sound_without_a_clip_is_refused_where_options_do_not_fit(
    foley: RunFoley, arguments: tuple[object, ...], words: str
) -> None:
    result = foley("generate", *arguments)
    assert result.returncode == 2
    assert words in result.stderr


def test_a_still_picture_asks_for_the_option_by_its_name(foley: RunFoley, tmp_path: Path) -> None:
    picture = Path(__file__).parents[2] / "docs/images/page-desktop.png"
    result = foley("generate", picture, "-p", "rain", "-o", tmp_path / "out.mp4")
    assert result.returncode == 1
    assert "set --seconds, such as 5" in result.stderr


def test_json_has_a_line_for_each_clip(foley: RunFoley, short: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    arguments = [tmp_path / "bad.mp4", short, "-o", tmp_path / "out", "--seed", 7, "--json", "-q"]
    result = foley("generate", *arguments, *FAST)
    assert result.returncode == 1
    bad, good = map(json.loads, result.stdout.splitlines())
    assert bad["clip"] == str(tmp_path / "bad.mp4")
    assert bad["error"]["code"] == "video_unreadable"
    assert bad["error"]["message"] in result.stderr
    path = tmp_path / "out" / "short.foley.mp4"
    assert good["clip"] == str(short)
    assert good["files"] == [{"path": str(path), "seed": 7}]
    assert path.is_file()
    assert good["duration_seconds"] > 0
    assert list(good["timings_seconds"])[-1] == "mux"
    assert good["notices"] == []


def test_a_path_that_is_no_text_is_printed_as_it_is(tmp_path: Path) -> None:
    task = ClipTask(CLIP, GenerationRequest(), tmp_path / "x.wav")
    name = b"/tmp/caf\xe9.wav"
    result = ClipResult(
        paths=[Path(os.fsdecode(name))],
        seeds=(7,),
        duration_seconds=1.0,
        seconds=1.0,
        timings={},
        notices=(),
    )
    with (tmp_path / "out").open("w") as file, contextlib.redirect_stdout(file):
        Report(Console(file=io.StringIO()), as_json=False).print_result(task, result)
    assert (tmp_path / "out").read_bytes() == name + b"\n"


def test_serve_sends_no_telemetry_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class ReplacedError(Exception):
        """Raised in place of the process's end."""

    def replace(_program: str, _command: list[str], environment: dict[str, str]) -> None:
        raise ReplacedError(environment["BENTOML_DO_NOT_TRACK"])

    monkeypatch.setattr(os, "execve", replace)
    monkeypatch.delenv("BENTOML_DO_NOT_TRACK", raising=False)
    with pytest.raises(ReplacedError, match="True"):
        serve(preset="tiny", port=find_free_ports(1)[0])
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "False")
    with pytest.raises(ReplacedError, match="False"):
        serve(preset="tiny", port=find_free_ports(1)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 0}, "--port: 0 is no port; give 1 to 65535"),
        ({"port": 99_999}, "--port: 99999 is no port"),
        ({"host": "foley.invalid"}, "--host: 'foley.invalid' is no IP address"),
    ],
)
def test_serve_refuses_where_nothing_can_listen(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("the service would start"))
    with pytest.raises(ParameterError, match=words):
        serve(preset="tiny", **options)


def test_serve_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("the service would start"))
    monkeypatch.setitem(sys.modules, "bentoml", None)
    with pytest.raises(ConfigError, match=r"pip install 'foley-serving\[serve\]'"):
        serve(preset="tiny", port=find_free_ports(1)[0])


def test_the_guide_lists_every_command() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guides" / "cli.md").read_text()
    listed = re.findall(r"^\| `foley (\w+)` \|", text, re.MULTILINE)
    assert set(listed) == {name for name in app if not name.startswith("-")}


def test_the_list_of_commands_says_what_each_does(foley: RunFoley) -> None:
    rows = re.findall(r"^│ (\S.*)│$", foley("--help").stdout, re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        assert re.match(r"\S+( \(-h\))? {2,}[A-Z]", row), row


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_completes_commands_and_options_in_each_shell(
    foley: RunFoley, shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script"
    monkeypatch.setenv("HOME", str(tmp_path))
    done = foley("--install-completion", "--shell", shell, "--output", script)
    assert done.returncode == 0, done.stderr
    assert "generate" in script.read_text()
    assert "negative-prompt" in script.read_text()


def test_the_help_of_generate_begins_with_examples(foley: RunFoley) -> None:
    result = foley("generate", "--help")
    first, *examples = result.stdout.partition("\n\n")[0].splitlines()
    assert first == "Examples:"
    assert all(line.startswith("  foley generate ") for line in examples)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:3000/ui/"),
        ("::1", "http://[::1]:3000/ui/"),
        ("0.0.0.0", "http://127.0.0.1:3000/ui/"),
        ("::", "http://[::1]:3000/ui/"),
        ("foley.test", "http://foley.test:3000/ui/"),
    ],
)
def test_serve_shows_an_address_that_a_browser_opens(host: str, shown: str) -> None:
    assert page_address(host, 3000) == shown


def test_serve_sets_only_the_given_options() -> None:
    assert override_settings(None, None, None) == {}
    assert override_settings("xl", Path("/w"), None) == {
        "FOLEY_PRESET": "xl",
        "FOLEY_WEIGHTS": "/w",
    }
    here = Path.cwd()
    adapters = override_settings(None, None, None, "a, /b")["FOLEY_ADAPTERS"]
    assert adapters == f"{here / 'a'},/b"


def test_info_lists_presets_packages_and_attention(foley: RunFoley) -> None:
    result = foley("info", "--json")
    assert result.returncode == 0
    facts = json.loads(result.stdout)
    assert facts["presets"]["tiny"] == f"in the package: {TINY.about}"
    assert facts["prompts"]["tiny"] == "; ".join(TINY.prompts)
    assert facts["packages"]["torch"]
    assert facts["attention"]


def test_the_installed_command_prints_its_version() -> None:
    command = [str(Path(sys.executable).with_name("foley")), "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == __version__


@pytest.mark.long
def test_an_interrupted_command_leaves_no_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from foley.cli.app import main; main()", "generate"]
    command += [str(CLIP), "-o", str(tmp_path / "out.mp4"), "--steps", "200", "--solver", "rk4"]
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    # With the last of these, OpenMP shows the values that it uses, when torch is imported.
    environment |= {"TMPDIR": str(tmp_path), "OMP_DISPLAY_ENV": "VERBOSE"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while "preset tiny" not in lines[-1]:  # until the model is loaded
            assert process.poll() is None
            lines.append(process.stderr.readline())
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert wait_for_exit(process) == 128 + signal.SIGINT
    assert "no partial file was left" in rest
    assert [path for path in tmp_path.iterdir() if "torchinductor" not in path.name] == []
    # OpenMP is told to spin for a short time.
    assert any("GOMP_SPINCOUNT = '1000'" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("generate", "a.mp4", "--seed", "1.5"), "--seed"),
        (("generate", "a.mp4", "-j", "2.0"), "-j"),
        (("bulk", "a", "b", "--limit=1.5"), "--limit"),
        (("train", "a", "--out", "b", "--rank", "1.5"), "--rank"),
        (("jobs", "list", "--limit", "1.5"), "--limit"),
        (("webhook", "failed", "--limit", "1.5"), "--limit"),
        (("serve", "--port", "1.5"), "--port"),
    ],
)
def test_a_fraction_is_not_rounded_to_a_whole_number(
    foley: RunFoley, arguments: tuple[str, ...], option: str
) -> None:
    result = foley(*arguments)
    assert result.returncode == 2
    assert f"Invalid value for {option}: " in result.stderr
    assert "is not a whole number" in result.stderr


@pytest.mark.parametrize("group", [(), ("jobs",), ("webhook",)])
def test_a_group_without_a_command_shows_its_help_and_ends_with_0(
    foley: RunFoley, group: tuple[str, ...]
) -> None:
    result = foley(*group)
    assert result.returncode == 0
    assert result.stdout.startswith(" ".join(("Usage: foley", *group, "COMMAND")))


def test_a_wrong_table_ends_with_2(foley: RunFoley, tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("clip,seed\na.mp4,-4\n")
    result = foley("generate", "--csv", tmp_path / "clips.csv")
    assert result.returncode == 2
    assert "line 2: seed" in result.stderr


@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_the_users_own_setting_of_openmp_stays(
    foley: RunFoley, own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(own))
    assert foley("--version").returncode == 0
    assert dict(os.environ) == own


def test_a_user_without_a_home_is_asked_for_a_folder(
    foley: RunFoley, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", "~/.cache/huggingface")  # what the hub makes of it
    result = foley("download", "xl")
    assert result.returncode == 3
    assert "no home folder for weights: name a folder with --to, or set HF_HOME" in result.stderr


def list_commands(group: App) -> Iterator[App]:
    for name in group:
        if not name.startswith("-"):
            yield group[name]
            yield from list_commands(group[name])


def test_every_option_of_whole_numbers_refuses_fractions() -> None:
    options = [
        argument
        for command in list_commands(app)
        if command.default_command is not None
        for argument in command.assemble_argument_collection()
        if int in (argument.hint, *get_args(argument.hint))
    ]
    assert len(options) > 20
    for option in options:
        assert option.parameter.converter is parse_whole, option.name
