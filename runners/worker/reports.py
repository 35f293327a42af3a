"""What passes between the worker and a device, within a process or between two.

    worker ── tasks: {serial: Beginning, or None for a session that has begun} ──► device
           ◄── Launch: {serial: Report} ─────────────────────────────────────────

Frames and sounds are no part of it: they are in files of the request's folder.
"""

from typing import TYPE_CHECKING, NamedTuple

from foley.configs import Preset
from runners.handoff import FrameCounts
from runners.messages import FinishedPiece, ModelStatus, RunnerRequest, RunnerResult
from runners.worker.scheduler import Budget, Kind

if TYPE_CHECKING:  # it imports PyTorch
    from foley.gpu.encoder_batches import Cut


class DeviceFacts(NamedTuple):
    """What is known of a device once its model is warm.

    Attributes:
        budget: of its work.
        rates: seconds for each unit of an action; see `JobSize.count_units`.
        status: of the model.
        preset: of the model.
        cut: how it cuts clips into pieces.
    """

    budget: Budget
    rates: dict[Kind, float]
    status: ModelStatus
    preset: Preset
    cut: "Cut"


class Beginning(NamedTuple):
    """What a device needs to begin a request.

    Attributes:
        request: from the API.
        is_streamed: whether the frames of its long clip come in pieces.
    """

    request: RunnerRequest
    is_streamed: bool


class SessionState(NamedTuple):
    """What the worker and the scheduler know of a session between two actions.

    Attributes:
        next_kind: of its next action; None when all are done.
        tokens: of its next evaluation; 0 where its next action is none.
        num_decoded: latent frames of its next piece of sound; 0 where its next action is none.
        step: solver steps that are done.
        num_steps: all solver steps.
        num_retries: how often sampling has begun again.
        is_encoded: whether the whole clip is encoded.
        num_pieces: in which the conditions are encoded; None where they come in pieces, or where
            there is no clip.
        awaits_frames: whether the next piece of encoding reads a piece of frames.
        num_read: pieces of frames that were read.
        counts: of the frames of a clip that comes in pieces, once all were read.
    """

    next_kind: Kind | None
    tokens: int
    num_decoded: int
    step: int
    num_steps: int
    num_retries: int
    is_encoded: bool
    num_pieces: int | None
    awaits_frames: bool
    num_read: int
    counts: FrameCounts | None


class Report(NamedTuple):
    """What an action has made of one request: a failure, or a state.

    Attributes:
        state: of its session.
        failure: with which the request ends.
        pieces: of its sound that have become final.
        result: after its last action, without the seconds in the queue and of devices.
    """

    state: SessionState | None = None
    failure: Exception | None = None
    pieces: tuple[FinishedPiece, ...] = ()
    result: RunnerResult | None = None


class Launch(NamedTuple):
    """The answer to an action.

    Attributes:
        reports: of each request, by its serial.
        is_done: whether the device has done it; else it is still at work, see `Lane.wait`.
        memory_bytes: that tensors take on a GPU; None on a CPU.
    """

    reports: dict[int, Report]
    is_done: bool
    memory_bytes: int | None
