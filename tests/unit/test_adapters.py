"""Adapters of a pipeline: by name, with a scale, for one generation."""

from pathlib import Path

import pytest
import torch

from foley.adapter_files import find_files
from foley.adapters import AdapterStore
from foley.errors import CheckpointError, ConfigError, ParameterError
from foley.generation import Generation
from foley.pipeline import FoleyPipeline
from foley.request import AdapterUse, GenerationRequest
from foley.weights.adapters import read_adapter
from tests.adapters import write_random_adapter
from tests.toys import toy_components, toy_frames


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> FoleyPipeline:
    folder = tmp_path_factory.mktemp("adapters")
    pipeline = FoleyPipeline(toy_components(), torch.device("cpu"))
    for seed, name in enumerate(("glass", "rubber")):
        write_random_adapter(folder / f"{name}.safetensors", pipeline.dit, "toy", seed=seed)
    pipeline.load_adapters(str(folder))
    return pipeline


def make(pipeline: FoleyPipeline, **adapters: float) -> Generation:
    return pipeline(
        toy_frames(16),
        seed=1,
        num_inference_steps=2,
        adapters=[{"name": name, "scale": scale} for name, scale in adapters.items()],
    )


@pytest.mark.slow
def test_adapters_change_the_sound_by_their_scale(pipeline: FoleyPipeline) -> None:
    assert [info.name for info in pipeline.adapters] == ["glass", "rubber"]
    plain = make(pipeline)
    changes = [
        (make(pipeline, **scales).waveforms - plain.waveforms).square().mean().item()
        for scales in ({"glass": 0.01}, {"glass": 1.0}, {"rubber": 1.0}, {"glass": 1, "rubber": 1})
    ]
    assert 0 < changes[0] < changes[1]
    assert len(set(changes)) == 4


def test_scale_zero_is_the_model_itself_to_the_last_bit(pipeline: FoleyPipeline) -> None:
    plain, zero = make(pipeline), make(pipeline, glass=0.0, rubber=0.0)
    assert torch.equal(plain.waveforms, zero.waveforms)
    without = FoleyPipeline(toy_components(), torch.device("cpu"))
    assert torch.equal(make(without).waveforms, plain.waveforms)


def test_an_unknown_name_is_refused_with_the_known_ones(pipeline: FoleyPipeline) -> None:
    with pytest.raises(ParameterError, match="called 'steel'; there are glass, rubber"):
        make(pipeline, steel=1.0)
    with pytest.raises(ParameterError, match="called 'steel'"):
        make(pipeline, steel=0.0)
    without = FoleyPipeline(toy_components(), torch.device("cpu"))
    with pytest.raises(ParameterError, match="the model has none"):
        make(without, glass=1.0)


def test_matrices_lie_one_behind_the_other_in_steps_of_16_bytes(
    pipeline: FoleyPipeline, tmp_path: Path
) -> None:
    store = AdapterStore(pipeline.dit, "toy", torch.device("cpu"))
    path = write_random_adapter(tmp_path / "odd.safetensors", pipeline.dit, "toy", rank=3)
    store.load(path)
    placed = store.select((AdapterUse(name="odd", scale=1),))
    assert placed is not None
    layers = placed.members[0][0].layers
    wanted = read_adapter(path, pipeline.dit, "toy").layers
    assert layers.keys() == wanted.keys()
    for name, layer in layers.items():
        for matrix, other in zip(layer, wanted[name], strict=True):
            assert torch.equal(matrix, other)
            assert matrix.data_ptr() % 16 == 0
    assert len({m.untyped_storage().data_ptr() for layer in layers.values() for m in layer}) == 1


def test_a_generation_keeps_the_adapter_with_which_it_began(
    pipeline: FoleyPipeline, tmp_path: Path
) -> None:
    request = GenerationRequest(seed=1, num_inference_steps=1, adapters=[{"name": "glass"}])  # type: ignore[list-item]
    session = pipeline.start(toy_frames(16), request)
    old = session._adapters
    path = write_random_adapter(tmp_path / "glass.safetensors", pipeline.dit, "toy", seed=9)
    before = pipeline._adapter_files["glass"]
    pipeline.load_adapter(path)
    assert session._adapters is old
    new = pipeline.select_adapters(request.adapters)
    assert old is not None
    assert new is not None
    assert new.members[0][0] is not old.members[0][0]
    # Both are distinct in a batch, although they have one name.
    assert new.key != old.key
    pipeline.load_adapter(before)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("glass:x", "adapters.0.scale: .*valid number"),
        ("glass:2.5", "less than or equal to 2"),
        ("glass:-1", "greater than or equal to 0"),
        ("glass:nan", "finite number"),
        ("glass,glass", "glass is given twice"),
        ("[{]", 'JSON list such as .*"glass"'),
        (":1", "adapters.0.name"),
        (",".join("abcdefghi"), "at most 8 are possible"),
        ([{"name": "a", "strength": 1}], "adapters.0.strength"),
        ({"name": "a"}, "adapters: "),
    ],
)
def test_what_is_no_list_of_adapters_is_refused(value: object, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        GenerationRequest.parse(adapters=value)


def test_a_text_holds_names_and_scales() -> None:
    for text in ("glass:0.5, rubber", '[{"name": "glass", "scale": 0.5}, {"name": "rubber"}]'):
        uses = GenerationRequest.parse(adapters=text).adapters
        assert [(use.name, use.scale) for use in uses] == [("glass", 0.5), ("rubber", 1.0)]
    assert GenerationRequest.parse(adapters="").adapters == ()


def test_files_of_a_folder_and_of_a_list_are_found(tmp_path: Path) -> None:
    inner = tmp_path / "more"
    inner.mkdir()
    for path in (tmp_path / "b.safetensors", tmp_path / "a.safetensors", inner / "c.safetensors"):
        path.touch()
    (tmp_path / "notes.txt").touch()
    assert [file.stem for file in find_files(str(tmp_path))] == ["a", "b"]
    places = f"{inner}, {tmp_path / 'b.safetensors'}"
    assert [file.stem for file in find_files(places)] == ["c", "b"]
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        find_files(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="two files of adapters are called b"):
        find_files(f"{tmp_path}, {tmp_path / 'b.safetensors'}")


def test_a_name_that_cannot_be_asked_for_is_refused(
    pipeline: FoleyPipeline, tmp_path: Path
) -> None:
    path = write_random_adapter(tmp_path / "my sound.safetensors", pipeline.dit, "toy")
    with pytest.raises(ConfigError, match="'my sound' cannot be an adapter's name"):
        pipeline.load_adapter(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        pipeline.load_adapter(tmp_path / "none.safetensors")
    assert pipeline.load_adapter(path, "mine").name == "mine"
