"""The sounds that the library returns: a sequence that can be saved."""

import io
import pydoc
import tempfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import foley
from foley.errors import OutputError, ParameterError, VideoEmptyError
from foley.generation import Generation, SourceClip
from foley.media.source import MediaLimits
from foley.request import GenerationRequest
from tests.media.clips import add_sound, picture_packets
from tests.server import draw_clip
from tests.toys import toy_frames, toy_pipeline

CLIP = Path(__file__).parents[2] / "examples" / "bigbuckbunny.mp4"


def generate(clip: SourceClip, **options: object) -> Generation:
    options = {"seed": 5, "num_inference_steps": 1, "guidance_scale": 1.0} | options
    return toy_pipeline()(clip, **options)  # type: ignore[arg-type]


def picture(path: Path) -> list[bytes]:
    return [content for content, _, _ in picture_packets(path)]


def streams(path: Path) -> list[str]:
    with av.open(str(path)) as container:
        return sorted(stream.type for stream in container.streams)


@pytest.mark.slow
def test_each_variation_can_be_taken_and_saved(tmp_path: Path) -> None:
    sounds = generate(CLIP, num_variations=2)
    assert len(sounds) == 2
    assert [one.seeds for one in sounds] == [(5,), (6,)]
    assert torch.equal(sounds[-1].waveforms, sounds.waveforms[1:])
    with pytest.raises(IndexError):
        sounds[2]
    text = repr(sounds)
    assert (
        text == f"<Generation: 2 sounds of {sounds.duration_seconds:.2f} s at 48000 Hz, seed 5, 6>"
    )

    files = sounds.save(tmp_path / "all.wav", marks=False)
    assert [file.path.name for file in files] == ["all-1.wav", "all-2.wav"]
    (file,) = sounds[1].save(str(tmp_path / "second.wav"), marks=False)
    assert file.path.read_bytes() == files[1].path.read_bytes() != files[0].path.read_bytes()
    sounds[0].save(tmp_path / "out.mp4")
    assert streams(tmp_path / "out.mp4") == ["audio", "video"]
    assert picture(tmp_path / "out.mp4") == picture(CLIP)


@pytest.mark.slow
def test_bytes_and_open_files_are_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    short = tmp_path / "short.mp4"
    data = draw_clip(short)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    expected = generate(short).waveforms
    with short.open("rb") as file:
        clips: list[SourceClip] = [str(short), data, bytearray(data), io.BytesIO(data), file]
        for clip in clips:
            sounds = generate(clip)
            assert torch.equal(sounds.waveforms, expected)
            (made,) = sounds.save(tmp_path / "out.mp4")
            assert picture(made.path) == picture(short)
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_a_trimmed_picture_ends_with_its_sound(tmp_path: Path) -> None:
    clip = tmp_path / "long.mp4"
    draw_clip(clip, num_frames=18 * 25)
    pipeline = toy_pipeline()
    frames = pipeline.open_video(clip, trim=True, limits=MediaLimits(max_seconds=16))
    made = pipeline.generate(frames, GenerationRequest(num_inference_steps=1))
    assert made.trimmed
    replace(made, clip=clip).save(tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration is not None
        assert container.duration / av.time_base == pytest.approx(16, abs=0.2)


@pytest.mark.slow
def test_a_sound_is_saved_with_the_clip_s_own_and_at_a_loudness(tmp_path: Path) -> None:
    tone = np.sin(np.arange(48_000) / 20)[None] * 0.1
    clip = add_sound(CLIP, tmp_path / "voiced.mov", tone, layout="mono")
    sounds = generate(clip)
    (file,) = sounds.save(tmp_path / "out.mp4", original_sound="keep", loudness_lufs=-30)
    assert file.loudness is not None
    assert file.loudness.after.integrated_lufs == pytest.approx(-30, abs=0.1)
    assert streams(tmp_path / "out.mp4") == ["audio", "audio", "video"]
    with pytest.raises(ParameterError, match="stems: cannot be combined with original_sound drop"):
        sounds.save(tmp_path / "x.mp4", stems=True)
    with pytest.raises(ParameterError, match=r"original_sound: keep .* format wav"):
        sounds.save(tmp_path / "x.wav", original_sound="keep")
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.slow
def test_what_cannot_be_saved_says_what_to_do(tmp_path: Path) -> None:
    sounds = generate(CLIP)
    with pytest.raises(OutputError, match=r"^out\.avi names .* \.mp4 .* \.wav \.flac$"):
        sounds.save(tmp_path / "out.avi")
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(CLIP.read_bytes())
    with pytest.raises(OutputError, match="save to another path"):
        generate(copy).save(copy)
    assert copy.read_bytes() == CLIP.read_bytes()
    from_frames = toy_pipeline()(toy_frames(), num_inference_steps=1)
    with pytest.raises(OutputError, match=r"or save a \.wav"):
        from_frames.save(tmp_path / "out.mp4")
    from_frames.save(tmp_path / "out.wav")
    assert streams(tmp_path / "out.wav") == ["audio"]


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(ParameterError, match="video has the type dict; give a path, bytes"):
        generate({"clip": CLIP})  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="open it in binary mode"):
        generate(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(VideoEmptyError, match="clip has 0 bytes"):
        generate(b"")


def test_help_describes_the_lazy_names() -> None:
    text = pydoc.render_doc(foley, renderer=pydoc.plaintext)
    assert "class FoleyPipeline" in text
    assert "Write each variation to a file" in text
