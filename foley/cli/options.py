"""Groups of options on the command line."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from foley.cli.cues import parse_cue, read_cues
from foley.cli.edits import find_source, make_edit
from foley.cli.layers import parse_layer, read_layers
from foley.cli.whole import WHOLE
from foley.configs import OFFICIAL_GUIDANCE, TINY_GUIDANCE
from foley.errors import ParameterError
from foley.marks.mark import Marks, load_marks
from foley.mix import Channels, MixOptions, OriginalSound, Placement
from foley.plans import OFFICIAL_PLAN, TINY_PLAN, Quality, Solver
from foley.quiet import silence_imports
from foley.request import AvoidSpeech, GenerationRequest, parse_adapter_use

if TYPE_CHECKING:
    from foley.pipeline import FoleyPipeline


_DEFAULTS = GenerationRequest()
_MIX = MixOptions()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SoundOptions:
    """What the sound should be."""

    prompt: Annotated[str, Parameter(alias="-p", help="What should be heard.")] = _DEFAULTS.prompt
    negative_prompt: Annotated[str, Parameter(help="What should not be heard.")] = (
        _DEFAULTS.negative_prompt
    )
    guidance_scale: Annotated[
        float | None,
        Parameter(
            help="How strongly the sound follows prompt and picture; 1 to 20. By default "
            f"{TINY_GUIDANCE:g} with tiny and {OFFICIAL_GUIDANCE:g} with official weights."
        ),
    ] = None
    num_inference_steps: Annotated[
        int | None,
        WHOLE,
        Parameter(
            alias="--steps",
            help="Solver steps; 1 to 200. By default "
            f"{TINY_PLAN.num_inference_steps} with tiny and {OFFICIAL_PLAN.num_inference_steps} "
            "with official weights.",
        ),
    ] = None
    solver: Annotated[Solver | None, Parameter(help="ODE solver. By default euler.")] = None
    schedule_shift: Annotated[
        float | None,
        Parameter(
            help="Places more of the steps near pure noise; 1 to 20. By default "
            f"{TINY_PLAN.schedule_shift:g} with tiny and {OFFICIAL_PLAN.schedule_shift:g} with "
            "official weights."
        ),
    ] = None
    guidance_interval: Annotated[
        float | None,
        Parameter(
            help="Lowest noise level at which a step is guided; 0 to 1. Steps below cost half. By "
            f"default {TINY_PLAN.guidance_interval:g} with tiny and "
            f"{OFFICIAL_PLAN.guidance_interval:g} with official weights."
        ),
    ] = None
    quality: Annotated[
        Quality | None,
        Parameter(
            help="Chooses steps, solver, shift and guidance interval together. Nobody has compared "
            "balanced and fast by ear with official weights."
        ),
    ] = None
    seed: Annotated[
        int | None,
        WHOLE,
        Parameter(help="Seed that repeats a result. By default it is random; it is always shown."),
    ] = None
    num_variations: Annotated[
        int, WHOLE, Parameter(alias="--variations", help="Sounds for each clip; 1 to 8.")
    ] = _DEFAULTS.num_variations
    duration_seconds: Annotated[
        float | None,
        Parameter(
            alias="--seconds",
            help="Length of a sound of the prompt alone, without a clip, or how long a still "
            "picture is shown; 0.1 to 3600.",
        ),
    ] = None

    cue: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            help='A prompt for a range of seconds in place of --prompt: "1.2-3.5: glass shatters", '
            "or an object of JSON with a negative_prompt, a gain_db or mode add. May be repeated.",
        ),
    ] = ()
    cues: Annotated[
        Path | None,
        Parameter(
            help="File of cues: .csv with start_seconds, stop_seconds and prompt, and perhaps "
            "negative_prompt, gain_db and mode; or .vtt or .srt subtitles."
        ),
    ] = None
    layer: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            help="The prompt of a sound that is mixed with those of other layers, or an object: "
            """'{"prompt": "rain", "gain_db": -6, "pan": 0.5}'. May be repeated. Each layer is """
            "written beside the mix.",
        ),
    ] = ()
    layers: Annotated[Path | None, Parameter(help="File of layers: .json, a list of objects.")] = (
        None
    )
    edit_source: Annotated[
        str | None,
        Parameter(
            help="A sound to start from, of which a part is made anew, or all of it is varied: "
            "original for the clip's own, or a file. With --server also the id of an earlier "
            "request or job, or an address.",
        ),
    ] = None
    edit_range: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            help='Seconds of --edit-source that are made anew: "1.2-3.5". May be repeated.',
        ),
    ] = ()
    edit_strength: Annotated[
        float | None,
        Parameter(
            help="How far the new sound may go from --edit-source: 0 gives it back, 1 takes "
            "nothing from it."
        ),
    ] = None
    adapter: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            help="An adapter of --adapters or of the service, with its scale from 0 to 2 "
            '(1 without one): "glass:0.8". May be repeated.',
        ),
    ] = ()

    avoid_speech: Annotated[
        AvoidSpeech,
        Parameter(
            help="Measure speech that nobody asked for (report), or also draw other seeds while "
            "there is some (retry)."
        ),
    ] = _DEFAULTS.avoid_speech
    max_retries: Annotated[
        int, WHOLE, Parameter(help="How often, with --avoid-speech retry; 1 to 8.")
    ] = _DEFAULTS.max_retries

    def parse(self) -> GenerationRequest:
        """Return the options as a request.

        Raises:
            ParameterError: an option is out of bounds, or a cue, a layer or a range cannot be read.
        """
        options = dataclasses.asdict(self)
        for name in ("cue", "layer", "adapter", "edit_source", "edit_range", "edit_strength"):
            del options[name]
        options["edit"] = make_edit(self.edit_source, self.edit_range, self.edit_strength)
        options["adapters"] = [parse_adapter_use(text) for text in self.adapter]
        cues = [parse_cue(text) for text in self.cue]
        if self.cues is not None:
            cues += read_cues(self.cues)
        layers = [parse_layer(text) for text in self.layer]
        if self.layers is not None:
            layers += read_layers(self.layers)
        try:
            return GenerationRequest.parse(**options | {"cues": cues, "layers": layers})
        except ParameterError as error:
            raise ParameterError(_name_as_typed(str(error), sys.argv)) from error

    def find_source(self) -> Path | None:
        """Return the path of the file that an edit starts from; None where it is none."""
        return find_source(self.edit_source)


def _explain(name: str) -> Parameter:
    """Return the flag of an option of the mix, whose meaning is stated with its bounds."""
    return Parameter(help=MixOptions.model_fields[name].description, negative=())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MixFlags:
    """What becomes of the clip's own sound, levels and tracks."""

    original_sound: Annotated[OriginalSound, _explain("original_sound")] = _MIX.original_sound
    original_gain_db: Annotated[float, _explain("original_gain_db")] = _MIX.original_gain_db
    duck_depth_db: Annotated[float, _explain("duck_depth_db")] = _MIX.duck_depth_db
    duck_release_ms: Annotated[float, _explain("duck_release_ms")] = _MIX.duck_release_ms
    gain_db: Annotated[float, _explain("gain_db")] = _MIX.gain_db
    fade_in_seconds: Annotated[float, _explain("fade_in_seconds")] = _MIX.fade_in_seconds
    fade_out_seconds: Annotated[float, _explain("fade_out_seconds")] = _MIX.fade_out_seconds
    channels: Annotated[Channels | None, _explain("channels")] = _MIX.channels
    pan: Annotated[float, _explain("pan")] = _MIX.pan
    placement: Annotated[Placement, _explain("placement")] = _MIX.placement
    loudness_lufs: Annotated[float | None, _explain("loudness_lufs")] = _MIX.loudness_lufs
    true_peak_dbtp: Annotated[float | None, _explain("true_peak_dbtp")] = _MIX.true_peak_dbtp
    limiter: Annotated[bool, _explain("limiter")] = _MIX.limiter
    stems: Annotated[bool, _explain("stems")] = _MIX.stems
    broadcast_wave: Annotated[bool, _explain("broadcast_wave")] = _MIX.broadcast_wave

    def parse(self) -> MixOptions:
        """Return the options.

        Raises:
            ParameterError: an option is out of bounds, or does not fit another one.
        """
        try:
            return MixOptions.parse(**dataclasses.asdict(self))
        except ParameterError as error:
            raise ParameterError(_name_as_typed(str(error), sys.argv)) from error


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MarkFlags:
    """What results say of how they were made. With --server, the settings of the service hold."""

    marks: Annotated[
        Literal["on", "off"],
        Parameter(
            env_var="FOLEY_MARKS",
            help="Mark results as machine-made, by C2PA and plain tags. Who publishes such sound "
            "must mark it: the law of the European Union and the licence of the official weights "
            "ask for it.",
        ),
    ] = "on"
    marks_key: Annotated[
        Path | None,
        Parameter(
            env_var="FOLEY_MARKS_KEY",
            help="File of the private key, in PEM, that signs marks. By default one of your own, "
            "with a self-signed certificate.",
        ),
    ] = None
    marks_chain: Annotated[
        Path | None,
        Parameter(
            env_var="FOLEY_MARKS_CHAIN",
            help="File of the certificates of --marks-key, in PEM, that of the key first.",
        ),
    ] = None
    marks_prompt: Annotated[
        bool,
        Parameter(
            env_var="FOLEY_MARKS_PROMPT",
            negative=(),
            help="Let marks hold the prompts and cues too.",
        ),
    ] = False

    def load(self) -> Marks | None:
        """Return the marks of results; None for none.

        Raises:
            ConfigError: the key or its certificates cannot be used.
        """
        if self.marks == "off":
            return None
        return load_marks(key=self.marks_key, chain=self.marks_chain, with_words=self.marks_prompt)


def _name_as_typed(message: str, arguments: Sequence[str]) -> str:
    """Return a message that begins with a field, with the option that the user typed for it."""
    name, separator, rest = message.partition(": ")
    hint = {**SoundOptions.__annotations__, **MixFlags.__annotations__}.get(name)
    if not separator or hint is None:
        return message
    names = [f"--{name.replace('_', '-')}"]
    for parameter in hint.__metadata__:
        names += parameter.alias or ()
    typed = (n for n in names for word in arguments if word == n or word.startswith(f"{n}="))
    return f"{next(typed, names[0])}: {rest}"


def _check_address(_: object, url: str | None) -> None:
    """Refuse what is no address, with the option's name, which the parser adds."""
    if url is not None and not re.match(r"https?://[^/]", url):
        raise ValueError("give an address such as http://127.0.0.1:3000")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """The service that generates, if it is not this process."""

    url: Annotated[
        str | None,
        Parameter(
            name="--server",
            validator=_check_address,
            help="Address of a service that generates, such as http://127.0.0.1:3000.",
        ),
    ] = None
    api_key: Annotated[
        str | None,
        Parameter(
            name="--api-key",
            env_var="FOLEY_API_KEY",
            help="Key of the service. Other users can see a command's options, so prefer the "
            "variable.",
        ),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and where it runs."""

    preset: Annotated[
        str,
        Parameter(
            help="tiny, xl, xxl or auto. auto is the largest in --weights; without --weights, the "
            "largest that was downloaded and fits the GPU, or else tiny."
        ),
    ] = "auto"
    weights: Annotated[
        Path | None,
        Parameter(
            env_var="FOLEY_WEIGHTS",
            help="Folder of the official files, or a folder that `foley convert` wrote. By default "
            "the folder of `foley download`.",
        ),
    ] = None
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto"
    precision: Annotated[
        Literal["bf16", "fp8"],
        Parameter(
            help="Precision on a GPU; fp8 is faster and less exact. A CPU computes in float32."
        ),
    ] = "bf16"
    memory: Annotated[
        Literal["auto", "full", "balanced", "low"],
        Parameter(
            help="Which weights stay on the GPU: all (full), the transformer (balanced) or a part "
            "of it (low); auto is the first that fits."
        ),
    ] = "auto"

    adapters: Annotated[
        str | None,
        Parameter(
            env_var="FOLEY_ADAPTERS",
            help="Folder of adapters, or files and folders separated by commas. An adapter has "
            "its file's name, without .safetensors.",
        ),
    ] = None

    def load(self) -> "FoleyPipeline":
        """Load the model and return its pipeline.

        Raises:
            ServerError: the preset, the weights, an adapter or the device cannot be used.
        """
        with silence_imports():
            from foley.pipeline import FoleyPipeline

        pipeline = FoleyPipeline.from_preset(
            self.preset,
            device=self.device,
            weights=self.weights,
            precision=self.precision,
            memory=self.memory,
        )
        if self.adapters is not None:
            pipeline.load_adapters(self.adapters)
        return pipeline
