"""What a service says, as Python objects. Fields that a newer service adds are ignored."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RemoteUpdate(_Answer):
    """How far a request has come.

    Attributes:
        stage: a value of `foley.types.Stage`.
        queue_position: while queued: how many go before it.
        step: while sampling: solver steps done.
        num_steps: while sampling: of so many.
        seconds_left: where the service can tell.
    """

    stage: str
    queue_position: int | None = None
    step: int | None = None
    num_steps: int | None = None
    seconds_left: float | None = None


class RemoteFile(_Answer):
    """One file of a result, which the service keeps for some minutes.

    Attributes:
        variation: which sound, counted from 1.
        seed: repeats this sound.
        format: mp4, mov, mkv, webm, wav or flac.
        media_type: its MIME type.
        num_bytes: its size.
        url: its path below the service's address.
    """

    variation: int
    seed: int
    format: str = Field(pattern=r"^[a-z0-9]{1,8}$")  # part of a file's name here
    media_type: str
    num_bytes: int = Field(validation_alias="bytes")
    url: str


class RemoteGeneration(_Answer):
    """The facts about a result, and where its files are.

    Attributes:
        request_id: of the request; the service's log has it too.
        kept_seconds: how long the service keeps the files.
        model: name of the preset that made the sound.
        duration_seconds: length of each sound.
        sample_rate_hz: of the sound.
        timings_seconds: seconds in each stage, in order.
        notices: sentences about what was done to the clip.
        seeds: of each variation.
        files: all formats of all variations.
        saved: where `generate` wrote the files asked for, one for each variation.
    """

    request_id: str
    kept_seconds: float
    model: str
    duration_seconds: float
    sample_rate_hz: int
    timings_seconds: dict[str, float]
    notices: tuple[str, ...]
    seeds: tuple[int, ...]
    files: tuple[RemoteFile, ...]
    saved: tuple[Path, ...] = ()

    def files_of(self, wanted: str) -> list[RemoteFile]:
        """One file for each variation, in the format wanted or in the one given in its place.

        A container that does not take the clip's picture is replaced by another.
        """
        order = sorted(
            self.files,
            key=lambda file: (file.format != wanted, not file.media_type.startswith("video/")),
        )
        return [
            next(file for file in order if file.variation == variation)
            for variation in sorted({file.variation for file in self.files})
        ]


class RemoteModel(_Answer):
    """What a service serves.

    Attributes:
        preset: name of the model.
        about: what it is and is not, in a line; empty where its publisher tells.
        num_inference_steps: solver steps of a request that names none; 0 where it does not tell.
        guidance_scale: likewise; 0 where it does not tell.
        revision: of the weights' repository; empty where it is not known.
        licence: of the weights.
        territory: where that licence applies.
    """

    preset: str
    about: str = ""
    num_inference_steps: int = 0
    guidance_scale: float = 0.0
    revision: str = ""
    licence: str = ""
    territory: str = ""
