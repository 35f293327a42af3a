"""The modules of the page that need no browser."""

import ast
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
import torch
from PIL import Image

from foley import errors
from foley.client import RemoteModel, RemoteUpdate
from foley.configs import TINY
from foley.errors import (
    BusyError,
    ConnectionFailedError,
    FoleyError,
    ParameterError,
    PromptTooLongError,
    UnauthorizedError,
    UploadTooLargeError,
    VideoDecodeError,
    VideoTooLongError,
)
from foley.request import Cue, GenerationRequest, Layer
from runners.http.openapi import build_document
from runners.page import messages, plots
from runners.page.bounds import fetch_bounds
from runners.page.controls import EXAMPLES
from runners.page.direct import (
    make_edit,
    parse_cues,
    parse_layers,
    write_cue,
    write_layer,
    write_ranges,
)
from runners.page.events import choose_prompt
from runners.page.snippets import ResultSettings
from runners.settings import Settings
from tests.client.stub_server import Reply, run_stub_server
from tests.media.clips import ROTATED, numbers, write_clip
from tests.page.loops import run_apart
from tests.server import ROOT

RATE = 48_000
OPTIONS = {
    "prompt": 'it\'s "raining" @home; <b>&amp; $HOME\n\\',
    "negative_prompt": "",
    "guidance_scale": 4.5,
    "num_inference_steps": 50,
    "solver": "euler",
    "seed": 2**63 - 1,
    "num_variations": 1,
    "format": "mp4",
    "trim": True,
}


@pytest.fixture
def settings() -> ResultSettings:
    return ResultSettings(
        options=OPTIONS,
        clip_name='my "best"; clip, 1.mp4',
        example="bikes.mp4",
        server_url="http://127.0.0.1:3000",
        with_key=True,
    )


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (VideoDecodeError("cut off"), "clip"),
        (VideoTooLongError("too long"), "clip"),
        (UploadTooLargeError("too large"), "clip"),
        (PromptTooLongError("too long"), "prompt"),
        (ParameterError("seed: input should be a valid integer, got 'x'"), "seed"),
        (ParameterError("guidance_scale: too large, got 21"), "guidance_scale"),
        (ParameterError("cues.1.stop_seconds: must be at least 0.1 s after"), "cues"),
        (ParameterError("layers: line 2 is no JSON object"), "layers"),
        (ParameterError("edit.source: the clip has no sound"), "edit"),
        (ParameterError("surprise: no such option"), "start"),
        (UnauthorizedError("no key"), "api_key"),
        (BusyError("16 requests are being worked on; try again later"), "start"),
        (ConnectionFailedError("refused"), "start"),
    ],
)
def test_an_error_stands_beside_the_control_that_caused_it(error: FoleyError, place: str) -> None:
    assert messages.locate_error(error) == place
    sentence = messages.describe_error(error, key_given=False)
    assert not sentence[0].islower()
    assert sentence.endswith(".")


def test_every_error_class_has_a_place_and_a_sentence() -> None:
    kinds = [x for x in vars(errors).values() if isinstance(x, type) and issubclass(x, FoleyError)]
    assert len(kinds) > 20
    for kind in kinds:
        assert messages.locate_error(kind("what, how much, what to do")) in messages.PLACES
        assert messages.describe_error(kind("what"), key_given=True)


def test_foreign_text_is_escaped() -> None:
    assert "<script>" not in messages.render_error("<script>")
    model = RemoteModel(preset="<script>", about="<script>", territory="<script>")
    assert "<script>" not in messages.render_model(model)


def test_the_licence_of_official_weights_is_shown() -> None:
    html = messages.render_model(
        RemoteModel(
            preset="xxl",
            revision="0123456789abcdef",
            licence="Tencent Hunyuan Community License",
            territory="worldwide except the European Union",
        )
    )
    for words in ("xxl", "Tencent", "except the European Union", "0123456789ab", "machine-gen"):
        assert words in html
    assert "small" not in html


def test_the_small_model_is_described() -> None:
    tiny = messages.render_model(RemoteModel(preset="tiny", about=TINY.about))
    assert f"<strong>tiny</strong>, {TINY.about}." in tiny


def test_progress_shows_queue_position_step_and_time_left() -> None:
    html = messages.render_progress(RemoteUpdate(stage="queue", queue_position=3))
    assert "3 before yours" in html
    sampling = RemoteUpdate(stage="sample", step=4, num_steps=50, seconds_left=12.4)
    html = messages.render_progress(sampling)
    assert "Step 4 of 50, about 12 s left" in html
    assert 'value="4" max="50"' in html


def test_a_link_holds_every_setting(settings: ResultSettings) -> None:
    held = parse_qs(settings.link[1:], keep_blank_values=True)
    assert set(held) == {*OPTIONS, "example"}
    assert held["prompt"] == [OPTIONS["prompt"]]
    assert held["seed"] == [str(2**63 - 1)]
    assert held["trim"] == ["true"]


def test_a_shell_parses_the_curl_command_into_the_options(settings: ResultSettings) -> None:
    words = shlex.split(settings.curl.replace("\\\n", ""))
    given = [words[i + 1] for i, word in enumerate(words) if word == "--form-string"]
    assert given == [
        f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in OPTIONS.items()
    ]
    assert 'clip=@"my \\"best\\"; clip, 1.mp4"' in words
    assert "Authorization: Bearer $FOLEY_API_KEY" in words


def test_python_parses_the_program_into_the_options(settings: ResultSettings) -> None:
    calls = [x for x in ast.walk(ast.parse(settings.python)) if isinstance(x, ast.Call)]
    (generate,) = [x for x in calls if ast.unparse(x.func) == "client.generate"]
    given = {x.arg: ast.literal_eval(x.value) for x in generate.keywords}
    assert given == {"destination": "results", **OPTIONS}
    assert ast.literal_eval(generate.args[0]) == settings.clip_name


def test_a_spectrogram_shows_the_time_and_the_frequency_of_a_tone(tmp_path: Path) -> None:
    seconds, hz = 4, 1000.0
    time = np.arange(seconds * RATE) / RATE
    samples = np.where(time >= 2, np.sin(2 * np.pi * hz * time), 0).astype(np.float32)
    plots.draw_spectrogram(samples, len(samples), RATE, tmp_path / "s.png")
    light = np.asarray(Image.open(tmp_path / "s.png").convert("L")).astype(int)
    assert light.shape == (plots.NUM_ROWS, plots.NUM_COLUMNS)
    octaves = np.log2(hz / plots.LOWEST_HZ) / np.log2(plots.HIGHEST_HZ / plots.LOWEST_HZ)
    brightest = light[:, -40].argmax()
    assert brightest == pytest.approx((1 - octaves) * plots.NUM_ROWS, abs=2)
    begins = light[brightest].argmax()
    assert begins == pytest.approx(plots.NUM_COLUMNS / 2, abs=5)
    assert light[:, 100].max() < light[brightest, -40] / 4


def test_a_waveform_is_flat_after_the_end_of_its_sound() -> None:
    half = np.full(RATE, 0.5, np.float32)
    path = plots.trace_waveform(half, 2 * RATE)
    points = np.array([x.split() for x in path[1:-1].split("L")], float)
    upper = points[: plots.NUM_COLUMNS, 1]
    assert upper[10] == pytest.approx(0.5, abs=0.01)
    assert upper[-10] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("turn", ROTATED)
def test_a_film_strip_holds_upright_frames_at_even_times(tmp_path: Path, turn: int) -> None:
    clip = write_clip(
        tmp_path / "clip.mp4",
        num_frames=120,
        size=(96, 96),
        display=ROTATED[turn] if turn else None,
    )
    plots.draw_film_strip(clip, 4.7, tmp_path / "strip.jpg")
    strip = np.asarray(Image.open(tmp_path / "strip.jpg"))
    cells = np.stack(np.split(strip, plots.NUM_FRAMES, axis=1))  # [N, S, S, 3]
    turned_back = np.rot90(cells, -turn // 90, axes=(1, 2))
    wanted = [int((index + 0.5) * 4.7 / plots.NUM_FRAMES * 25) for index in range(12)]
    assert numbers(torch.from_numpy(turned_back.copy())) == wanted


def test_a_film_strip_keeps_the_aspect_ratio_of_a_tall_clip(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", size=(160, 80), display=ROTATED[90])
    plots.draw_film_strip(clip, 1.0, tmp_path / "strip.jpg")
    with Image.open(tmp_path / "strip.jpg") as strip:
        width, height = strip.size
    assert height == plots.FRAME_HEIGHT
    assert width / plots.NUM_FRAMES == pytest.approx(plots.FRAME_HEIGHT / 2, abs=1)


def test_the_bounds_are_fetched_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    document = build_document(Settings(max_clip_seconds=6.0))
    with run_stub_server() as stub:
        stub.replies = [Reply(pieces=(json.dumps(document).encode(),))]
        bounds = run_apart(fetch_bounds(stub.url))
        assert bounds.max_seconds == 6


def test_an_example_brings_its_prompt_but_keeps_one_that_was_written() -> None:
    assert choose_prompt("hammer.mp4", " ") == "a hammer hits stone"
    assert choose_prompt("bikes.mp4", "a hammer hits stone") == "wind blowing"
    assert choose_prompt("bikes.mp4", "bells") == "bells"
    text = (ROOT / "examples" / "README.md").read_text()
    for name, (_, prompt) in EXAMPLES.items():
        assert f"| `{name}` | {prompt} |" in text


CUES = """1.2-3.5: glass: it shatters

{"start_seconds": 4, "stop_seconds": 5, "prompt": "rain", "gain_db": -6}
 6 - 7.25 : wood"""
LAYERS = 'footsteps, on gravel\n{"prompt": "wind", "gain_db": -9, "pan": -0.4}'
EDIT = {"source": "page-1/foley-2.wav", "ranges": "1.2-3.5, 4-5", "strength": 0.4}


def test_texts_of_fields_are_the_options_and_back() -> None:
    request = GenerationRequest.parse(
        cues=parse_cues(CUES), layers=[], edit=make_edit(**EDIT)
    ).model_copy(update={"layers": GenerationRequest.parse(layers=parse_layers(LAYERS)).layers})
    assert [cue.prompt for cue in request.cues] == ["glass: it shatters", "rain", "wood"]
    assert (request.cues[1].gain_db, request.cues[2].stop_seconds) == (-6, 7.25)
    assert [layer.pan for layer in request.layers] == [0, -0.4]
    assert request.edit is not None
    assert [part.start_seconds for part in request.edit.ranges] == [1.2, 4]
    texts = [*map(write_cue, request.cues), *map(write_layer, request.layers)]
    assert texts[0] == "1.2-3.5: glass: it shatters"
    assert texts[3] == "footsteps, on gravel"
    assert parse_cues("\n".join(texts[:3])) == parse_cues("\n".join(texts[:3]) + "\n\n")
    again = GenerationRequest.parse(cues=parse_cues("\n".join(texts[:3])))
    assert again.cues == request.cues
    assert GenerationRequest.parse(layers=parse_layers("\n".join(texts[3:]))).layers == (
        request.layers
    )
    assert write_ranges(request.edit) == "1.2-3.5, 4-5"
    assert make_edit("", "", 1) is None
    assert make_edit("original", "", 1) == {"source": "original"}


@pytest.mark.parametrize(
    ("prompt", "seconds"), [("two\nlines", 1.0), ("{brace", 1.0), (" edge ", 1.0), ("a", 1234.5678)]
)
def test_any_cue_is_read_as_it_was_written(prompt: str, seconds: float) -> None:
    cue = Cue(start_seconds=seconds, stop_seconds=seconds + 1, prompt=prompt)
    assert Cue.model_validate(parse_cues(write_cue(cue))[0]) == cue
    layer = Layer(prompt=prompt)
    assert Layer.model_validate(parse_layers(write_layer(layer))[0]) == layer


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda: parse_cues("1-2: a\nglass"), "cues: line 2 is 'glass'; write START-STOP: PROMPT"),
        (lambda: parse_cues("{"), "cues: line 1 is no JSON object"),
        (lambda: parse_layers("a\n{1}"), "layers: line 2 is no JSON object"),
        (lambda: make_edit("original", "1-2, x", 1), "edit: 'x' is no range of seconds"),
        (lambda: make_edit(" ", "1-2", 1), "edit: Make anew needs a sound to start from"),
        (lambda: make_edit("", "", 0.5), "edit: Strength needs a sound to start from"),
    ],
)
def test_a_text_that_cannot_be_read_says_how_to_write_it(
    read: Callable[[], object], words: str
) -> None:
    with pytest.raises(ParameterError, match=re.escape(words)):
        read()
