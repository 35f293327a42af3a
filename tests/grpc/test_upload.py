"""Reading what a caller streams to `Generate`."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from foley.errors import FoleyError, ParameterError, UploadTooLargeError
from foley.request import Cue, Edit, EditRange, Layer
from foley.v1.foley_pb2 import GenerateOptions, GenerateRequest
from runners.grpc.upload import read_upload
from runners.jobs.intake import make_intake
from runners.jobs.job import GenerationOptions
from runners.settings import Settings
from tests.opened import record_opened_files

OPTIONS = GenerateRequest(options=GenerateOptions(prompt="rain"))
TEXT_ALONE = GenerateRequest(options=GenerateOptions(prompt="rain", duration_seconds=2.5))


def read(
    messages: Iterable[GenerateRequest], folder: Path, max_bytes: int = 1_000_000
) -> GenerationOptions:
    async def run() -> GenerationOptions:
        async def stream() -> AsyncIterator[GenerateRequest]:
            for message in messages:
                yield message

        with make_intake(Settings()).receive("") as upload:
            return await read_upload(stream(), folder, max_bytes=max_bytes, upload=upload)

    return asyncio.run(run())


def test_a_clip_in_many_chunks_is_stored_through_one_file(tmp_path: Path) -> None:
    chunks = [bytes([number]) * 5000 for number in range(100)]
    with record_opened_files() as opened:
        options = read([OPTIONS, *(GenerateRequest(chunk=chunk) for chunk in chunks)], tmp_path)
    assert (tmp_path / "clip").read_bytes() == b"".join(chunks)
    assert options.prompt == "rain"
    assert opened == [tmp_path / "clip"]


def test_further_formats_are_a_repeated_field(tmp_path: Path) -> None:
    message = GenerateRequest(options=GenerateOptions(also=["flac", "wav"]))
    assert read([message, GenerateRequest(chunk=b"x")], tmp_path).also == ("flac", "wav")


def test_a_length_and_a_prompt_stand_for_a_clip(tmp_path: Path) -> None:
    assert read([TEXT_ALONE], tmp_path).duration_seconds == 2.5


def test_cues_are_messages_that_are_checked(tmp_path: Path) -> None:
    sent = GenerateRequest()
    sent.options.cues.add(start_seconds=0, stop_seconds=1.5, prompt="rain")
    (cue,) = read([sent, GenerateRequest(chunk=b"x")], tmp_path).cues
    assert (cue.start_seconds, cue.stop_seconds, cue.prompt) == (0, 1.5, "rain")
    assert (cue.negative_prompt, cue.gain_db, cue.mode) == (None, 0, "replace")
    sent.options.cues.add(start_seconds=1, stop_seconds=2, prompt="wind", gain_db=3, mode="add")
    with pytest.raises(ParameterError, match="overlap"):
        read([sent], tmp_path / "..")


def test_layers_are_messages_whose_unset_fields_have_the_defaults(tmp_path: Path) -> None:
    sent = GenerateRequest()
    sent.options.layers.add(prompt="rain", seed=0, pan=-0.5, mute=True)
    layer = sent.options.layers.add(prompt="wind", negative_prompt="")
    layer.cues.add(start_seconds=0, stop_seconds=1.5, prompt="storm")
    first, second = read([sent, GenerateRequest(chunk=b"x")], tmp_path).layers
    assert first == Layer(prompt="rain", seed=0, pan=-0.5, mute=True)
    cue = Cue(start_seconds=0, stop_seconds=1.5, prompt="storm")
    assert second == Layer(prompt="wind", negative_prompt="", cues=(cue,))
    sent.options.prompt = "storm"
    folder = tmp_path / "other"
    folder.mkdir()
    with pytest.raises(ParameterError, match="layers: cannot be combined with prompt"):
        read([sent], folder)


def test_an_edit_is_a_message_and_its_source_a_second_file(tmp_path: Path) -> None:
    sent = GenerateRequest()
    sent.options.edit.source = "file"
    sent.options.edit.ranges.add(start_seconds=0.5, stop_seconds=1.5)
    chunks = [GenerateRequest(source_chunk=b"ab"), GenerateRequest(chunk=b"x")]
    options = read([sent, *chunks, GenerateRequest(source_chunk=b"c")], tmp_path)
    (part,) = (EditRange(start_seconds=0.5, stop_seconds=1.5),)
    assert options.edit == Edit(source="file", ranges=(part,))
    assert (tmp_path / "source").read_bytes() == b"abc"
    assert (tmp_path / "clip").read_bytes() == b"x"
    folder = tmp_path / "other"
    folder.mkdir()
    with pytest.raises(ParameterError, match="no file edit_source was sent"):
        read([sent, GenerateRequest(chunk=b"x")], folder)


def test_adapters_are_messages_that_are_checked(tmp_path: Path) -> None:
    sent = GenerateRequest()
    sent.options.adapters.add(name="rattle", scale=0)
    sent.options.adapters.add(name="glass")
    uses = read([sent, GenerateRequest(chunk=b"x")], tmp_path).adapters
    assert [(use.name, use.scale) for use in uses] == [("rattle", 0), ("glass", 1)]
    sent.options.adapters.add(name="glass")
    folder = tmp_path / "again"
    folder.mkdir()
    with pytest.raises(ParameterError, match="given twice"):
        read([sent], folder)


@pytest.mark.parametrize(
    ("messages", "kind", "words"),
    [
        ([], ParameterError, "options: missing"),
        ([GenerateRequest(chunk=b"x")], ParameterError, "options: missing"),
        ([OPTIONS], ParameterError, "clip: missing"),
        ([OPTIONS, OPTIONS], ParameterError, "given twice"),
        ([OPTIONS, GenerateRequest()], ParameterError, "neither options nor a chunk"),
        (
            [GenerateRequest(options=GenerateOptions(also=["mp4"]))],
            ParameterError,
            "also",
        ),
    ],
)
def test_messages_that_make_no_request_are_refused(
    tmp_path: Path, messages: list[GenerateRequest], kind: type[FoleyError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        read(messages, tmp_path)


def test_a_clip_over_the_limit_is_refused_before_the_rest_is_read(tmp_path: Path) -> None:
    def endless() -> Iterable[GenerateRequest]:
        yield OPTIONS
        for number in range(10):
            assert number < 3, "it was read on"
            yield GenerateRequest(chunk=bytes(500))

    with pytest.raises(UploadTooLargeError, match="1000 bytes"):
        read(endless(), tmp_path, max_bytes=1000)
    assert (tmp_path / "clip").stat().st_size <= 1000
