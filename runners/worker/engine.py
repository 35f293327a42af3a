"""Executes what the scheduler decides, with the parts of a pipeline; measures what a device takes.

A GPU has one engine, with a pipeline of its own. On the CPU two engines share a pipeline: two
operations on half of the threads each wait less than one operation on all of them. An engine that
has the CPU to itself takes all threads.
"""

# N variations, L latent channels, A latent frames

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import structlog
import torch

from foley.media.clock import num_latents
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.sampling import evaluation_sigmas, make_sigmas
from foley.session import Session
from foley.types import Stage
from foley.weights.selection import choose_device
from runners import metrics
from runners.worker.scheduler import Kind, Size

log = structlog.get_logger(__name__)


def size_of(
    request: GenerationRequest, num_visual: int, num_sync: int, pipeline: FoleyPipeline
) -> Size:
    """What a request with so many frames at 8 and at 25 fps takes of a pipeline."""
    halves = 2 if request.guidance(pipeline.preset) > 1 else 1
    frames = num_latents(num_sync)
    return Size(
        tokens=halves * request.num_variations * frames,
        num_evaluations=request.num_steps(pipeline.preset) * len(_levels(1, request)),
        num_pieces=pipeline.num_pieces(num_visual, num_sync),
        num_sounds=request.num_variations,
        num_latents=frames,
    )


def devices_of(name: str) -> list[torch.device]:
    """The devices of that name; auto and cuda are all GPUs that can be seen.

    Raises:
        DeviceError: unknown, or not there.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [choose_device(name)]


class Engine:
    """Computes on one device, in one thread at a time.

    Attributes:
        pipeline: whose parts it uses.
    """

    def __init__(self, pipeline: FoleyPipeline) -> None:
        self.pipeline = pipeline
        self._velocities = pipeline.velocity_model()
        self._all_threads = torch.get_num_threads()
        self._threads = 0

    @torch.inference_mode()
    def run(
        self, kind: Kind, sessions: Sequence[Session], num_busy: int = 1
    ) -> list[Exception | None]:
        """Execute a piece of each session.

        Args:
            kind: of the piece.
            sessions: one; of an evaluation, several.
            num_busy: engines that compute on the device now, this one included.

        Returns:
            What went wrong with each session: a failing one does not hurt the others.
        """
        self._take_threads(num_busy)
        if kind == Stage.SAMPLE:
            started = time.perf_counter()
            failures = self._evaluate(sessions)
            self._wait()
            metrics.STEP_SECONDS.observe(time.perf_counter() - started)
            metrics.BATCH_SIZE.observe(len(sessions))
            return failures
        (session,) = sessions
        try:
            session.encode() if kind is Stage.ENCODE else session.decode()
            self._wait()
        except Exception as error:  # noqa: BLE001 - whoever waits for the session decides
            return [self._told(session, error)]
        return [None]

    def rest(self) -> None:
        """Let go of what is kept for the next evaluation."""
        self._velocities.forget()

    def device(self) -> AbstractContextManager[object]:
        """In which `run` is called."""
        return self.pipeline.current()

    def check(self) -> None:
        """Raise if the device can no longer be used: a fault in a kernel stays until the end."""
        if self.pipeline.device.type == "cuda":
            torch.cuda.synchronize(self.pipeline.device)

    def _evaluate(self, sessions: Sequence[Session]) -> list[Exception | None]:
        try:
            velocities = self._velocities([session.part for session in sessions])
        except Exception as error:  # noqa: BLE001 - see `run`
            self._velocities.forget()
            if len(sessions) == 1:
                return [self._told(sessions[0], error)]
            middle = len(sessions) // 2
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
                log.warning("batch_split", requests=len(sessions))
        else:
            failures: list[Exception | None] = []
            for session, velocity in zip(sessions, velocities, strict=True):
                try:
                    session.advance(velocity)
                    failures.append(None)
                except Exception as error:  # noqa: BLE001 - see `run`
                    failures.append(self._told(session, error))
            return failures
        # Outside the handler, whose traceback holds what did not fit.
        return self._evaluate(sessions[:middle]) + self._evaluate(sessions[middle:])

    def _told(self, session: Session, error: Exception) -> Exception:
        """The error as it is told to whoever waits."""
        if not isinstance(error, torch.OutOfMemoryError):
            return error
        log.warning("out_of_memory", device=str(self.pipeline.device))
        self.pipeline.make_room()
        return session.out_of_memory()

    def _wait(self) -> None:
        device = self.pipeline.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            memory = torch.cuda.memory_allocated(device)
            metrics.GPU_MEMORY.labels(str(device)).set(memory)

    def _take_threads(self, num_busy: int) -> None:
        """PyTorch keeps the number of threads for each thread that computes."""
        threads = max(1, self._all_threads // num_busy)
        if self.pipeline.device.type == "cpu" and threads != self._threads:
            torch.set_num_threads(threads)
            self._threads = threads


def _levels(num_steps: int, request: GenerationRequest) -> torch.Tensor:
    return evaluation_sigmas(make_sigmas(num_steps), request.solver)
