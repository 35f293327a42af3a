"""A still picture that is shown for some seconds, as a clip."""

import math
import zipfile
from fractions import Fraction
from io import BytesIO
from pathlib import Path

from PIL import GifImagePlugin, Image, ImageOps

from foley.atomic import atomic_path
from foley.errors import OutputError, ParameterError, VideoDecodeError, VideoTooLargeError
from foley.media.images import STILL_KINDS, format_held_seconds, is_held, open_image
from foley.media.source import MediaLimits
from foley.media.stills import detect_still

# A photo has more pixels than frames of a video. It is made smaller, unless it is far larger.
_MAX_SHRINKING = 8
_KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", GifImagePlugin.GifImageFile.format)  # Pillow's
_ORIENTATION = 0x0112  # Exif's tag


def hold_picture(
    source: Path, destination: Path, seconds: float, limits: MediaLimits | None = None
) -> None:
    """Write a clip that shows a still picture, upright as its Exif data has it.

    A picture of more pixels than a clip may have is made smaller.

    Args:
        source: a picture in PNG, JPEG, WebP, BMP or TIFF, or a GIF of one frame.
        destination: of the clip, a zip that `foley.media.source.open_video` reads. It may be the
            source, which is then replaced, and left as it is where that was done before.
        seconds: how long it is shown, above 0.
        limits: `max_pixels` of a frame; the defaults when None.

    Raises:
        ParameterError: the source is no still picture.
        VideoDecodeError: there is no such file, or it cannot be read.
        VideoTooLargeError: it has more than 8 times as many pixels as a frame may have.
        OutputError: the clip cannot be written.
    """
    if not source.is_file():
        raise VideoDecodeError(f"there is no file {source}; check the path")
    if source == destination and is_held(source):
        return
    name, content = _read_picture(source, seconds, (limits or MediaLimits()).max_pixels)
    try:
        with atomic_path(destination) as partial, zipfile.ZipFile(partial, "w") as archive:
            archive.writestr(name, content)
            archive.comment = format_held_seconds(Fraction(seconds).limit_denominator(100_000))
    except OSError as error:
        raise OutputError(
            f"{source.name} cannot be written to {destination.parent} ({error.strerror}); make "
            "room there, or set TMPDIR to another folder"
        ) from error


def _open_still(source: Path, file: BytesIO, seconds: float) -> Image.Image:
    """Open a still picture, of which only the head is read."""
    kind = detect_still(source)
    if kind is not None and kind not in STILL_KINDS:
        raise VideoDecodeError(
            f"{source.name} is a picture of the kind {kind}, which is not read here; convert it "
            f"to one of {', '.join(STILL_KINDS)}"
        )
    try:
        image = open_image(file, source.name, _KINDS)
    except VideoDecodeError:
        if kind is not None:
            raise
    else:
        # A JPEG of some cameras, or a TIFF, has further pictures, which are no frames.
        if kind is not None or getattr(image, "n_frames", 1) == 1:
            return image
    raise ParameterError(
        f"duration_seconds: is {seconds:g}, and {source.name} is no still picture, so it decides "
        "its own length; leave duration_seconds out, or send a picture "
        f"({', '.join(STILL_KINDS)})"
    )


def _read_picture(source: Path, seconds: float, max_pixels: int) -> tuple[str, bytes]:
    """Return a name and the file of a picture as it is shown: JPEG as it is, or PNG."""
    file = BytesIO(source.read_bytes())
    image = _open_still(source, file, seconds)
    width, height = image.size
    if width * height > _MAX_SHRINKING * max_pixels:
        raise VideoTooLargeError(
            f"{source.name} has {width} x {height} pixels, the limit of a picture is "
            f"{_MAX_SHRINKING * max_pixels}; make it smaller"
        )
    is_small = width * height <= max_pixels
    try:
        image.load()
        is_upright = image.getexif().get(_ORIENTATION, 1) == 1
        if image.format == "JPEG" and image.mode == "RGB" and is_upright and is_small:
            return "picture.jpg", file.getvalue()
        image = ImageOps.exif_transpose(image)
        if not is_small:
            factor = math.sqrt(max_pixels / (width * height))
            image.thumbnail((int(image.width * factor), int(image.height * factor)))
        content = BytesIO()
        image.convert("RGB").save(content, "PNG", compress_level=1)
    except (OSError, ValueError, SyntaxError) as error:
        raise VideoDecodeError(
            f"{source.name} is damaged ({error}); send the whole picture"
        ) from error
    return "picture.png", content.getvalue()
