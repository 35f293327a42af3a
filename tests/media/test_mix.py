"""The finished sound: mixed, ducked, panned, faded, levelled, and in tracks."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition

from foley.errors import VideoDecodeError
from foley.media.audio_frames import read_samples
from foley.media.filters import Sound, measure_loudness, measure_true_peak
from foley.media.mix import finish_sound
from foley.media.mux import MediaFile, write_audio, write_video
from foley.media.original import read_original
from foley.media.source import MediaLimits
from foley.media.timecode import seconds_since_midnight
from foley.mix import MixOptions, Placement
from tests.media.clips import (
    add_sound,
    decode_sounds,
    picture_packets,
    shown_seconds,
    write_clip,
)

RATE = 48_000
LEVEL = 2.0**-23  # one step of a 24-bit sample
NONE = {"mp4": "zxx", "mov": "und", "mkv": "zxx", "webm": "zxx"}  # mov has a list of languages
MIXED = MixOptions(original_sound="mix")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("picture") / "picture.mp4")


@pytest.fixture(scope="module")
def voiced(picture: Path) -> Callable[..., Path]:
    """A function that gives the clip of one second a sound of its own."""

    def add(samples: np.ndarray, name: str = "voiced.mov", **options: object) -> Path:
        return add_sound(picture, picture.with_name(name), samples, **options)  # type: ignore[arg-type]

    return add


def noise(channels: int, level: float, seed: int = 0, num_samples: int = RATE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (level * rng.uniform(-1, 1, (channels, num_samples))).astype(np.float32)


def tone(hertz: float, level: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    sine = level * np.sin(2 * np.pi * hertz * np.arange(rate) / rate)
    return np.repeat(sine[None].astype(np.float32), channels, axis=0)


def write_wav(new: np.ndarray, path: Path, mix: MixOptions, source: Path | None) -> np.ndarray:
    write_audio(torch.from_numpy(new), path, mix=mix, source=source)
    (sound,) = decode_sounds(path)
    return sound


def test_the_mix_is_the_sum_at_the_original_s_times(
    tmp_path: Path, voiced: Callable[..., Path]
) -> None:
    own, new = noise(2, 0.3), noise(1, 0.2, seed=1)
    mix = MixOptions(original_sound="mix", original_gain_db=-6.0206, gain_db=6.0206)
    out = write_wav(new, tmp_path / "out.wav", mix, voiced(own))
    assert np.abs(out - (own / 2 + new * 2)).max() < 1e-5  # 6.0206 dB is 2 but for 1e-6


@pytest.mark.parametrize("name", ["late.mov", "late.mkv", "late.ts"])
def test_a_sound_that_starts_late_stays_late(
    tmp_path: Path, voiced: Callable[..., Path], name: str
) -> None:
    own = np.zeros((2, RATE // 2), np.float32)
    own[:, 4800:4810] = 0.8
    codec = "pcm_s24le" if name != "late.ts" else "mp2"
    source = voiced(own, name, codec=codec, start_seconds=0.25)
    silence = np.zeros((1, RATE), np.float32)
    out = write_wav(silence, tmp_path / "out.wav", MIXED, source)
    # Measured: exact, and 0 to 1 ms late where a lossy encoder smears the click.
    assert abs(np.abs(out[0]).argmax() / RATE - 0.35) < 0.002


def test_the_sounds_of_joined_recordings_follow_one_another(
    tmp_path: Path, voiced: Callable[..., Path]
) -> None:
    own = np.zeros((2, RATE), np.float32)
    own[:, 24_000:24_010] = 0.8
    part = voiced(own, "part.ts", codec="mp2")
    clip = tmp_path / "clip.ts"
    clip.write_bytes(part.read_bytes() * 2)
    out = write_wav(np.zeros((1, RATE), np.float32), tmp_path / "out.wav", MIXED, clip)[0]
    first, second = np.abs(out[:RATE]).argmax(), RATE + np.abs(out[RATE:]).argmax()
    # An encoder's last frame is filled up: 24 ms of MP2 at most, and 10 ms were measured.
    assert abs(first / RATE - 0.5) < 0.03
    assert abs((second - first) / RATE - 1) < 0.03


def test_a_sound_that_begins_after_the_limit_is_not_heard(
    tmp_path: Path, voiced: Callable[..., Path]
) -> None:
    far = voiced(noise(1, 0.3), "far.mkv", layout="mono", start_seconds=200_000)
    out = write_wav(np.zeros((1, RATE), np.float32), tmp_path / "out.wav", MIXED, far)
    assert out.shape == (1, RATE)
    assert not out.any()


def test_another_sample_rate_is_converted_well(tmp_path: Path, voiced: Callable[..., Path]) -> None:
    source = voiced(tone(5000, 0.5, 44_100), "slow.mov", layout="mono", rate=44_100)
    silence = np.zeros((1, RATE), np.float32)
    out = write_wav(silence, tmp_path / "out.wav", MIXED, source)
    assert out.shape == (1, RATE)
    inside = slice(1000, -1000)
    error = out[0, inside] - tone(5000, 0.5)[0, inside]
    assert 20 * np.log10(np.abs(error).max() / 0.5) < -80


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["5.1", "7.1"])
@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm"])
def test_surround_stays_surround_with_the_new_sound_in_front(
    tmp_path: Path, voiced: Callable[..., Path], container: str, layout: str
) -> None:
    count = av.AudioLayout(layout).nb_channels
    own = np.stack([tone(200 * (index + 1), 0.1)[0] for index in range(count)])
    source = voiced(own, "surround.mov", layout=layout)
    new = noise(1, 0.3)
    mix = MIXED.model_copy(update={"loudness_lufs": -23.0, "limiter": True})
    video = write_video(source, torch.from_numpy(new), tmp_path / f"out.{container}", mix=mix)
    with av.open(str(video.path)) as reader:
        assert reader.streams.audio[0].layout.name == layout
        powers = [np.abs(read_samples(frame)).mean(axis=1) for frame in reader.decode(audio=0)]
    heard = np.delete(np.mean(powers, axis=0), 3)  # AAC keeps low frequencies alone of the fourth
    assert heard.min() > 0.01
    out = write_wav(new, tmp_path / "out.wav", MIXED, source)
    assert np.abs(out[2:] - own[2:]).max() < 2 * LEVEL
    assert np.abs(out[:2] - own[:2] - new).max() < 1e-6


@pytest.mark.parametrize(
    ("layout", "placement", "heard"),
    [
        ("5.1", "front", "FL FR"),
        ("5.1", "center", "FC"),
        ("5.1", "surround", "BL BR"),
        ("5.1(side)", "surround", "SL SR"),
        ("7.1", "surround", "BL BR SL SR"),
        ("5.1", "all", "FL FR FC BL BR"),
        ("stereo", "all", "FL FR"),
        ("stereo", "surround", "FL FR"),
        ("stereo", "center", "FL FR"),
        ("mono", "center", "FC"),
    ],
)
def test_the_new_sound_is_heard_on_the_channels_asked_for(
    layout: str, placement: Placement, heard: str
) -> None:
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    own = Sound(noise(len(names), 0.1), layout)
    new = noise(2, 0.2)
    mix = MixOptions.parse(original_sound="mix", placement=placement)
    made = finish_sound(new, mix, layout, own)
    for index, name in enumerate(names):
        added = made.main.samples[index] - own.samples[index]
        expected = new.mean(axis=0) if name == "FC" else new[0 if name.endswith("L") else 1]
        factor = 1.0 if name in heard.split() else 0.0
        assert np.abs(added - factor * expected).max() < 1e-6, name
    is_missing = layout == "stereo" and placement != "all"
    assert any("has no" in notice for notice in made.notices) == is_missing


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "aac", "flac"])
def test_channels_in_another_order_are_found_and_decoded_again_and_again(
    tmp_path: Path, voiced: Callable[..., Path], codec: str
) -> None:
    # mov puts the channels at the sides before those behind.
    layout = "7.1"
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    own = np.stack([tone(500 * (index + 1), 0.1)[0] for index in range(8)])
    name = "surround.mkv" if codec == "flac" else "surround.mov"
    source = voiced(own, name, layout=layout, codec=codec)
    for _ in range(20):  # what was freed twice is noticed late
        track = read_original(source, fit=lambda layout: layout)
        assert track is not None
    assert track.layout == layout
    samples = track.sound.samples[:, 4800:-4800]
    frequencies = np.fft.rfftfreq(samples.shape[1], 1 / RATE)
    for index, channel in enumerate(names):
        if codec == "aac" and channel == "LFE":  # it has no high frequencies there
            continue
        loudest = frequencies[np.abs(np.fft.rfft(samples[index])).argmax()]
        assert loudest == pytest.approx(500 * (index + 1), abs=5), channel


@pytest.mark.parametrize(("channels", "count"), [("mono", 1), ("stereo", 2)])
def test_channels_are_mixed_down_where_asked(
    tmp_path: Path, voiced: Callable[..., Path], channels: str, count: int
) -> None:
    source = voiced(noise(6, 0.1), "surround.mov", layout="5.1")
    mix = MixOptions.parse(original_sound="mix", channels=channels)
    out = write_video(source, torch.zeros(1, RATE), tmp_path / "out.mp4", mix=mix)
    (sound,) = decode_sounds(out.path)
    assert len(sound) == count
    assert np.abs(sound).max() > 0.1


def test_the_original_is_ducked_while_the_new_sound_is_heard(
    tmp_path: Path, voiced: Callable[..., Path]
) -> None:
    own = tone(300, 0.5)
    new = np.zeros((1, RATE), np.float32)
    new[:, 12_000:24_000] = tone(7000, 0.1)[:, 12_000:24_000]

    def levels(**options: float) -> list[float]:
        mix = MixOptions.parse(original_sound="duck", **options)
        source = voiced(own, "ducked.mov", layout="mono")
        out = write_wav(new, tmp_path / "out.wav", mix, source)[0] - new[0]
        ranges = (
            slice(0, 11_000),
            slice(20_000, 23_000),
            slice(30_000, 31_000),
            slice(47_000, RATE),
        )
        return [20 * float(np.log10(np.abs(out[part]).max() / 0.5)) for part in ranges]

    before, during, soon, after = levels(duck_depth_db=12, duck_release_ms=50)
    assert abs(before) < 0.1
    assert -12.1 < during < -10
    assert abs(after) < 0.3
    deeper = levels(duck_depth_db=24, duck_release_ms=50)
    assert deeper[1] < -18
    slower = levels(duck_depth_db=12, duck_release_ms=1000)
    assert slower[2] < soon - 3


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_keep_copies_the_original_s_packets_into_a_second_track(
    tmp_path: Path, voiced: Callable[..., Path], container: str
) -> None:
    own = noise(2, 0.3)
    source = voiced(own, "spoken.mp4", codec="aac", language="eng")
    keep = MixOptions(original_sound="keep")
    out = write_video(source, torch.zeros(1, RATE), tmp_path / f"out.{container}", mix=keep)
    assert [content for content, *_ in picture_packets(out.path)] == [
        content for content, *_ in picture_packets(source)
    ]
    # Without an edit list, the packet from which the decoder starts up would move the picture back.
    first = 1 if container == "mkv" else 0
    assert sound_packets(out.path, 1) == sound_packets(source, 0)[first:]
    assert shown_seconds(out.path)[0] == 0
    kept = decode_sounds(out.path)[1][:, 24_000:]
    moved = np.abs(np.correlate(kept[0], own[0, 26_000:44_000], "valid"))
    assert moved.argmax() == 2000
    assert titles(out.path) == [("New sound", NONE[container], True), ("Original", "eng", False)]


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm"])
def test_stems_follow_the_mix_which_is_the_default(
    tmp_path: Path, voiced: Callable[..., Path], container: str
) -> None:
    own, new = tone(300, 0.2, channels=2), tone(4000, 0.2)
    source = voiced(own, "stems.mov", language="fra")
    mix = MixOptions(original_sound="mix", stems=True)
    out = write_video(source, torch.from_numpy(new), tmp_path / f"out.{container}", mix=mix)
    assert titles(out.path) == [
        ("Mix", "fra", True), ("New sound", NONE[container], False), ("Original", "fra", False)
    ]  # fmt: skip
    middle = slice(10_000, 30_000)
    mixed, stem, original = (sound[0, middle] for sound in decode_sounds(out.path))
    for sound, low, high in ((mixed, 0.2, 0.2), (stem, 0, 0.2), (original, 0.2, 0)):
        assert amplitude(sound, 300) == pytest.approx(low, abs=0.01)
        assert amplitude(sound, 4000) == pytest.approx(high, abs=0.01)


def amplitude(samples: np.ndarray, hertz: float) -> float:
    """Of a sine in a sound of a whole number of its periods."""
    turns = np.exp(-2j * np.pi * hertz * np.arange(len(samples)) / RATE)
    return float(abs((samples * turns).mean()) * 2)


def titles(path: Path) -> list[tuple[str, str, bool]]:
    with av.open(str(path)) as reader:
        return [
            (
                stream.metadata.get("title") or stream.metadata["handler_name"],
                stream.metadata.get("language", "und"),
                bool(stream.disposition & Disposition.default),
            )
            for stream in reader.streams.audio
        ]


def sound_packets(path: Path, index: int) -> list[bytes]:
    with av.open(str(path)) as reader:
        stream = reader.streams.audio[index]
        return [bytes(packet) for packet in reader.demux(stream) if packet.size]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.webm", "out.wav", "out.flac"])
@pytest.mark.parametrize(
    "options", [{}, {"loudness_lufs": -5, "limiter": True}], ids=["", "limiter"]
)
def test_nothing_clips_with_all_gains_up(
    tmp_path: Path, voiced: Callable[..., Path], name: str, options: dict[str, object]
) -> None:
    mix = MixOptions.parse(original_sound="mix", original_gain_db=24, gain_db=24, **options)
    source = voiced(noise(2, 1.0), "loud.mov")
    waveform = torch.from_numpy(noise(1, 1.0, seed=1))
    write = write_audio if name.endswith(("wav", "flac")) else write_video
    arguments = {"source": source} if write is write_audio else {}
    if write is write_audio:
        out = write_audio(waveform, tmp_path / name, mix=mix, **arguments)
    else:
        out = write_video(source, waveform, tmp_path / name, mix=mix)
    (sound,) = decode_sounds(out.path)
    assert 0.5 < np.abs(sound).max() <= 1.0
    assert out.loudness is not None
    assert out.loudness.after.true_peak_dbtp is not None
    assert out.loudness.after.true_peak_dbtp <= -0.99


def hits() -> np.ndarray:
    """Four short hits over quiet noise: high peaks and little loudness."""
    sound = noise(1, 0.003, num_samples=4 * RATE)
    for start in range(0, 4 * RATE, RATE):
        decay = np.exp(-np.arange(4800) / 600)
        sound[0, start + 1000 : start + 5800] += 0.8 * decay * noise(1, 1, start + 1)[0, :4800]
    return sound


def test_a_gain_brings_a_sound_to_a_loudness_exactly(tmp_path: Path) -> None:
    file = write_audio(
        torch.from_numpy(noise(1, 0.02, num_samples=2 * RATE)),
        tmp_path / "out.wav",
        mix=MixOptions(loudness_lufs=-23),
    )
    (sound,) = decode_sounds(file.path)
    measured = measure_loudness(Sound(sound, "mono"))
    assert measured == pytest.approx(-23, abs=0.1)
    assert file.loudness is not None
    after = file.loudness.after
    assert after.integrated_lufs == pytest.approx(measured, abs=0.01)
    peak = measure_true_peak(Sound(sound, "mono"))
    assert after.true_peak_dbtp == pytest.approx(20 * np.log10(peak), abs=0.01)
    before = file.loudness.before.integrated_lufs
    assert before is not None
    assert file.loudness.gain_db == pytest.approx(-23 - before, abs=0.02)
    assert file.notices == ()


def faint() -> np.ndarray:
    """Faint noise, most of it under -70 LUFS: that does not count before it is raised."""
    sound = noise(1, 0.00017, num_samples=4 * RATE)
    sound[0, :RATE] *= 2.5
    return sound


@pytest.mark.parametrize("wanted", [-30, -45])
def test_a_faint_sound_is_brought_to_a_loudness_exactly(wanted: float) -> None:
    finished = finish_sound(faint(), MixOptions(loudness_lufs=wanted), "mono")
    assert measure_loudness(finished.main) == pytest.approx(wanted, abs=0.1)
    assert finished.notices == ()


def test_peaks_bound_the_gain_and_a_notice_says_so() -> None:
    finished = finish_sound(hits(), MixOptions(loudness_lufs=-16, true_peak_dbtp=-2), "mono")
    after = finished.loudness.after
    assert after.true_peak_dbtp == pytest.approx(-2, abs=0.05)
    assert after.integrated_lufs is not None
    assert after.integrated_lufs < -17
    assert "not -16 LUFS" in finished.notices[0]
    assert "limiter" in finished.notices[0]


def test_the_limiter_reaches_the_loudness_under_the_peak() -> None:
    mix = MixOptions(loudness_lufs=-20, true_peak_dbtp=-2, limiter=True)
    after = finish_sound(hits(), mix, "mono").loudness.after
    assert after.integrated_lufs == pytest.approx(-20, abs=0.1)
    assert after.true_peak_dbtp is not None
    assert after.true_peak_dbtp <= -1.99


def test_silence_stays_silence_and_a_notice_says_so() -> None:
    silence = np.zeros((1, RATE), np.float32)
    finished = finish_sound(silence, MixOptions(loudness_lufs=-23), "stereo")
    assert not finished.main.samples.any()
    assert "too quiet" in finished.notices[0]


def test_fades_and_pan_shape_the_new_sound_only() -> None:
    ones = np.full((1, RATE), 0.5, np.float32)
    own = Sound(np.full((2, RATE), 0.1, np.float32), "stereo")
    mix = MixOptions(original_sound="mix", fade_in_seconds=0.5, fade_out_seconds=0.25, pan=0.5)
    left, right = finish_sound(ones, mix, "stereo", own).main.samples
    assert left[0] == right[0] == np.float32(0.1)
    assert (left[12_000], right[12_000]) == pytest.approx((0.225, 0.35), abs=1e-4)  # half in
    assert (left[30_000], right[30_000]) == pytest.approx((0.35, 0.6), abs=1e-6)
    assert (left[42_000], right[42_000]) == pytest.approx((0.225, 0.35), abs=1e-4)  # half out
    assert right[-1] == pytest.approx(0.1, abs=1e-6)


def test_the_original_ends_where_a_trimmed_clip_ends(
    tmp_path: Path, voiced: Callable[..., Path]
) -> None:
    source = voiced(noise(2, 0.3))
    out = tmp_path / "out.wav"
    write_audio(torch.zeros(1, RATE // 2), out, mix=MIXED, source=source, stop_seconds=0.5)
    (sound,) = decode_sounds(out)
    assert sound.shape == (2, RATE // 2)


def test_a_clip_without_a_sound_gives_the_new_sound_and_a_notice(
    tmp_path: Path, picture: Path
) -> None:
    out = write_video(picture, torch.zeros(1, RATE), tmp_path / "out.mp4", mix=MIXED)
    assert out.notices == (
        "The clip has no sound of its own: the result holds the new sound alone.",
    )
    with av.open(str(out.path)) as reader:
        assert reader.streams.audio[0].layout.name == "stereo"


def test_a_sound_of_a_codec_that_is_not_accepted_is_refused(
    tmp_path: Path, voiced: Callable[..., Path]
) -> None:
    source = voiced(noise(1, 0.3), "odd.mkv", layout="mono", codec="wavpack")
    limits = MediaLimits(codecs=frozenset({"h264"}))
    with pytest.raises(VideoDecodeError, match="use original_sound drop"):
        write_audio(
            torch.zeros(1, RATE), tmp_path / "x.wav", mix=MIXED, source=source, limits=limits
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("container", ["mp4", "mov", "wav", "flac"])  # mkv has random numbers
def test_without_options_files_are_the_same_to_the_byte(
    tmp_path: Path, voiced: Callable[..., Path], container: str
) -> None:
    source = voiced(noise(2, 0.3))
    waveform = torch.from_numpy(noise(1, 0.5))

    def write(name: str, mix: MixOptions | None) -> MediaFile:
        path = tmp_path / f"{name}.{container}"
        if container in ("wav", "flac"):
            return write_audio(waveform, path, mix=mix, source=source)
        return write_video(source, waveform, path, mix=mix)

    plain, default = write("plain", None), write("default", MixOptions())
    assert plain.path.read_bytes() == default.path.read_bytes()
    assert plain.loudness is default.loudness is None


@pytest.mark.parametrize(
    ("timecode", "rate", "seconds"),
    [
        ("00:00:00:00", Fraction(25), 0),
        ("10:00:00:05", Fraction(25), 36_000.2),
        ("01:00:00:00", Fraction(24_000, 1001), 3603.6),
        ("00:01:00;02", Fraction(30_000, 1001), 60.06),
        ("01:00:00;00", Fraction(30_000, 1001), 3599.9964),
        ("01:00:00;00", Fraction(60_000, 1001), 3599.9964),
    ],
)
def test_a_timecode_is_a_time_of_day(timecode: str, rate: Fraction, seconds: float) -> None:
    assert float(seconds_since_midnight(timecode, rate)) == pytest.approx(seconds, abs=1e-6)


def test_a_broadcast_wave_has_the_clip_s_timecode_as_its_time_reference(
    tmp_path: Path, voiced: Callable[..., Path], picture: Path
) -> None:
    mix = MixOptions(broadcast_wave=True)
    source = voiced(noise(2, 0.1), "timed.mov", timecode="01:00:00:12")
    out = write_audio(torch.zeros(1, RATE), tmp_path / "out.wav", mix=mix, source=source)
    content = out.path.read_bytes()
    assert 0 < content.index(b"bext") < content.index(b"data")
    with av.open(str(out.path)) as reader:
        assert reader.metadata["time_reference"] == str(3600 * RATE + 12 * RATE // 25)
    assert out.notices == ()
    out = write_audio(torch.zeros(1, RATE), tmp_path / "out.wav", mix=mix, source=picture)
    assert "time reference of the wav file is 0" in out.notices[0]
