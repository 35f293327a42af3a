"""Errors of callers: a 4xx status and a stable code, in one form."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import MAX_UPLOAD_BYTES
from tests.media.clips import write_clip
from tests.patience import scale
from tests.server import ENDLESS, Server, draw_clip

# 800 model evaluations: far longer than any test waits.
POST = (
    "POST /v1/generate HTTP/1.1\r\nHost: localhost\r\n"
    "Content-Type: multipart/form-data; boundary=b\r\n"
)


def check(response: httpx.Response, status: int, code: str, *words: str) -> None:
    """The response has the form of all errors, and reveals nothing internal."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (body,) = response.json().values()
    delay = {"retry_after_seconds"} if "retry-after" in response.headers else set()
    assert body.keys() == {"code", "message", "request_id"} | delay
    assert body["code"] == code
    assert body["request_id"] == response.headers["x-request-id"]
    for word in words:
        assert word in body["message"]
    assert not re.search(r"(?<![\w*])/\w|Traceback|\.py", body["message"]), "paths or traces"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_inference_steps": 0}, ["num_inference_steps", "greater than or equal to 1", "'0'"]),
        ({"num_inference_steps": "many"}, ["num_inference_steps", "integer"]),
        ({"guidance_scale": "nan"}, ["guidance_scale", "finite"]),
        ({"guidance_scale": 21}, ["guidance_scale", "20"]),
        ({"solver": "magic"}, ["solver", "'euler'"]),
        ({"seed": -1}, ["seed", "'-1'"]),
        ({"seed": "1_0"}, ["seed", "integer", "'1_0'"]),
        ({"num_inference_steps": "1.0"}, ["num_inference_steps", "integer", "'1.0'"]),
        ({"volume": ""}, ["volume", "no such option"]),
        ({"num_variations": 9}, ["num_variations", "8"]),
        ({"prompt": "x" * 2001}, ["prompt", "2000"]),
        ({"format": "gif"}, ["format", "'mp4'"]),
        ({"also": "wav,mp4"}, ["also", "'flac'", "'mp4'"]),
        ({"trim": "perhaps"}, ["trim"]),
        ({"volume": 11}, ["volume", "no such option"]),
        ({"seed": -1, "num_variations": 0}, ["seed", "num_variations"]),
        ({"original_sound": "loud"}, ["original_sound", "'duck'"]),
        ({"gain_db": "1_0"}, ["gain_db", "number"]),
        ({"stems": "true"}, ["stems", "original_sound drop"]),
        ({"original_sound": "keep", "format": "wav"}, ["original_sound", "keep", "format wav"]),
        ({"broadcast_wave": "true"}, ["broadcast_wave", "format is mp4"]),
    ],
)
def test_fields_out_of_bounds(
    server: Server, short_clip: bytes, fields: dict[str, object], words: list[str]
) -> None:
    check(server.generate(short_clip, **fields), 422, "invalid_parameter", *words)


def test_a_mix_needs_a_clip(server: Server) -> None:
    fields = {"prompt": "rain", "duration_seconds": "1", "original_sound": "mix"}
    parts = {name: (None, value) for name, value in fields.items()}
    response = server.client.post("/v1/generate", files=parts)
    check(response, 422, "invalid_parameter", "original_sound", "duration_seconds")


def test_a_missing_clip(server: Server) -> None:
    response = server.client.post("/v1/generate", files={"prompt": (None, "rain")})
    check(response, 422, "invalid_parameter", "clip: missing")


def test_two_files(server: Server, short_clip: bytes) -> None:
    files = [("clip", short_clip), ("clip", short_clip)]
    check(server.client.post("/v1/generate", files=files), 400, "invalid_request", "many files")


def test_a_field_given_twice(server: Server, short_clip: bytes) -> None:
    parts = [("clip", ("a", short_clip)), ("seed", (None, "1")), ("seed", (None, "2"))]
    check(server.client.post("/v1/generate", files=parts), 422, "invalid_parameter", "seed")


def test_a_body_that_is_no_form(server: Server) -> None:
    response = server.client.post("/v1/generate", json={"clip": "http://127.0.0.1/"})
    check(response, 415, "unsupported_media_type")
    response = server.client.post(
        "/v1/generate", content=b"no parts", headers={"content-type": "multipart/form-data"}
    )
    check(response, 400, "invalid_request", "boundary")


def test_an_accept_header_without_our_formats(server: Server, short_clip: bytes) -> None:
    response = server.generate(short_clip, accept="image/png, audio/wav;q=0")
    check(response, 406, "not_acceptable")


def test_an_accept_header_that_forbids_the_zip_of_several_sounds(
    server: Server, short_clip: bytes
) -> None:
    response = server.generate(short_clip, accept="audio/wav, */*;q=0", num_variations=2)
    check(response, 406, "not_acceptable", "application/zip")


def test_clips_that_cannot_be_used(
    server: Server, real_clip: bytes, long_clip: bytes, clips: Path
) -> None:
    check(server.generate(b""), 422, "video_empty", "0 bytes")
    check(server.generate(b"#EXTM3U\nfile:///etc/passwd\n"), 422, "video_unreadable")
    check(server.generate(real_clip[: len(real_clip) // 2]), 422, "video_unreadable")
    check(server.generate(long_clip), 422, "video_too_long", "8.00 s", "6.00 s")
    sound = draw_clip(clips / "sound.mp4", sound_only=True)
    check(server.generate(sound), 422, "video_stream_missing")


def test_an_animation_is_sounded_and_a_still_picture_is_named(server: Server, clips: Path) -> None:
    gif = write_clip(clips / "clip.gif", codec="gif", pix_fmt="rgb8").read_bytes()
    for name in ("mp4", "wav"):
        response = server.generate(gif, format=name, num_inference_steps=1)
        assert response.status_code == 200, response.text
    refused = server.generate(b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(999), **ENDLESS)
    check(refused, 422, "video_unreadable", "is a picture (JPEG)")


def test_wrong_paths_and_methods(server: Server) -> None:
    check(server.client.get("/v1/nothing"), 404, "not_found")
    check(server.client.post("/livez"), 405, "method_not_allowed")
    response = server.client.get("/v1/generate")
    check(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_an_upload_over_the_limit_is_refused_by_its_declared_length(server: Server) -> None:
    # Only the head is sent: a response can come only from the declared length.
    head = f"{POST}Content-Length: {MAX_UPLOAD_BYTES + 1}\r\n\r\n"
    assert exchange_raw(server, head.encode()).startswith(b"HTTP/1.1 413 ")


def test_an_upload_over_the_limit_is_refused_while_reading(server: Server) -> None:
    # No length is declared and the body never ends: a response can come only while reading.
    head = f"{POST}Transfer-Encoding: chunked\r\n\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="clip"; filename="c"\r\n\r\n'
    body = part + bytes(MAX_UPLOAD_BYTES + 1)
    answer = exchange_raw(server, head.encode() + b"%x\r\n" % len(body) + body + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"upload_too_large"' in answer


def exchange_raw(server: Server, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=scale(10)) as connection:
        connection.sendall(sent)
        received = b""
        while b"request_id" not in received.partition(b"\r\n\r\n")[2]:
            block = connection.recv(65536)
            assert block, received
            received += block
        return received


def test_an_upload_over_the_limit_is_answered_to_an_ordinary_client(server: Server) -> None:
    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="clip"; filename="c"\r\n\r\n'
        for _ in range(2 * MAX_UPLOAD_BYTES // 65536):
            yield bytes(65536)

    response = server.client.post(
        "/v1/generate",
        content=body(),
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    check(response, 413, "upload_too_large", str(MAX_UPLOAD_BYTES))
    response = server.generate(bytes(2 * MAX_UPLOAD_BYTES))
    check(response, 413, "upload_too_large", str(MAX_UPLOAD_BYTES))


def test_frames_over_the_limit(server: Server, clips: Path) -> None:
    large = draw_clip(clips / "large.mp4", num_frames=1, size=(1920, 1080))
    check(server.generate(large), 413, "video_too_large", "921600")
