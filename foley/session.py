"""One generation in pieces. Its caller decides what else runs between two of them.

    stage         encode          sample                     decode_audio    None
    call          encode, until   prepare_part and advance,  decode, once a  result
                  the stage ends  once an evaluation of a    piece of
                                  window                     sound

`FoleyPipeline.generate` runs one session alone, and a server runs many side by side. Both give the
same sound, because a piece depends on nothing but its own session.
"""

# N variations, L latent channels, A latent frames

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foley.configs import SYNC_FPS, SYNC_SEGMENT_FRAMES, Preset
from foley.cues import apply_gains
from foley.denoise import Denoising, EvaluationPart, KeptLatents
from foley.edits import EditPlan, plan_edit, prepare_source
from foley.errors import DeviceError, ModelError
from foley.generation import Generation
from foley.layers import list_heard, mix_layers
from foley.models.adapters import AdapterSet
from foley.models.dit import FoleyDiT
from foley.models.transfer import upload
from foley.request import AdapterUse, Cue, GenerationRequest, Prompts
from foley.sampling import choose_seeds, draw_noise, make_sigmas
from foley.speech import measure_speech
from foley.types import (
    ClipFacts,
    Conditions,
    FrameStream,
    NoPicture,
    SourceSound,
    Stage,
    TextConditions,
    VideoFrames,
    split_frames,
)
from foley.windows import plan_decoding, plan_windows


@dataclass(frozen=True)
class _Attempt:
    """A sound, and how it was made.

    Attributes:
        waveform: float32 [1, C, S].
        seed: of its noise.
        speech_seconds: in it; 0 where nobody asked.
    """

    waveform: Tensor
    seed: int
    speech_seconds: float


_FADE_SAMPLES = 96  # 2 ms at 48 kHz


class Model(Protocol):
    """What a session uses of a loaded model."""

    preset: Preset
    device: torch.device
    source: str

    @property
    def dit(self) -> FoleyDiT:
        """The transformer."""

    def encode(
        self, frames: FrameStream | NoPicture, prompts: Sequence[Prompts]
    ) -> Generator[bool, None, list[Conditions] | list[TextConditions]]:
        """Compute the conditions of each layer of a clip; yields between the pieces of the work.

        It yields whether the next piece begins with reading frames.
        """

    def select_adapters(self, uses: Sequence[AdapterUse]) -> AdapterSet | None:
        """Return the adapters of a request on the device; None where nothing is changed."""

    def encode_sound(self, waveform: Tensor) -> Tensor:
        """Return latents float32 [1, L, A] of a waveform [1, 960 * A], both on the CPU.

        Channels that are missing after the last one hold noise in the model's latents.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Return waveforms float32 [N, 1, 960 * A] of latents [N, L, A]."""


class Session:
    """The state of one generation.

    Each method computes one piece. An error ends the session.

    Args:
        model: computes the pieces.
        frames: of the clip, at the sizes of the model's encoders, at once or as they come; or the
            length of a sound without a clip.
        request: the options of the generation.
        source: the sound that the request edits; None without an edit.

    Raises:
        ParameterError: the request names an adapter that the model does not have.

    Attributes:
        request: the options of the generation.
        awaits_frames: whether the next call of `encode` reads frames from a stream.
        stage: the one that comes next; None when all are done.
        num_steps: solver steps from noise to sound.
        seeds: one for each variation; with layers, the one from which theirs count up.
        num_retries: how often sampling has begun again, to avoid speech.
        timings: seconds from the start to the end of each stage that has ended, by name.
    """

    def __init__(
        self,
        model: Model,
        frames: VideoFrames | FrameStream | NoPicture,
        request: GenerationRequest,
        source: SourceSound | None = None,
    ) -> None:
        assert (source is None) == (request.edit is None)
        self.request = request
        self._source = None if source is None else source.waveform
        self._source_notices = source.notices if source else ()
        self._source_latents: Tensor | None = None  # [1, L, A]
        self._edit: EditPlan | None = None
        self.stage: Stage | None = Stage.ENCODE
        self._sampling = request.choose_sampling(model.preset)
        self.num_steps = self._sampling.num_inference_steps
        drawn = choose_seeds(request.seed, request.num_sounds)
        self.seeds = drawn[:1] if request.layers else drawn
        self.num_retries = 0
        self._conditions: list[Conditions] | list[TextConditions] = []
        self._made: list[_Attempt] = []  # of this attempt
        self._speech_seconds = 0.0  # of the next sound
        self._kept: list[_Attempt] = []  # of each sound, the one with the least speech
        self._adapters = model.select_adapters(request.adapters)
        self.timings: dict[str, float] = {}
        self._model = model
        self.awaits_frames = isinstance(frames, FrameStream)
        self._clip = split_frames(frames) if isinstance(frames, VideoFrames) else frames
        self._encoding: Generator[bool, None, list[Conditions] | list[TextConditions]] | None = (
            self._encode_all()
        )
        self._path: Denoising | None = None
        self._latents: Tensor | None = None
        self._num_decoded = 0  # pieces of the next waveform
        self._sound = _make_empty()  # of these pieces
        self._notices: tuple[str, ...] = ()
        self._began: float | None = None

    @property
    def step(self) -> int:
        """Solver steps that are done."""
        if self._path is None:
            return 0 if self.stage is Stage.ENCODE else self.num_steps
        assert self._path.point is not None
        return self._path.point.step

    def encode(self) -> None:
        """Encode one piece of the clip and prompts; after the last one, draw the noise.

        Raises:
            PromptTooLongError: a prompt has more tokens than the text encoder takes.
            ParameterError: a cue or a range starts after the end of the sound, or an edit does not
                fit its source.
            torch.OutOfMemoryError: the device is full.
        """
        assert self._encoding is not None
        if self._began is None:
            self._began = time.perf_counter()
        try:
            self.awaits_frames = next(self._encoding)
        except StopIteration as stop:
            self._encoding, self.awaits_frames = None, False
            self._start_sampling(stop.value)

    def _encode_all(
        self,
    ) -> Generator[bool, None, list[Conditions] | list[TextConditions]]:
        """Encode the clip, its prompts, and the source of an edit."""
        layers = yield from self._model.encode(self._clip, self.request.list_prompts())
        if self._source is not None:
            yield from self._encode_source(self._source, layers[0].num_latents)
        return layers

    def _encode_source(self, source: Tensor, num_latents: int) -> Generator[bool, None, None]:
        """Encode the sound that is edited, in the pieces in which sounds are decoded."""
        assert self.request.edit is not None
        preset = self._model.preset
        hop = preset.vae.hop
        num_samples = count_samples(preset, self._find_facts()) or num_latents * hop
        self._edit = plan_edit(self.request.edit, source.shape[1], num_samples)
        waveform = prepare_source(source, num_latents)
        pieces = []
        for heard, kept in plan_decoding(num_latents):
            yield False
            latents = self._model.encode_sound(waveform[:, hop * heard.start : hop * heard.stop])
            pieces.append(latents[..., kept.start - heard.start : kept.stop - heard.start])
        self._source_latents = torch.cat(pieces, -1)

    def prepare_part(self) -> EvaluationPart:
        """Return this session's part of the next model evaluation; call in the stage `SAMPLE`."""
        assert self._path is not None
        return self._path.prepare_part()

    def advance(self, velocity: Tensor) -> None:
        """Take the velocity, in the shape of its latents, of the part that was prepared last."""
        assert self._path is not None
        self._path.advance(velocity)
        if self._path.latents is not None:
            self._latents, self._path = self._path.latents, None
            self._end_stage(Stage.DECODE_AUDIO)

    def decode(self) -> None:
        """Decode one piece of the sound of one variation; shorter sounds are one piece.

        Raises:
            ModelError: the waveform has values that are not finite.
            torch.OutOfMemoryError: the device is full.
        """
        assert self._latents is not None
        index = len(self._made)
        pieces = plan_decoding(self._latents.shape[-1])
        decoded, kept = pieces[self._num_decoded]
        piece = self._model.decode(
            self._latents[index : index + 1, :, decoded.start : decoded.stop]
        )
        # Checked on the device: on the host it would cost a pass over 400,000 values.
        finite = piece.isfinite().all()
        if len(pieces) == 1:
            made = self._finish(piece).cpu()
        else:
            # Long sounds are put together on the host, where their memory is.
            hop = piece.shape[-1] // (decoded.stop - decoded.start)
            first = hop * (kept.start - decoded.start)
            count = hop * (kept.stop - kept.start)
            made = piece[..., first : first + count].cpu()
        if not finite:
            raise self._non_finite_error()
        start = kept.start * self._model.preset.vae.hop
        self._measure_speech(made, start)
        made = apply_gains(made, self._list_cues(index), start)
        if len(pieces) > 1:
            self._append(made)
            self._num_decoded += 1
            if self._num_decoded < len(pieces):
                return
            made, self._num_decoded = self._finish_long(), 0
        if self._edit is not None:
            assert self._source is not None
            made = self._edit.splice(made, self._source)
        self._made.append(_Attempt(made, self._list_sound_seeds()[index], self._speech_seconds))
        self._speech_seconds = 0.0
        if len(self._made) == self.request.num_sounds:
            self._latents = None
            self._end_attempt()

    def _list_cues(self, index: int) -> Sequence[Cue]:
        """Return the cues of a variation or a layer."""
        layers = self.request.layers
        return layers[index].cues if layers else self.request.cues

    def _measure_speech(self, piece: Tensor, start: int) -> None:
        """Add the speech of a piece [1, 1, S] of a sound to that of the pieces before it.

        Speech in what an edit keeps does not count, since no other seed changes it.
        """
        if self.request.avoid_speech != "off":
            sample_rate = self._model.preset.vae.sample_rate
            if self._edit is not None:
                made = self._edit.make_envelope()[start : start + piece.shape[-1]]
                piece = piece[..., : len(made)] * made
            self._speech_seconds += measure_speech(piece[0], sample_rate)

    def _end_attempt(self) -> None:
        """Keep the sounds with the least speech, and try again if there is some left."""
        pairs = zip(self._kept or self._made, self._made, strict=True)
        self._kept = [min(pair, key=lambda sound: sound.speech_seconds) for pair in pairs]
        self._made = []
        has_speech = any(sound.speech_seconds for sound in self._kept)
        if (
            self.request.avoid_speech == "retry"
            and has_speech
            and self.num_retries < self.request.max_retries
        ):
            self.num_retries += 1
            self._start_path()
            self._end_stage(Stage.SAMPLE)
            return
        self._conditions = []
        self._end_stage(None)

    def _list_sound_seeds(self) -> tuple[int, ...]:
        """Return the seeds of this attempt. Those that layers give themselves stay."""
        count = self.request.num_sounds
        drawn = choose_seeds(self.seeds[0] + self.num_retries * count, count)
        return self._choose_layer_seeds(drawn) or drawn

    def _choose_layer_seeds(self, drawn: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(
            seed if layer.seed is None else layer.seed
            for seed, layer in zip(drawn, self.request.layers, strict=False)
        )

    def _describe_speech(self) -> tuple[str, ...]:
        """Return a sentence about each sound that was made more than once."""
        if not self.num_retries:
            return ()
        what = "layer" if self.request.layers else "variation"
        return tuple(
            f"Of {self.num_retries + 1} attempts to make {what} {number}, that of seed "
            f"{sound.seed} has the least speech: {sound.speech_seconds:.2f} s."
            for number, sound in enumerate(self._kept, start=1)
        )

    def _finish(self, waveform: Tensor) -> Tensor:
        """Return the waveform without the sound of the padding."""
        num_samples = count_samples(self._model.preset, self._find_facts())
        return waveform if num_samples is None else fade(waveform[..., :num_samples])

    def _append(self, piece: Tensor) -> None:
        """Append a piece [1, 1, S] to the sound, whose memory grows in place."""
        start = len(self._sound)
        self._sound.resize(start + piece.shape[-1], refcheck=False)
        self._sound[start:] = piece.numpy().ravel()

    def _finish_long(self) -> Tensor:
        """Return the sound of all pieces without that of the padding."""
        waveform, self._sound = torch.from_numpy(self._sound)[None, None], _make_empty()
        num_samples = count_samples(self._model.preset, self._find_facts())
        if num_samples is None:
            return waveform
        fade_ends(waveform[..., :num_samples])
        return waveform[..., :num_samples]

    def _find_facts(self) -> ClipFacts | NoPicture:
        """Return what is known of the clip, after it was encoded."""
        if isinstance(self._clip, NoPicture):
            return self._clip
        assert self._clip.facts is not None
        return self._clip.facts

    def result(self) -> Generation:
        """Return the sounds; call when `stage` is None."""
        assert self.stage is None
        seeds = tuple(sound.seed for sound in self._kept)
        is_measured = self.request.avoid_speech != "off"
        speech = tuple(sound.speech_seconds for sound in self._kept if is_measured)
        sample_rate = self._model.preset.vae.sample_rate
        waveforms = [sound.waveform for sound in self._kept]
        generation = Generation(
            # A long sound takes much memory, so there is no second copy of it.
            waveforms=torch.cat(waveforms) if waveforms[1:] else waveforms[0],
            sample_rate=sample_rate,
            seeds=seeds,
            timings=self.timings,
            trimmed=self._find_facts().trimmed,
            model=self._model.preset.name,
            request=self.request,
            notices=(*self._notices, *self._describe_speech()),
            speech_seconds=speech,
        )
        if not self.request.layers:
            return generation
        layers = self.request.layers
        mixed = mix_layers(generation.waveforms, layers)
        return replace(
            generation,
            waveforms=mixed.mix[None],
            stems=mixed.stems,
            seeds=self.seeds,
            layer_seeds=seeds,
            speech_seconds=(max(speech[i] for i in list_heard(layers)),) if speech else (),
            layer_speech_seconds=speech,
            notices=(*generation.notices, *mixed.notices),
        )

    def make_memory_error(self) -> DeviceError:
        """Return the error for the caller when the device cannot hold this generation."""
        what = "layers" if self.request.layers else "variations"
        return DeviceError(
            f"{self._model.device} ran out of memory for {self.request.num_sounds} {what} "
            f"of {self._clip.num_sync / SYNC_FPS:.2f} s; ask for fewer {what} or a shorter clip"
        )

    def _start_sampling(self, layers: list[Conditions] | list[TextConditions]) -> None:
        notices = (notice for layer in layers for notice in layer.notices)
        facts = self._find_facts()
        self._notices = (*facts.notices, *self._source_notices, *dict.fromkeys(notices))
        self._conditions = layers
        self._start_path()
        self._end_stage(Stage.SAMPLE)

    def _start_path(self) -> None:
        """Draw the noise of this attempt."""
        layers = self._conditions
        model, request = self._model, self.request
        num_latents = layers[0].num_latents
        noise = draw_noise(self._list_sound_seeds(), model.preset.dit.latent_dim, num_latents)
        sigmas = make_sigmas(self.num_steps, self._sampling.schedule_shift)
        kept: KeptLatents | None = None
        if self._edit is not None:
            level = self._edit.level
            latents = self._complete_latents(noise)
            kept = KeptLatents(
                upload(noise - latents, model.device),
                upload(self._edit.find_kept(num_latents), model.device),
            )
            noise, sigmas = level * noise + (1 - level) * latents, level * sigmas
        self._path = Denoising(
            model.dit,
            layers,
            upload(noise, model.device),
            sigmas,
            solver=self._sampling.solver,
            guidance_scale=request.choose_guidance(model.preset),
            guidance_interval=self._sampling.guidance_interval,
            windows=plan_windows(num_latents),
            adapters=self._adapters,
            kept=kept,
        )

    def _complete_latents(self, noise: Tensor) -> Tensor:
        """Return the source's latents [N, L, A], with those of the noise in missing channels."""
        assert self._source_latents is not None
        latents = self._source_latents.expand(len(noise), -1, -1)
        return torch.cat([latents, noise[:, latents.shape[1] :]], dim=1)

    def _end_stage(self, following: Stage | None) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        assert self._began is not None
        assert self.stage is not None
        now = time.perf_counter()
        self.timings[self.stage] = self.timings.get(self.stage, 0.0) + now - self._began
        self._began = now
        self.stage = following

    def _non_finite_error(self) -> ModelError:
        return ModelError(
            "the model gave values that are not finite; its weights "
            f"({self._model.source}) are damaged or of another model: fetch or convert them again"
        )


def _make_empty() -> npt.NDArray[np.float32]:
    return np.empty(0, np.float32)


def count_samples(preset: Preset, clip: VideoFrames | ClipFacts | NoPicture) -> int | None:
    """Return the length in samples to which the sound is cut; None for models that need no cut.

    Clips of presets with `whole_segments`, clips that are too short for a segment, and sounds
    without a clip are padded to whole segments, and the sound of the padding is cut off.

    Args:
        preset: of the model.
        clip: its frames or what is known of them, or the length of a sound without a clip.
    """
    if isinstance(clip, NoPicture):
        return round(clip.duration_seconds * preset.vae.sample_rate)
    if not preset.whole_segments and clip.num_picked >= SYNC_SEGMENT_FRAMES:
        return None
    return clip.num_picked * preset.vae.sample_rate // SYNC_FPS


def fade(waveform: Tensor) -> Tensor:
    """Return the waveform with a fade of 2 ms at both ends.

    The cut at the clip's end may lie in the middle of a sound. The small decoder also clicks for
    two samples at a border, where zero padding replaces terms that would cancel.

    Args:
        waveform: [..., S], 48 kHz.
    """
    made = waveform.clone()
    fade_ends(made)
    return made


def fade_ends(waveform: Tensor) -> None:
    """Do as `fade`, in place.

    Args:
        waveform: [..., S], 48 kHz.
    """
    count = min(_FADE_SAMPLES, waveform.shape[-1] // 2)
    ramp = torch.linspace(0, torch.pi, count, device=waveform.device)
    gain = (1 - ramp.cos()) / 2
    waveform[..., :count] *= gain
    waveform[..., waveform.shape[-1] - count :] *= gain.flip(0)
