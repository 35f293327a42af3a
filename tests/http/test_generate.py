"""Responses to valid requests."""

import base64
import io
import json
import zipfile
from pathlib import Path

import av
import httpx
import numpy as np
import pytest

from foley.configs import OFFICIAL_GUIDANCE, TINY_GUIDANCE
from foley.media.inspection import inspect_file
from foley.types import Stage
from tests.media.clips import list_packets
from tests.media.test_images import draw_picture, number_files, write_zip
from tests.media.test_metadata import ALPHA_MODE
from tests.server import ROOT, Server


def packets(media: bytes, kind: str) -> list[tuple[bytes, float]]:
    """The packets of the only stream of a kind, and when they are shown."""
    with av.open(io.BytesIO(media)) as reader:
        (stream,) = [stream for stream in reader.streams if stream.type == kind]
        return [
            (bytes(packet), float(packet.pts * packet.time_base))
            for packet in reader.demux(stream)
            if packet.size
        ]


def seconds_of_sound(media: bytes) -> float:
    with av.open(io.BytesIO(media)) as reader:
        return sum(f.samples for f in reader.decode(audio=0)) / reader.streams.audio[0].rate


def samples(media: bytes) -> np.ndarray:
    """The sound in [-1, 1]."""
    with av.open(io.BytesIO(media)) as reader:
        blocks = [frame.to_ndarray().ravel() for frame in reader.decode(audio=0)]
    return np.concatenate(blocks) / 2**31  # 24 bits come in the upper part of 32


def test_a_real_clip_keeps_its_picture_and_gets_sound(server: Server, real_clip: bytes) -> None:
    response = server.generate(real_clip, prompt="birds", num_inference_steps=2, seed=1)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "video/mp4"
    assert packets(response.content, "video") == packets(real_clip, "video")
    stated_seconds = float(response.headers["x-foley-duration-seconds"])
    # AAC comes in frames of 1024 samples, with one of priming at most: 43 ms.
    assert seconds_of_sound(response.content) == pytest.approx(stated_seconds, abs=0.05)
    assert stated_seconds == pytest.approx(5.28, abs=0.1)


def test_headers_have_seed_duration_timings_model_and_id(server: Server, short_clip: bytes) -> None:
    response = server.client.post(
        "/v1/generate",
        files={"clip": short_clip},
        data={"num_inference_steps": "1", "seed": "7", "format": "flac"},
        headers={"X-Request-Id": "mine-1"},
    )
    headers = response.headers
    assert headers["x-foley-seed"] == "7"
    assert headers["x-request-id"] == "mine-1"
    assert headers["x-foley-model"].split(";")[0] == "tiny"
    assert isinstance(json.loads(headers["x-foley-notices"]), list)
    timings = json.loads(headers["x-foley-timings"])
    assert sorted(timings) == sorted([*Stage, "total"])
    assert next(iter(timings)) == "upload"
    assert list(timings)[-2:] == ["mux", "total"]
    assert sum(timings.values()) - timings["total"] <= timings["total"] + 1e-3
    durations = [entry.split(";dur=") for entry in headers["server-timing"].split(", ")]
    assert [stage for stage, _ in durations] == list(timings)
    for stage, milliseconds in durations:
        assert float(milliseconds) == pytest.approx(1000 * timings[stage], abs=0.2)


@pytest.mark.parametrize(
    ("accept", "fields", "media_type"),
    [
        ("*/*", {}, "video/mp4"),
        ("audio/wav", {}, "audio/wav"),
        ("audio/flac;q=0.5, audio/x-wav", {}, "audio/wav"),
        ("text/html, audio/flac", {}, "audio/flac"),
        ("audio/wav", {"format": "flac"}, "audio/flac"),
        ("*/*", {"format": "wav"}, "audio/wav"),
        ("video/quicktime", {}, "video/quicktime"),
        ("*/*", {"format": "mkv"}, "video/x-matroska"),
    ],
)
def test_format_follows_the_field_then_accept(
    server: Server, short_clip: bytes, accept: str, fields: dict[str, str], media_type: str
) -> None:
    response = server.generate(short_clip, accept=accept, num_inference_steps=1, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == media_type
    with av.open(io.BytesIO(response.content)) as reader:
        assert len(reader.streams.audio) == 1
        assert len(reader.streams.video) == int(media_type.startswith("video"))


def test_a_file_alone_is_enough_and_documented_defaults_change_nothing(
    server: Server, short_clip: bytes
) -> None:
    document = server.client.get("/docs.json").json()
    form = document["components"]["schemas"]["GenerationOptions"]["properties"]
    # As "Try it out" of a page that shows the document sends them.
    shown = {
        name: field["default"]
        if isinstance(field["default"], str)
        else json.dumps(field["default"])
        for name, field in form.items()
        if field.get("default") not in (None, [])
    }
    assert {"prompt", "num_variations", "trim", "cues"} <= shown.keys()
    for fields in ({}, {**shown, "num_inference_steps": "1"}):
        response = server.client.post("/v1/generate", files={"clip": short_clip}, data=fields)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "video/mp4"


def test_several_accept_headers_are_one(server: Server, short_clip: bytes) -> None:
    response = server.client.post(
        "/v1/generate",
        files={"clip": short_clip},
        data={"num_inference_steps": "1"},
        headers=[("Accept", "video/*;q=0"), ("Accept", "audio/flac"), ("Accept", "")],
    )
    assert response.headers["content-type"] == "audio/flac"


def test_fields_that_a_browser_leaves_empty_are_absent(server: Server, short_clip: bytes) -> None:
    names = ("seed", "format", "trim", "solver", "guidance_scale", "num_variations", "prompt")
    names += ("edit_source", "edit", "clip_url")
    response = server.generate(
        short_clip, accept="", num_inference_steps=1, **dict.fromkeys(names, "")
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "video/mp4"
    assert int(response.headers["x-foley-seed"]) >= 0


@pytest.mark.parametrize("as_address", [False, True])
def test_transparent_pixels_stay_transparent(server: Server, as_address: bool) -> None:
    content = (ROOT / "tests/assets/clips/alpha.webm").read_bytes()
    options: dict[str, object] = {"num_inference_steps": 1, "format": "webm"}
    if as_address:
        address = f"data:video/webm;base64,{base64.b64encode(content).decode()}"
        parts = {name: (None, str(value)) for name, value in options.items()}
        parts["clip_url"] = (None, address)
        response = server.client.post("/v1/generate", files=parts)
    else:
        response = server.generate(content, **options)
    assert response.headers["content-type"] == "video/webm", response.text
    assert ALPHA_MODE in response.content
    assert packets(response.content, "video") == packets(content, "video")


def test_a_codec_that_the_container_cannot_hold_gives_mkv(
    server: Server, short_clip: bytes
) -> None:
    response = server.generate(short_clip, num_inference_steps=1, format="webm")
    assert response.headers["content-type"] == "video/x-matroska"
    assert 'filename="foley.mkv"' in response.headers["content-disposition"]
    assert any("webm" in notice for notice in json.loads(response.headers["x-foley-notices"]))


def test_the_seed_repeats_the_sound_sample_for_sample(server: Server, short_clip: bytes) -> None:
    def make(**fields: object) -> httpx.Response:
        return server.generate(short_clip, accept="audio/wav", num_inference_steps=2, **fields)

    drawn = make()
    seed, sound = drawn.headers["x-foley-seed"], list_packets(drawn.content)
    assert list_packets(make(seed=seed).content) == sound
    assert list_packets(make(seed=seed, guidance_scale=TINY_GUIDANCE).content) == sound
    assert list_packets(make(seed=seed, guidance_scale=OFFICIAL_GUIDANCE).content) != sound
    assert list_packets(make(seed=int(seed) + 1).content) != sound


def test_a_result_is_marked_and_signed_by_the_service(
    server: Server, short_clip: bytes, tmp_path: Path
) -> None:
    response = server.generate(short_clip, num_inference_steps=1, seed=7, prompt="a secret gong")
    path = tmp_path / "out.mp4"
    path.write_bytes(response.content)
    found = inspect_file(path)
    assert found.state == "valid"
    assert found.made is not None
    assert (found.made["model"], found.made["seed"]) == ("tiny", 7)
    assert found.made["settings"] == {"num_inference_steps": 1}
    assert b"secret" not in response.content
    assert '"event": "marks_signed"' in server.log.read_text()


def test_several_variations_come_as_a_zip_with_their_seeds(
    server: Server, short_clip: bytes
) -> None:
    options = {"num_inference_steps": 1, "format": "wav"}
    response = server.generate(short_clip, num_variations=3, seed=5, **options)
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["x-foley-seed"] == "5, 6, 7"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        sounds = {file["seed"]: archive.read(file["file"]) for file in manifest["files"]}
        assert len(archive.namelist()) == 4
    assert sorted(sounds) == [5, 6, 7]
    assert len(set(sounds.values())) == 3
    assert manifest["request_id"] == response.headers["x-request-id"]
    assert manifest["duration_seconds"] == float(response.headers["x-foley-duration-seconds"])
    # The middle one alone is the same sound; sums of another order differ in the last bits.
    alone = server.generate(short_clip, seed=6, **options)
    np.testing.assert_allclose(samples(alone.content), samples(sounds[6]), rtol=0, atol=1e-5)


def test_accept_names_the_format_of_each_of_several_sounds(
    server: Server, short_clip: bytes
) -> None:
    options = {"num_variations": 2, "num_inference_steps": 1}
    response = server.generate(short_clip, accept="audio/flac", **options)
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        names = sorted(archive.namelist())
    assert names == ["foley-1.flac", "foley-2.flac", "manifest.json"]


def test_further_formats_come_in_the_zip(server: Server, short_clip: bytes) -> None:
    options = {"num_inference_steps": 1, "seed": 3, "also": "flac,wav"}
    response = server.generate(short_clip, **options)
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        files = json.loads(archive.read("manifest.json"))["files"]
        contents = {file["format"]: archive.read(file["file"]) for file in files}
        assert [(file["variation"], file["seed"]) for file in files] == [(1, 3)] * 3
        assert [file["bytes"] for file in files] == [len(content) for content in contents.values()]
        assert len(archive.namelist()) == 4
    assert list(contents) == ["mp4", "flac", "wav"]
    assert np.array_equal(samples(contents["flac"]), samples(contents["wav"]))
    alone = server.generate(short_clip, num_inference_steps=1, seed=3, format="wav")
    assert list_packets(contents["wav"]) == list_packets(alone.content)


def test_a_zip_can_be_asked_for_one_sound(server: Server, short_clip: bytes) -> None:
    response = server.generate(short_clip, accept="application/zip", num_inference_steps=1)
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert sorted(archive.namelist()) == ["foley-1.mp4", "manifest.json"]


def test_a_long_clip_is_trimmed_on_request(server: Server, long_clip: bytes) -> None:
    response = server.generate(long_clip, trim="true", num_inference_steps=1)
    assert response.status_code == 200, response.text
    assert float(response.headers["x-foley-duration-seconds"]) == pytest.approx(6, abs=0.1)
    shown_at = [seconds for _, seconds in packets(response.content, "video")]
    assert max(shown_at) == pytest.approx(6, abs=0.1)
    assert response.headers["x-foley-notices"] != "[]"


def test_nothing_is_left_on_disk(server: Server, short_clip: bytes) -> None:
    assert server.generate(short_clip, num_inference_steps=1).status_code == 200
    assert server.generate(b"not a video").status_code == 422
    server.wait_until_scratch_is_empty()


def test_a_prompt_alone_gives_a_sound_of_the_length_asked_for(server: Server) -> None:
    fields = {"prompt": "rain", "duration_seconds": "1.25", "num_inference_steps": "1"}
    parts = {name: (None, value) for name, value in fields.items()}
    response = server.client.post("/v1/generate", files=parts)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "audio/wav"
    assert response.headers["x-foley-duration-seconds"] == "1.250000"
    sound = samples(response.content)
    assert len(sound) == 60_000
    assert np.abs(sound).max() > 0
    assert "decode_video" not in json.loads(response.headers["x-foley-timings"])


def test_cues_are_heard_and_one_after_the_end_is_refused(server: Server, short_clip: bytes) -> None:
    def send(cues: str) -> httpx.Response:
        options = {"prompt": "wind", "seed": 1, "num_inference_steps": 1, "format": "wav"}
        return server.generate(short_clip, cues=cues, **options)

    plain, cued = (
        send(cues)
        for cues in ("[]", '[{"start_seconds": 0, "stop_seconds": 0.5, "prompt": "taps"}]')
    )
    assert plain.status_code == cued.status_code == 200, cued.text
    assert plain.content != cued.content
    late = send('[{"start_seconds": 14, "stop_seconds": 15, "prompt": "taps"}]')
    assert late.status_code == 422
    assert "cue 1 starts at 14 s, the sound lasts" in late.json()["error"]["message"]


def test_layers_come_with_their_mix_and_sum_to_it(server: Server, short_clip: bytes) -> None:
    layers = [{"prompt": "wind", "pan": -1, "gain_db": 6}, {"prompt": "taps", "seed": 5}]
    response = server.generate(
        short_clip,
        layers=json.dumps(layers),
        seed=1,
        num_inference_steps=1,
        also="wav",
        avoid_speech="report",
    )
    assert response.status_code == 200, response.text
    assert response.headers["x-foley-seed"] == "1"
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    files = json.loads(archive.read("manifest.json"))["files"]
    assert [(file["file"], file.get("layer"), file["seed"]) for file in files] == [
        ("foley-1.mp4", None, 1),
        ("foley-1.wav", None, 1),
        ("foley-1-layer-1.wav", 1, 1),
        ("foley-1-layer-2.wav", 2, 5),
    ]
    measured = [f"{file['speech_seconds']:g}" for file in files]
    assert measured == response.headers["x-foley-speech-seconds"].split(", ")
    mix, *stems = (samples(archive.read(file["file"])) for file in files[1:])
    assert np.abs(mix - sum(stems)).max() < 3 / 2**23  # each is rounded to 24 bits
    assert packets(archive.read("foley-1.mp4"), "video") == packets(short_clip, "video")
    refused = server.generate(short_clip, layers=json.dumps(layers), prompt="rain")
    assert refused.status_code == 422
    assert "layers: cannot be combined with prompt" in refused.json()["error"]["message"]
    refused = server.generate(short_clip, layers=json.dumps(layers), channels="mono")
    assert "channels: mono cannot be combined with the pan" in refused.json()["error"]["message"]


def test_an_adapter_changes_the_sound_and_an_unknown_one_is_refused(
    server: Server, short_clip: bytes
) -> None:
    def send(adapters: str) -> httpx.Response:
        options = {"prompt": "wind", "seed": 1, "num_inference_steps": 1, "format": "wav"}
        return server.generate(short_clip, adapters=adapters, **options)

    plain, zero, half = (
        packets(send(text).content, "audio")  # marks differ from file to file
        for text in ("", "rattle:0", '[{"name": "rattle"}]')
    )
    assert plain == zero != half
    refused = send("glass:1")
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert error["code"] == "invalid_parameter"
    assert error["message"] == "adapters: no adapter is called 'glass'; there are rattle"


def test_the_clip_s_own_sound_is_mixed_in_and_the_result_levelled(
    server: Server, voiced_clip: bytes
) -> None:
    options = {"original_sound": "mix", "stems": "true", "loudness_lufs": -30, "gain_db": -20}
    response = server.generate(
        voiced_clip, num_inference_steps=1, seed=1, also="wav", broadcast_wave="true", **options
    )
    assert response.status_code == 200, response.text
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    manifest = json.loads(archive.read("manifest.json"))
    reports = [file["loudness"] for file in manifest["files"]]
    assert reports == json.loads(response.headers["x-foley-loudness"])
    for report in reports:
        assert report["after"]["integrated_lufs"] == pytest.approx(-30, abs=0.1)
        assert report["gain_db"] == pytest.approx(
            -30 - report["before"]["integrated_lufs"], abs=0.1
        )
    video, wav = (archive.read(file["file"]) for file in manifest["files"])
    with av.open(io.BytesIO(video)) as reader:
        assert len(reader.streams.audio) == 3
    with av.open(io.BytesIO(wav)) as reader:
        assert reader.streams.audio[0].layout.name == "stereo"
        assert reader.metadata["time_reference"] == "0"
    assert any("no timecode" in notice for notice in manifest["notices"])


def test_a_zip_of_pictures_is_sounded_at_its_rate(server: Server, tmp_path: Path) -> None:
    clip = write_zip(tmp_path / "clip", number_files(24), rate=None).read_bytes()
    made = server.generate(clip, frame_rate=24, num_inference_steps=1)
    assert made.status_code == 200, made.text
    assert [seconds for _, seconds in packets(made.content, "video")] == pytest.approx(
        [n / 24 for n in range(24)]
    )
    assert "encoded as H.264" in made.headers["x-foley-notices"]
    refused = server.generate(clip, num_inference_steps=1)
    assert refused.status_code == 422
    assert "set frame_rate, such as 24" in refused.json()["error"]["message"]


def test_a_still_picture_is_sounded_for_as_long_as_asked(server: Server, long_clip: bytes) -> None:
    picture = draw_picture(7)
    made = server.generate(picture, duration_seconds=1.2, num_inference_steps=1)
    assert made.status_code == 200, made.text
    assert made.headers["content-type"] == "video/mp4"
    assert float(made.headers["x-foley-duration-seconds"]) == 1.2
    shown_at = [seconds for _, seconds in packets(made.content, "video")]
    assert shown_at == pytest.approx([0, 0.6], abs=1e-3)
    sound = server.generate(picture, duration_seconds=1.2, num_inference_steps=1, format="wav")
    assert len(samples(sound.content)) == 57_600
    for clip, options, words in (
        (picture, {}, "set duration_seconds, such as 5"),
        (picture, {"duration_seconds": 6.5}, "duration_seconds: is 6.5, the limit of this"),
        (picture, {"duration_seconds": 2, "frame_rate": 2}, "frame_rate: got 2 and duration_"),
        (long_clip, {"duration_seconds": 2}, "duration_seconds: is 2, and clip is no still"),
    ):
        refused = server.generate(clip, num_inference_steps=1, **options)
        assert refused.status_code == 422
        assert words in refused.json()["error"]["message"]


def test_a_part_of_a_clip_is_sounded(server: Server, long_clip: bytes) -> None:
    made = server.generate(long_clip, start_seconds=6.9, num_inference_steps=1)
    assert made.status_code == 200, made.text
    assert float(made.headers["x-foley-duration-seconds"]) == pytest.approx(1.1, abs=0.05)
    with av.open(io.BytesIO(made.content)) as reader:
        shown = [frame.time for frame in reader.decode(video=0) if frame.time >= 0]
    assert len(shown) == pytest.approx(27.5, abs=1)
    refused = server.generate(long_clip, start_seconds=9, num_inference_steps=1)
    assert refused.status_code == 422
    assert "shows nothing from there on" in refused.json()["error"]["message"]
    refused = server.generate(long_clip, frame_rate=25, num_inference_steps=1)
    assert refused.status_code == 422
    assert "only for a zip" in refused.json()["error"]["message"]
