"""One generation that moves on piece by piece: whoever drives it decides what runs in between.

    encode ──encode *──► sample ──part, advance *──► decode_audio ──decode *──► None

`FoleyPipeline.generate` drives one alone; a server drives many side by side. Both give the same
sound, since what a piece computes depends on nothing but its own session.
"""

# N variations, L latent channels, A latent frames

import time
from collections.abc import Generator
from typing import Protocol

import torch
from torch import Tensor

from foley.configs import SYNC_FPS, SYNC_SEGMENT_FRAMES, Preset
from foley.denoise import Denoising, Part
from foley.errors import DeviceError, ModelError
from foley.models.dit import FoleyDiT
from foley.models.transfer import uploaded
from foley.request import GenerationRequest
from foley.sampling import choose_seeds, draw_noise, make_sigmas
from foley.types import Conditions, Generation, Stage, VideoFrames

_FADE_SAMPLES = 96


class Model(Protocol):
    """The parts of a loaded model that a session uses."""

    preset: Preset
    device: torch.device
    source: str

    @property
    def dit(self) -> FoleyDiT:
        """The transformer."""

    def encode(
        self, frames: VideoFrames, prompt: str, negative_prompt: str
    ) -> Generator[None, None, Conditions]:
        """The conditions of a clip; yields between the pieces of the work."""

    def decode(self, latents: Tensor) -> Tensor:
        """Waveforms float32 [N, 1, 960 * A] of latents [N, L, A]."""


class Session:
    """The state of one generation.

    Each method computes one piece. What they raise ends the session: a RequestError for prompts
    that cannot be used, a ModelError for values that are not finite, torch's OutOfMemoryError.

    Attributes:
        stage: the one that comes next; None when all are done.
        num_steps: solver steps from noise to sound.
        seeds: of the variations.
        timings: seconds from the beginning to the end of each stage that has ended, by name.
    """

    def __init__(self, model: Model, frames: VideoFrames, request: GenerationRequest) -> None:
        self.request = request
        self.stage: Stage | None = Stage.ENCODE
        self.num_steps = request.num_steps(model.preset)
        self.seeds = choose_seeds(request.seed, request.num_variations)
        self.timings: dict[str, float] = {}
        self._model = model
        self._num_sync = len(frames.sync)
        self._num_samples = num_samples(model.preset, frames)
        self._encoding: Generator[None, None, Conditions] | None = model.encode(
            frames, request.prompt, request.negative_prompt
        )
        self._path: Denoising | None = None
        self._latents: Tensor | None = None
        self._waveforms: list[Tensor] = []
        self._notices = frames.notices
        self._began: float | None = None

    @property
    def step(self) -> int:
        """Solver steps that are done."""
        if self._path is None:
            return 0 if self.stage is Stage.ENCODE else self.num_steps
        assert self._path.point is not None
        return self._path.point.step

    def encode(self) -> None:
        """Encode a piece of what the transformer is told; after the last, draw the noise."""
        assert self._encoding is not None
        if self._began is None:
            self._began = time.perf_counter()
        try:
            next(self._encoding)
        except StopIteration as stop:
            self._encoding = None  # the frames go with it
            self._start_sampling(stop.value)

    @property
    def part(self) -> Part:
        """What the next model evaluation takes of this session."""
        assert self._path is not None
        return self._path.part

    def advance(self, velocity: Tensor) -> None:
        """Go on with the velocity [N, L, A] of `part`."""
        assert self._path is not None
        self._path.advance(velocity)
        if self._path.latents is not None:
            self._latents, self._path = self._path.latents, None
            self._end_stage(Stage.DECODE_AUDIO)

    def decode(self) -> None:
        """Decode one variation."""
        assert self._latents is not None
        index = len(self._waveforms)
        waveform = self._model.decode(self._latents[index : index + 1])
        if self._num_samples is not None:
            waveform = faded(waveform[..., : self._num_samples])
        # On the device: the host would go through 400,000 values.
        finite = waveform.isfinite().all()
        self._waveforms.append(waveform.cpu())
        if not finite:
            raise self._damaged()
        if len(self._waveforms) == len(self.seeds):
            self._latents = None
            self._end_stage(None)

    def result(self) -> Generation:
        """What came of it."""
        assert self.stage is None
        return Generation(
            waveforms=torch.cat(self._waveforms),
            sample_rate=self._model.preset.vae.sample_rate,
            seeds=self.seeds,
            timings=self.timings,
            notices=self._notices,
        )

    def out_of_memory(self) -> DeviceError:
        """What the caller is told when the device cannot hold this generation."""
        return DeviceError(
            f"{self._model.device} ran out of memory for {self.request.num_variations} variations "
            f"of {self._num_sync / SYNC_FPS:.2f} s; ask for fewer variations or a shorter clip"
        )

    def _start_sampling(self, conditions: Conditions) -> None:
        self._notices = (*self._notices, *conditions.notices)
        model, request = self._model, self.request
        noise = draw_noise(self.seeds, model.preset.dit.latent_dim, conditions.num_latents)
        self._path = Denoising(
            model.dit,
            conditions,
            uploaded(noise, model.device),
            make_sigmas(self.num_steps),
            solver=request.solver,
            guidance_scale=request.guidance(model.preset),
        )
        self._end_stage(Stage.SAMPLE)

    def _end_stage(self, following: Stage | None) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        assert self._began is not None
        assert self.stage is not None
        now = time.perf_counter()
        self.timings[self.stage], self._began = now - self._began, now
        self.stage = following

    def _damaged(self) -> ModelError:
        return ModelError(
            "the model gave values that are not finite; its weights "
            f"({self._model.source}) are damaged or of another model: fetch or convert them again"
        )


def num_samples(preset: Preset, frames: VideoFrames) -> int | None:
    """Where the sound is cut, if the clip was filled up to whole segments."""
    if not preset.whole_segments:
        return None
    shown = max(frames.num_picked, SYNC_SEGMENT_FRAMES)
    return shown * preset.vae.sample_rate // SYNC_FPS


def faded(waveform: Tensor) -> Tensor:
    """A waveform [..., S] that rises from zero in 2 ms and ends so.

    It is cut where the clip ends, maybe in the middle of a sound; and the small decoder clicks for
    two samples at a border, where zeros outside take the place of terms that cancel.
    """
    count = min(_FADE_SAMPLES, waveform.shape[-1] // 2)
    ramp = torch.linspace(0, torch.pi, count, device=waveform.device)
    gain = torch.ones(waveform.shape[-1], device=waveform.device)
    gain[:count] = (1 - ramp.cos()) / 2
    gain[-count:] = gain[:count].flip(0)
    return waveform * gain
