"""POST /v1/mix: a sound that was made before becomes the sound of a clip."""

from pathlib import Path

import av
import httpx
import numpy as np
import pytest

from foley.media.original import read_original
from tests.server import Server

SAMPLE_RATE = 48_000


def make_wav(path: Path) -> bytes:
    """A second of noise on two channels, the right one at half the level."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, SAMPLE_RATE).astype(np.float32)
    samples = np.stack([noise, 0.5 * noise])
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("pcm_f32le", rate=SAMPLE_RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), "flt", "stereo")
        frame.sample_rate = SAMPLE_RATE
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
    sound = make_wav(tmp_path / "sound.wav")
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


@pytest.mark.parametrize(
    ("given", "fields", "words"),
    [
        (("clip",), {}, "sound: missing"),
        (("sound",), {}, "clip: missing"),
        (("clip", "sound"), {"num_variations": 2}, "num_variations: is about making a sound"),
        (("clip", "sound"), {"layers": '[{"prompt": "rain"}]'}, "layers: is about making"),
        (("clip", "sound"), {"gain_db": 99}, "gain_db"),
        (("clip", "broken"), {}, "sound: cannot be read"),
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
    contents = {"clip": short_clip, "sound": make_wav(tmp_path / "a.wav"), "broken": b"x" * 1000}
    files = {name.replace("broken", "sound"): contents[name] for name in given}
    refused = post(server, files, **fields)
    assert refused.status_code == 422
    assert words in refused.json()["error"]["message"]
