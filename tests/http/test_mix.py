"""POST /v1/mix: a sound that was made before becomes the sound of a clip."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import httpx
import numpy as np
import pytest

from foley.media.inspection import inspect_file
from foley.media.original import read_original
from tests.conftest import MAX_CONCURRENCY
from tests.server import Server

SAMPLE_RATE = 48_000


def make_sound(path: Path, *, num_samples: int = SAMPLE_RATE, level: float = 0.3) -> bytes:
    """Noise on two channels, the right one at half the level: wav or flac, by the suffix."""
    noise = np.random.default_rng(0).uniform(-level, level, num_samples).astype(np.float32)
    samples = np.stack([noise, 0.5 * noise])
    codec = {".wav": "pcm_f32le", ".flac": "flac"}[path.suffix]
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream(codec, rate=SAMPLE_RATE, layout="stereo")
        writer.start_encoding()  # a file without samples has a header too
        for start in range(0, num_samples, SAMPLE_RATE):
            part = samples[:, start : start + SAMPLE_RATE].T.reshape(1, -1).copy()
            frame = av.AudioFrame.from_ndarray(part, "flt", "stereo")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return path.read_bytes()


def post(server: Server, files: dict[str, bytes], **fields: object) -> httpx.Response:
    data = {name: str(value) for name, value in fields.items()}
    return server.client.post("/v1/mix", files=files, data=data)


def read_samples(path: Path, content: bytes) -> np.ndarray:
    path.write_bytes(content)
    track = read_original(path, fit=lambda layout: layout)
    assert track is not None
    return track.sound.samples


def test_a_sound_is_mixed_with_the_clip_s_own(
    server: Server, voiced_clip: bytes, tmp_path: Path
) -> None:
    sound = make_sound(tmp_path / "sound.wav")
    files = {"clip": voiced_clip, "sound": sound}
    alone = post(server, files, format="wav", channels="stereo", gain_db=-6)
    assert alone.status_code == 200, alone.text
    assert alone.headers["X-Foley-Model"] == "tiny"
    sent = read_samples(tmp_path / "sent.wav", sound) * 10 ** (-6 / 20)
    made = read_samples(tmp_path / "alone.wav", alone.content)
    np.testing.assert_allclose(made[:, :40_000], sent[:, :40_000], atol=1e-4)  # of 16 bits
    mixed = post(server, files, format="wav", original_sound="mix", gain_db=-6)
    assert mixed.status_code == 200, mixed.text
    own = read_samples(tmp_path / "own.mov", voiced_clip)
    both = read_samples(tmp_path / "mixed.wav", mixed.content)
    wanted = sent[:, :40_000] + own[:, :40_000]
    assert np.corrcoef(both[:, :40_000].ravel(), wanted.ravel())[0, 1] > 0.9999
    video = post(server, files)
    assert video.headers["Content-Type"] == "video/mp4"


def test_a_mark_names_a_seed_only_where_it_is_known(
    server: Server, short_clip: bytes, tmp_path: Path
) -> None:
    files = {"clip": short_clip, "sound": make_sound(tmp_path / "sound.wav")}
    for fields in ({}, {"seed": 7}):
        path = tmp_path / "made.mp4"
        path.write_bytes(post(server, files, **fields).content)
        tag = inspect_file(path).tag
        assert tag is not None
        assert tag.get("seed") == fields.get("seed")
        assert ("seed" in tag) == bool(fields)


@pytest.mark.parametrize(
    ("given", "fields", "words"),
    [
        (("clip",), {}, "sound: missing"),
        (("sound",), {}, "clip: missing; send the video that gets the sound"),
        (("sound",), {"duration_seconds": 1}, "duration_seconds: is about making a sound"),
        (("clip", "sound"), {"num_variations": 2}, "num_variations: is about making a sound"),
        (("clip", "sound"), {"layers": '[{"prompt": "rain"}]'}, "layers: is about making"),
        (("clip", "sound"), {"gain_db": 99}, "gain_db"),
        (
            ("clip", "broken"),
            {},
            "sound: cannot be read (Invalid data found when processing input);",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(
    server: Server,
    short_clip: bytes,
    tmp_path: Path,
    given: tuple[str, ...],
    fields: dict[str, object],
    words: str,
) -> None:
    contents = {"clip": short_clip, "sound": make_sound(tmp_path / "a.wav"), "broken": b"x" * 1000}
    files = {name.replace("broken", "sound"): contents[name] for name in given}
    refused = post(server, files, **fields)
    assert refused.status_code == 422
    assert words in refused.json()["error"]["message"]


def test_more_mixes_at_once_than_there_are_places_are_refused(
    server: Server, short_clip: bytes, tmp_path: Path
) -> None:
    files = {"clip": short_clip, "sound": make_sound(tmp_path / "sound.wav")}
    with ThreadPoolExecutor(5 * MAX_CONCURRENCY) as pool:
        answers = list(pool.map(lambda _: post(server, files), range(5 * MAX_CONCURRENCY)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    busy = answers[codes.index(429)]
    assert "sounds are being mixed, the limit" in busy.json()["error"]["message"]
    assert int(busy.headers["Retry-After"]) > 0
    assert post(server, files).status_code == 200  # the places are free again


def test_a_video_s_sound_is_mixed_and_one_without_samples_is_refused(
    server: Server, short_clip: bytes, voiced_clip: bytes, tmp_path: Path
) -> None:
    made = post(server, {"clip": short_clip, "sound": voiced_clip}, format="wav")
    assert made.status_code == 200, made.text
    assert np.abs(read_samples(tmp_path / "made.wav", made.content)).max() > 0.01
    empty = make_sound(tmp_path / "empty.wav", num_samples=0)
    refused = post(server, {"clip": short_clip, "sound": empty})
    assert refused.status_code == 422
    assert "sound: " in refused.json()["error"]["message"]


def test_a_sound_that_is_longer_than_clips_may_be_ends_there(
    server: Server, short_clip: bytes, tmp_path: Path
) -> None:
    long = make_sound(tmp_path / "long.flac", num_samples=600 * SAMPLE_RATE, level=0)
    assert len(long) < 1_000_000  # though its samples have 230 MB
    made = post(server, {"clip": short_clip, "sound": long}, format="wav", gain_db=24)
    assert made.status_code == 200, made.text
    samples = read_samples(tmp_path / "made.wav", made.content)
    assert samples.shape[1] <= 6 * SAMPLE_RATE  # the limit of this service
