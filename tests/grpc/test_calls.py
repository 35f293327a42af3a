"""gRPC calls to two API workers with keys, compared with HTTP where both must agree."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from foley.configs import TINY_GUIDANCE
from foley.v1.foley_pb2 import (
    CancelRequest,
    GenerateOptions,
    GenerateRequest,
    GenerateResponse,
    GetModelRequest,
    Result,
    Sound,
)
from foley.v1.foley_pb2_grpc import FoleyServiceStub
from runners.grpc import SERVICE
from runners.jobs.job import GenerationOptions
from tests.http.test_generate import packets
from tests.http.test_streaming import STAGES
from tests.keyed import (
    FIRST_KEY,
    MAX_CONCURRENCY,
    MAX_UPLOAD_BYTES,
    SECOND_KEY,
    KeyedStart,
    check_health,
)
from tests.media.clips import list_packets
from tests.media.test_images import draw_picture
from tests.patience import Deadline, is_within, scale, wait_until
from tests.server import ENDLESS, Server

KEY = (("authorization", f"Bearer {FIRST_KEY}"),)
OTHER_KEY = (("x-api-key", SECOND_KEY),)


@pytest.fixture(scope="module")
def stub(keyed_server: Server) -> Iterator[FoleyServiceStub]:
    """On one connection, so all its calls go to one worker."""
    with grpc.insecure_channel(keyed_server.grpc_address) as channel:
        yield FoleyServiceStub(channel)


def messages(clip: bytes, *, size: int = 100_000, **options: Any) -> Iterator[GenerateRequest]:
    yield GenerateRequest(options=GenerateOptions(**options))
    for start in range(0, len(clip) or 1, size):
        yield GenerateRequest(chunk=clip[start : start + size])


@dataclass
class Answer:
    """All messages of a call's response."""

    request_id: str = ""
    stages: list[str] = field(default_factory=list)
    result: Result | None = None
    files: dict[int, bytes] = field(default_factory=dict)
    sounds: list[Sound] = field(default_factory=list)


def read(responses: Iterable[GenerateResponse]) -> Answer:
    answer = Answer()
    for response in responses:
        kind = response.WhichOneof("event")
        if kind == "accepted":
            answer.request_id = response.accepted.request_id
        elif kind == "progress":
            answer.stages.append(response.progress.stage)
        elif kind == "result":
            answer.result = response.result
        elif kind == "sound":
            assert answer.result is None  # while the rest is made
            answer.sounds.append(response.sound)
        else:
            chunk = response.chunk
            answer.files[chunk.file_index] = answer.files.get(chunk.file_index, b"") + chunk.data
    return answer


def generate(stub: FoleyServiceStub, clip: bytes, **options: Any) -> Answer:
    return read(stub.Generate(messages(clip, **options), metadata=KEY, timeout=scale(60)))


def refused(call: Callable[[], object]) -> grpc.Call:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    assert isinstance(error, grpc.Call)
    return error


def read_error(error: grpc.Call) -> tuple[str, dict[str, str | bytes]]:
    """The error's code, the same in plain metadata and in rich details, and the metadata."""
    trailing = {item.key: item.value for item in error.trailing_metadata()}
    rich = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert (rich.code, rich.message) == (error.code().value[0], error.details())
    reason = error_details_pb2.ErrorInfo()
    assert rich.details[0].Unpack(reason)
    assert reason.domain == SERVICE
    assert reason.reason == trailing["foley-error-code"]
    assert reason.metadata["request_id"]
    return reason.reason, trailing


def test_health_goes_from_not_serving_to_serving(
    keyed_server: Server, keyed_start: KeyedStart
) -> None:
    statuses = health_pb2.HealthCheckResponse
    assert set(keyed_start.grpc) == {statuses.NOT_SERVING, statuses.SERVING}
    wait_until(  # each worker finds out by itself
        lambda: all(check_health(keyed_server, SERVICE) == [statuses.SERVING] for _ in range(10))
    )
    assert keyed_server.probe("/readyz") == 200


def test_reflection_lists_the_services_and_their_messages(keyed_server: Server) -> None:
    def ask(**question: str) -> reflection_pb2.ServerReflectionResponse:
        request = reflection_pb2.ServerReflectionRequest(**question)
        with grpc.insecure_channel(keyed_server.grpc_address) as channel:
            reflecting = reflection_pb2_grpc.ServerReflectionStub(channel)
            (answer,) = reflecting.ServerReflectionInfo(iter([request]), timeout=scale(10))
            return answer

    services = ask(list_services="").list_services_response.service
    assert {SERVICE, "grpc.health.v1.Health"} <= {service.name for service in services}
    described = ask(file_containing_symbol=SERVICE).file_descriptor_response
    assert b"num_inference_steps" in b"".join(described.file_descriptor_proto)


def test_a_clip_keeps_its_picture(stub: FoleyServiceStub, short_clip: bytes) -> None:
    answer = generate(stub, short_clip, prompt="birds", num_inference_steps=2, seed=1)
    assert answer.result is not None
    (file,) = answer.result.files
    assert (file.variation, file.seed, file.format, file.media_type) == (1, 1, "mp4", "video/mp4")
    assert file.num_bytes == len(answer.files[0])
    assert packets(answer.files[0], "video") == packets(short_clip, "video")
    assert answer.result.duration_seconds == pytest.approx(1, abs=0.1)
    assert answer.result.sample_rate_hz == 48_000
    assert answer.result.model == "tiny"
    assert answer.result.timings[0].stage == "upload"
    assert answer.result.timings[-1].stage == "total"
    assert list(dict.fromkeys(answer.stages)) == STAGES
    assert answer.request_id == answer.result.request_id


def test_the_seed_gives_the_same_sound_as_over_http(
    keyed_server: Server, stub: FoleyServiceStub, short_clip: bytes
) -> None:
    options = {"seed": 5, "num_inference_steps": 2, "prompt": "rain", "format": "wav"}
    sound = keyed_server.generate(short_clip, guidance_scale=TINY_GUIDANCE, **options).content
    files = generate(stub, short_clip, **options).files
    assert [list_packets(file) for file in files.values()] == [list_packets(sound)]


def test_several_variations_come_one_after_another(
    stub: FoleyServiceStub, short_clip: bytes
) -> None:
    answer = generate(
        stub, short_clip, num_variations=3, seed=7, num_inference_steps=1, format="flac"
    )
    assert answer.result is not None
    assert [file.seed for file in answer.result.files] == [7, 8, 9]
    assert [len(answer.files[i]) for i in range(3)] == [f.num_bytes for f in answer.result.files]
    assert len(set(answer.files.values())) == 3


def test_further_formats_of_a_variation_follow_it(
    stub: FoleyServiceStub, short_clip: bytes
) -> None:
    answer = generate(
        stub, short_clip, num_variations=2, num_inference_steps=1, also=["flac", "wav"]
    )
    assert answer.result is not None
    assert [(file.variation, file.format) for file in answer.result.files] == [
        (variation, name) for variation in (1, 2) for name in ("mp4", "flac", "wav")
    ]
    assert [len(answer.files[i]) for i in range(6)] == [f.num_bytes for f in answer.result.files]


def test_the_callers_id_is_kept(
    keyed_server: Server, stub: FoleyServiceStub, short_clip: bytes
) -> None:
    metadata = (*KEY, ("x-request-id", "mine-3"))
    counted = f'foley_requests_total{{route="/{SERVICE}/Generate",status="OK"}}'
    before = keyed_server.metric(counted)
    secret = "a walrus in a lighthouse"
    call = stub.Generate(
        messages(short_clip, num_inference_steps=1, prompt=secret), metadata=metadata
    )
    assert ("x-request-id", "mine-3") in [tuple(item) for item in call.initial_metadata()]
    assert read(call).request_id == "mine-3"
    event = keyed_server.wait_for_log("mine-3")
    assert event["event"] == "request"
    assert event["method"] == "gRPC"
    assert event["path"] == f"/{SERVICE}/Generate"
    assert event["status"] == "OK"
    keyed_server.wait_for_metric(counted, before + 1)
    assert secret not in keyed_server.log.read_text()


def test_a_mix_is_described_with_its_loudness(stub: FoleyServiceStub, voiced_clip: bytes) -> None:
    answer = generate(
        stub,
        voiced_clip,
        num_inference_steps=1,
        original_sound="duck",
        loudness_lufs=-30,
        avoid_speech="report",
    )
    assert answer.result is not None
    (file,) = answer.result.files
    assert file.loudness.after.integrated_lufs == pytest.approx(-30, abs=0.1)
    assert file.loudness.before.HasField("true_peak_dbtp")
    assert file.HasField("speech_seconds")
    assert not file.HasField("layer")


def test_the_options_are_the_fields_of_the_form() -> None:
    fields = GenerateOptions.DESCRIPTOR.fields
    assert {field.name for field in fields} == set(GenerationOptions.model_fields)
    assert all(
        field.has_presence
        for field in fields
        if field.name not in ("also", "cues", "layers", "adapters")  # lists
    )


@pytest.mark.parametrize(
    "options",
    [
        {"num_inference_steps": 0},
        {"guidance_scale": float("nan")},
        {"guidance_scale": 21.0},
        {"solver": "magic"},
        {"seed": -1, "num_variations": 9},
        {"prompt": "x" * 2001},
        {"format": "gif"},
        {"also": ["mp4"]},
        {"priority": "first"},
        {"original_sound": "loud"},
        {"pan": 2.0},
    ],
)
def test_bounds_are_those_of_http(
    keyed_server: Server, stub: FoleyServiceStub, short_clip: bytes, options: dict[str, Any]
) -> None:
    error = refused(lambda: generate(stub, short_clip, **options))
    fields = {name: ",".join(v) if isinstance(v, list) else v for name, v in options.items()}
    expected = keyed_server.generate(short_clip, **fields).json()["error"]
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert read_error(error)[0] == expected["code"] == "invalid_parameter"
    # HTTP shows the value as text.
    rules = [part.partition(", got")[0] for part in expected["message"].split("; ")]
    assert [part.partition(", got")[0] for part in str(error.details()).split("; ")] == rules


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda clip: [], "invalid_parameter", "options: missing"),
        (lambda clip: [GenerateRequest(chunk=clip)], "invalid_parameter", "options: missing"),
        (lambda clip: [*messages(clip)][:1], "invalid_parameter", "clip: missing"),
        (lambda clip: [*messages(clip), *messages(clip)], "invalid_parameter", "given twice"),
        (lambda clip: [*messages(clip), GenerateRequest()], "invalid_parameter", "neither"),
        (lambda clip: messages(b""), "video_empty", "0 bytes"),
        (lambda clip: messages(b"#EXTM3U\nfile:///etc/passwd\n"), "video_unreadable", ""),
        (lambda clip: messages(clip[: len(clip) // 2]), "video_unreadable", ""),
    ],
)
def test_what_is_sent_is_checked(
    stub: FoleyServiceStub,
    real_clip: bytes,
    make: Callable[[bytes], Iterable[GenerateRequest]],
    code: str,
    words: str,
) -> None:
    error = refused(lambda: read(stub.Generate(iter(make(real_clip)), metadata=KEY)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert read_error(error)[0] == code
    assert words in str(error.details())
    assert "/" not in str(error.details()), "a path"


def test_a_clip_over_the_limit_is_refused_while_it_is_read(stub: FoleyServiceStub) -> None:
    sent = 0

    def endless() -> Iterator[GenerateRequest]:
        nonlocal sent
        yield GenerateRequest(options=GenerateOptions())
        while True:
            sent += 1_000_000
            yield GenerateRequest(chunk=bytes(1_000_000))

    error = refused(lambda: read(stub.Generate(endless(), metadata=KEY, timeout=scale(30))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert read_error(error)[0] == "upload_too_large"
    assert str(MAX_UPLOAD_BYTES) in str(error.details())
    assert sent < 20 * MAX_UPLOAD_BYTES


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer third"),)])
def test_a_call_without_a_key_is_refused_before_the_clip_is_read(
    keyed_server: Server, stub: FoleyServiceStub, metadata: tuple[tuple[str, str], ...]
) -> None:
    answered = threading.Event()

    def silent() -> Iterator[GenerateRequest]:
        yield GenerateRequest(options=GenerateOptions())
        answered.wait(scale(60))  # the clip never comes: the answer must come without it

    try:
        for call in (
            lambda: read(stub.Generate(silent(), metadata=metadata, timeout=scale(30))),
            lambda: stub.GetModel(GetModelRequest(), metadata=metadata, timeout=scale(30)),
            lambda: stub.Cancel(
                CancelRequest(request_id="a"), metadata=metadata, timeout=scale(30)
            ),
        ):
            started = time.monotonic()
            error = refused(call)
            assert is_within(time.monotonic() - started, 1)
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert read_error(error)[0] == "unauthorized"
    finally:
        answered.set()
    assert "third" not in keyed_server.log.read_text()


def test_the_model_is_that_of_http(keyed_server: Server, stub: FoleyServiceStub) -> None:
    model = stub.GetModel(GetModelRequest(), metadata=OTHER_KEY)
    (expected,) = keyed_server.client.get("/v1/models").json()["models"]
    expected.pop("state")  # in gRPC, the health service has it
    assert {field.name for field in model.DESCRIPTOR.fields} == expected.keys()
    for name, value in expected.items():
        assert getattr(model, name) == value


def until_sampling(responses: Iterable[GenerateResponse]) -> None:
    for response in responses:
        if response.progress.stage == "sample":
            return
    raise AssertionError("it never sampled")


def endless(stub: FoleyServiceStub, clip: bytes, request_id: str, **named: Any) -> Any:
    metadata = (*KEY, ("x-request-id", request_id))
    return stub.Generate(messages(clip, **ENDLESS), metadata=metadata, **named)


def post(keyed_server: Server, clip: bytes, **fields: int) -> httpx.Response:
    """POST /v1/generate on a connection of its own."""
    base_url, timeout = keyed_server.client.base_url, scale(60)
    with httpx.Client(base_url=base_url, timeout=timeout, trust_env=False) as client:
        return client.post(
            "/v1/generate", files={"clip": clip}, data=fields, headers={"X-Api-Key": FIRST_KEY}
        )


def check_runner_stops_within(keyed_server: Server, seconds: float) -> None:
    started = time.monotonic()
    keyed_server.wait_for_metric("foley_running", 0)
    assert is_within(time.monotonic() - started, seconds)


def test_a_caller_who_cancels_stops_the_runner(
    keyed_server: Server, stub: FoleyServiceStub, short_clip: bytes
) -> None:
    cancelled = keyed_server.metric('foley_errors_total{code="cancelled"}')
    call = endless(stub, short_clip, "left-1")
    until_sampling(call)
    call.cancel()
    check_runner_stops_within(keyed_server, 2)
    assert keyed_server.wait_for_log("left-1")["status"] == "CANCELLED"
    keyed_server.wait_for_metric('foley_errors_total{code="cancelled"}', cancelled + 1)


def test_a_caller_whose_connection_ends_stops_the_runner(
    keyed_server: Server, short_clip: bytes
) -> None:
    with grpc.insecure_channel(keyed_server.grpc_address) as channel:
        until_sampling(endless(FoleyServiceStub(channel), short_clip, "left-2"))
    check_runner_stops_within(keyed_server, 2)


def test_a_deadline_stops_the_runner(
    keyed_server: Server, stub: FoleyServiceStub, short_clip: bytes
) -> None:
    error = refused(lambda: read(endless(stub, short_clip, "late-1", timeout=scale(1.5))))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    check_runner_stops_within(keyed_server, 2)
    event = keyed_server.wait_for_log("late-1")
    assert (event["status"], event["code"]) == ("DEADLINE_EXCEEDED", "timeout")


@pytest.mark.parametrize("by", ["grpc", "http"])
def test_a_request_is_cancelled_by_its_id_and_its_key(
    keyed_server: Server, stub: FoleyServiceStub, short_clip: bytes, by: str
) -> None:
    request_id = f"named-{by}"
    call = endless(stub, short_clip, request_id)
    until_sampling(call)
    cancel = CancelRequest(request_id=request_id)
    error = refused(lambda: stub.Cancel(cancel, metadata=OTHER_KEY))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert read_error(error)[0] == "not_found"
    if by == "grpc":
        with grpc.insecure_channel(keyed_server.grpc_address) as channel:  # maybe another worker
            FoleyServiceStub(channel).Cancel(cancel, metadata=KEY)
    else:
        response = keyed_server.client.post(f"/v1/requests/{request_id}/cancel")
        assert response.json() == {"cancelled": True}
    error = refused(lambda: read(call))
    assert error.code() is grpc.StatusCode.CANCELLED
    assert read_error(error)[0] == "cancelled"
    check_runner_stops_within(keyed_server, 2)


def test_one_worker_may_take_all_places_and_then_every_worker_refuses_with_a_retry_delay(
    keyed_server: Server, stub: FoleyServiceStub, short_clip: bytes
) -> None:
    # A connection keeps to one of the two workers.
    calls = [endless(stub, short_clip, f"busy-{i}") for i in range(MAX_CONCURRENCY)]
    keyed_server.wait_for_num_requests(MAX_CONCURRENCY)  # an accepted upload has no place yet
    refusals = [post(keyed_server, short_clip).status_code for _ in range(6)]  # by both workers
    error = refused(lambda: generate(stub, short_clip))
    for call in calls:
        call.cancel()
    assert refusals == [429] * 6
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    code, trailing = read_error(error)
    assert code == "busy"
    rich = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    delay = error_details_pb2.RetryInfo()
    assert rich.details[1].Unpack(delay)
    assert delay.retry_delay.seconds == int(trailing["retry-after"]) > 0
    check_runner_stops_within(keyed_server, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_shows_a_key_in_its_environment(keyed_server: Server) -> None:
    """Here, because this server has keys; the launcher hands them to what it starts."""
    workers = [
        process
        for process in keyed_server.family()
        if any(word in " ".join(process.cmdline()) for word in ("--service-name", "runners."))
    ]
    assert len(workers) >= 4  # two API workers, the GPU process, and a fork server
    for process in workers:
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        for key in (FIRST_KEY, SECOND_KEY):
            assert key.encode() not in environment, process.cmdline()


def test_nothing_is_left_on_disk(keyed_server: Server) -> None:
    keyed_server.wait_until_scratch_is_empty()


def wait_for_refusal(channel: grpc.Channel) -> grpc.StatusCode:
    """Call until a call is refused, as the signal takes effect soon but not at once."""
    stub, deadline = FoleyServiceStub(channel), Deadline(5)
    while True:
        try:
            stub.GetModel(GetModelRequest(), metadata=KEY, timeout=scale(10))
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            # gRPC itself cancels a call that comes in the moment in which the server stops.
            if code is not grpc.StatusCode.CANCELLED:
                return code
        assert not deadline.is_over()


def test_a_prompt_alone_gives_the_same_sound_as_over_http(
    keyed_server: Server, stub: FoleyServiceStub
) -> None:
    options = {"prompt": "rain", "duration_seconds": 1.5, "seed": 1, "num_inference_steps": 1}
    sent = GenerateRequest(options=GenerateOptions(**options))
    answer = read(stub.Generate(iter([sent]), metadata=KEY, timeout=scale(60)))
    assert answer.result is not None
    assert [file.format for file in answer.result.files] == ["wav"]
    parts = {name: (None, str(value)) for name, value in options.items()}
    direct = keyed_server.client.post("/v1/generate", files=parts)
    assert list_packets(answer.files[0]) == list_packets(direct.content)


def test_a_still_picture_is_shown_for_as_long_as_asked(stub: FoleyServiceStub) -> None:
    options = GenerateOptions(duration_seconds=0.8, seed=1, num_inference_steps=1)
    sent = [GenerateRequest(options=options), GenerateRequest(chunk=draw_picture(7))]
    answer = read(stub.Generate(iter(sent), metadata=KEY, timeout=scale(60)))
    assert answer.result is not None
    assert [file.format for file in answer.result.files] == ["mp4"]
    assert answer.result.duration_seconds == pytest.approx(0.8)


def test_a_prompt_alone_is_held_to_the_limit_of_clips(stub: FoleyServiceStub) -> None:
    sent = GenerateRequest(options=GenerateOptions(prompt="rain", duration_seconds=6.5))
    error = refused(lambda: read(stub.Generate(iter([sent]), metadata=KEY)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "duration_seconds: is 6.5, the limit of this service is 6" in str(error.details())
