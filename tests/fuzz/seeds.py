"""Small valid clips of many containers and codecs, for the mutations."""

from pathlib import Path
from typing import NamedTuple

from tests.media.clips import write_clip


class Seed(NamedTuple):
    """How a clip is written.

    Attributes:
        codec: FFmpeg's name of the encoder.
        pix_fmt: the pixel format.
        muxer: FFmpeg's name.
        sound: whether it has a second of sound.
        options: of the muxer.
        size: width and height, in pixels.
    """

    codec: str
    pix_fmt: str
    muxer: str
    sound: bool = False
    options: dict[str, str] | None = None
    size: tuple[int, int] = (64, 36)


SEEDS = {
    "h264.mp4": Seed("libx264", "yuv420p", "mp4", sound=True),
    "fragments.mp4": Seed(
        "libx264", "yuv420p", "mp4", options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "hevc.mp4": Seed("libx265", "yuv420p", "mp4"),
    "av1.mp4": Seed("libsvtav1", "yuv420p", "mp4", size=(64, 64)),  # its smallest
    "prores.mov": Seed("prores_ks", "yuv422p10le", "mov"),
    "mjpeg.mov": Seed("mjpeg", "yuvj420p", "mov"),
    "qtrle.mov": Seed("qtrle", "rgb24", "mov"),
    "png.mov": Seed("png", "rgb24", "mov"),
    "vp8.mkv": Seed("libvpx", "yuv420p", "matroska"),
    "h264.mkv": Seed("libx264", "yuv420p", "matroska", sound=True),
    "ffv1.mkv": Seed("ffv1", "yuv420p", "matroska"),
    "vp9.webm": Seed("libvpx-vp9", "yuv420p", "webm"),
    "mpeg4.avi": Seed("mpeg4", "yuv420p", "avi"),
    "mjpeg.avi": Seed("mjpeg", "yuvj420p", "avi"),
    "msmpeg4.avi": Seed("msmpeg4", "yuv420p", "avi"),
    "raw.avi": Seed("rawvideo", "yuv420p", "avi"),
    "h264.ts": Seed("libx264", "yuv420p", "mpegts", sound=True),
    "mpeg2.mpg": Seed("mpeg2video", "yuv420p", "mpeg"),
    "mpeg1.mpg": Seed("mpeg1video", "yuv420p", "mpeg"),
    "flv1.flv": Seed("flv", "yuv420p", "flv"),
    "h264.flv": Seed("libx264", "yuv420p", "flv"),
    "wmv2.wmv": Seed("wmv2", "yuv420p", "asf"),
    "wmv1.wmv": Seed("wmv1", "yuv420p", "asf"),
    "msmpeg4v2.avi": Seed("msmpeg4v2", "yuv420p", "avi"),
    "bare.dv": Seed("dvvideo", "yuv420p", "dv", size=(720, 576)),  # one of its two sizes
    "mpeg2.mxf": Seed("mpeg2video", "yuv420p", "mxf"),
    "mpeg4.nut": Seed("mpeg4", "yuv420p", "nut"),
    "h263.3gp": Seed("h263", "yuv420p", "3gp", size=(128, 96)),  # one of its five sizes
    "gif.gif": Seed("gif", "rgb8", "gif"),
    "apng.apng": Seed("apng", "rgb24", "apng"),
    "vp8.ivf": Seed("libvpx", "yuv420p", "ivf"),
    "bare.m4v": Seed("mpeg4", "yuv420p", "m4v"),
    "bare.h264": Seed("libx264", "yuv420p", "h264"),
    "bare.hevc": Seed("libx265", "yuv420p", "hevc"),
    "plain.y4m": Seed("wrapped_avframe", "yuv420p", "yuv4mpegpipe"),
}


def write_seeds(folder: Path, num_frames: int = 8) -> dict[str, bytes]:
    """Write a clip of each kind, and return their bytes by the names of `SEEDS`.

    Args:
        folder: for the clips.
        num_frames: of each.
    """
    return {
        name: write_clip(
            folder / name,
            num_frames=num_frames,
            size=seed.size,
            codec=seed.codec,
            pix_fmt=seed.pix_fmt,
            container=seed.muxer,
            sound=seed.sound,
            muxer=seed.options,
        ).read_bytes()
        for name, seed in SEEDS.items()
    }
