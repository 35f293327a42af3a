"""A model's encoders as functions of what a clip's decoder gives, in pieces of a few sizes.

An encoding goes piece by piece. That bounds its memory, and other work can run in between. On a
GPU each encoder has hundreds of kernels a piece, and a slow host needs longer to launch them than
the GPU to compute them: so pieces are padded up to a few sizes, each a CUDA graph.
"""

# n frames, H height, W width, G segments, T text tokens, D width of the tokens

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from foley.gpu.cuda_graphs import Capture
from foley.gpu.encoder_graphs import GraphInput, SizedGraphs
from foley.models.encoders import normalise_frames
from foley.models.synchformer import Synchformer, count_segment_frames, count_segments

if TYPE_CHECKING:
    from transformers import ClapTextModel, SiglipVisionModel

logger = logging.getLogger(__name__)

# Tokens of both prompts that graphs are captured for. Longer prompts (up to 512) are rare, and run
# without a graph.
_TEXT_SIZES = range(16, 80 + 1, 16)
# Of the stream that encodes the text beside the frames: the text's small kernels would wait for the
# frames' large ones.
TEXT_PRIORITY = -1
# RoBERTa's padding token.
_PADDING_TOKEN = 1


@dataclass(frozen=True)
class Pieces:
    """How a clip's frames, or its segments, are cut into pieces.

    Attributes:
        at_once: frames or segments of the largest piece.
        step: all pieces but the last are multiples of it; it divides `at_once`.
    """

    at_once: int
    step: int = 1

    @property
    def sizes(self) -> range:
        """The sizes that pieces are padded up to."""
        return range(self.step, self.at_once + 1, self.step)

    def count(self, total: int) -> int:
        """Return the number of pieces of `total` frames or segments."""
        return -(-total // self.at_once)

    def split(self, total: int) -> list[int]:
        """Return the sizes of the pieces: as few as possible, and as even as the step allows.

        Only a total of 1 has a piece of 1, for which layers are compiled separately.

        Args:
            total: frames or segments, at least 1.
        """
        num_steps, num_pieces = -(-total // self.step), self.count(total)
        pieces = [self.step * ((num_steps + i) // num_pieces) for i in range(num_pieces)]
        pieces[-1] += total - sum(pieces)
        return pieces


class Cut(NamedTuple):
    """How both visual encodings of a clip are cut into pieces."""

    frames: Pieces
    segments: Pieces


# On a CPU smaller pieces are not slower: 24 segments of tiny on one core take 1.3, 1.5, 1.2 and
# 1.4 s in ones, twos, fours and eights. On an H100 24 segments of xxl take 23.8 ms in one piece
# from graphs and 25.8 ms in two pieces; 32 frames (1024 tokens each in full-size towers) fill it.
# Without graphs memory may be short, and half of the segments take half of it.
ON_CPU = Cut(Pieces(16), Pieces(4))
ON_GPU = Cut(Pieces(32), Pieces(12))
FROM_GRAPHS = Cut(Pieces(32, step=8), Pieces(24, step=4))
# Where memory is short, and weights are streamed once a piece.
WITH_LITTLE_MEMORY = Cut(Pieces(8), Pieces(4))


class Encoders:
    """The three encoders of a model, each run by its module or from graphs of it.

    Args:
        synchformer: the visual branch; its weights may be off the device between calls.
        vision: SigLIP2; its weights may be off the device between calls.
        text: CLAP; its weights may be off the device between calls.
        device: where they run.
        capture: makes a capture for a stream of that priority; without it there are no graphs.
        cut: of clips; without it, the one that suits the device and the graphs. It stays the same
            when graphs are released, because requests that have begun count on it.

    Attributes:
        device: as given.
        text_model: as given.
        cut: as given or chosen.
        visual: tokens [n, D] of uint8 frames [n, H, W, 3] on the device, n at most
            `cut.frames.at_once`.
        sync: tokens [8 * G, D] of uint8 frames [8 * G + 8, H, W, 3] on the device, G at most
            `cut.segments.at_once`.
        text: tokens [2, T, D] of int64 ids and mask [2, T], both on the device.
    """

    def __init__(
        self,
        synchformer: Synchformer,
        vision: "SiglipVisionModel",
        text: "ClapTextModel",
        device: torch.device,
        capture: Callable[[int], Capture] | None = None,
        cut: Cut | None = None,
    ) -> None:
        self.cut = cut or _choose_cut(device, from_graphs=capture is not None)
        self.device, self.text_model, self._capture = device, text, capture
        self._prepared = False
        normalise = _choose_normaliser(device.type)

        def encode_frames(frames: Tensor) -> Tensor:
            return vision(pixel_values=normalise(frames, vision.dtype)).pooler_output

        def encode_segments(frames: Tensor) -> Tensor:
            pixels = normalise(frames, synchformer.dtype)
            return synchformer(pixels, segments_at_once=count_segments(len(frames)))

        def encode_words(ids: Tensor, mask: Tensor) -> Tensor:
            return text(input_ids=ids, attention_mask=mask).last_hidden_state

        def frames_of(size: int) -> list[GraphInput]:
            return [GraphInput((-1, size, size, 3), torch.uint8, 0)]

        # The sync tokens grow by one with each frame: by 8 with each segment.
        sync_sizes = [count_segment_frames(count) for count in self.cut.segments.sizes]
        visual_side, sync_side = vision.config.image_size, synchformer.config["image_size"]
        assert isinstance(visual_side, int)
        words = [GraphInput((2, -1), torch.long, padding) for padding in (_PADDING_TOKEN, 0)]
        visual_sizes = self.cut.frames.sizes
        self.visual = SizedGraphs(encode_frames, frames_of(visual_side), visual_sizes, device)
        self.sync = SizedGraphs(encode_segments, frames_of(sync_side), sync_sizes, device)
        self.text = SizedGraphs(encode_words, words, _TEXT_SIZES, device)

    @property
    def text_is_resident(self) -> bool:
        """Whether the text encoder stays on the device, so that it can run beside other work."""
        return all(weight.device == self.device for weight in self.text_model.parameters())

    def prepare(self) -> None:
        """Capture the graphs, once, if there are to be any; without memory for all there are none.

        The modules must have run before, so that their layers are compiled.
        """
        if self._capture is None or self._prepared:
            return
        self._prepared = True
        try:
            # Pieces of frames run one after another, so their graphs share the memory of what lies
            # between their layers. The text is encoded beside them, with memory of its own.
            capture = self._capture(0)
            self.visual.prepare(capture)
            self.sync.prepare(capture)
            self.text.prepare(self._capture(TEXT_PRIORITY))
        except torch.OutOfMemoryError:
            pass
        else:
            return
        # Outside the handler, because its traceback holds the tensors that did not fit.
        logger.warning("too little memory for the encoders' graphs; they run without")
        self.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def release(self) -> None:
        """Free the graphs and their memory, until they are prepared again."""
        self._prepared = False
        for graphs in (self.visual, self.sync, self.text):
            graphs.release()


def _choose_cut(device: torch.device, *, from_graphs: bool) -> Cut:
    if device.type == "cpu":
        return ON_CPU
    return FROM_GRAPHS if from_graphs else ON_GPU


@cache
def _choose_normaliser(device_type: str) -> Callable[[Tensor, torch.dtype], Tensor]:
    if device_type == "cuda":  # one kernel, for any number of frames
        return torch.compile(normalise_frames, dynamic=True)
    return normalise_frames
