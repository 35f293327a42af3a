"""A model's encoders as functions of what comes from a clip, and the sizes that come.

An encoding goes piece by piece, which bounds its memory and lets other work come between. On a GPU
each encoder has hundreds of kernels a piece, and a slow host needs longer to launch them than the
GPU to compute: so pieces are filled up to few sizes, each a CUDA graph.
"""

# n frames, G segments, T text tokens, D width of the tokens

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import ClapTextModel, SiglipVisionModel

from foley.configs import SYNC_SEGMENT_FRAMES, SYNC_SEGMENT_STRIDE
from foley.gpu.encoder_graphs import Input, SizedGraphs
from foley.gpu.step_graphs import Capture
from foley.models.synchformer import Synchformer

logger = logging.getLogger(__name__)

# Tokens of both prompts that graphs are for; longer ones (up to 512) are rare, and run as they are.
_TEXT_SIZES = range(16, 80 + 1, 16)
# Of the stream in which the text is encoded beside the frames: its small kernels would wait for
# their large ones.
TEXT_PRIORITY = -1
# RoBERTa's, which its tokenizer pads with.
_PADDING = 1


@dataclass(frozen=True)
class Pieces:
    """How a clip is cut.

    Attributes:
        at_once: frames or segments of the largest piece.
        step: all pieces but the last are multiples of it; divides `at_once`.
    """

    at_once: int
    step: int = 1

    @property
    def sizes(self) -> range:
        """Those that pieces are filled up to."""
        return range(self.step, self.at_once + 1, self.step)

    def count(self, total: int) -> int:
        """The number of pieces."""
        return -(-total // self.at_once)

    def split(self, total: int) -> list[int]:
        """`total` in as few pieces as may be, as even as steps allow; only a total of 1 has one
        of 1, which is compiled apart.
        """
        num_steps, num_pieces = -(-total // self.step), self.count(total)
        pieces = [self.step * ((num_steps + i) // num_pieces) for i in range(num_pieces)]
        pieces[-1] += total - sum(pieces)
        return pieces


class Cut(NamedTuple):
    """How both encodings of a clip are cut."""

    frames: Pieces
    segments: Pieces


# On a CPU smaller pieces are no slower: 24 segments of tiny on one core take 1.3, 1.5, 1.2 and
# 1.4 s in ones, twos, fours and eights. On an H100 24 segments of xxl take 23.8 ms at once from
# graphs and 25.8 in two pieces; 32 frames (1024 tokens each in full-size towers) fill it. Without
# graphs memory may be short, and half of the segments take half of it.
ON_CPU = Cut(Pieces(16), Pieces(4))
ON_GPU = Cut(Pieces(32), Pieces(12))
FROM_GRAPHS = Cut(Pieces(32, step=8), Pieces(24, step=4))


def num_segments(num_frames: int) -> int:
    """Segments in so many frames at 25 fps, at least 16; what fills none is left over."""
    return (num_frames - SYNC_SEGMENT_FRAMES) // SYNC_SEGMENT_STRIDE + 1


def num_frames(num_segments: int) -> int:
    """Frames at 25 fps of so many segments."""
    return (num_segments - 1) * SYNC_SEGMENT_STRIDE + SYNC_SEGMENT_FRAMES


class Encoders:
    """The three encoders of a model, each by its module or from graphs of it.

    Args:
        synchformer: the visual branch; its weights may be elsewhere between calls.
        vision: likewise.
        text: likewise.
        device: where they run.
        capture: makes what captures graphs, for a stream of that priority; without it there are
            none.
        cut: of clips; without it, what suits the device and whether there are to be graphs. It
            stays when graphs are let go: requests in work count on it.

    Attributes:
        device: as given.
        text_model: as given.
        cut: as given or chosen.
        visual: tokens [n, D] of uint8 frames [n, H, W, 3] on the device, n at most
            `cut.frames.at_once`.
        sync: tokens [8 * G, D] of uint8 frames [8 * G + 8, H, W, 3], G at most
            `cut.segments.at_once`.
        text: tokens [2, T, D] of int64 ids and mask [2, T], both on the device.
    """

    def __init__(
        self,
        synchformer: Synchformer,
        vision: SiglipVisionModel,
        text: ClapTextModel,
        device: torch.device,
        capture: Callable[[int], Capture] | None = None,
        cut: Cut | None = None,
    ) -> None:
        self.cut = cut or _cut(device, from_graphs=capture is not None)
        self.device, self.text_model, self._capture = device, text, capture
        self._prepared = False
        normalise = _normaliser(device.type)

        def visual_tokens(frames: Tensor) -> Tensor:
            return vision(pixel_values=normalise(frames, vision.dtype)).pooler_output

        def sync_tokens(frames: Tensor) -> Tensor:
            pixels = normalise(frames, synchformer.dtype)
            return synchformer(pixels, segments_at_once=num_segments(len(frames)))

        def text_tokens(ids: Tensor, mask: Tensor) -> Tensor:
            return text(input_ids=ids, attention_mask=mask).last_hidden_state

        def pictures(size: int) -> list[Input]:
            return [Input((-1, size, size, 3), torch.uint8, 0)]

        # A frame of 25 fps more is a token more.
        segments = [num_frames(count) for count in self.cut.segments.sizes]
        seen, shown = vision.config.image_size, synchformer.config.image_size
        words = [Input((2, -1), torch.long, filling) for filling in (_PADDING, 0)]
        frames = self.cut.frames.sizes
        self.visual = SizedGraphs(visual_tokens, pictures(seen), frames, device)
        self.sync = SizedGraphs(sync_tokens, pictures(shown), segments, device)
        self.text = SizedGraphs(text_tokens, words, _TEXT_SIZES, device)

    @property
    def text_is_there(self) -> bool:
        """Whether the text encoder's weights stay on the device, so that it can run beside all
        else there.
        """
        return self.text_model.device == self.device

    def prepare(self) -> None:
        """Capture the graphs, once, if there are to be any; without memory for all there are none.

        The modules have run before, so that all that is compiled for them is.
        """
        if self._capture is None or self._prepared:
            return
        self._prepared = True
        try:
            # Pieces of frames come one after another and share the memory of what lies between
            # their layers; the text is encoded beside them.
            pieces = self._capture(0)
            self.visual.prepare(pieces)
            self.sync.prepare(pieces)
            self.text.prepare(self._capture(TEXT_PRIORITY))
        except torch.OutOfMemoryError:
            pass
        else:
            return
        # Outside the handler, whose traceback holds what did not fit.
        logger.warning("too little memory for the encoders' graphs; they run without")
        self.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def release(self) -> None:
        """Let go of the graphs and their memory, until they are prepared again."""
        self._prepared = False
        for graphs in (self.visual, self.sync, self.text):
            graphs.release()


def _cut(device: torch.device, *, from_graphs: bool) -> Cut:
    if device.type == "cpu":
        return ON_CPU
    return FROM_GRAPHS if from_graphs else ON_GPU


def normalise_frames(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [n, H, W, 3] -> [n, 3, H, W] in [-1, 1], computed in float32 on the frames' device.

    Source: specification, sections 6 and 7.
    """
    return frames.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5).to(dtype)


@cache
def _normaliser(device_type: str) -> Callable[[Tensor, torch.dtype], Tensor]:
    if device_type == "cuda":  # one kernel, for any number of frames
        return torch.compile(normalise_frames, dynamic=True)
    return normalise_frames
