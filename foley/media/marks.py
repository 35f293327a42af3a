"""Marks in files: plain tags in each container, and C2PA manifests where they have a place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from av.container import OutputContainer

from foley.atomic import atomic_path
from foley.marks.mark import SIGNED_CONTAINERS, Mark, parse_tag
from foley.media.atomic import atomic_media_path

_TAG = "comment"  # the one that each of the containers has


@dataclass(kw_only=True)
class MarkedFile:
    """A result that is being written.

    Attributes:
        mark: what it will say; None for no mark.
        container: of the result.
        clip: from which it is made; None without one.
        is_composite: whether it holds the clip's picture or its own sound.
        notices: sentences for the caller, once it is written.
        unsigned: why there is no manifest although there is a signer; empty otherwise.
    """

    mark: Mark | None
    container: str
    clip: Path | None
    is_composite: bool
    notices: list[str] = field(default_factory=list)
    unsigned: str = ""

    def add_tag(self, writer: OutputContainer) -> None:
        """Add the plain tag to those of the clip, before the header is written.

        Args:
            writer: the result.
        """
        if self.mark is None:
            return
        key = next((key for key in writer.metadata if key.lower() == _TAG), _TAG)
        # A clip that was made here before has a mark too. It no longer says how the sound was made.
        kept = [
            line
            for line in writer.metadata.get(key, "").splitlines()
            if line.strip() and parse_tag(line) is None
        ]
        writer.metadata[key] = "\n".join([*kept, self.mark.to_tag(is_composite=self.is_composite)])

    @contextmanager
    def write(self, destination: Path) -> Iterator[Path]:
        """Yield a temporary path for a muxer; then sign the file, and rename it.

        Signing comes last, because each byte of the file is signed. If it fails, the file has its
        plain tag alone, since minutes of sampling are not to be lost by that.

        Args:
            destination: an existing file there is replaced.

        Raises:
            OutputError: as `atomic_media_path`.
        """
        with atomic_media_path(destination) as temporary:
            if (
                self.mark is None
                or self.mark.signer is None
                or self.container not in SIGNED_CONTAINERS
            ):
                yield temporary
                return
            # Imported here, because the library is an extra.
            from foley.marks.manifest import SigningError, sign_file

            with atomic_path(temporary) as muxed:
                yield muxed
                try:
                    with atomic_path(muxed) as signed:
                        sign_file(
                            muxed,
                            signed,
                            self.container,
                            self.mark,
                            clip=self.clip,
                            is_composite=self.is_composite,
                            title=destination.name,
                        )
                except SigningError as error:
                    self.unsigned = str(error)
                    self.notices.append(
                        "The file could not be signed: its mark is a plain tag without a C2PA "
                        "manifest."
                    )


def read_tag(tags: dict[str, str]) -> dict[str, Any] | None:
    """Return what the plain tag of a file says, as `Mark.describe`; None if it has none.

    Args:
        tags: of the file.
    """
    lines = [
        line for key, text in tags.items() if key.lower() == _TAG for line in text.splitlines()
    ]
    return next((said for line in lines if (said := parse_tag(line)) is not None), None)
