"""Decoding of a clip to the encoders' frames, in one pass over the file."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

import heapq
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
from av import Packet, VideoFrame
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from foley.configs import (
    PIECE_FRAMES,
    SYNC_FPS,
    SYNC_SEGMENT_FRAMES,
    SYNC_SEGMENT_STRIDE,
    VISUAL_FPS,
    WHOLE_CLIP_FRAMES,
)
from foley.errors import (
    NoFramesError,
    VideoDecodeError,
    VideoTooCostlyError,
    VideoTooLargeError,
    VideoTooLongError,
)
from foley.media.clock import FramePicker, FrameTimes, seconds_of
from foley.media.frame_stack import FrameStack, claim_together
from foley.media.scale import (
    Orientation,
    apply_orientation,
    fit_and_crop,
    fitted_size,
    orientation_of,
    rgb_view,
    stretch,
)
from foley.media.source import (
    MediaLimits,
    check_cost,
    check_cpu,
    check_cpu_since,
    check_pixels,
    open_video,
)
from foley.media.timeline import (
    clock_start,
    demux_video,
    has_presentation_times,
    has_running_clock,
)
from foley.types import ClipFacts, FramePiece, FramePlace, VideoFrames, count_visual

# Returns places for so many frames at 8 and at 25 fps.
OpenPlaces = Callable[[int, int], tuple[FramePlace, FramePlace]]

# Threads that scale frames, and those of the decoder beside them. Scaling takes longer than most
# codecs. Every thread of a decoder keeps a few more frames, so there are fewer for large ones.
_MAX_THREADS, _MAX_DECODER_THREADS_OF_LARGE = 8, 4
_LARGE_PIXELS = 1920 * 1088  # of one frame: more than these
# Up to so many pixels in all frames, a clip takes about 0.1 s. Threads would take a fifth more
# processor time for it, and end hardly sooner.
_ONE_THREAD_PIXELS = 4_000_000
# Frames that are being scaled or wait for it, and their RGB forms, take up to this.
_MAX_SCALING_BYTES = 128 << 20
_NUM_WAITING = 2  # frames, for the thread that is free next
# A last frame that is shown longer than this is picked until its end. The reference picks it once,
# so the sound would end before the picture; at 20 fps and more, its rule is kept.
_LONG_HOLD_SECONDS = 0.05
# An edit list of 12 MB repeats a packet a million times without showing it. The hidden beginning of
# a clip that was trimmed has some thousand packets.
_MAX_UNSEEN_PACKETS = 20_000


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """The properties that a clip states.

    Attributes:
        container: FFmpeg's name of the format.
        codec: FFmpeg's name of the video codec.
        width: in pixels, as displayed.
        height: in pixels, as displayed.
        rotation: clockwise rotation of the stored frames for display, in degrees, 0 to 359.
        duration_seconds: end of the video stream or, if it is not stated, of the file; None if
            neither is stated.
        frame_rate: average, in frames per second; None if it is not stated.
        has_audio: whether the file has an audio stream, which the result will not contain.
    """

    container: str
    codec: str
    width: int
    height: int
    rotation: int
    duration_seconds: float | None
    frame_rate: float | None
    has_audio: bool


def probe(source: Path, *, limits: MediaLimits | None = None) -> VideoInfo:
    """The clip's properties, read by decoding its first frame.

    Args:
        source: the file.
        limits: what is accepted, `max_seconds` excepted; the defaults when None.

    Raises:
        VideoError: as `decode_frames`, except for the clip's length.
    """
    limits = limits or MediaLimits()
    with open_video(source, limits) as (container, stream):
        frame = next(decode_packets(demux_video(container, stream), limits), None)
        if frame is None:
            raise NoFramesError(f"{source.name} has a picture stream without a frame; send a video")
        swap = orientation_of(frame)[0]
        width, height = (frame.height, frame.width) if swap else (frame.width, frame.height)
        rate = _frame_rate(stream)
        return VideoInfo(
            container=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            width=width,
            height=height,
            rotation=-frame.rotation % 360,
            duration_seconds=_stated_seconds(container, stream),
            frame_rate=float(rate) if rate else None,
            has_audio=bool(container.streams.audio),
        )


def decode_frames(
    source: Path,
    *,
    visual_size: int,
    sync_size: int,
    limits: MediaLimits | None = None,
    trim: bool = False,
    exact_clock: bool = False,
    whole_segments: bool = False,
    num_threads: int | None = None,
) -> VideoFrames:
    """The clip's frames at 8 and at 25 fps, scaled to the encoders' sizes.

    Each full frame is kept only until it is scaled. Memory grows with the clip's length, by 10 MB a
    second at the sizes of the official encoders; `decode_pieces` is for long clips. Display
    rotation is applied and alpha is dropped. A clip of fewer than 16 frames at 25 fps is filled up
    with its last frame, and `VideoFrames.notices` says so.

    Args:
        source: the file.
        visual_size: side of the square to which 8 fps frames are stretched, in pixels.
        sync_size: side of the square that is cropped from 25 fps frames, in pixels.
        limits: what is accepted; the defaults when None.
        trim: leave out the frames after `limits.max_seconds` instead of raising an error.
        exact_clock: see `FramePicker`.
        whole_segments: repeat the last frame until the sync encoder's segments cover all frames.
        num_threads: of the decoder and of the scaling; when None one for a small clip, and up to
            eight for others.

    Raises:
        VideoEmptyError: the file has no bytes.
        VideoDecodeError: not a video, truncated, damaged, or of an unknown codec.
        NoVideoStreamError: there is no video stream.
        NoFramesError: no frame lies between zero and the limit.
        VideoTooLongError: a frame lies after the limit, and `trim` is off.
        VideoTooLargeError: too many bytes or pixels.
        VideoTooCostlyError: too many frames a second, too many pixels in all frames, or too large
            an index.
    """
    (whole,) = _decode(
        source,
        (visual_size, sync_size),
        limits or MediaLimits(),
        trim=trim,
        exact_clock=exact_clock,
        whole_segments=whole_segments,
        num_threads=num_threads,
        in_pieces=False,
    )
    return join_piece(whole)


def decode_pieces(
    source: Path,
    *,
    visual_size: int,
    sync_size: int,
    limits: MediaLimits | None = None,
    trim: bool = False,
    exact_clock: bool = False,
    whole_segments: bool = False,
    open_places: OpenPlaces | None = None,
) -> Iterator[FramePiece]:
    """Yield the clip's frames in pieces; the clip is decoded as the pieces are taken.

    A clip of up to 15 s is one piece. Of a longer one the first piece has 15 s, and the others have
    about 4 s. So memory does not depend on the clip's length. All pieces together are the frames of
    `decode_frames`. A clip that states to be too long is refused before its first piece.

    Args:
        source: the file.
        visual_size: as in `decode_frames`, and so are the others.
        sync_size: in pixels.
        limits: what is accepted; the defaults when None.
        trim: leave out the frames after `limits.max_seconds` instead of raising an error.
        exact_clock: see `FramePicker`.
        whole_segments: repeat the last frame until the sync encoder's segments cover all frames.
        open_places: called before the first frame is scaled, if the clip states to have up to 15 s,
            with the most frames at 8 and at 25 fps that it should have. Frames are written to the
            places as they come. The only piece says whether they had room; if not, the places
            are left. None keeps all frames in memory.

    Raises:
        VideoError: as `decode_frames`, with any piece.
        OSError: a place cannot be written.
    """
    return _decode(
        source,
        (visual_size, sync_size),
        limits or MediaLimits(),
        trim=trim,
        exact_clock=exact_clock,
        whole_segments=whole_segments,
        num_threads=None,
        in_pieces=True,
        open_places=open_places,
    )


def join_piece(piece: FramePiece) -> VideoFrames:
    """Return the only piece of a clip as its frames.

    Args:
        piece: of `decode_pieces`, with the clip's facts.
    """
    assert piece.facts is not None
    return VideoFrames(
        visual=piece.visual,
        sync=piece.sync,
        num_picked=piece.facts.num_picked,
        source_seconds=piece.facts.source_seconds,
        trimmed=piece.facts.trimmed,
        notices=piece.facts.notices,
    )


def _decode(
    source: Path,
    sizes: tuple[int, int],
    limits: MediaLimits,
    *,
    trim: bool,
    exact_clock: bool,
    whole_segments: bool,
    num_threads: int | None,
    in_pieces: bool,
    open_places: OpenPlaces | None = None,
) -> Iterator[FramePiece]:
    with open_video(source, limits) as (container, stream), ExitStack() as scaling:
        stated_seconds = _stated_seconds(container, stream)
        expected_seconds = min(stated_seconds or limits.max_seconds, limits.max_seconds)
        threads = num_threads or _choose_num_threads(stream, expected_seconds)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = _limit_decoder_threads(stream, threads)
        pickers = {fps: FramePicker(fps, exact=exact_clock) for fps in (VISUAL_FPS, SYNC_FPS)}
        scaler = _Scaler(*sizes, limits, pickers[VISUAL_FPS], pickers[SYNC_FPS], threads)
        if open_places is not None and SYNC_FPS * expected_seconds <= WHOLE_CLIP_FRAMES:
            most = _count_most_frames(expected_seconds, whole_segments)
            scaler.open_places = partial(open_places, *most)
        scaling.callback(scaler.close)
        times = FrameTimes(stream.time_base or Fraction(1, SYNC_FPS), _frame_rate(stream))
        trimmed = is_checked = False

        def take_pieces(progress: Iterator[None]) -> Iterator[FramePiece]:
            nonlocal is_checked
            for _ in progress:
                while in_pieces and (piece := scaler.take(expected_seconds)) is not None:
                    if not trim and not is_checked:
                        _check_stated_length(container, stream, limits)
                    is_checked = True
                    yield piece

        for frame, pts, duration in time_frames(container, stream, limits):
            seconds = times.seconds(pts, duration)
            check_cpu(seconds, limits)
            # The reference includes a frame at the limit, although it lasts beyond the limit.
            if seconds > limits.max_seconds or (exact_clock and seconds == limits.max_seconds):
                first_seconds, trimmed = seconds, True
                break
            if seconds >= 0:
                yield from take_pieces(scaler.add(frame, seconds))
        yield from take_pieces(scaler.finish())
        held = not trimmed and times.held_seconds > _LONG_HOLD_SECONDS
        if held and scaler.num_sync:
            stop_seconds = min(times.stop_seconds, limits.max_seconds)
            yield from take_pieces(scaler.hold_last(stop_seconds))
            if times.stop_seconds > limits.max_seconds + 1 / VISUAL_FPS:
                first_seconds, trimmed = times.stop_seconds, True
    if not scaler.num_sync:
        raise NoFramesError(
            f"{source.name} shows no frame between 0 and {limits.max_seconds:.2f} s"
            + (f", its next one is at {first_seconds:.2f} s" if trimmed else "")
            + "; send a video whose timestamps start at zero"
        )
    source_seconds = times.stop_seconds
    if trimmed:
        source_seconds = max(stated_seconds or 0.0, first_seconds)
        if not trim:
            raise _too_long_error(source_seconds, limits)
    yield _finish_frames(scaler, source_seconds, limits, trimmed, whole_segments)


def _check_stated_length(
    container: InputContainer, stream: VideoStream, limits: MediaLimits
) -> None:
    seconds = _stated_seconds(container, stream)
    # Some containers state a little more than they show.
    most_seconds = limits.max_seconds + 1
    if seconds is None or seconds <= most_seconds:
        return
    if has_running_clock(container):  # which may leap on the way, and then states too much
        with open_video(Path(container.name), limits) as (again, picture):
            packets = demux_video(again, picture)
            seconds = max(
                (seconds_of(p.dts, p.time_base) for p in packets if p.dts is not None), default=0.0
            )
        if seconds <= most_seconds:
            return
    raise _too_long_error(seconds, limits)


def _too_long_error(seconds: float, limits: MediaLimits) -> VideoTooLongError:
    return VideoTooLongError(
        f"video lasts {seconds:.2f} s, the limit is {limits.max_seconds:.2f} s; "
        "cut it, or ask for trimming"
    )


_Scaled = tuple[Tensor | None, Tensor | None]  # of the 8 and the 25 fps frames


class _Begun(NamedTuple):
    """A frame that is being scaled, and how often it was picked at 8 and at 25 fps.

    A frame that goes to a place in a file is not returned.
    """

    wait: Callable[[], _Scaled]
    visual: _Picks
    sync: _Picks


class _Picks(NamedTuple):
    """How often a frame was picked at one rate, and its index in the place in a file, if any."""

    times: int
    place: int | None


class _Scaler:
    """Converts each picked frame to RGB once, and scales it for the encoders that need it.

    Several frames are scaled at a time, beside the decoder; with one thread, one after the other in
    the thread of the caller. `add`, `finish` and `hold_last`
    yield whenever there may be a piece to take, since one frame can be picked for minutes.

    Attributes:
        num_visual: frames at 8 fps that were picked and scaled so far.
        num_sync: frames at 25 fps that were picked and scaled so far.
        open_places: returns the places for the frames at 8 and at 25 fps; None without.
    """

    def __init__(
        self,
        visual_size: int,
        sync_size: int,
        limits: MediaLimits,
        visual_picker: FramePicker,
        sync_picker: FramePicker,
        num_threads: int,
    ) -> None:
        seconds = min(limits.max_seconds, WHOLE_CLIP_FRAMES / SYNC_FPS) + 1
        self.visual = FrameStack(visual_size, int(seconds * VISUAL_FPS))
        self.sync = FrameStack(sync_size, int(seconds * SYNC_FPS))
        self.num_visual = self.num_sync = 0
        self.open_places: Callable[[], tuple[FramePlace, FramePlace]] | None = None
        self._visual_size, self._sync_size = visual_size, sync_size
        self._visual_picker, self._sync_picker = visual_picker, sync_picker
        self._limits = limits
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, "scale") if num_threads > 1 else None
        self._begun: deque[_Begun] = deque()
        self._own = threading.local()  # a converter to RGB for each thread
        self._orientation: Orientation | None = None
        self._last: tuple[VideoFrame, float] | None = None  # its picks depend on the next one
        self._taken = 0, 0  # frames at 8 and at 25 fps
        self._next_piece = WHOLE_CLIP_FRAMES

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def add(self, frame: VideoFrame, seconds: float) -> Iterator[None]:
        self._begin_last(seconds)
        self._last = frame, seconds
        at_once = _MAX_SCALING_BYTES // (6 * frame.width * frame.height)
        yield from self._finish(max(1, min(self._num_threads + _NUM_WAITING, at_once)))

    def finish(self) -> Iterator[None]:
        """Pick the last frame up to its time, and wait for all frames that were added."""
        if self._last is not None:
            self._begin_last(self._last[1])
        return self._finish(0)

    def hold_last(self, stop_seconds: float) -> Iterator[None]:
        """Pick the last frame again for every target before `stop_seconds`."""
        assert self._last is not None
        visual_picks = self._visual_picker.count_until(stop_seconds)
        sync_picks = self._sync_picker.count_until(stop_seconds)
        self._begin(self._last[0], visual_picks, sync_picks)
        return self._finish(0)

    def _begin_last(self, next_seconds: float) -> None:
        if self._last is None:
            return
        frame, seconds = self._last
        visual_picks = self._visual_picker.count_shown(seconds, next_seconds)
        sync_picks = self._sync_picker.count_shown(seconds, next_seconds)
        self._begin(frame, visual_picks, sync_picks)

    def _begin(self, frame: VideoFrame, visual_picks: int, sync_picks: int) -> None:
        if not visual_picks and not sync_picks:
            return
        if self._orientation is None:
            # A file states it once. PyAV's side data and frame refer to each other, so reading it
            # from every frame would keep all frames alive until the garbage collector runs.
            self._orientation = orientation_of(frame)
        if sync_picks:
            self._check_fitted_size(frame)
        if self.open_places is not None:
            visual_place, sync_place = self.open_places()
            self.visual = FrameStack(self._visual_size, visual_place.capacity, visual_place)
            self.sync = FrameStack(self._sync_size, sync_place.capacity, sync_place)
            self.open_places = None
        places = claim_together((self.visual, visual_picks), (self.sync, sync_picks))
        visual = _Picks(visual_picks, places[0])
        sync = _Picks(sync_picks, places[1])
        scale = partial(self._scale, frame, visual, sync)
        wait = scale if self._pool is None else self._pool.submit(scale).result
        self._begun.append(_Begun(wait, visual, sync))

    def _scale(self, frame: VideoFrame, visual: _Picks, sync: _Picks) -> _Scaled:
        if not hasattr(self._own, "reformatter"):
            self._own.reformatter = VideoReformatter()
        # The reference's colours are those of PyAV's default conversion. Its own threads, one for
        # each core by default, would be as many for each of those that scale.
        rgb = self._own.reformatter.reformat(frame, format="rgb24", threads=1)
        image = rgb_view(rgb)  # [H, W, 3]
        return (
            self._turn(stretch(image, self._visual_size), self.visual, visual)
            if visual.times
            else None,
            self._turn(fit_and_crop(image, self._sync_size), self.sync, sync)
            if sync.times
            else None,
        )

    def _turn(self, image: Tensor, stack: FrameStack, picks: _Picks) -> Tensor | None:
        """Return a scaled frame as it is shown, unless it goes to a place in a file."""
        assert self._orientation is not None
        image = apply_orientation(image, self._orientation)
        if picks.place is None:
            return image
        stack.put(picks.place, image, picks.times)
        return None

    def _finish(self, num_left: int) -> Iterator[None]:
        """Append frames in their order until so many are being scaled."""
        while len(self._begun) > num_left:
            begun = self._begun.popleft()
            visual, sync = begun.wait()
            yield from self._append(
                _choose_addition(self.visual, begun.visual, visual),
                begun.visual.times,
                _choose_addition(self.sync, begun.sync, sync),
                begun.sync.times,
            )

    def repeat_last(self, num_visual: int, num_sync: int) -> None:
        """Pick the last frame again until so many frames are picked."""
        for _ in self._append(
            self.visual.repeat_last,
            max(0, num_visual - self.num_visual),
            self.sync.repeat_last,
            num_sync - self.num_sync,
        ):
            pass

    def take(self, expected_seconds: float) -> FramePiece | None:
        """Return a piece that is complete and not the last one; None without."""
        if self.num_sync <= self._next_piece:
            return None
        num_visual, num_sync = count_visual(self._next_piece), self._next_piece
        visual = self.visual.take(num_visual - self._taken[0], PIECE_FRAMES)
        sync = self.sync.take(num_sync - self._taken[1], 2 * PIECE_FRAMES)
        self._taken = num_visual, num_sync
        self._next_piece += PIECE_FRAMES
        return FramePiece(visual=visual, sync=sync, expected_seconds=expected_seconds)

    def _append(
        self,
        add_visual: Callable[[int], None],
        visual_picks: int,
        add_sync: Callable[[int], None],
        sync_picks: int,
    ) -> Iterator[None]:
        """Add a frame so often. Those at 8 fps are never behind the others."""
        while visual_picks or sync_picks:
            visual_added = min(visual_picks, PIECE_FRAMES)
            sync_added = min(sync_picks, PIECE_FRAMES)
            add_visual(visual_added)
            add_sync(sync_added)
            self.num_visual += visual_added
            self.num_sync += sync_added
            visual_picks -= visual_added
            sync_picks -= sync_added
            yield

    def _check_fitted_size(self, frame: VideoFrame) -> None:
        # Scaling up the short side of a narrow strip makes the long side very long.
        height, width = fitted_size(frame.height, frame.width, self._sync_size)
        if height * width > self._limits.max_pixels:
            raise VideoTooLargeError(
                f"frames of {frame.width} x {frame.height} would have {height * width} pixels with "
                f"the short side at {self._sync_size}, the limit is {self._limits.max_pixels}; "
                "crop the clip to a less narrow shape"
            )


def _choose_addition(
    stack: FrameStack, picks: _Picks, image: Tensor | None
) -> Callable[[int], None]:
    """Return what adds a frame that was scaled to its stack, so many times."""
    if picks.place is not None:
        return stack.count_put
    return partial(stack.append, image) if image is not None else stack.repeat_last


def decode_packets(
    packets: Iterable[Packet[VideoStream]], limits: MediaLimits
) -> Iterator[VideoFrame]:
    """Yield the frames of a stream's packets in presentation order.

    Packets before the first frame may be undecodable, as in a recording that starts between key
    frames. After the first frame, an undecodable packet is an error.

    Args:
        packets: of one video stream, in decoding order, with the empty last packet that flushes the
            decoder.
        limits: `max_pixels` is checked for each frame, and the cost of all frames.

    Raises:
        VideoDecodeError: the stream is damaged after its first frame.
        VideoTooLargeError: a frame has too many pixels.
        VideoTooCostlyError: there are too many frames, or too many pixels in all of them, or too
            many packets in a row that show nothing.
        av.FFmpegError: no packet can be decoded.
    """
    num_frames = num_unseen = 0
    seen_seconds = time.process_time()
    damage: av.FFmpegError | None = None
    for packet in packets:
        num_unseen += 1
        if num_unseen > _MAX_UNSEEN_PACKETS:
            raise VideoTooCostlyError(
                f"{_MAX_UNSEEN_PACKETS} packets in a row show no picture; convert the clip first"
            )
        check_cpu_since(seen_seconds, limits)
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if num_frames:
                raise VideoDecodeError(
                    f"the picture is damaged after frame {num_frames} ({error.strerror}); "
                    "send a file that plays to its end"
                ) from error
            damage = error
            continue
        for frame in frames:
            assert isinstance(frame, VideoFrame)
            check_pixels(frame.width, frame.height, limits)
            num_frames += 1
            num_unseen, seen_seconds = 0, time.process_time()
            check_cost(num_frames, frame.width * frame.height, limits)
            yield frame
    if damage is not None and not num_frames:
        raise damage


def time_frames(
    container: InputContainer, stream: VideoStream, limits: MediaLimits
) -> Iterator[tuple[VideoFrame, int | None, int | None]]:
    """Yield each frame in presentation order with its timestamp and duration in ticks.

    Args:
        container: the open source.
        stream: its video stream.
        limits: `max_pixels` is checked for each frame.

    Raises:
        VideoDecodeError: the stream is damaged after its first frame.
        VideoTooLargeError: a frame has too many pixels.
    """
    packets = demux_video(container, stream)
    if has_presentation_times(container, stream):
        for frame in decode_packets(packets, limits):
            yield frame, frame.pts, frame.duration
        return
    # Each frame takes the earliest decoding timestamp that no frame before it has taken.
    waiting: list[int] = []
    last_pts: int | None = None
    for frame in decode_packets(_collect_dts(packets, waiting), limits):
        pts = heapq.heappop(waiting) if waiting else None
        duration = frame.duration
        if pts is not None and last_pts is not None:
            duration = pts - last_pts
        yield frame, pts, duration
        last_pts = pts


def _collect_dts(
    packets: Iterable[Packet[VideoStream]], timestamps: list[int]
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets, and push each one's decoding timestamp on the heap."""
    for packet in packets:
        if packet.size and packet.dts is not None:
            heapq.heappush(timestamps, packet.dts)
        yield packet


def _finish_frames(
    scaler: _Scaler,
    source_seconds: float,
    limits: MediaLimits,
    trimmed: bool,
    whole_segments: bool,
) -> FramePiece:
    notices = []
    if trimmed:
        notices.append(
            f"The clip lasts {source_seconds:.2f} s; what lies after {limits.max_seconds:.2f} s "
            "was left out."
        )
    num_picked = scaler.num_sync
    num_sync = max(num_picked, SYNC_SEGMENT_FRAMES)
    num_visual = 0
    if whole_segments:
        num_sync += -num_sync % SYNC_SEGMENT_STRIDE
        num_visual = count_visual(num_sync)
    scaler.repeat_last(num_visual, num_sync)
    if num_picked < SYNC_SEGMENT_FRAMES:
        notices.append(
            f"The clip has {num_picked} frames at {SYNC_FPS} fps, the shortest that can be sounded "
            f"has {SYNC_SEGMENT_FRAMES} ({SYNC_SEGMENT_FRAMES / SYNC_FPS:.2f} s); "
            "its last frame was repeated for the model."
        )
    is_placed = scaler.visual.is_placed and scaler.sync.is_placed
    return FramePiece(
        visual=scaler.visual.finish(),
        sync=scaler.sync.finish(),
        is_placed=is_placed,
        expected_seconds=source_seconds,
        facts=ClipFacts(
            num_picked=num_picked,
            source_seconds=source_seconds,
            trimmed=trimmed,
            notices=tuple(notices),
        ),
    )


def _stated_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        start = (stream.start_time or 0) - clock_start(container, stream)
        return seconds_of(start + stream.duration, stream.time_base)
    if container.duration:
        return seconds_of(container.duration, Fraction(1, av.time_base))
    return None


def _frame_rate(stream: VideoStream) -> Fraction | None:
    return stream.average_rate or stream.guessed_rate


def _choose_num_threads(stream: VideoStream, expected_seconds: float) -> int:
    codec = stream.codec_context
    num_frames = expected_seconds * float(_frame_rate(stream) or SYNC_FPS)
    if 0 < codec.width * codec.height * num_frames <= _ONE_THREAD_PIXELS:
        return 1
    return min(_MAX_THREADS, os.cpu_count() or 1)


def _limit_decoder_threads(stream: VideoStream, num_threads: int) -> int:
    is_large = stream.codec_context.width * stream.codec_context.height > _LARGE_PIXELS
    return min(_MAX_DECODER_THREADS_OF_LARGE, num_threads) if is_large else num_threads


def _count_most_frames(expected_seconds: float, whole_segments: bool) -> tuple[int, int]:
    """Return how many frames a clip has at 8 and at 25 fps at most, if it is as long as it states.

    A frame at its end may count, and the last one is repeated for short clips and whole segments.
    """
    num_sync = max(SYNC_SEGMENT_FRAMES, math.ceil(SYNC_FPS * expected_seconds) + 1)
    if whole_segments:
        num_sync += -num_sync % SYNC_SEGMENT_STRIDE
    num_sync = min(num_sync, WHOLE_CLIP_FRAMES)
    return count_visual(num_sync), num_sync
