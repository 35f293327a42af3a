from pathlib import Path

import av
import numpy as np
import pytest
import torch

from foley.errors import OutputError
from foley.media.mux import MediaFile, write_audio


def read_samples(path: Path) -> tuple[np.ndarray, str, int]:
    """The samples [C, S] in [-1, 1], the decoder's sample format, and the sample rate."""
    with av.open(str(path)) as reader:
        frames = list(reader.decode(audio=0))
        channels = reader.streams.audio[0].channels
    kind = frames[0].format.name
    values = np.concatenate([f.to_ndarray().reshape(-1, channels) for f in frames]).T
    scale = 2.0**31 if kind == "s32" else 1.0
    return values.astype(np.float64) / scale, kind, frames[0].sample_rate


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("suffix", "codec"), [("wav", "pcm_s24le"), ("flac", "flac")])
def test_24_bit_files_hold_the_nearest_level(
    tmp_path: Path, suffix: str, codec: str, channels: int
) -> None:
    torch.manual_seed(0)
    waveform = torch.rand(channels, 10_000) * 2 - 1
    waveform[:, :2] = torch.tensor([1.0, -1.0])
    path = tmp_path / f"out.{suffix}"
    assert write_audio(waveform, path) == MediaFile(path=path, container=suffix, codec=codec)
    samples, kind, rate = read_samples(path)
    assert (kind, rate, samples.shape) == ("s32", 48_000, (channels, 10_000))
    errors = np.abs(samples - waveform.double().numpy())
    assert errors[:, 1:].max() <= 0.5 / 2**23
    assert errors[:, 0].max() == 1 / 2**23  # integers end one level below 1


def test_float_wav_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    waveform = torch.rand(1, 44_100) * 2 - 1
    write_audio(waveform, tmp_path / "out.wav", sample_format="f32", sample_rate=44_100)
    samples, kind, rate = read_samples(tmp_path / "out.wav")
    assert (kind, rate) == ("flt", 44_100)
    assert np.array_equal(samples, waveform.double().numpy())


@pytest.mark.parametrize(
    ("name", "kind"), [("out.flac", "f32"), ("out.mp3", "s24"), ("out", "s24")]
)
def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    with pytest.raises(OutputError, match=r"\.wav with s24 or f32, or \.flac with s24"):
        write_audio(torch.zeros(1, 100), tmp_path / name, sample_format=kind)
    assert list(tmp_path.iterdir()) == []
