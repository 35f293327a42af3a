"""Recognition of files that hold a still picture and no video, by their first bytes."""

from pathlib import Path

from foley.errors import VideoDecodeError

_HEAD_BYTES = 4096
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "Photoshop",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
}
_HEIF_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF"}


def detect_still(source: Path) -> str | None:
    """The name of the format if the file holds a still picture, or None.

    Args:
        source: a file in any format. An animated PNG or WebP is no still picture.
    """
    with source.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return None if b"acTL" in head else "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return None if b"ANIM" in head else "WebP"
    if head[4:8] == b"ftyp":
        return _HEIF_BRANDS.get(head[8:12])
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def is_animated_webp(source: Path) -> bool:
    """Whether a file is a WebP with an animation.

    Args:
        source: a file in any format.
    """
    with source.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP" and b"ANIM" in head


def still_error(source: Path, kind: str) -> VideoDecodeError:
    """Return the error for a still picture in place of a clip.

    Args:
        source: the file.
        kind: name of its format.
    """
    return VideoDecodeError(
        f"{source.name} is a picture ({kind}) and not a video; set duration_seconds, such as 5, to "
        "show it for as long, or send a clip"
    )
