"""FoleyPipeline: a clip and a prompt in, waveforms out."""

# N variations, A latent frames

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, overload

import torch
from torch import Tensor
from transformers import BatchEncoding

from foley.adapter_files import find_files
from foley.adapters import AdapterInfo, AdapterStore
from foley.conditioning import ClipTokens, count_pieces, encode_clip, encode_text, tokenize
from foley.configs import (
    LATENT_RATE,
    MAX_TEXT_TOKENS,
    PRESETS,
    SYNC_FPS,
    SYNC_SEGMENT_FRAMES,
    Preset,
)
from foley.cues import split_regions
from foley.denoise import VelocityModel
from foley.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    ParameterError,
    RequestError,
)
from foley.generation import (
    Generation,
    SourceClip,
    name_source,
    read_clip,
    store_clip,
)
from foley.gpu.encoder_batches import Cut
from foley.gpu.matrix import Precision
from foley.gpu.memory_modes import Memory, check_options, choose_loading_device
from foley.gpu.placement import place
from foley.media.clock import num_latents
from foley.models.adapters import AdapterSet
from foley.models.embeddings import SYNC_POSITIONS
from foley.models.synchformer import count_segments
from foley.plans import Quality, Solver
from foley.request import (
    AdapterUse,
    AvoidSpeech,
    Cue,
    GenerationRequest,
    Layer,
    Prompts,
    check_part,
)
from foley.session import Session, SoundPiece
from foley.sound_file import SoundFolder
from foley.types import (
    Conditions,
    FramePiece,
    FrameStream,
    NoPicture,
    Region,
    SourceSound,
    Stage,
    TextConditions,
    VideoFrames,
    split_frames,
)
from foley.weights.components import Components
from foley.weights.licences import get_licence
from foley.weights.selection import choose_device, load_preset
from foley.windows import plan_windows

if TYPE_CHECKING:
    from foley.media.source import MediaLimits
    from foley.types import Encoding

logger = logging.getLogger(__name__)

# Frames at 8 and at 25 fps of the clips to warm up with, and their guidance. Compiled code serves
# every size except 1, hence the clip of one frame and one segment without guidance.
_WARM_UPS = ((8, 25, 4.5), (8, 25, 1.0), (1, SYNC_SEGMENT_FRAMES, 1.0), (64, 200, 4.5))

# Clips of a list that are sampled together. On a GPU more of them are hardly faster.
_CLIPS_AT_ONCE = 16


@dataclass(frozen=True)
class Progress:
    """The progress of a generation.

    Attributes:
        stage: the current one: `ENCODE`, `SAMPLE` or `DECODE_AUDIO`.
        step: steps of the stage that are done.
        num_steps: steps of the stage.
    """

    stage: Stage
    step: int
    num_steps: int


OnProgress = Callable[[Progress], None]
OnSound = Callable[[SoundPiece], None]
AnyClip = TypeVar("AnyClip", bound=SourceClip | VideoFrames)


class FoleyPipeline:
    """A loaded model on one device.

    Args:
        components: the modules with their weights.
        device: where they run.
        precision: of the transformer's matrix products on a GPU, bf16 or fp8.
        memory: which weights stay on a GPU: full, balanced, low, or auto.

    Attributes:
        preset: the architecture.
        device: where it runs.
        source: where the weights came from, for people to read.
        revision: of the weights' repository; empty if unknown.
        licence: of the weights.
        dit: the transformer, on the device.
        memory: full, balanced or low.
        precision: bf16 or fp8.

    Raises:
        ConfigError: options that do not fit the device.
        DeviceError: the device's memory is too small.
    """

    def __init__(
        self,
        components: Components,
        device: torch.device,
        *,
        precision: Precision = "bf16",
        memory: Memory = "auto",
    ) -> None:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.preset = components.preset
        self.device = device
        self._load_on: Callable[[str], Self] | None = None  # loads the same model again
        self.source = components.source
        self.revision = components.revision
        self.licence = get_licence(components.preset.name)
        self._tokenizer = components.tokenizer
        self._tokenizing = threading.Lock()  # padding is part of a tokenizer's own state
        try:
            with self.use_device():
                placed = place(components, device, precision=precision, memory=memory)
        except torch.OutOfMemoryError as error:
            raise _memory_error(device, self.preset) from error
        self.dit, self.memory, self.precision = placed.dit, placed.memory, placed.precision
        self._step = placed.step
        self._decode_sound, self._encoders = placed.decode_sound, placed.encoders
        self._encode_sound = placed.encode_sound
        self._adapters = AdapterStore(self.dit, self.preset.name, device)
        self._adapter_files: dict[str, Path] = {}
        logger.info("loaded %s", self.description)

    def __repr__(self) -> str:
        return f"<FoleyPipeline: {self.preset.name} on {self.device}>"

    @classmethod
    def from_preset(
        cls,
        name: str = "auto",
        device: str = "auto",
        weights: str | Path | None = None,
        *,
        precision: Precision = "bf16",
        memory: Memory = "auto",
    ) -> Self:
        """Load the pipeline of a preset.

        Args:
            name: tiny, xl, xxl or auto. auto takes the preset that `weights` holds; without
                `weights`, the largest one that was downloaded and fits the GPU, else tiny.
            device: auto, cpu, cuda or cuda:N.
            weights: directory of official files, or of files in the layout of `foley convert`;
                without it, the directory that `foley download` fills.
            precision: of the transformer's matrix products on a GPU, bf16 or fp8. The CPU uses
                float32.
            memory: full keeps all weights on the GPU, balanced only the transformer, low a part of
                it; auto takes the first of these that fits.

        Raises:
            ConfigError: the preset is unknown, it needs weights that are missing, or options do
                not fit the device.
            CheckpointError: the weights are incomplete or do not fit the preset.
            DeviceError: there is no such device, or its memory is too small.
        """
        chosen = choose_device(device)
        check_options(chosen, precision, memory)
        root = Path(weights) if weights is not None else None
        try:
            components = load_preset(name, root, choose_loading_device(chosen, memory))
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise DeviceError(
                f"{chosen} has too little free memory to load preset {name}; stop what else uses "
                "it, or use memory balanced or low"
            ) from error
        pipeline = cls(components, chosen, precision=precision, memory=memory)
        pipeline._load_on = partial(
            cls.from_preset,
            # auto could choose another one for another device
            name if weights is not None else pipeline.preset.name,
            weights=weights,
            precision=precision,
            memory=memory,
        )
        return pipeline

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str = "auto",
        *,
        precision: Precision = "bf16",
        memory: Memory = "auto",
    ) -> Self:
        """Load the pipeline of a preset, or of a folder of weights.

        Args:
            source: tiny, xl, xxl or auto; or a folder of official files, or of files in the layout
                of `foley convert`.
            device: as for `from_preset`, and so are the others.
            precision: bf16 or fp8.
            memory: full, balanced, low or auto.

        Raises:
            ConfigError: as for `from_preset`.
            CheckpointError: the folder holds no complete model, or there is no such folder.
            DeviceError: as for `from_preset`.
        """
        if str(source) in (*PRESETS, "auto"):
            return cls.from_preset(str(source), device, precision=precision, memory=memory)
        if not Path(source).is_dir():
            raise CheckpointError(
                f"{source} is neither a folder nor a preset; the presets are {', '.join(PRESETS)}, "
                "and `foley download` fetches the weights of xl and xxl"
            )
        return cls.from_preset("auto", device, source, precision=precision, memory=memory)

    def to(self, device: str | torch.device) -> Self:
        """Move the pipeline to another device, and return it.

        The weights are loaded again, since each device stores them in another way.

        Args:
            device: auto, cpu, cuda or cuda:N.

        Raises:
            ConfigError: the pipeline was not made by `from_preset` or `from_pretrained`, or its
                options do not fit the device.
            DeviceError: there is no such device, or its memory is too small.
        """
        chosen = choose_device(str(device))
        if chosen == self.device or (chosen.type == self.device.type and chosen.index is None):
            return self
        if self._load_on is None:
            raise ConfigError(
                f"this pipeline was made from components on {self.device}, and cannot be moved; "
                f"make another one on {chosen}"
            )
        files = self._adapter_files
        self.__dict__.update(vars(self._load_on(str(device))))
        for name, path in files.items():
            self.load_adapter(path, name)
        return self

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The adapters that a request may ask for, by name."""
        return self._adapters.infos

    def load_adapter(self, path: str | Path, name: str | None = None) -> AdapterInfo:
        """Read an adapter and offer it; generations that run are not disturbed.

        Args:
            path: a .safetensors file in the conventions of diffusers, of this preset.
            name: by which requests ask for it; None takes the file's, without the suffix.

        Raises:
            CheckpointError: the file does not fit the model, or cannot be read.
            ConfigError: the name cannot be one.
        """
        info = self._adapters.load(Path(path), name)
        self._adapter_files[info.name] = Path(path)
        return info

    def load_adapters(self, places: str) -> tuple[AdapterInfo, ...]:
        """Load all adapters of a folder, or of a list; returns what is known of each.

        Args:
            places: a folder, or files and folders separated by commas.

        Raises:
            CheckpointError: a file does not fit the model, or cannot be read.
            ConfigError: there is nothing at a place, two files have one name, or a file's name
                cannot be an adapter's.
        """
        return tuple(self.load_adapter(path) for path in find_files(places))

    def select_adapters(self, uses: Sequence[AdapterUse]) -> AdapterSet | None:
        """Return the adapters of a request on the device; None where nothing is changed.

        Args:
            uses: of the request.

        Raises:
            ParameterError: one is unknown; the message lists the known ones.
        """
        return self._adapters.select(uses)

    @property
    def description(self) -> str:
        """One line that says which model this is."""
        return f"preset {self.preset.name} on {self.device}, weights from {self.source}"

    @overload
    def __call__(
        self,
        video: SourceClip | VideoFrames | None,
        prompt: str = ...,
        negative_prompt: str = "noisy, harsh",
        guidance_scale: float | None = ...,
        num_inference_steps: int | None = ...,
        solver: Solver | None = ...,
        seed: int | None = ...,
        num_variations: int = ...,
        *,
        schedule_shift: float | None = ...,
        guidance_interval: float | None = ...,
        quality: Quality | None = ...,
        duration_seconds: float | None = ...,
        cues: Sequence[Cue | Mapping[str, object]] = ...,
        layers: Sequence[Layer | Mapping[str, object]] = ...,
        edit: Mapping[str, object] | None = ...,
        adapters: Sequence[AdapterUse | Mapping[str, object]] = ...,
        avoid_speech: AvoidSpeech = ...,
        max_retries: int = ...,
        trim: bool = ...,
        start_seconds: float = ...,
        frame_rate: float | None = ...,
        on_progress: OnProgress | None = ...,
        on_sound: OnSound | None = ...,
    ) -> Generation: ...

    @overload
    def __call__(
        self,
        video: list[AnyClip],
        prompt: str | list[str] = ...,
        negative_prompt: str = "noisy, harsh",
        guidance_scale: float | None = ...,
        num_inference_steps: int | None = ...,
        solver: Solver | None = ...,
        seed: int | None = ...,
        num_variations: int = ...,
        *,
        schedule_shift: float | None = ...,
        guidance_interval: float | None = ...,
        quality: Quality | None = ...,
        duration_seconds: float | None = ...,
        cues: Sequence[Cue | Mapping[str, object]] = ...,
        layers: Sequence[Layer | Mapping[str, object]] = ...,
        edit: Mapping[str, object] | None = ...,
        adapters: Sequence[AdapterUse | Mapping[str, object]] = ...,
        avoid_speech: AvoidSpeech = ...,
        max_retries: int = ...,
        trim: bool = ...,
        start_seconds: float = ...,
        frame_rate: float | None = ...,
        on_progress: OnProgress | None = ...,
        on_sound: None = ...,
    ) -> list[Generation]: ...

    def __call__(
        self,
        video: SourceClip | VideoFrames | list[AnyClip] | None,
        prompt: str | list[str] = "",
        negative_prompt: str = "noisy, harsh",
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        solver: Solver | None = None,
        seed: int | None = None,
        num_variations: int = 1,
        *,
        schedule_shift: float | None = None,
        guidance_interval: float | None = None,
        quality: Quality | None = None,
        duration_seconds: float | None = None,
        cues: Sequence[Cue | Mapping[str, object]] = (),
        layers: Sequence[Layer | Mapping[str, object]] = (),
        edit: Mapping[str, object] | None = None,
        adapters: Sequence[AdapterUse | Mapping[str, object]] = (),
        avoid_speech: AvoidSpeech = "off",
        max_retries: int = 2,
        trim: bool = False,
        start_seconds: float = 0.0,
        frame_rate: float | None = None,
        on_progress: OnProgress | None = None,
        on_sound: OnSound | None = None,
    ) -> Generation | list[Generation]:
        """Generate the sounds for a clip, for each of several, or for a prompt alone.

        A clip may last up to 10 min. One of over 15 s is decoded while it is encoded, so that its
        frames take no more memory than those of a short one.

        Args:
            video: path of the clip, its bytes, a file that is open in binary mode, or its frames.
                A still picture with `duration_seconds` is a clip too.
                With None the prompt alone decides. With a list of these, the result is a list of
                the same length; up to 16 clips are sampled together.
            prompt: what should be heard; at most 2000 characters. A list of clips has one for all,
                or a list with one for each.
            negative_prompt: what should not be heard; at most 2000 characters.
            guidance_scale: 1 to 20, where 1 switches guidance off; None takes the preset's default.
            num_inference_steps: solver steps, 1 to 200; None takes the preset's default.
            solver: euler, heun, midpoint, rk4 or ab2; None takes euler.
            seed: of the first variation, 0 to 2**63 - 1; None draws one.
            num_variations: number of sounds, 1 to 8.
            schedule_shift: 1 to 20; larger values place more of the steps near pure noise. None
                takes equal steps.
            guidance_interval: lowest noise level, 0 to 1, at which a step is guided; None guides
                all steps.
            quality: reference, balanced or fast, which choose steps, solver, shift and interval
                together; None leaves the choice to these.
            duration_seconds: 0.1 to 3600: length of a sound without a clip, or how long a still
                picture is shown (PNG, JPEG, WebP, BMP or TIFF). A video decides its own length.
            cues: prompts for ranges of time in place of `prompt`, which do not overlap: mappings
                with start_seconds, stop_seconds and prompt, and the other fields of
                `foley.request.Cue`.
            layers: up to 8 sounds for the same clip, which are mixed: mappings with prompt, and
                the other fields of `foley.request.Layer`. They take the place of `prompt`, `cues`
                and `num_variations`. The result's `stems` has each of them.
            edit: a sound to start from: a mapping with source, and ranges or strength as in
                `foley.request.Edit`. The source is original, for the clip's own sound; or a path,
                bytes, a file that is open in binary mode, or a `Generation` of one variation.
            avoid_speech: off; report, which measures the result's `speech_seconds`; or retry, which
                also draws other seeds while there is speech, and returns the cleanest sounds.
            max_retries: how often other seeds are drawn, 1 to 8; only with avoid_speech retry.
            trim: use the first 10 min of a longer clip instead of refusing it.
            start_seconds: where the used part of each clip begins, 0 to 86400. `save` then writes
                that part.
            frame_rate: 1 to 240 pictures per second, for a zip of numbered pictures or a pattern
                of their paths, such as frames/%04d.png.
            on_progress: called after each step, of each clip; an error that it raises ends the
                work.
            on_sound: called with each piece of about 8 s of a sound of over 15 s as soon as it is
                final, while the rest is made. Only with one clip. There are no pieces with layers,
                which are mixed at the end, nor with avoid_speech retry.

        Raises:
            RequestError: a clip or an option cannot be used.
            DeviceError: the device ran out of memory; the pipeline stays usable.
            ModelError: the model gave values that are not finite.
        """
        prompts = _list_prompts(video, prompt)
        named, given = name_source(edit)
        if isinstance(video, list) and on_sound is not None:
            raise ParameterError(
                "on_sound: only with one clip; leave it out, or give the clip alone"
            )
        requests = [
            GenerationRequest.parse(
                prompt=text,
                negative_prompt=negative_prompt,
                guidance_scale=guidance_scale,
                num_inference_steps=num_inference_steps,
                solver=solver,
                seed=seed,
                num_variations=num_variations,
                schedule_shift=schedule_shift,
                guidance_interval=guidance_interval,
                quality=quality,
                duration_seconds=duration_seconds,
                cues=cues,
                layers=layers,
                edit=named,
                adapters=adapters,
                avoid_speech=avoid_speech,
                max_retries=max_retries,
            )
            for text in prompts
        ]
        if requests:
            duration_seconds = requests[0].duration_seconds  # a text became a number
        if video is None:
            if duration_seconds is None:
                raise ParameterError(
                    "video: missing; give a clip, or duration_seconds and a prompt for a sound "
                    "without one"
                )
            requests[0].check_without_clip()
            sound = NoPicture(duration_seconds=duration_seconds)
            source = given.read(None) if given else None
            return self.generate(sound, requests[0], on_progress, source, on_sound)
        requests = [request.of_clip() for request in requests]
        read = partial(
            self._read,
            trim=trim,
            start_seconds=start_seconds,
            frame_rate=frame_rate,
            duration_seconds=duration_seconds,
        )
        if not isinstance(video, list):
            clip = read(video)
            source = given.read(clip.clip) if given else None
            made_alone = self.generate(clip.frames, requests[0], on_progress, source, on_sound)
            return clip.describe(made_alone)
        results: list[Generation] = []
        for first in range(0, len(video), _CLIPS_AT_ONCE):
            part = slice(first, first + _CLIPS_AT_ONCE)
            clips = [read(clip) for clip in video[part]]
            made = self.generate_together(
                [clip.frames for clip in clips],
                requests[part],
                on_progress,
                [given.read(clip.clip) for clip in clips] if given else None,
            )
            results += [clip.describe(result) for clip, result in zip(clips, made, strict=True)]
        return results

    def _read(
        self,
        video: SourceClip | VideoFrames,
        *,
        trim: bool,
        start_seconds: float,
        frame_rate: float | None,
        duration_seconds: float | None,
    ) -> "_ReadClip":
        """Return a clip with its frames."""
        check_part(start_seconds, frame_rate, duration_seconds)
        if isinstance(video, VideoFrames):
            if duration_seconds is not None:
                raise ParameterError(
                    "duration_seconds: only for a sound without a clip or for a still picture, and "
                    "frames decide their own length; leave it out, or give None as the video"
                )
            if start_seconds or frame_rate is not None:
                raise ParameterError(
                    "start_seconds and frame_rate are for clips; leave them out with frames"
                )
            return _ReadClip(frames=video)
        # Imported here, so that frames can be used on a machine without FFmpeg's libraries.
        from foley.media.prepare import prepare_clip

        start = time.perf_counter()
        clip = read_clip(video)
        with store_clip(clip) as path, tempfile.TemporaryDirectory(prefix="foley-") as folder:
            used = prepare_clip(
                path,
                Path(folder, "clip"),
                start_seconds=start_seconds,
                frame_rate=frame_rate,
                duration_seconds=duration_seconds,
            )
            if used != path:
                clip = used.read_bytes()
            frames = self.open_video(used, trim=trim)
        return _ReadClip(frames=frames, clip=clip, seconds=time.perf_counter() - start)

    def decode_video(
        self, path: Path, *, trim: bool = False, limits: "MediaLimits | None" = None
    ) -> VideoFrames:
        """Decode the frames of a clip at the sizes of this preset's encoders.

        Memory grows with the clip's length, by 10 MB a second with the official models.

        Args:
            path: of the clip.
            trim: leave out what is past the limit, instead of refusing the clip.
            limits: on length, size and codecs; 10 min by default.

        Raises:
            VideoError: the clip cannot be used.
        """
        # Imported here, so that frames can be used on a machine without FFmpeg's libraries.
        from foley.media.decode import decode_frames

        return decode_frames(path, **self._describe_decoding(trim, limits))

    def open_video(
        self, path: Path, *, trim: bool = False, limits: "MediaLimits | None" = None
    ) -> VideoFrames | FrameStream:
        """Decode the frames of a clip of up to 15 s, and the first ones of a longer one.

        Those of the longer one are decoded further as they are used. Its file may be removed, but
        not changed, meanwhile.

        Args:
            path: of the clip.
            trim: leave out what is past the limit, instead of refusing the clip.
            limits: on length, size and codecs; 10 min by default.

        Raises:
            VideoError: the clip cannot be used. Of a longer one this may show later.
        """
        from foley.media.decode import decode_pieces, join_piece

        pieces = decode_pieces(path, **self._describe_decoding(trim, limits))
        first = [next(pieces)]
        if first[0].facts is not None:
            return join_piece(first[0])

        def all_pieces() -> Iterator[FramePiece]:
            yield first.pop()
            yield from pieces

        return FrameStream(all_pieces())

    def _describe_decoding(self, trim: bool, limits: "MediaLimits | None") -> dict[str, Any]:
        """Return the arguments of `decode_frames` and `decode_pieces` for this preset."""
        return {
            "visual_size": self.preset.vision.image_size,
            "sync_size": self.preset.synchformer.image_size,
            "limits": limits,
            "trim": trim,
            "exact_clock": self.preset.exact_clock,
            "whole_segments": self.preset.whole_segments,
        }

    def use_device(self) -> AbstractContextManager[object]:
        """Return a context in which the pipeline's GPU is the current device.

        Kernels that are launched without a tensor's device go to the current one.
        """
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def generate(
        self,
        frames: VideoFrames | FrameStream | NoPicture,
        request: GenerationRequest,
        on_progress: OnProgress | None = None,
        source: SourceSound | None = None,
        on_sound: OnSound | None = None,
    ) -> Generation:
        """Generate the sounds for decoded frames, or without a clip.

        Args:
            frames: at the sizes of the preset's encoders, as `decode_video` or `open_video` return
                them; or the length of a sound without a clip.
            request: the options.
            on_progress: called after each step; an error that it raises ends the work.
            source: the sound that the request edits; None without an edit.
            on_sound: as for a call of the pipeline.

        Raises:
            PromptTooLongError: a prompt has more tokens than the text encoder takes.
            ParameterError: the edit does not fit its source.
            DeviceError: the device ran out of memory; the pipeline stays usable.
            ModelError: the model gave values that are not finite.
        """
        with self.use_device(), torch.inference_mode():
            return self._run_sessions([frames], [request], on_progress, [source], on_sound)[0]

    def generate_together(
        self,
        frames: Sequence[VideoFrames | FrameStream | NoPicture],
        requests: Sequence[GenerationRequest],
        on_progress: OnProgress | None = None,
        sources: Sequence[SourceSound | None] | None = None,
    ) -> list[Generation]:
        """Generate the sounds for several clips in one batch.

        Args:
            frames: of each clip, as for `generate`. Memory grows with their number.
            requests: the options for each clip; all have the same steps, solver, schedule and
                guidance.
            on_progress: as for `generate`; steps of `ENCODE` and `DECODE_AUDIO` are those of a
                clip.
            sources: of each request the sound that it edits; None where none has an edit.

        Raises:
            PromptTooLongError: a prompt has more tokens than the text encoder takes.
            ParameterError: an edit does not fit its source.
            DeviceError: the device ran out of memory; the pipeline stays usable.
            ModelError: the model gave values that are not finite.
        """
        if not requests:
            return []
        with self.use_device(), torch.inference_mode():
            return self._run_sessions(
                frames, requests, on_progress, sources or [None] * len(requests)
            )

    def _run_sessions(
        self,
        frames: Sequence[VideoFrames | FrameStream | NoPicture],
        requests: Sequence[GenerationRequest],
        on_progress: OnProgress | None,
        sources: Sequence[SourceSound | None],
        on_sound: OnSound | None = None,
    ) -> list[Generation]:
        with SoundFolder() as folder:
            sessions = [
                self.start(*item, partial(folder.name, number))
                for number, item in enumerate(zip(frames, requests, sources, strict=True))
            ]
            self._run_to_the_end(sessions, on_progress, on_sound)
            return [session.result() for session in sessions]

    def _run_to_the_end(
        self,
        sessions: Sequence[Session],
        on_progress: OnProgress | None,
        on_sound: OnSound | None,
    ) -> None:
        report = on_progress or (lambda progress: None)
        hand_out = on_sound or (lambda piece: None)
        velocities = self.make_velocity_model()
        session = sessions[0]
        try:
            for session in sessions:
                report(Progress(Stage.ENCODE, 0, 1))
                while session.stage is Stage.ENCODE:
                    session.encode()
                report(Progress(Stage.ENCODE, 1, 1))
            # A long clip is sampled while it is encoded. A session that avoids speech may sample
            # again.
            while left := [item for item in sessions if item.stage is not None]:
                for session in left:
                    while session.stage is Stage.ENCODE:
                        session.encode()
                # Clips of more windows take longer.
                while running := [item for item in left if item.stage is Stage.SAMPLE]:
                    session = min(running, key=lambda item: item.step / item.num_steps)
                    report(Progress(Stage.SAMPLE, session.step, session.num_steps))
                    parts = velocities([item.prepare_part() for item in running])
                    for item, velocity in zip(running, parts, strict=True):
                        item.advance(velocity)
                session = min(left, key=lambda item: item.step / item.num_steps)
                report(Progress(Stage.SAMPLE, session.step, session.num_steps))
                for session in left:
                    report(Progress(Stage.DECODE_AUDIO, 0, 1))
                    while session.stage is Stage.DECODE_AUDIO:
                        session.decode()
                        for piece in session.take_finished():
                            hand_out(piece)
                    report(Progress(Stage.DECODE_AUDIO, 1, 1))
        except torch.OutOfMemoryError as error:
            self.make_room()
            raise session.make_memory_error() from error

    def make_room(self) -> None:
        """Free memory that only makes requests faster, after the device ran out of memory.

        `warm_up` allocates it again.
        """
        self._encoders.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def start(
        self,
        frames: VideoFrames | FrameStream | NoPicture,
        request: GenerationRequest,
        source: SourceSound | None = None,
        name_file: Callable[[int], Path] | None = None,
    ) -> Session:
        """Return a generation that the caller runs piece by piece.

        Its methods are called in `torch.inference_mode` and in `use_device`.

        Args:
            frames: at the sizes of the preset's encoders, at once or as they come; or the length of
                a sound without a clip.
            request: the options.
            source: the sound that the request edits; None without an edit.
            name_file: of long sounds, while they are made; see `Session`.
        """
        return Session(self, frames, request, source, name_file)

    @property
    def cut(self) -> Cut:
        """How a clip is cut into pieces when it is encoded."""
        return self._encoders.cut

    def count_pieces(self, num_visual: int, num_sync: int, *, with_source: bool = False) -> int:
        """Return the number of calls of `Session.encode` that a clip takes.

        Args:
            num_visual: frames at 8 fps, at least 1.
            num_sync: frames at 25 fps, at least 16.
            with_source: whether it has an edit, whose source is encoded too.
        """
        count = count_pieces(self.cut, num_visual, num_sync)
        return count + with_source * len(plan_windows(num_latents(num_sync)))

    def make_velocity_model(self) -> VelocityModel:
        """Return a model that evaluates the transformer, for one thread, in `use_device`."""
        return VelocityModel(self.dit, self._step)

    def encode(
        self, frames: VideoFrames | FrameStream | NoPicture, prompts: Sequence[Prompts]
    ) -> "Encoding":
        """Compute the conditions of a clip and its prompts; yields between the pieces of the work.

        It yields whether the next piece begins with reading from a stream, and, where sampling can
        begin, a function that returns the conditions so far. The conditions of all layers have the
        same tensors of the picture.

        Args:
            frames: at the sizes of the preset's encoders, at once or as they come; or the length of
                a sound without a clip.
            prompts: of each layer, at least one.

        Raises:
            PromptTooLongError: a prompt has more tokens than the text encoder takes.
            ParameterError: a cue starts after the end of the sound.
        """
        layers = self._read_prompts(prompts)
        if isinstance(frames, NoPicture):
            regions = _find_regions(
                prompts, frames.num_visual, frames.num_sync, frames.duration_seconds
            )
            return [
                TextConditions(
                    num_visual=frames.num_visual,
                    num_sync=count_segments(frames.num_sync) * SYNC_POSITIONS,
                    text_tokens=encode_text(self._encoders, layer.words)(),
                    num_latents=num_latents(frames.num_sync),
                    regions=own,
                    notices=layer.notices,
                )
                for layer, own in zip(layers, regions, strict=True)
            ]
        stream = split_frames(frames) if isinstance(frames, VideoFrames) else frames
        del frames
        if stream.total is not None:  # a cue past the end is refused before any work
            _find_regions(prompts, *stream.total)
        encoding = encode_clip(
            self._encoders,
            stream,
            lambda: [encode_text(self._encoders, layer.words) for layer in layers],
        )
        try:
            while True:
                pause = next(encoding)
                collect = pause.collect and partial(_describe_start, layers, pause.collect)
                yield pause.awaits_frames, collect
        except StopIteration as stop:
            assert stream.facts is not None
            is_padded = stream.facts.num_picked < stream.num_sync
            sound_seconds = stream.facts.num_picked / SYNC_FPS if is_padded else None
            regions = _find_regions(prompts, stream.num_visual, stream.num_sync, sound_seconds)
            return _describe_layers(layers, stop.value, regions)

    def _read_prompts(self, prompts: Sequence[Prompts]) -> list["_ReadPrompts"]:
        """Return the tokens of each layer. Each is padded by itself, as if alone."""
        layers = []
        for number, layer in enumerate(prompts, start=1):
            texts = layer.list_texts()
            with self._tokenizing, _name_layer(number, len(prompts)):
                words = tokenize(
                    self._tokenizer, self._encoders.text_model, *texts.values(), names=[*texts]
                )
            notices: tuple[str, ...] = ()
            if (num_tokens := words.input_ids.shape[1]) > MAX_TEXT_TOKENS:
                notices = (f"prompts are cut after {MAX_TEXT_TOKENS} tokens, one has {num_tokens}",)
            layers.append(_ReadPrompts(words, notices))
        return layers

    def condition(self, frames: VideoFrames, prompt: str, negative_prompt: str) -> Conditions:
        """Compute the conditions of a clip and its prompts, in one go.

        Args:
            frames: at the sizes of the preset's encoders.
            prompt: what should be heard.
            negative_prompt: what should not be heard.

        Raises:
            PromptTooLongError: a prompt has more tokens than the text encoder takes.
        """
        encoding = self.encode(frames, [Prompts(prompt, negative_prompt)])
        with self.use_device(), torch.inference_mode():
            try:
                while True:
                    next(encoding)
            except StopIteration as stop:
                conditions: Conditions = stop.value[0]
                return conditions

    def encode_sound(self, waveform: Tensor) -> Tensor:
        """Return latents, float32 [1, L, A], of a waveform [1, 960 * A], both on the CPU.

        `tiny` has fewer channels than `latent_dim`: the others hold noise.

        Args:
            waveform: float32, in [-1, 1], at the model's rate.
        """
        with self.use_device(), torch.inference_mode():
            return self._encode_sound(waveform)

    def decode(self, latents: Tensor) -> Tensor:
        """Return waveforms, float32 [N, 1, 960 * A], of latents [N, latent_dim, A]."""
        with self.use_device(), torch.inference_mode():
            return self._decode_sound(latents).float()

    def warm_up(self) -> None:
        """Run short generations, which allocate and compile what the first request needs."""
        clips = _WARM_UPS if self.device.type == "cuda" else _WARM_UPS[:1]
        for index, (num_visual, num_sync, guidance_scale) in enumerate(clips, start=1):
            if index == len(clips):  # the code that the graphs are captured from is compiled now
                with self.use_device(), torch.inference_mode():
                    self._encoders.prepare()
            request = GenerationRequest(
                num_inference_steps=1 if self.device.type == "cpu" else 3,
                guidance_scale=guidance_scale,
                seed=0,
            )
            self.generate(self.make_blank_frames(num_visual, num_sync), request)

    def make_blank_frames(self, num_visual: int, num_sync: int) -> VideoFrames:
        """Return black frames at the sizes of the encoders, for warm-up and measurement.

        Args:
            num_visual: frames at 8 fps, at least 1.
            num_sync: frames at 25 fps, at least 16.
        """
        vision, sync = self.preset.vision.image_size, self.preset.synchformer.image_size
        return VideoFrames(
            visual=torch.zeros(num_visual, vision, vision, 3, dtype=torch.uint8),
            sync=torch.zeros(num_sync, sync, sync, 3, dtype=torch.uint8),
            num_picked=num_sync,
            source_seconds=num_sync / SYNC_FPS,
        )


@dataclass(frozen=True, kw_only=True)
class _ReadClip:
    """A clip and its frames; `clip` is None if the caller gave frames."""

    frames: VideoFrames | FrameStream
    clip: Path | bytes | None = None
    seconds: float = 0.0

    def describe(self, generation: Generation) -> Generation:
        """Return the generation with what it needs to be saved as a video."""
        if self.clip is None:
            return generation
        return replace(
            generation,
            timings={Stage.DECODE_VIDEO: self.seconds, **generation.timings},
            clip=self.clip,
        )


class _ReadPrompts(NamedTuple):
    """What one layer is told, as the encoders take it."""

    words: BatchEncoding
    notices: tuple[str, ...]


def _describe_start(
    layers: Sequence[_ReadPrompts], collect: Callable[[], ClipTokens]
) -> list[Conditions]:
    """Return the conditions of each layer of a clip's first frames; cues need all of them."""
    return _describe_layers(layers, collect(), [()] * len(layers))


def _describe_layers(
    layers: Sequence[_ReadPrompts], tokens: ClipTokens, regions: Sequence[tuple[Region, ...]]
) -> list[Conditions]:
    """Return the conditions of each layer of a clip, or of its first frames."""
    return [
        Conditions(
            visual_tokens=tokens.visual,
            sync_tokens=tokens.sync,
            text_tokens=text,
            num_latents=num_latents(tokens.num_sync),
            regions=own,
            notices=layer.notices,
            cuts=tuple(cut * LATENT_RATE // SYNC_FPS for cut in tokens.cuts),
            num_encoded=tokens.num_encoded * LATENT_RATE // SYNC_FPS,
        )
        for layer, text, own in zip(layers, tokens.texts, regions, strict=True)
    ]


def _find_regions(
    prompts: Sequence[Prompts], num_visual: int, num_sync: int, sound_seconds: float | None = None
) -> list[tuple[Region, ...]]:
    """Return the regions of each layer of a sound for so many frames at 8 and at 25 fps.

    The length of the sound is given where some of the frames only pad it.
    """
    layers = []
    for number, (_, _, cues) in enumerate(prompts, start=1):
        with _name_layer(number, len(prompts)):
            layers.append(split_regions(cues, num_latents(num_sync), num_visual, sound_seconds))
    return layers


@contextmanager
def _name_layer(number: int, num_layers: int) -> Iterator[None]:
    """Say in an error which of several layers it is about."""
    try:
        yield
    except RequestError as error:
        if num_layers == 1:
            raise
        raise type(error)(f"layer {number}: {error}") from error


def _list_prompts(video: object, prompt: str | list[str]) -> list[str]:
    """Return the prompt of each clip."""
    if not isinstance(video, list):
        if isinstance(prompt, str):
            return [prompt]
        given = "a list" if isinstance(prompt, list) else f"{prompt!r}"
        raise ParameterError(f"prompt: {given}, but there is one clip; give one text")
    if isinstance(prompt, str):
        return [prompt] * len(video)
    if len(prompt) != len(video):
        raise ParameterError(
            f"prompt: the lists have {len(prompt)} prompts and {len(video)} clips; give one prompt "
            "for each clip, or a text for all"
        )
    return prompt


def _memory_error(device: torch.device, preset: Preset) -> DeviceError:
    torch.cuda.empty_cache()
    return DeviceError(
        f"{device} has too little free memory for preset {preset.name}; stop what else uses it, or "
        "use memory balanced or low, or a smaller preset"
    )
