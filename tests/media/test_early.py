"""Sounds that are encoded before their file is written: the file is the same to the byte."""

from pathlib import Path

import av
import pytest
import torch

from foley.media.audio import CHUNK_SAMPLES
from foley.media.mux import start_flac_sound, start_video_sound, write_audio, write_video
from tests.media.clips import write_clip

SIDE_DATA = ("skip_samples", "new_extradata")
Described = tuple[list[bytes | None], list[tuple[object, ...]]]
# In one piece, in pieces that end within a chunk of the encoder, and in single samples at an end.
CUTS = [[], [700, 701, 5 * CHUNK_SAMPLES, 30_001], [CHUNK_SAMPLES, 52_799]]


def draw_sound(num_samples: int) -> torch.Tensor:
    torch.manual_seed(0)
    sound = 0.3 * torch.randn(1, num_samples)  # some of it is over full scale
    assert sound.abs().max() > 1
    return sound


def list_all(path: Path) -> Described:
    """The set-up data of each stream, and all that the file says of each packet."""
    with av.open(str(path)) as reader:
        setups = [stream.codec_context.extradata for stream in reader.streams]
        return setups, [
            (
                packet.stream_index,
                packet.pts,
                packet.dts,
                packet.duration,
                bytes(packet),
                [(kind, bytes(packet.get_sidedata(kind))) for kind in SIDE_DATA],
            )
            for packet in reader.demux()
        ]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm"])
def test_a_video_whose_sound_was_encoded_early_is_the_same_file(
    tmp_path: Path, container: str, cuts: list[int]
) -> None:
    codec = "libvpx-vp9" if container == "webm" else "libx264"
    source = write_clip(tmp_path / "in.mkv", times_ms=range(0, 1100, 40), codec=codec)
    waveform = draw_sound(52_800)
    early = start_video_sound(source, container)  # type: ignore[arg-type]
    for piece in waveform[0].tensor_split(cuts):
        early.add(piece.numpy())
    made = write_video(source, waveform, tmp_path / f"early.{container}", encoded=early.end())
    usual = write_video(source, waveform, tmp_path / f"usual.{container}")
    if container in ("mp4", "mov"):
        assert made.path.read_bytes() == usual.path.read_bytes()
    # Matroska has random numbers of the file and of its tracks, and nothing else may differ.
    assert made.path.stat().st_size == usual.path.stat().st_size
    assert list_all(made.path) == list_all(usual.path)


@pytest.mark.parametrize("cuts", CUTS)
def test_a_flac_that_was_encoded_early_is_the_same_file(tmp_path: Path, cuts: list[int]) -> None:
    waveform = draw_sound(52_800)
    early = start_flac_sound()
    for piece in waveform[0].tensor_split(cuts):
        early.add(piece.numpy())
    write_audio(waveform, tmp_path / "early.flac", encoded=early.end())
    write_audio(waveform, tmp_path / "usual.flac")
    assert (tmp_path / "early.flac").read_bytes() == (tmp_path / "usual.flac").read_bytes()
