"""C2PA manifests: put into a file that is complete, and checked.

Source: the C2PA specification 2.4, sections "Actions" and "Ingredients".
"""

import io
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import c2pa

from foley.marks.mark import SOFTWARE, Mark, Signer
from foley.version import __version__

_MIME_TYPES = {
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "wav": "audio/wav",
    "flac": "audio/flac",
}
# A clip may name an address for its manifest, and a certificate one for its state: neither is ever
# asked. What was signed is not read again at once, which would take the time twice.
_SETTINGS: dict[str, Any] = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": False},
    "builder": {"thumbnail": {"enabled": False}},
}
_REMOTE = "Remote: "  # the library has no class for this error
# The library reads and writes 8 kB at a time. One system call for each of them took nearly half of
# the time of signing.
_BUFFER_BYTES = 1 << 20
_CLIP = "clip"  # the ingredient, as actions name it
OWN_PARAMETERS = "foley"  # in the action that made the sound
_SILENCE = struct.pack(
    "<4sI4s4sIHHIIHH4sI", b"RIFF", 44, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 8
) + bytes(8)


class SigningError(Exception):
    """A manifest could not be made, signed or read."""


class RemoteManifestError(SigningError):
    """A manifest is not in the file, and is not fetched."""


def sign_file(
    source: Path,
    destination: Path,
    container: str,
    mark: Mark,
    *,
    clip: Path | None,
    is_composite: bool,
    title: str,
) -> None:
    """Copy a file with a manifest in it. Packets stay as they are, and an index at the front too.

    Args:
        source: complete, in one of `SIGNED_CONTAINERS`.
        destination: the copy, created or replaced.
        container: of both.
        mark: has a signer.
        clip: from which the file was made; None for a sound of a prompt alone.
        is_composite: whether the file holds the clip's picture or its own sound.
        title: of the file.

    Raises:
        OSError: `destination` cannot be written.
        SigningError: the library or the signer refuses.
    """
    with (
        source.open("rb", buffering=_BUFFER_BYTES) as reader,
        destination.open("w+b", buffering=_BUFFER_BYTES) as file,
    ):
        writer = _Writer(file)
        try:
            _sign(
                mark,
                _MIME_TYPES[container],
                reader,
                writer,
                title=title,
                clip=clip,
                is_composite=is_composite,
            )
        except c2pa.C2paError as error:
            # The library drops what a stream raises.
            if writer.error is not None:
                raise writer.error from error
            raise SigningError(str(error)) from error


def check_signer(signer: Signer) -> str:
    """Sign eight samples of silence, and return what is wrong with the result; empty for nothing.

    Args:
        signer: to be checked.
    """
    mark, copy = Mark(model="", seed=0, signer=signer), io.BytesIO()
    try:
        _sign(
            mark,
            _MIME_TYPES["wav"],
            io.BytesIO(_SILENCE),
            copy,
            title="",
            clip=None,
            is_composite=False,
        )
        copy.seek(0)
        found = read_manifests(copy)
    except (c2pa.C2paError, SigningError) as error:
        return str(error)
    assert found is not None
    if found["validation_state"] != "Invalid":
        return ""
    return "; ".join(
        f"{entry['explanation']} ({entry['code']})"
        for entry in found["validation_results"]["activeManifest"]["failure"]
    )


def read_manifests(file: BinaryIO, trust_anchors: str | None = None) -> dict[str, Any] | None:
    """Return a file's manifests and what their verification found, as the library gives them.

    Nothing is fetched.

    Args:
        file: open for reading, at its start.
        trust_anchors: certificates in PEM that are believed; None for no one's.

    Returns:
        None if the file has no manifest, or no place for one.

    Raises:
        RemoteManifestError: the file only names an address of its manifest.
        SigningError: the manifest cannot be read.
    """
    mime_type = _recognize(file)
    if mime_type is None:
        return None
    settings = dict(_SETTINGS)
    if trust_anchors is not None:
        settings["verify"] = {**settings["verify"], "verify_trust": True}
        settings["trust"] = {"user_anchors": trust_anchors}
    try:
        with (
            c2pa.Context.from_dict(settings) as context,
            c2pa.Reader(mime_type, file, context=context) as reader,
        ):
            found: dict[str, Any] = json.loads(reader.json())
            found["validation_results"] = reader.get_validation_results()
            found["validation_state"] = reader.get_validation_state()
            return found
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as error:
        if str(error).startswith(_REMOTE):
            raise RemoteManifestError(str(error)) from error
        raise SigningError(str(error)) from error


class _Writer:
    """A file for the library, which remembers what went wrong.

    Attributes:
        error: the first error of the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error
            raise

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _sign(
    mark: Mark,
    mime_type: str,
    reader: BinaryIO,
    writer: Any,
    *,
    title: str,
    clip: Path | None,
    is_composite: bool,
) -> None:
    assert mark.signer is not None
    said = mark.describe(is_composite=is_composite)
    made = {
        "softwareAgent": {"name": SOFTWARE, "version": __version__},
        "digitalSourceType": said.pop("digitalSourceType"),
        "parameters": {OWN_PARAMETERS: said},
    }
    ingredients = {"parameters": {"ingredientIds": [_CLIP]}}
    if is_composite:
        actions = [
            {"action": "c2pa.opened", **(ingredients if clip else {})},
            {"action": "c2pa.edited", **made},
        ]
    else:
        actions = [{"action": "c2pa.created", **made}]
    definition = {
        "claim_generator_info": [{"name": SOFTWARE, "version": __version__}],
        "title": title,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }
    context = c2pa.Context.from_dict(_SETTINGS)
    algorithm = c2pa.C2paSigningAlg[mark.signer.algorithm.upper()]
    with (
        context,
        c2pa.Builder(definition, context=context) as builder,
        c2pa.Signer.from_callback(mark.signer.sign, algorithm, mark.signer.chain) as signer,
    ):
        if clip is not None:
            _add_clip(builder, clip, is_parent=is_composite)
        builder.sign(signer, mime_type, reader, writer)


def _add_clip(builder: c2pa.Builder, clip: Path, *, is_parent: bool) -> None:
    """Name the clip as what the file was made from, with the manifests that the clip has itself."""
    with clip.open("rb", buffering=_BUFFER_BYTES) as file:
        mime_type = _recognize(file) or "application/octet-stream"
        said = {
            "title": _CLIP,
            "relationship": "parentOf" if is_parent else "inputTo",
            "instance_id": _CLIP,
        }
        builder.add_ingredient(said, mime_type, file)


def _recognize(file: BinaryIO) -> str | None:
    """Return the MIME type of a file by its first bytes; None if C2PA has no place in it.

    Args:
        file: at its start, and there again afterwards.
    """
    head = file.read(16)
    file.seek(0)
    if head[4:8] == b"ftyp":
        return "video/quicktime" if head[8:12] == b"qt  " else "video/mp4"
    if head[:4] == b"RIFF":
        return {b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}.get(head[8:12])
    if head[:3] == b"ID3" and len(head) == 16:  # where C2PA puts the manifest of a FLAC file
        sizes = head[6:10]  # of seven bits each
        file.seek(10 + sum(size << 7 * place for place, size in enumerate(reversed(sizes))))
        head = file.read(4)
        file.seek(0)
        return "audio/flac" if head == b"fLaC" else "audio/mpeg"
    beginnings = {b"fLaC": "audio/flac", b"GIF8": "image/gif", b"\x89PNG": "image/png"}
    return beginnings.get(head[:4])
