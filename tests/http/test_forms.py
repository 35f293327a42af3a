"""The form of a request: where its bytes go, and what is refused."""

import asyncio
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message

from foley.errors import (
    CancelledRequestError,
    FoleyError,
    MediaTypeError,
    ParameterError,
    RequestError,
    UploadTooLargeError,
)
from runners.auth import ApiKeys
from runners.http.forms import read_form
from runners.http.generate import GenerateEndpoint
from runners.http.middleware import ErrorMiddleware
from runners.http.multipart import MAX_FIELD_BYTES
from runners.jobs import intake
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.clip_url import ClipLoader
from runners.jobs.ending import Ending
from runners.jobs.intake import make_intake
from runners.jobs.job import GenerationOptions
from runners.jobs.results import ResultStore
from runners.jobs.scratch import Scratch, SharedScratch
from runners.settings import Settings
from tests.fake_service import FakeService
from tests.opened import record_opened_files

FORM = "multipart/form-data; boundary=b"
END = b"--b--\r\n"
PIECE_BYTES = 64 * 1024
# Looks like the beginning of a boundary, over and over.
CLIP = b"\r\n--\r\n--c\r\r\n-\n--b\r" * 3
# Hundreds of forms are read, and to read the settings takes longer than to read one of them.
INTAKE = make_intake(Settings())


def part(name: str, value: bytes, *, file_name: str | None = None) -> bytes:
    given = "" if file_name is None else f'; filename="{file_name}"'
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{given}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def clip_part(value: bytes = CLIP) -> bytes:
    return part("clip", value, file_name="a.mp4")


def read(
    pieces: Iterable[bytes],
    folder: Path,
    *,
    content_type: str = FORM,
    content_length: int | None = None,
    max_bytes: int = 10_000_000,
    disconnects: bool = False,
) -> GenerationOptions:
    """The options of a form whose body comes in these pieces; the caller may then disconnect."""
    headers = [(b"content-type", content_type.encode())]
    if content_length is not None:
        headers.append((b"content-length", str(content_length).encode()))
    rest = iter(pieces)

    async def receive() -> Message:
        piece = next(rest, None)
        if piece is None and disconnects:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    with INTAKE.receive("") as upload:
        return asyncio.run(
            read_form(request, folder, GenerationOptions, max_bytes=max_bytes, upload=upload)
        )


def test_a_form_is_the_same_wherever_its_body_is_cut(tmp_path: Path) -> None:
    body = part("prompt", b"caf\xc3\xa9") + clip_part() + part("seed", b"7") + END
    for cut in range(1, len(body)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        options = read([body[:cut], body[cut:]], folder)
        assert (options.prompt, options.seed) == ("caf\u00e9", 7)
        assert (folder / "clip").read_bytes() == CLIP
    read([body[i : i + 1] for i in range(len(body))], tmp_path)
    assert (tmp_path / "clip").read_bytes() == CLIP


def test_the_source_of_an_edit_is_a_second_file_wherever_the_body_is_cut(tmp_path: Path) -> None:
    source = part("edit_source", b"RIFF\r\n--x", file_name="a.wav")
    edit = part("edit", b'{"source": "file", "strength": 0.5}')
    body = source + edit + clip_part() + END
    for cut in range(1, len(body)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        options = read([body[:cut], body[cut:]], folder)
        assert options.edit is not None
        assert options.edit.strength == 0.5
        assert (folder / "clip").read_bytes() == CLIP
        assert (folder / "source").read_bytes() == b"RIFF\r\n--x"


@contextmanager
def open_endpoint(
    root: Path,
    service: FakeService,
    settings: Settings | None = None,
    clips: ClipLoader | None = None,
    ending: Ending | None = None,
    keys: ApiKeys | None = None,
) -> Iterator[tuple[httpx.AsyncClient, Scratch]]:
    """A client of POST /v1/generate in this process, and its scratch folder."""
    settings = settings or Settings()
    scratch, common = Scratch(root), SharedScratch(root)
    endpoint = GenerateEndpoint(
        settings,
        service,  # type: ignore[arg-type]
        scratch,
        make_intake(settings),
        clips or ClipLoader(settings),
        CancellationRegistry(common.requests),
        ResultStore(common.results, keep_seconds=60, keep_bytes=10_000),
        ending or Ending(30),
    )
    transport = httpx.ASGITransport(app=ErrorMiddleware(endpoint, keys or ApiKeys([])))
    try:
        yield httpx.AsyncClient(transport=transport, base_url="http://test"), scratch
    finally:
        scratch.close()
        common.close()


def test_an_upload_is_written_once_and_only_below_the_scratch_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch_root, full = tmp_path / "scratch", tmp_path / "full"
    # The system's temporary folder does not exist, so that nothing can be written there.
    monkeypatch.setenv("TMPDIR", str(full))
    monkeypatch.setattr(tempfile, "tempdir", str(full))
    clip = bytes(3_000_000)

    async def upload() -> httpx.Response:
        with open_endpoint(scratch_root, service) as (client, _scratch):
            async with client:
                return await client.post("/v1/generate", files={"clip": clip})

    service = FakeService()
    with record_opened_files() as opened:
        response = asyncio.run(upload())
    assert response.status_code == 200, response.text
    assert response.content == bytes(service.num_bytes)
    assert [path.name for path in opened].count("clip") == 1
    assert {path for path in opened if not path.is_relative_to(scratch_root)} <= {Path("/dev/null")}
    assert not full.exists()


def test_an_upload_too_many_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async def upload() -> httpx.Response:
        settings = Settings(max_uploads=1, request_timeout_seconds=86_400)
        with open_endpoint(tmp_path, FakeService(), settings) as (client, _scratch):
            async with client:
                headers = {"Content-Type": FORM}
                other = asyncio.create_task(
                    client.post("/v1/generate", content=stalled_body(), headers=headers)
                )
                await stalled.wait()
                response = await client.post("/v1/generate", content=body(), headers=headers)
                other.cancel()
                await asyncio.gather(other, return_exceptions=True)
                return response

    stalled = asyncio.Event()

    async def stalled_body() -> AsyncIterator[bytes]:
        yield b"--b\r\n"
        stalled.set()
        await asyncio.Event().wait()

    response = asyncio.run(upload())
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "busy"
    assert int(response.headers["retry-after"]) > 0


def test_a_caller_has_so_many_generations_a_minute_beside_those_of_jobs(tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async def ask() -> None:
        keys = ApiKeys([], lambda key: "" if key == "executor" else None)
        settings, job = Settings(requests_per_minute=2), {"X-Api-Key": "executor"}
        with open_endpoint(tmp_path, service, settings, keys=keys) as (client, _scratch):
            async with client:

                async def post(**headers: str) -> int:
                    answer = await client.post(
                        "/v1/generate", files={"clip": b"clip"}, headers=headers
                    )
                    return answer.status_code

                assert [await post(**job) for _ in range(3)] == [200] * 3
                wrong = await client.post("/v1/generate", files={"clip": b"x"}, data={"seed": "x"})
                assert wrong.status_code == 422
                assert [await post() for _ in range(2)] == [200] * 2
                refused = await client.post(
                    "/v1/generate", content=body(), headers={"Content-Type": FORM}
                )
                assert refused.status_code == 429
                assert "2 requests within a minute" in refused.json()["error"]["message"]
                assert await post(**job) == 200

    service = FakeService()
    asyncio.run(ask())
    assert len(service.jobs) == 6


def test_an_upload_that_stalls_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "WINDOW_SECONDS", 0.2)

    async def body() -> AsyncIterator[bytes]:
        yield b"--b\r\n"
        await asyncio.Event().wait()

    async def upload() -> httpx.Response:
        with open_endpoint(tmp_path, FakeService()) as (client, scratch):
            async with client:
                response = await client.post(
                    "/v1/generate", content=body(), headers={"Content-Type": FORM}
                )
            assert list(scratch.folder.iterdir()) == []
            return response

    response = asyncio.run(upload())
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "upload_too_slow"


def test_an_upload_is_not_held_in_memory(tmp_path: Path) -> None:
    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="clip"; filename="a"\r\n\r\n'
        for _ in range(256):
            yield bytes(PIECE_BYTES)
        yield b"\r\n" + END

    tracemalloc.start()
    try:
        read(body(), tmp_path, max_bytes=100_000_000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "clip").stat().st_size == 256 * PIECE_BYTES
    assert peak_bytes < 8 * PIECE_BYTES  # measured: 2.6 pieces


def test_further_formats_may_be_repeated_or_separated_by_commas(tmp_path: Path) -> None:
    for number, parts in enumerate(
        (part("also", b"wav,flac"), part("also", b"wav") + part("also", b"flac"))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert read([clip_part() + parts + END], folder).also == ("wav", "flac")


def test_a_field_that_is_not_utf8_is_read_as_latin_1(tmp_path: Path) -> None:
    body = clip_part() + part("prompt", b"caf\xe9") + END
    assert read([body], tmp_path).prompt == "caf\u00e9"


TEXT_ALONE = part("prompt", b"rain") + part("duration_seconds", b"2.5")


def test_cues_are_a_json_list(tmp_path: Path) -> None:
    cues = b'[{"start_seconds": 0, "stop_seconds": 1.5, "prompt": "rain"}]'
    (cue,) = read([clip_part() + part("cues", cues) + END], tmp_path).cues
    assert (cue.start_seconds, cue.stop_seconds, cue.prompt) == (0, 1.5, "rain")


def test_a_picture_may_have_a_length(tmp_path: Path) -> None:
    options = read([clip_part() + part("duration_seconds", b"2.5") + END], tmp_path)
    assert options.duration_seconds == 2.5


def test_a_length_and_a_prompt_stand_for_a_clip(tmp_path: Path) -> None:
    options = read([TEXT_ALONE + END], tmp_path)
    assert (options.prompt, options.duration_seconds) == ("rain", 2.5)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (END, ParameterError, "clip: missing; send a video or its clip_url, or duration"),
        (
            part("clip", b"clip.mp4") + END,
            ParameterError,
            "clip: must be a file, got the text 'clip",
        ),
        (clip_part() + part("sed", b"1") + END, ParameterError, "sed: .*did you mean seed"),
        (part("duration_seconds", b"1") + END, ParameterError, "duration_seconds: needs a prompt"),
        (TEXT_ALONE + part("format", b"mp4") + END, ParameterError, "format: mp4 holds a"),
        (clip_part() + clip_part() + END, RequestError, "too many files"),
        (part("prompt", b"", file_name="a") + END, ParameterError, "prompt: only clip and"),
        (clip_part() + part("seed", b"1") * 2 + END, ParameterError, "seed: given twice"),
        (clip_part() + part("volume", b"") + END, ParameterError, "volume"),
        (clip_part() + part("cues", b"rain") + END, ParameterError, "cues: must be a JSON list"),
        (part("prompt", b"x" * (MAX_FIELD_BYTES + 1)) + END, RequestError, "prompt has more than"),
        (clip_part() + part("edit", b"file") + END, ParameterError, "edit: must be a JSON object"),
        (
            clip_part() + part("edit", b'{"source": "file"}') + END,
            ParameterError,
            "edit.source: is file, and no file edit_source was sent",
        ),
        (
            clip_part() + part("edit_source", b"x", file_name="a") + END,
            ParameterError,
            "edit_source: a file was sent, and edit has not the source file",
        ),
        (part("also", b"wav") * 100 + END, RequestError, r"more than \d+ fields"),
        (b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n" + END, RequestError, "no name"),
        (b"no form at all" + END, RequestError, "not valid multipart"),
        (clip_part() + b"--b\r\nwrong\x00header" + END, RequestError, "not valid multipart"),
    ],
)
def test_a_wrong_form_is_refused(
    tmp_path: Path, body: bytes, kind: type[FoleyError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        read([body], tmp_path)


def test_a_form_that_ends_early_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="ends before its closing boundary"):
        read([clip_part()], tmp_path)


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/mixed; boundary=b"])
def test_another_type_of_body_is_refused_before_it_is_read(
    tmp_path: Path, content_type: str
) -> None:
    with pytest.raises(MediaTypeError):
        read(refuse_to_be_read(), tmp_path, content_type=content_type)
    assert list(tmp_path.iterdir()) == []


def test_a_form_without_a_boundary_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="boundary"):
        read(refuse_to_be_read(), tmp_path, content_type="multipart/form-data")


def test_a_declared_length_over_the_limit_is_refused_before_the_body_is_read(
    tmp_path: Path,
) -> None:
    with pytest.raises(UploadTooLargeError, match="1000 bytes"):
        read(refuse_to_be_read(), tmp_path, content_length=1001, max_bytes=1000)


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (clip_part(bytes(2000)), UploadTooLargeError),
        (clip_part() + clip_part(), RequestError),
        (part("volume", b"", file_name="a"), ParameterError),
        (part("prompt", bytes(MAX_FIELD_BYTES + 1)), RequestError),
    ],
)
def test_a_limit_is_noticed_before_the_rest_of_the_body_is_read(
    tmp_path: Path, first: bytes, kind: type[FoleyError]
) -> None:
    def body() -> Iterator[bytes]:
        yield first
        yield from refuse_to_be_read()

    with pytest.raises(kind):
        read(body(), tmp_path, max_bytes=1000 if kind is UploadTooLargeError else 10_000_000)


def test_a_caller_who_disconnects_cancels_the_request(tmp_path: Path) -> None:
    with pytest.raises(CancelledRequestError):
        read([clip_part()], tmp_path, disconnects=True)


def refuse_to_be_read() -> Iterator[bytes]:
    raise AssertionError("the body was read")
    yield b""
