"""The Python client and `foley generate --server` with a real service."""

import asyncio
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import pytest
from starlette.types import Message

from foley.cli.app import main
from foley.client import AsyncFoleyClient, FoleyClient, RemoteUpdate
from foley.client.events import EventParser
from foley.client.response import parse_error
from foley.errors import (
    BusyError,
    CancelledRequestError,
    ConnectionFailedError,
    NotFoundError,
    ParameterError,
    VideoDecodeError,
)
from runners.http.responses import error_body
from runners.http.sse import EventStream
from runners.status import public_error
from tests.http.test_generate import packets
from tests.patience import is_within, scale
from tests.server import Server

ENDLESS = {"num_inference_steps": 200, "solver": "rk4"}


@pytest.fixture
def client(server: Server) -> Iterator[FoleyClient]:
    with FoleyClient(str(server.client.base_url)) as client:
        yield client


def test_layers_are_saved_beside_their_mix(client: FoleyClient, tmp_path: Path) -> None:
    layers = [{"prompt": "wind", "solo": True}, {"prompt": "taps", "seed": 9}]
    result = client.generate(
        None,
        layers=layers,
        duration_seconds=1,
        num_inference_steps=1,
        format="flac",
        destination=tmp_path,
    )
    names = ["sound.foley.flac", "sound.foley-layer-1.flac", "sound.foley-layer-2.flac"]
    assert [path.name for path in result.saved] == names
    assert [file.layer for file in result.files] == [None, 1, 2]
    assert result.select_files("flac") == [result.files[0]]
    assert result.files[2].seed == 9
    mix, alone = (packets(client.read(file), "audio") for file in result.files[:2])
    assert mix == alone
    with pytest.raises(ParameterError, match="output: is one file"):
        client.generate(None, layers=layers, duration_seconds=1, output=tmp_path / "a.wav")


def test_generate_saves_the_same_sound_as_a_plain_request(
    server: Server, client: FoleyClient, short_clip: bytes, tmp_path: Path
) -> None:
    clip = tmp_path / "walk.mp4"
    clip.write_bytes(short_clip)
    updates: list[RemoteUpdate] = []
    result = client.generate(
        clip,
        destination=tmp_path / "out",
        request_id="mine-2",
        on_update=updates.append,
        seed=3,
        num_inference_steps=2,
        num_variations=2,
        also=["wav"],
    )
    assert result.request_id == "mine-2"
    assert result.seeds == (3, 4)
    assert result.model == "tiny"
    assert [path.name for path in result.saved] == [
        "walk.foley-1.mp4",
        "walk.foley-1.wav",
        "walk.foley-2.mp4",
        "walk.foley-2.wav",
    ]
    stages = [update.stage for update in updates]
    assert list(dict.fromkeys(stages)) == [
        "decode_video",
        "queue",
        "encode",
        "sample",
        "decode_audio",
        "mux",
    ]
    (wav, _) = result.select_files("wav")
    alone = server.generate(short_clip, accept="audio/wav", seed=3, num_inference_steps=2)
    with av.open(io.BytesIO(client.read(wav))) as reader:
        assert reader.streams.audio[0].rate == result.sample_rate_hz
    assert wav.num_bytes == len(alone.content)


def test_a_prompt_alone_is_saved_as_a_sound(client: FoleyClient, tmp_path: Path) -> None:
    options = {"prompt": "rain", "duration_seconds": 1.5, "num_inference_steps": 1}
    result = client.generate(None, destination=tmp_path, **options)  # type: ignore[arg-type]
    assert result.duration_seconds == 1.5
    assert result.saved == (tmp_path / "sound.foley.wav",)
    with pytest.raises(ParameterError, match="clip: missing; give a clip, its address"):
        client.generate(None, prompt="rain")
    with pytest.raises(ParameterError, match="got an address and a clip"):
        client.generate(b"clip", prompt="rain", clip_url="https://example.com/clip.mp4")


def test_errors_of_the_service_raise_their_classes(client: FoleyClient, short_clip: bytes) -> None:
    with pytest.raises(VideoDecodeError) as caught:
        client.generate(b"not a video")
    assert caught.value.request_id
    with pytest.raises(ParameterError, match="format"):
        client.generate(short_clip, format="gif")  # type: ignore[typeddict-item]
    result = client.generate(short_clip, num_inference_steps=1)
    gone = result.files[0].model_copy(update={"url": "/v1/results/another/foley-1.mp4"})
    with pytest.raises(NotFoundError):
        client.read(gone)


def test_an_error_event_carries_the_retry_delay() -> None:
    refusal = BusyError("full")
    refusal.retry_after_seconds = 2.5
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def tell() -> None:
        events = EventStream()
        public = public_error(refusal)
        events.put(
            "error", error_body(public.code, public.message, "a", public.retry_after_seconds)
        )
        events.close()
        await events.send_to(send)

    asyncio.run(tell())
    (event,) = EventParser().feed(b"".join(sent))
    error = parse_error(event.data, 500)
    assert type(error) is BusyError
    assert (str(error), error.retry_after_seconds, error.request_id) == ("full", 3, "a")


def test_models_cancel_and_readiness(client: FoleyClient) -> None:
    assert client.is_ready()
    (model,) = client.list_models()
    assert model.preset == "tiny"
    assert client.cancel("nobody") is False


def test_cancel_ends_the_call_and_the_job(
    server: Server, client: FoleyClient, short_clip: bytes
) -> None:
    sampling = threading.Event()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(
            client.generate,
            short_clip,
            request_id="long-1",
            on_update=lambda update: update.stage == "sample" and sampling.set(),
            **ENDLESS,
        )
        assert sampling.wait(scale(30))
        assert client.cancel("long-1") is True
        with pytest.raises(CancelledRequestError):
            call.result(scale(5))
    server.wait_for_metric("foley_running", 0)
    assert client.cancel("long-1") is False


def test_cancelling_the_task_ends_the_job(server: Server, short_clip: bytes) -> None:
    async def leave() -> None:
        sampling = asyncio.Event()
        async with AsyncFoleyClient(str(server.client.base_url)) as client:
            call = asyncio.create_task(
                client.generate(
                    short_clip,
                    on_update=lambda update: update.stage == "sample" and sampling.set(),
                    **ENDLESS,
                )
            )
            await asyncio.wait_for(sampling.wait(), scale(30))
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(leave())
    server.wait_for_metric("foley_running", 0)


def test_a_timeout_ends_the_job(server: Server, short_clip: bytes) -> None:
    started = time.monotonic()
    with (
        FoleyClient(str(server.client.base_url), timeout_seconds=2) as client,
        pytest.raises(ConnectionFailedError, match="time"),
    ):
        client.generate(short_clip, **ENDLESS)
    assert is_within(time.monotonic() - started, 5)
    server.wait_for_metric("foley_running", 0)


def test_the_command_writes_what_the_service_generates(
    server: Server,
    short_clip: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.mp4").write_bytes(short_clip)
    (tmp_path / "b.mp4").write_bytes(b"not a video")
    arguments = ["generate", tmp_path / "a.mp4", tmp_path / "b.mp4", "-o", tmp_path / "out"]
    arguments += ["--server", server.client.base_url, "--steps", 1, "--variations", 2]
    monkeypatch.setattr("sys.argv", ["foley", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capfd.readouterr().err
    assert stop.value.code == 1, said
    assert "preset tiny" in said
    assert "b.mp4" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.foley-1.mp4",
        "a.foley-2.mp4",
    ]
    with av.open(str(tmp_path / "out" / "a.foley-2.mp4")) as reader:
        assert len(reader.streams.audio) == 1
