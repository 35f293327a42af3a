"""Parts of layers that are made again, each over what was made before it."""

# L layers, C channels, S samples

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from foley.request import GenerationRequest
from foley.types import FrameStream, NoPicture, SourceSound, VideoFrames

if TYPE_CHECKING:
    from foley.generation import Generation
    from foley.pipeline import FoleyPipeline, OnProgress


@dataclass(frozen=True, kw_only=True)
class Part:
    """A range of a layer that is made again.

    Attributes:
        layer: its number, from 1; of a request without layers 1 is its sound.
        request: how it is made; its edit has the range.
    """

    layer: int
    request: GenerationRequest


def make_with_parts(
    pipeline: FoleyPipeline,
    open_frames: Callable[[], VideoFrames | FrameStream | NoPicture],
    request: GenerationRequest,
    parts: Sequence[Part],
    on_progress: OnProgress,
) -> Generation:
    """Return the sound of a request whose layers have parts that are made again.

    Layers are made one after another, since a part starts from its layer before the mix.

    Args:
        pipeline: makes the sounds.
        open_frames: returns the frames of the clip anew.
        request: of one variation, with or without layers.
        parts: in the order in which they were made.
        on_progress: called after each step of each sound.

    Raises:
        RequestError: the clip or an option cannot be used.
        ServerError: the model failed.
    """
    # Imported here, so that the command line starts without PyTorch.
    import torch

    from foley.layers import mix_layers
    from foley.sampling import choose_seeds

    seeds = choose_seeds(request.seed, max(1, len(request.layers)))
    made = []
    for number, alone in enumerate(_split(request, seeds), start=1):
        sound = pipeline.generate(open_frames(), alone, on_progress)
        for part in parts:
            if part.layer == number:
                source = SourceSound(waveform=sound.waveforms[0])
                edited = pipeline.generate(open_frames(), part.request, on_progress, source)
                sound = replace(_join(sound, edited), waveforms=edited.waveforms)
        made.append(sound)
    whole = made[0]
    for sound in made[1:]:
        whole = _join(whole, sound)
    if not request.layers:
        return replace(whole, request=request)
    mixed = mix_layers(torch.cat([sound.waveforms for sound in made]), request.layers)
    return replace(
        whole,
        waveforms=mixed.mix[None],
        stems=mixed.stems,
        layer_seeds=tuple(sound.seeds[0] for sound in made),
        notices=(*whole.notices, *mixed.notices),
        request=request,
    )


def _split(request: GenerationRequest, seeds: Sequence[int]) -> Iterator[GenerationRequest]:
    """Yield the request of each layer alone, or the request where it has none."""
    if not request.layers:
        yield request.model_copy(update={"seed": seeds[0]})
        return
    for layer, seed in zip(request.layers, seeds, strict=True):
        yield request.model_copy(
            update={
                "layers": (),
                "prompt": layer.prompt,
                "negative_prompt": layer.negative_prompt or request.negative_prompt,
                "cues": layer.cues,
                "seed": seed if layer.seed is None else layer.seed,
            }
        )


def _join(first: Generation, second: Generation) -> Generation:
    """Return the first generation with the times and the notices of both."""
    stages = [*first.timings, *(stage for stage in second.timings if stage not in first.timings)]
    return replace(
        first,
        timings={
            stage: first.timings.get(stage, 0.0) + second.timings.get(stage, 0.0)
            for stage in stages
        },
        notices=tuple(dict.fromkeys((*first.notices, *second.notices))),
    )
