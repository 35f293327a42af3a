"""What is accepted as a job: the options of a generation, with nothing left to chance."""

import hashlib
import secrets
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from foley.request import MAX_SEED
from runners.jobs.job import GenerationOptions

# A seed that JavaScript reads exactly; the variations count up from it.
MAX_DRAWN_SEED = min(MAX_SEED, 2**53) - 8


class JobRequest(BaseModel):
    """A request whose repetition gives the same bytes.

    Attributes:
        options: with a seed and a format, of which only those that were given are stored.
        has_clip: whether there is a clip.
        digest: of what the caller sent; equal for equal requests.
    """

    model_config = ConfigDict(frozen=True)

    options: GenerationOptions
    has_clip: bool
    digest: str

    @classmethod
    def settle(cls, options: GenerationOptions, clip: Path | None) -> "JobRequest":
        """Return the request of a caller, with a seed, a format and a priority.

        Args:
            options: as the caller gave them.
            clip: that was received; None without one.
        """
        hashed = hashlib.sha256(options.model_dump_json(exclude_unset=True).encode())
        if clip is not None:
            with clip.open("rb") as file:
                hashed.update(hashlib.file_digest(file, "sha256").digest())
        settled: dict[str, Any] = {}
        if options.seed is None:
            settled["seed"] = secrets.randbelow(MAX_DRAWN_SEED)
        if options.format is None:
            settled["format"] = options.default_format
        if "priority" not in options.model_fields_set:
            settled["priority"] = "bulk"  # nobody waits on a connection for it
        return cls(
            options=options.model_copy(update=settled),
            has_clip=clip is not None,
            digest=hashed.hexdigest(),
        )
