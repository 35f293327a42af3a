"""Layers: sounds of one clip that are made side by side, and their mix."""

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foley.errors import ParameterError, PromptTooLongError
from foley.generation import Generation
from foley.layers import list_heard, measure_true_peak, mix_layers
from foley.mix import MAX_PEAK_DBTP
from foley.request import MAX_LAYERS, GenerationRequest, Layer
from foley.types import NoPicture
from tests.toys import toy_frames, toy_pipeline

CLIP = Path(__file__).parents[2] / "examples" / "hammer.mp4"
CEILING = 10 ** (MAX_PEAK_DBTP / 20)
CUE = {"start_seconds": 0.5, "stop_seconds": 1, "prompt": "metal"}


@st.composite
def some_layers(draw: st.DrawFn) -> list[Layer]:
    layers = [
        Layer(
            prompt="x",
            gain_db=draw(st.sampled_from([-60, -6, 0, 3, 24])),
            pan=draw(st.sampled_from([0, 0, -1, 0.5])),
            mute=draw(st.booleans()),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    soloed = draw(st.integers(0, len(layers)))
    return [
        layer.model_copy(update={"solo": index < soloed, "mute": layer.mute and index >= soloed})
        for index, layer in enumerate(layers)
    ]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(some_layers(), st.sampled_from([0.0, 0.01, 0.3, 1.0]), st.integers(0, 9))
def test_stems_sum_to_a_mix_that_never_passes_the_ceiling(
    layers: list[Layer], level: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(layers), 1, 400)
    waveforms = (torch.rand(shape, generator=generator) * 2 - 1) * level
    mix, stems, notices = mix_layers(waveforms, layers)
    heard = list_heard(layers)
    if not heard:
        return  # refused by the request
    assert mix.shape == (2 if any(layer.pan for layer in layers) else 1, 400)
    assert torch.equal(stems[heard].sum(0), mix)
    peaks = [measure_true_peak(sound) for sound in (mix, *stems)]
    assert max(peaks) <= CEILING * (1 + 1e-5)  # float32
    # All that are heard are lowered alike, and only where it is needed.
    gains = [
        (stems[i].abs().max() / (waveforms[i].abs().max() * 10 ** (layers[i].gain_db / 20))).item()
        for i in heard
        if level
    ]
    assert all(gain == pytest.approx(gains[0], rel=1e-4) for gain in gains)
    if gains:
        assert bool(notices) == (gains[0] < 1 - 1e-6)
        assert max(peaks) == pytest.approx(CEILING, rel=1e-4) or gains[0] == pytest.approx(1)


@pytest.mark.parametrize("piece", [2**20, 1000])
def test_a_peak_between_the_samples_counts(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foley.layers._PIECE", piece)
    # Samples of a sine at a quarter of the rate, 45 degrees off its peaks, as the standard has it.
    sine = torch.sin(torch.arange(4800) * torch.pi / 2 + torch.pi / 4)
    assert sine.abs().max().item() == pytest.approx(0.707, abs=0.001)
    assert measure_true_peak(sine[None]) == pytest.approx(1, abs=0.01)


def test_solo_and_mute_choose_what_is_heard_and_pan_where() -> None:
    def heard(**options: list[bool]) -> list[int]:
        columns = [dict(zip(options, row, strict=True)) for row in zip(*options.values())]  # noqa: B905
        return list_heard([Layer(prompt="x", **column) for column in columns])

    assert heard(mute=[False, True, False]) == [0, 2]
    assert heard(solo=[False, True, False]) == [1]
    waveforms = torch.full((2, 1, 4), 0.1)
    left = mix_layers(waveforms, [Layer(prompt="x", pan=-1), Layer(prompt="y", mute=True)])
    assert left.mix[0].allclose(torch.tensor(0.1))
    assert not left.mix[1].any()
    assert left.stems[1].allclose(torch.tensor(0.1))  # muted in the mix, not in its file


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": "wind"}, "layers: cannot be combined with prompt"),
        ({"num_variations": 2}, "layers: cannot be combined with num_variations"),
        ({"cues": [CUE]}, "layers: cannot be combined with cues"),
        (
            {"layers": [{"prompt": "x"}] * (MAX_LAYERS + 1)},
            "^layers: at most 8 are possible, got 9$",
        ),
        ({"layers": [{"prompt": "x", "mute": True}]}, "layers: have mute in each"),
        ({"layers": [{"prompt": "x", "mute": True, "solo": True}]}, "solo: .* with mute"),
        ({"layers": [{"prompt": ""}]}, "layers.0.prompt"),
        ({"layers": [{"prompt": "x", "gain_db": 25}]}, "layers.0.gain_db"),
        ({"layers": [{"prompt": "x", "loud": 1}]}, "layers.0.loud"),
        ({"layers": [{"prompt": "x", "cues": [CUE, CUE]}]}, "layers.0.cues: .* overlap"),
        ({"layers": "rain"}, "layers: must be a JSON list such as"),
    ],
)
def test_layers_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        GenerationRequest.parse(**{"layers": [{"prompt": "x"}]} | options)


def make(*layers: dict[str, Any], **options: Any) -> Generation:
    options = {"seed": 5, "num_inference_steps": 2, **options}
    return toy_pipeline()(toy_frames(48), layers=layers, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"guidance_scale": 1.0}, {"quality": "fast", "num_inference_steps": None}]
)
def test_each_layer_is_the_sound_of_its_own_request(options: dict[str, Any]) -> None:
    layers: list[dict[str, Any]] = [
        {"prompt": "rain"},
        {"prompt": "tap tap on wood", "negative_prompt": "wind and waves"},
        {"prompt": "rain", "cues": [CUE], "seed": 1},
    ]
    made = make(*layers, **options)
    assert made.layer_seeds == (5, 6, 1)
    assert made.stems is not None
    for layer, seed, stem in zip(layers, made.layer_seeds, made.stems, strict=True):
        own = {"num_inference_steps": 2, **options, **layer, "seed": seed}
        alone = toy_pipeline()(toy_frames(48), **own).waveforms[0]
        gain = stem.abs().max() / alone.abs().max()  # of the mix
        assert (stem / gain - alone).abs().max() < 1e-4  # 4e-6: another order of sums
    assert torch.equal(made.stems.sum(0), made.waveforms[0])


def test_the_picture_is_encoded_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = toy_pipeline()._encoders
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        encode = getattr(encoders, name)

        def encode_and_count(*inputs: Any) -> torch.Tensor:
            calls[name] += 1
            result: torch.Tensor = encode(*inputs)
            return result

        monkeypatch.setattr(encoders, name, encode_and_count)

    for name in ("visual", "sync", "text"):
        count(name)
    make({"prompt": "rain"})
    one = calls.copy()
    make({"prompt": "rain"}, {"prompt": "wind"}, {"prompt": "taps"})
    assert one.keys() == {"visual", "sync", "text"}
    assert calls - one == {**one, "text": 3 * one["text"]}


@pytest.mark.slow
def test_layers_without_a_clip_and_of_a_long_one() -> None:
    request = GenerationRequest.parse(
        layers=[{"prompt": "rain"}, {"prompt": "a long word"}],
        duration_seconds=1,
        seed=1,
        num_inference_steps=1,
    )
    made = toy_pipeline().generate(NoPicture(duration_seconds=1), request)
    assert made.waveforms.shape == (1, 1, 48_000)
    long = toy_pipeline()(
        toy_frames(400), layers=[{"prompt": "rain"}, {"prompt": "wind"}], num_inference_steps=1
    )
    assert long.stems is not None
    assert long.stems.shape == (2, 1, 400 * 1920)


def test_an_error_names_the_layer() -> None:
    late = {"start_seconds": 14, "stop_seconds": 15, "prompt": "x"}
    with pytest.raises(ParameterError, match="layer 2: cue 1 starts at 14 s"):
        make({"prompt": "rain"}, {"prompt": "wind", "cues": [late]})
    with pytest.raises(PromptTooLongError, match="layer 2: prompt has"):
        make({"prompt": "rain"}, {"prompt": "tap " * 499})


@pytest.mark.slow
def test_layers_are_saved_beside_their_mix(tmp_path: Path) -> None:
    layers = [{"prompt": "rain", "pan": -0.5}, {"prompt": "wind", "mute": True}]
    made = toy_pipeline()(CLIP, layers=layers, num_inference_steps=1, guidance_scale=1.0)
    files = made.save(tmp_path / "out.mp4", gain_db=-6)
    assert [file.path.name for file in files] == ["out.mp4", "out-layer-1.wav", "out-layer-2.wav"]
    with av.open(str(tmp_path / "out-layer-2.wav")) as reader:
        assert reader.streams.audio[0].channels == 2
    names = [file.path.name for file in made.save(tmp_path / "x.flac")]
    assert names == ["x.flac", "x-layer-1.flac", "x-layer-2.flac"]
    with pytest.raises(ParameterError, match=r"channels: mono .* pan of layers"):
        made.save(tmp_path / "y.wav", channels="mono")
    assert not list(tmp_path.glob("y*"))


OPTIONS: dict[str, Any] = {
    "prompt": "rain",
    "cues": [CUE],
    "layers": [{"prompt": "wind"}],
    "edit": {"source": "original", "ranges": [{"start_seconds": 0, "stop_seconds": 1}]},
    "duration_seconds": 2.0,
    "num_variations": 2,
    "avoid_speech": "retry",
    "quality": "fast",
    "num_inference_steps": 4,
    "guidance_scale": 1.0,
}
REFUSED = {
    ("prompt", "layers"),
    ("cues", "layers"),
    ("layers", "edit"),
    ("layers", "num_variations"),
    ("edit", "duration_seconds"),
    ("quality", "num_inference_steps"),
}


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(OPTIONS, 2)])
def test_two_options_that_do_not_fit_are_both_named_and_others_are_taken(
    one: str, other: str
) -> None:
    options = {name: OPTIONS[name] for name in (one, other)}
    if "duration_seconds" in options and "layers" not in options:
        options["prompt"] = "rain"
    if (one, other) not in REFUSED:
        assert GenerationRequest.parse(**options).model_fields_set >= {one, other}
        return
    with pytest.raises(ParameterError) as refused:
        GenerationRequest.parse(**options)
    assert {one, other} <= set(re.findall(r"[a-z_]+", str(refused.value).split(", got")[0]))
