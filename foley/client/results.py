"""The objects that the client returns. Fields that a newer service adds are ignored."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from foley.mix import LoudnessReport
from foley.types import Stage


class RemoteObject(BaseModel):
    """What a service tells."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RemoteUpdate(RemoteObject):
    """The progress of a request.

    Attributes:
        stage: what the service does now. A newer service may name a stage that is not in `Stage`.
        queue_position: in the stage `queue`, how many requests go before this one.
        step: in the stage `sample`, how many solver steps are done.
        num_steps: in the stage `sample`, how many solver steps there are.
        seconds_left: an estimate of the time until the result, if the service has one.
    """

    stage: Annotated[Stage | str, Field(union_mode="left_to_right")]
    queue_position: int | None = None
    step: int | None = None
    num_steps: int | None = None
    seconds_left: float | None = None


class RemoteFile(RemoteObject):
    """One file of a result, which the service keeps for some minutes.

    Attributes:
        variation: number of the sound, counted from 1.
        layer: of which it is the stem, counted from 1; None for the mix, and without layers.
        seed: the seed that repeats this sound.
        format: mp4, mov, mkv, webm, wav or flac.
        media_type: the MIME type.
        num_bytes: the size.
        url: the path below the service's address.
        loudness: as measured, where an option of the mix was given.
        speech_seconds: in the sound, where `avoid_speech` asked for it.
    """

    variation: int
    seed: int
    format: str = Field(pattern=r"^[a-z0-9]{1,8}$")  # becomes part of a local file's name
    media_type: str
    num_bytes: int = Field(validation_alias="bytes")
    url: str
    loudness: LoudnessReport | None = None
    layer: int | None = None
    speech_seconds: float | None = None

    @property
    def name(self) -> str:
        """A name that no other file of the result has: foley-1.mp4, foley-1-layer-2.wav."""
        layer = "" if self.layer is None else f"-layer-{self.layer}"
        return f"foley-{self.variation}{layer}.{self.format}"


class RemotePiece(RemoteObject):
    """A piece of a long sound that is final, while the service makes the rest.

    Attributes:
        variation: number of the sound, counted from 1.
        number: of the piece, counted from 1; each begins where the one before it ends.
        start_seconds: from the start of the sound.
        duration_seconds: of the piece.
        media_type: the MIME type, audio/wav.
        num_bytes: the size.
        url: the path below the service's address.
    """

    variation: int
    number: int
    start_seconds: float
    duration_seconds: float
    media_type: str
    num_bytes: int = Field(validation_alias="bytes")
    url: str


class RemoteGeneration(RemoteObject):
    """A result: its description, and where its files are.

    Attributes:
        request_id: the id of the request, which the service's log also has.
        kept_seconds: how long the service keeps the files.
        model: name of the preset that made the sound.
        duration_seconds: length of each sound.
        sample_rate_hz: sample rate of each sound.
        timings_seconds: seconds in each stage, in order, and their `total`.
        device_seconds: for how long the model's devices, GPUs or the CPU, worked on it. Work that
            it shared with other requests counts by its part. None from an older service.
        notices: sentences about what was done to the clip or the prompts.
        seeds: the seed of each variation.
        files: by variation, the format asked for first, and the layers last.
        saved: the paths that `generate` wrote, in the order of `files`; empty without a
            destination.
    """

    request_id: str
    kept_seconds: float
    model: str
    duration_seconds: float
    sample_rate_hz: int
    timings_seconds: dict[str, float]
    device_seconds: float | None = None
    notices: tuple[str, ...]
    seeds: tuple[int, ...]
    files: tuple[RemoteFile, ...]
    saved: tuple[Path, ...] = ()

    def select_files(self, wanted: str) -> list[RemoteFile]:
        """Return one file for each variation, in the wanted format if the service made it.

        The service writes another container if the wanted one does not take the clip's picture.

        Args:
            wanted: mp4, mov, mkv, webm, wav or flac.
        """
        by_preference = sorted(
            (file for file in self.files if file.layer is None),
            key=lambda file: (file.format != wanted, not file.media_type.startswith("video/")),
        )
        return [
            next(file for file in by_preference if file.variation == variation)
            for variation in sorted({file.variation for file in self.files})
        ]

    def select_layers(self) -> list[RemoteFile]:
        """Return the file of each layer, in order; none without layers."""
        return [file for file in self.files if file.layer is not None]


class RemoteAdapter(RemoteObject):
    """An adapter that a request may ask for.

    Attributes:
        name: by which a request asks for it.
        rank: of its largest layer.
        about: what it does, in a line; may be empty.
        trigger: a prompt that suits it; may be empty.
    """

    name: str
    rank: int = 0
    about: str = ""
    trigger: str = ""


class RemoteModel(RemoteObject):
    """A model that the service serves.

    Attributes:
        preset: name of the model.
        about: what the model can and cannot do, in one line; empty if its publisher says it.
        prompts: that suit the model, to start from; none if the service states none.
        num_inference_steps: default number of solver steps; 0 if the service does not state it.
        guidance_scale: default guidance scale; 0 if the service does not state it.
        revision: revision of the weights' repository; empty if it is not known.
        licence: licence of the weights.
        territory: where that licence applies.
        adapters: that a request may ask for; none if the service states none.
    """

    preset: str
    about: str = ""
    prompts: tuple[str, ...] = ()
    num_inference_steps: int = 0
    guidance_scale: float = 0.0
    revision: str = ""
    licence: str = ""
    territory: str = ""
    adapters: tuple[RemoteAdapter, ...] = ()
