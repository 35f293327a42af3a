"""The messages between `foley bulk` and the process that has the model.

foley bulk ── BulkStart, BulkTask * ─────────► python -m runners.bulk
           ◄── BulkReady, BulkOutcome * ──────

Each message is a line of JSON, over the standard input and output of that process. An outcome is
also what is kept of a row, as a file beside the results.
"""

import hashlib
import json
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from foley.errors import FoleyError
from foley.mix import LoudnessReport, MixOptions
from foley.request import GenerationRequest

RECORDS = ".foley-bulk/"  # the folder of what is kept of each row, inside the output


class BulkStart(BaseModel):
    """Which model to load, and how many rows to work on at once.

    Attributes:
        preset: tiny, xl, xxl or auto.
        weights: folder of the weights; None for the usual one.
        device: auto, cpu, cuda or cuda:N.
        precision: bf16 or fp8.
        memory: auto, full, balanced or low.
        adapters: folder or files of adapters; None for none.
        marks: whether results say that they are machine-made: on or off.
        marks_key: file of the key that signs marks; None for one of the user's own.
        marks_chain: file of its certificates.
        marks_prompt: whether marks hold the prompts.
        jobs: rows at once; None for what suits the device.
        num_processes: that have a model on this machine, and share its cores.
        verbose: whether to log what is done, and not only what failed.
    """

    model_config = ConfigDict(frozen=True)

    preset: str = "auto"
    weights: str | None = None
    device: str = "auto"
    precision: str = "bf16"
    memory: str = "auto"
    adapters: str | None = None
    marks: Literal["on", "off"] = "on"
    marks_key: str | None = None
    marks_chain: str | None = None
    marks_prompt: bool = False
    jobs: int | None = None
    num_processes: int = 1
    verbose: bool = False


class BulkReady(BaseModel):
    """The answer to `BulkStart`: the model is warm, or could not be loaded.

    Attributes:
        preset: name of the model.
        description: of the model, in one line.
        jobs: rows that it takes at once.
        error: code and message of what went wrong; None if nothing did.
    """

    model_config = ConfigDict(frozen=True)

    preset: str = ""
    description: str = ""
    jobs: int = 1
    error: tuple[str, str] | None = None


class BulkTask(BaseModel):
    """One row: a clip, its options and its results.

    Attributes:
        id: unique in its output; it stays the same from run to run.
        clip: absolute path or s3:// address of the clip, or path of numbered pictures such as
            /frames/%04d.png; None for a sound of the prompt alone.
        request: options of the generation.
        mix: how the sound is finished.
        trim: whether to cut a clip that is too long instead of refusing it.
        start_seconds: where the used part of the clip begins.
        frame_rate: of a zip of numbered pictures, or a pattern of their paths; None for videos.
        output: absolute path of the folder, or s3:// address of the prefix, of all results.
        names: of each variation's result and then of each layer, relative to `output`.
        replace: whether a result that exists is overwritten, as one of this row itself that was
            left by an attempt that was cut off.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    clip: str | None
    request: GenerationRequest
    mix: MixOptions = MixOptions()
    trim: bool = False
    start_seconds: float = 0.0
    frame_rate: float | None = None
    output: str
    names: tuple[str, ...]
    replace: bool = False

    @property
    def digest(self) -> str:
        """What tells whether a row is still the same: of its clip's path and its options."""
        about = self.model_dump(mode="json", exclude={"id", "output", "names", "replace"})
        for name in ("start_seconds", "frame_rate"):  # unknown when the first records were written
            if not about[name]:
                del about[name]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


class BulkOutcome(BaseModel):
    """What became of a row.

    Attributes:
        id: of the row.
        state: done, or failed.
        digest: of the row when it was worked on.
        error_code: stable name of the kind of error; empty without one.
        error: the message; empty without one.
        names: of each variation's file and then of each layer, relative to the output.
        seeds: of each variation.
        layer_seeds: of each layer.
        duration_seconds: length of each sound.
        seconds: from the row's start to its files, beside other rows.
        finished: when it ended, as Unix time.
        device_seconds: that the model's devices worked on it; of a batch with other rows, its part.
        loudness: of each file; empty in records of earlier versions.
        speech_seconds: in each file; empty in records of earlier versions.
        notices: sentences about what was done to the clip.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    state: Literal["done", "failed"]
    digest: str = ""
    error_code: str = ""
    error: str = ""
    names: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    layer_seeds: tuple[int, ...] = ()
    duration_seconds: float = 0.0
    seconds: float = 0.0
    finished: float = 0.0
    device_seconds: float = 0.0
    loudness: tuple[LoudnessReport, ...] = ()
    speech_seconds: tuple[float, ...] = ()
    notices: tuple[str, ...] = ()

    @classmethod
    def from_error(cls, task: BulkTask, error: FoleyError, *, finished: float) -> Self:
        """Return the outcome of a row that failed.

        Args:
            task: the row.
            error: which ended it.
            finished: when, as Unix time.
        """
        return cls(
            id=task.id,
            state="failed",
            digest=task.digest,
            error_code=error.code,
            error=str(error),
            finished=finished,
        )


def name_record(task_id: str) -> str:
    """Return the name of the file that keeps a row's outcome, relative to the output.

    Args:
        task_id: of the row; it may hold any characters.
    """
    return f"{RECORDS}{hashlib.sha256(task_id.encode()).hexdigest()[:32]}.json"
