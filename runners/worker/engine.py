"""The engine: compute what the scheduler decides, with the parts of a pipeline.

Each GPU has one engine, with a pipeline of its own. On the CPU two engines share one pipeline,
because two operations on half of the threads each wait less than one operation on all of them. An
engine that is alone at work on the CPU takes all threads.
"""

# N variations, L latent channels, A latent frames

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import structlog
import torch

from foley.conditioning import count_pieces
from foley.configs import Preset
from foley.gpu.encoder_batches import Cut
from foley.media.clock import num_latents
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.sampling import compute_evaluation_sigmas, count_guided_steps, make_sigmas
from foley.session import Session
from foley.types import Stage
from foley.windows import plan_decoding, plan_groups
from runners.worker.scheduler import JobSize, Kind

log = structlog.get_logger(__name__)


def compute_size(
    options: GenerationRequest, num_visual: int, num_sync: int, preset: Preset, cut: Cut
) -> JobSize:
    """Return the work of a request.

    Args:
        options: of the generation.
        num_visual: frames at 8 fps, at least 1.
        num_sync: frames at 25 fps, at least 16.
        preset: of the model.
        cut: of clips, on a device that may run the request.
    """
    is_guided = options.choose_guidance(preset) > 1
    plan = options.choose_sampling(preset)
    sigmas = make_sigmas(plan.num_inference_steps, plan.schedule_shift)
    per_step = len(compute_evaluation_sigmas(make_sigmas(1), plan.solver))
    guided_steps = count_guided_steps(sigmas, plan.guidance_interval)
    steps_after_guidance = plan.num_inference_steps - guided_steps if is_guided else 0
    frames = num_latents(num_sync)
    groups = list(plan_groups(frames))
    windows = [window for group in groups for window in group.windows]
    has_picture = options.duration_seconds is None
    num_pieces = count_pieces(cut, num_visual, num_sync) if has_picture else 1  # the prompts
    if options.edit is not None:
        num_pieces += len(windows)  # of what it starts from
    longest_window = max(window.stop - window.start for window in windows)
    decoding = [piece for group in groups for piece in plan_decoding(group)]
    return JobSize(
        tokens=(2 if is_guided else 1) * options.num_sounds * longest_window,
        num_windows=max(len(group.windows) for group in groups),
        num_evaluations=plan.num_inference_steps * per_step * len(windows),
        num_halved=steps_after_guidance * per_step * len(windows),
        num_pieces=num_pieces,
        num_sounds=options.num_sounds * len(decoding),
        num_latents=max(piece.decoded.stop - piece.decoded.start for piece in decoding),
    )


class Engine:
    """Computes on one device, in one thread at a time.

    Args:
        pipeline: on the device; engines of a CPU share one.

    Attributes:
        pipeline: on the device.
    """

    def __init__(self, pipeline: FoleyPipeline) -> None:
        self.pipeline = pipeline
        self._velocities = pipeline.make_velocity_model()
        self._all_threads = torch.get_num_threads()
        self._threads = 0

    @torch.inference_mode()
    def run(
        self, kind: Kind, sessions: Sequence[Session], num_busy: int = 1
    ) -> list[Exception | None]:
        """Compute a piece of each session, in `use_device`.

        A GPU may still be computing when this returns, so that it need not wait for the host
        between two pieces: see `mark_end`.

        Args:
            kind: of the piece.
            sessions: several for an evaluation, else one.
            num_busy: engines that compute on the device, this one included.

        Returns:
            The error of each session. An error of one session does not affect the others.
        """
        self._set_threads(num_busy)
        if kind == Stage.SAMPLE:
            return self._evaluate(sessions)
        (session,) = sessions
        try:
            session.encode() if kind is Stage.ENCODE else session.decode()
        except Exception as error:  # noqa: BLE001 - it becomes the outcome of the session
            return [self._translate_error(session, error)]
        return [None]

    def mark_end(self) -> Callable[[], None] | None:
        """Return what waits until the device has done all that `run` gave it so far.

        None on a CPU, where `run` returns when all is done.
        """
        device = self.pipeline.device
        if device.type != "cuda":
            return None
        end: torch.cuda.Event = torch.cuda.current_stream(device).record_event()
        return lambda: end.synchronize()

    def measure_memory(self) -> int | None:
        """Return the bytes that tensors take on a GPU; None on a CPU."""
        device = self.pipeline.device
        return torch.cuda.memory_allocated(device) if device.type == "cuda" else None

    def forget_batch(self) -> None:
        """Free what is kept for the next evaluation of the same sessions."""
        self._velocities.forget()

    def use_device(self) -> AbstractContextManager[object]:
        """Return the context in which `run` is called."""
        return self.pipeline.use_device()

    def check_device(self) -> None:
        """Raise the fault of a kernel, if there was one: the device then stays unusable."""
        if self.pipeline.device.type == "cuda":
            torch.cuda.synchronize(self.pipeline.device)

    def _evaluate(self, sessions: Sequence[Session]) -> list[Exception | None]:
        """Evaluate the model for all sessions at once; if that fails, for each half of them."""
        try:
            velocities = self._velocities([session.prepare_part() for session in sessions])
        except Exception as error:  # noqa: BLE001 - see `run`
            self._velocities.forget()
            if len(sessions) == 1:
                return [self._translate_error(sessions[0], error)]
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
                    failures.append(self._translate_error(session, error))
            return failures
        # Outside the handler, because the error's traceback holds the memory of the batch.
        return self._evaluate(sessions[:middle]) + self._evaluate(sessions[middle:])

    def _translate_error(self, session: Session, error: Exception) -> Exception:
        """Return the error for the caller; after a lack of memory, make room first."""
        if not isinstance(error, torch.OutOfMemoryError):
            return error
        log.warning("out_of_memory", device=str(self.pipeline.device))
        self.check_device()  # what is freed may still be in use
        self.pipeline.make_room()
        return session.make_memory_error()

    def _set_threads(self, num_busy: int) -> None:
        """Divide the CPU's threads among the busy engines. PyTorch keeps a number per thread."""
        threads = max(1, self._all_threads // num_busy)
        if self.pipeline.device.type == "cpu" and threads != self._threads:
            torch.set_num_threads(threads)
            self._threads = threads
