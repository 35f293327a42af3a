"""One generation in pieces. Its caller decides what else runs between two of them.

    stage         encode          sample                     decode_audio    None
    call          encode, until   prepare_part and advance,  decode, once a  result
                  the stage ends  once an evaluation of a    piece of
                                  window                     sound

A sound of over 15 s is made in groups of windows (`foley.windows`). The stages come again for each
group, and the first one is sampled as soon as its frames are encoded.

`FoleyPipeline.generate` runs one session alone, and a server runs many side by side. Both give the
same sound, because a piece depends on nothing but its own session.
"""

# N variations, L latent channels, A latent frames

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from foley.configs import LATENT_RATE, SYNC_FPS, SYNC_SEGMENT_FRAMES, Preset
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
from foley.sampling import NoiseLine, choose_seeds, draw_noise, make_sigmas
from foley.sound_file import append_samples, map_samples
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
from foley.windows import (
    MAX_WINDOW,
    OVERLAP,
    DecodedPiece,
    Group,
    Window,
    plan_beginning,
    plan_decoding,
    plan_group,
    plan_groups,
)

if TYPE_CHECKING:
    from foley.types import Encoding


class SoundPiece(NamedTuple):
    """A piece of a sound that is final, while the rest is still being made.

    Attributes:
        variation: counted from 1.
        number: of the piece, counted from 1; each begins where the one before it ends.
        seed: of the variation.
        start_seconds: from the start of the sound.
        waveform: float32 [1, S].
    """

    variation: int
    number: int
    seed: int
    start_seconds: float
    waveform: Tensor


class _Sound:
    """A sound that is being made, and how.

    Args:
        seed: of its noise.
        expected: how many samples it may have. Their memory is taken once, as they come: joining
            pieces, or moving what grows, would take it twice.
        path: of a file that holds the samples instead, float32; None for memory.

    Attributes:
        seed: as given.
        num_pieces: of which it consists.
        num_samples: of all of them.
        speech_seconds: in it; 0 where nobody asked.
    """

    def __init__(self, seed: int, expected: int, path: Path | None = None) -> None:
        self.seed = seed
        self.num_pieces = 0
        self.speech_seconds = 0.0
        self._path = path
        self._samples = np.empty(0 if path else expected, np.float32)
        self.num_samples = 0
        self._spliced: Tensor | None = None

    def append(self, piece: Tensor) -> None:
        """Append a piece [1, 1, S]."""
        start, stop = self.num_samples, self.num_samples + piece.shape[-1]
        samples = piece.numpy().ravel()
        if self._path is not None:
            append_samples(self._path, samples, is_first=start == 0)
        else:
            if stop > len(self._samples):  # the clip is longer than it stated
                self._samples.resize(stop, refcheck=False)
            self._samples[start:stop] = samples
        self.num_samples = stop
        self.num_pieces += 1

    def splice(self, edit: EditPlan, source: Tensor) -> None:
        """Put the complete sound in its place in what an edit starts from, float32 [C, S]."""
        self._spliced = edit.splice(self.waveform, source)
        self._samples = np.empty(0, np.float32)

    @property
    def waveform(self) -> Tensor:
        """The samples so far, float32 [1, C, S], without a copy."""
        if self._spliced is not None:
            return self._spliced
        if self._path is not None:
            return map_samples(self._path)[None]
        return torch.from_numpy(self._samples[: self.num_samples])[None, None]


_FADE_SAMPLES = 96  # 2 ms at 48 kHz


class Model(Protocol):
    """What a session uses of a loaded model."""

    preset: Preset
    device: torch.device
    source: str

    @property
    def dit(self) -> FoleyDiT:
        """The transformer."""

    def encode(self, frames: FrameStream | NoPicture, prompts: Sequence[Prompts]) -> "Encoding":
        """Compute the conditions of each layer of a clip; yields between the pieces of the work."""

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
        name_file: returns the file that holds a long sound while it is made, given its variation,
            counted from 1; None keeps all sounds in memory. Sounds that can change until the end
            are in memory in any case.

    Raises:
        ParameterError: the request names an adapter that the model does not have.

    Attributes:
        begins_early: whether the beginning of a short sound is decoded twice: first alone, as a
            finished piece, which differs from that of the whole by float noise.
        is_in_files: whether the sounds so far are in the files that `name_file` gave.
        request: the options of the generation.
        awaits_frames: whether the next call of `encode` reads frames from a stream.
        stage: the one that comes next; None when all are done.
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
        name_file: Callable[[int], Path] | None = None,
    ) -> None:
        self._name_file = name_file
        self.is_in_files = False
        self.begins_early = False
        assert (source is None) == (request.edit is None)
        self.request = request
        self._source = None if source is None else source.waveform
        self._source_notices = source.notices if source else ()
        self._source_latents: Tensor | None = None  # [1, L, A]
        self._edit: EditPlan | None = None
        self.stage: Stage | None = Stage.ENCODE
        self._sampling = request.choose_sampling(model.preset)
        drawn = choose_seeds(request.seed, request.num_sounds)
        self.seeds = drawn[:1] if request.layers else drawn
        self.num_retries = 0
        self._conditions: list[Conditions] | list[TextConditions] = []  # so far
        self._made: list[_Sound] = []  # in this attempt
        self._kept: list[_Sound] = []  # of each sound, the attempt with the least speech
        self._finished: list[SoundPiece] = []
        self._adapters = model.select_adapters(request.adapters)
        self.timings: dict[str, float] = {}
        self._model = model
        self.awaits_frames = isinstance(frames, FrameStream)
        self._clip = split_frames(frames) if isinstance(frames, VideoFrames) else frames
        self._encoding: Encoding | None = self._encode_all()
        # Where each prompt is heard, and what an edit keeps, are known at the end of the clip.
        self._waits_for_end = request.edit is not None or any(
            prompts.cues for prompts in request.list_prompts()
        )
        self._noise: NoiseLine | None = None
        self._group: Group | None = None  # which is being made
        self._num_groups = 0  # of this attempt, before it
        self._following = 0  # where the next group begins
        self._known: Tensor | None = None  # [N, L, OVERLAP], with which the next group begins
        self._path: Denoising | None = None
        self._latents: Tensor | None = None  # of the group
        self._to_decode: deque[tuple[int, DecodedPiece]] = deque()  # of which variation
        self._to_begin: deque[tuple[int, DecodedPiece]] = deque()  # before those
        self._notices: tuple[str, ...] = ()
        self._began: float | None = None

    @property
    def num_steps(self) -> int:
        """Solver steps from noise to sound, of all groups; an estimate until the clip is read."""
        return self._sampling.num_inference_steps * self._count_groups()

    @property
    def step(self) -> int:
        """Solver steps that are done."""
        done = self._num_groups * self._sampling.num_inference_steps
        if self._path is None:
            is_sampled = self.stage is Stage.DECODE_AUDIO
            return done + (self._sampling.num_inference_steps if is_sampled else 0)
        assert self._path.point is not None
        return done + self._path.point.step

    @property
    def num_tokens(self) -> int:
        """Latent frames of the next evaluation, of all sounds and halves of guidance."""
        assert self._path is not None
        return self._path.num_tokens

    @property
    def num_decoded(self) -> int:
        """Latent frames of the next piece of sound; call in the stage `DECODE_AUDIO`."""
        (_, (decoded, _)) = (self._to_begin or self._to_decode)[0]
        return decoded.stop - decoded.start

    @property
    def sample_rate(self) -> int:
        """Of the sound, Hz."""
        return self._model.preset.vae.sample_rate

    @property
    def is_encoded(self) -> bool:
        """Whether the whole clip is encoded."""
        return self._encoding is None

    def _count_groups(self) -> int:
        if self._group is not None and self._group.is_last:
            return self._num_groups + 1
        if self.stage is None:
            return self._num_groups
        num_latents = self._estimate_latents()
        if self._encoding is not None and num_latents <= MAX_WINDOW:
            return 1
        cuts = self._conditions[0].cuts if self._conditions else ()
        return max(self._num_groups + 1, sum(1 for _ in plan_groups(num_latents, cuts)))

    def _estimate_latents(self) -> int:
        """Return how many latent frames the sound has, or may have until the clip is read."""
        num_sync = self._clip.num_sync
        if isinstance(self._clip, FrameStream) and self._clip.facts is None:
            num_sync = max(num_sync, int(self._clip.expected_seconds * SYNC_FPS))
            num_sync = self._clip.total[1] if self._clip.total else num_sync
        return num_sync * LATENT_RATE // SYNC_FPS

    def encode(self) -> None:
        """Encode one piece of the clip and prompts; with enough of them, draw the noise.

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
            self.awaits_frames, collect = next(self._encoding)
        except StopIteration as stop:
            self._encoding, self.awaits_frames = None, False
            self._conditions = stop.value
            notices = (notice for layer in stop.value for notice in layer.notices)
            facts = self._find_facts()
            self._notices = (*facts.notices, *self._source_notices, *dict.fromkeys(notices))
            self._start_group()
            return
        if collect is not None and not self._waits_for_end:
            self._conditions = collect()
            self._start_group()

    def _encode_all(self) -> "Encoding":
        """Encode the clip, its prompts, and the source of an edit."""
        layers = yield from self._model.encode(self._clip, self.request.list_prompts())
        if self._source is not None:
            yield from self._encode_source(self._source, layers[0].num_latents)
        return layers

    def _encode_source(
        self, source: Tensor, num_latents: int
    ) -> Generator[tuple[bool, None], None, None]:
        """Encode the sound that is edited, in the pieces in which sounds are decoded."""
        assert self.request.edit is not None
        preset = self._model.preset
        hop = preset.vae.hop
        num_samples = count_samples(preset, self._find_facts()) or num_latents * hop
        self._edit = plan_edit(self.request.edit, source.shape[1], num_samples)
        waveform = prepare_source(source, num_latents)
        pieces = []
        groups = plan_groups(num_latents)
        for heard, kept in (piece for group in groups for piece in plan_decoding(group)):
            yield False, None
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
            assert self._group is not None
            if self._group.span.start:  # without the rounding of the steps
                assert self._known is not None
                self._latents[..., :OVERLAP] = self._known
            pieces = plan_decoding(self._group)
            beginning = plan_beginning(self._group)
            if self.begins_early and self._is_final and beginning is not None:
                self._to_begin.extend((index, beginning) for index in range(len(self.seeds)))
            self._to_decode.extend(
                (index, piece) for index in range(self.request.num_sounds) for piece in pieces
            )
            self._end_stage(Stage.DECODE_AUDIO)

    def decode(self) -> None:
        """Decode one piece of the sound of one variation; shorter sounds are one piece.

        Raises:
            ModelError: the waveform has values that are not finite.
            torch.OutOfMemoryError: the device is full.
        """
        assert self._latents is not None
        assert self._group is not None
        is_beginning = bool(self._to_begin)
        waiting = self._to_begin if is_beginning else self._to_decode
        index, (decoded, kept) = waiting.popleft()
        first = self._group.span.start
        piece = self._model.decode(
            self._latents[index : index + 1, :, decoded.start - first : decoded.stop - first]
        )
        # Checked on the device: on the host it would cost a pass over 400,000 values.
        finite = piece.isfinite().all()
        hop = piece.shape[-1] // (decoded.stop - decoded.start)
        start, stop = hop * kept.start, hop * kept.stop
        is_end = self._group.is_last and kept.stop == self._group.span.stop
        wanted = count_samples(self._model.preset, self._find_facts()) if is_end else None
        if wanted is not None:  # without the sound of the padding
            stop = wanted
        skipped = start - hop * decoded.start
        made = piece[..., skipped : skipped + stop - start].cpu()
        if not finite:
            raise self._non_finite_error()
        if self._is_faded:
            fade_ends(made, start=not start, stop=is_end)
        if is_beginning:
            self._hand_out_beginning(index, made)
            return
        self._take(index, made, start)
        if self._to_decode:
            return
        self._end_group()

    @property
    def _is_faded(self) -> bool:
        """Whether the sound fades in and out; see `count_samples`."""
        return isinstance(self._clip, NoPicture) or self._model.preset.whole_segments

    def _list_cues(self, index: int) -> Sequence[Cue]:
        """Return the cues of a variation or a layer."""
        layers = self.request.layers
        return layers[index].cues if layers else self.request.cues

    def _take(self, index: int, piece: Tensor, start: int) -> None:
        """Append a piece [1, 1, S] to the sound of an index; `start` is its first sample."""
        sample_rate = self._model.preset.vae.sample_rate
        assert self._group is not None
        is_long = self._num_groups or not self._group.is_last or len(self._group.windows) > 1
        if not self._made:
            expected = self._estimate_latents() * sample_rate // LATENT_RATE
            name_file = self._name_file if is_long and self._is_final else None
            self.is_in_files = name_file is not None
            self._made = [
                _Sound(seed, expected, name_file and name_file(variation))
                for variation, seed in enumerate(self._list_sound_seeds(), start=1)
            ]
        sound = self._made[index]
        sound.speech_seconds += self._measure_speech(piece, start)
        piece = apply_gains(piece, self._list_cues(index), start)
        sound.append(piece)
        if is_long and self._is_final:
            self._finished.append(
                SoundPiece(index + 1, sound.num_pieces, sound.seed, start / sample_rate, piece[0])
            )

    @property
    def _is_final(self) -> bool:
        """Whether a piece that is decoded stays as it is.

        Other seeds may be drawn, layers are mixed at the end, and an edit is then put in place.
        """
        return (
            self.request.avoid_speech != "retry" and self._edit is None and not self.request.layers
        )

    def _hand_out_beginning(self, index: int, piece: Tensor) -> None:
        """Hand out the beginning [1, 1, S] of the sound of an index, which comes again later."""
        piece = apply_gains(piece, self._list_cues(index))
        seed = self._list_sound_seeds()[index]
        self._finished.append(SoundPiece(index + 1, 1, seed, 0.0, piece[0]))

    def _measure_speech(self, piece: Tensor, start: int) -> float:
        """Return the seconds of speech of a piece [1, 1, S] of a sound, where it was asked for.

        Speech in what an edit keeps does not count, since no other seed changes it.
        """
        if self.request.avoid_speech == "off":
            return 0.0
        if self._edit is not None:
            made = self._edit.make_envelope()[start : start + piece.shape[-1]]
            piece = piece[..., : len(made)] * made
        return measure_speech(piece[0], self._model.preset.vae.sample_rate)

    def take_finished(self) -> list[SoundPiece]:
        """Return the pieces of a long sound that became final since the last call, in order."""
        finished, self._finished = self._finished, []
        return finished

    def _end_group(self) -> None:
        """Go on with the next group, or end the attempt after the last one."""
        assert self._group is not None
        assert self._latents is not None
        group, self._group = self._group, None
        self._num_groups += 1
        self._known, self._latents = self._latents[..., -OVERLAP:].clone(), None
        if not group.is_last:
            self._following = group.following
            self._start_group()
            return
        if self._edit is not None:
            assert self._source is not None
            for sound in self._made:
                sound.splice(self._edit, self._source)
        self._end_attempt()

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
            self._following = self._num_groups = 0
            self._start_group()
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

    def _find_facts(self) -> ClipFacts | NoPicture:
        """Return what is known of the clip, after it was encoded."""
        if isinstance(self._clip, NoPicture):
            return self._clip
        assert self._clip.facts is not None
        return self._clip.facts

    def _join_waveforms(self) -> Tensor:
        """Return the sounds, float32 [N, C, S]."""
        waveforms = [sound.waveform for sound in self._kept]
        # A long sound takes much memory, so there is no second copy of it.
        return torch.cat(waveforms) if waveforms[1:] else waveforms[0]

    def _stand_in_for_waveforms(self) -> Tensor:
        """Return zeros of the shape of the sounds, or the sounds where they are not in files."""
        if not self.is_in_files:
            return self._join_waveforms()
        return torch.zeros(1).expand(len(self._kept), 1, self._kept[0].num_samples)

    def result(self, *, reads_files: bool = True) -> Generation:
        """Return the sounds; call when `stage` is None.

        Args:
            reads_files: otherwise sounds that are in files have zeros for samples, which take no
                memory. It is for those who pass the files on.
        """
        assert self.stage is None
        seeds = tuple(sound.seed for sound in self._kept)
        is_measured = self.request.avoid_speech != "off"
        speech = tuple(sound.speech_seconds for sound in self._kept if is_measured)
        sample_rate = self._model.preset.vae.sample_rate
        generation = Generation(
            waveforms=self._join_waveforms() if reads_files else self._stand_in_for_waveforms(),
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

    def _start_group(self) -> None:
        """Start to sample the next group, or go on with encoding where it is not known yet."""
        layers = self._conditions
        group = plan_group(
            self._following, layers[0].num_latents, layers[0].cuts, is_end=self._encoding is None
        )
        known = layers[0].num_encoded
        if group is None or (self._encoding and known is not None and group.span.stop > known):
            if self.stage is not Stage.ENCODE:
                self._end_stage(Stage.ENCODE)
            return
        model, request = self._model, self.request
        span = group.span
        dim, seeds = model.preset.dit.latent_dim, self._list_sound_seeds()
        is_whole = group.is_last and span.start == 0 and len(group.windows) == 1
        if is_whole:
            noise = draw_noise(seeds, dim, span.stop)
        else:
            if span.start == 0:
                self._noise, self._known = NoiseLine(seeds, dim), None
            assert self._noise is not None
            noise = self._noise.draw(*span)
        self._group = group
        sigmas = make_sigmas(self._sampling.num_inference_steps, self._sampling.schedule_shift)
        kept: KeptLatents | None = None
        if self._edit is not None or span.start:
            latents, frames = self._find_kept(noise, span)
            kept = KeptLatents(upload(noise - latents, model.device), upload(frames, model.device))
            if self._edit is not None:
                level = self._edit.level
                noise, sigmas = level * noise + (1 - level) * latents, level * sigmas
        self._path = Denoising(
            model.dit,
            layers,
            upload(noise, model.device),
            sigmas,
            solver=self._sampling.solver,
            guidance_scale=request.choose_guidance(model.preset),
            guidance_interval=self._sampling.guidance_interval,
            windows=group.windows,
            adapters=self._adapters,
            kept=kept,
        )
        self._end_stage(Stage.SAMPLE)

    def _find_kept(self, noise: Tensor, span: Window) -> tuple[Tensor, Tensor]:
        """Return the latents [N, L, A] that are known in a span, and bool [A], where they are.

        Where a source lacks channels, they are those of the noise.
        """
        latents = noise.clone()
        frames = torch.zeros(noise.shape[-1], dtype=torch.bool)
        if self._edit is not None:
            assert self._source_latents is not None
            latents[:, : self._source_latents.shape[1]] = self._source_latents[..., slice(*span)]
            frames = self._edit.find_kept(self._conditions[0].num_latents)[slice(*span)]
        if span.start:  # the end of the group before this one
            assert self._known is not None
            latents[..., :OVERLAP], frames[:OVERLAP] = self._known.cpu(), True
        return latents, frames

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


def fade_ends(waveform: Tensor, *, start: bool = True, stop: bool = True) -> None:
    """Fade a waveform over 2 ms at its ends, in place.

    The cut at the clip's end may lie in the middle of a sound. The small decoder also clicks for
    two samples at a border, where zero padding replaces terms that would cancel.

    Args:
        waveform: [..., S], 48 kHz.
        start: whether it fades in.
        stop: whether it fades out.
    """
    count = min(_FADE_SAMPLES, waveform.shape[-1] // 2)
    ramp = torch.linspace(0, torch.pi, count, device=waveform.device)
    gain = (1 - ramp.cos()) / 2
    if start:
        waveform[..., :count] *= gain
    if stop:
        waveform[..., waveform.shape[-1] - count :] *= gain.flip(0)
