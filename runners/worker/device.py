"""A device as the worker sees it, and one whose model is in this process."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from foley.pipeline import FoleyPipeline
from runners.messages import AdapterStatus, ModelStatus
from runners.worker import calibration
from runners.worker.engine import Engine
from runners.worker.held_session import HeldSession
from runners.worker.reports import Beginning, DeviceFacts, Launch, Report
from runners.worker.scheduler import Kind


class Lane(Protocol):
    """Executes actions on a device one after the other, for one thread."""

    def use(self) -> AbstractContextManager[object]:
        """Return the context in which the other methods are called."""

    def launch(self, kind: Kind, tasks: Mapping[int, Beginning | None], num_busy: int) -> Launch:
        """Begin an action, and return when all that the host does for it is done.

        Args:
            kind: of the action.
            tasks: its requests, by their serials; None for those that have begun.
            num_busy: lanes of the device at work, this one included.
        """

    def wait(self) -> float:
        """Wait until the device has done the first action that it had not done when launched.

        Returns:
            When that was, on the monotonic clock.
        """

    def forget_batch(self) -> None:
        """Free what is kept for the next evaluation of the same sessions."""


class Device(Protocol):
    """A device with a model of its own.

    Attributes:
        name: such as cpu or cuda:1.
    """

    name: str

    def start(self, on_loss: Callable[[], None]) -> DeviceFacts:
        """Warm the device up and measure it.

        Args:
            on_loss: called when the process of its model has ended without `close`.

        Raises:
            FoleyError: the model cannot be loaded, or does not run on the device.
        """

    def make_lanes(self, count: int) -> "Sequence[Lane]":
        """Return lanes for so many threads, after `start`."""

    def forget(self, serial: int) -> None:
        """Free the state of a request that no action is executed on, from any thread.

        Args:
            serial: of the request; one that is unknown is ignored.
        """

    def show_threads(self) -> None:
        """Have the process of the model write where its threads are, if it is not this one."""

    def close(self) -> None:
        """End the process of the model, after the last action."""


class LocalDevice:
    """A device whose model is in this process.

    Args:
        pipeline: on the device.

    Attributes:
        name: of the device.
        sessions: by the serials of their requests.
    """

    def __init__(self, pipeline: FoleyPipeline) -> None:
        self._pipeline = pipeline
        self.name = str(pipeline.device)
        self.sessions: dict[int, HeldSession] = {}

    def start(self, on_loss: Callable[[], None]) -> DeviceFacts:
        """See `Device.start`; it is lost with this process."""
        budget, rates = calibration.measure(self._pipeline)
        status = _describe_model(self._pipeline)
        return DeviceFacts(budget, rates, status, self._pipeline.preset, self._pipeline.cut)

    def make_lanes(self, count: int) -> "Sequence[LocalLane]":
        """See `Device.make_lanes`; they share the sessions."""
        return [LocalLane(Engine(self._pipeline), self.sessions) for _ in range(count)]

    def forget(self, serial: int) -> None:
        """See `Device.forget`."""
        self.sessions.pop(serial, None)

    def show_threads(self) -> None:
        """See `Device.show_threads`."""

    def close(self) -> None:
        """See `Device.close`; the model ends with this process."""


class LocalLane:
    """An engine with the sessions of its device.

    Args:
        engine: of this lane.
        sessions: of all lanes of the device.
    """

    def __init__(self, engine: Engine, sessions: dict[int, HeldSession]) -> None:
        self._engine = engine
        self._sessions = sessions
        self._waits: deque[Callable[[], None]] = deque()

    def use(self) -> AbstractContextManager[object]:
        """See `Lane.use`."""
        return self._engine.use_device()

    def launch(self, kind: Kind, tasks: Mapping[int, Beginning | None], num_busy: int) -> Launch:
        """See `Lane.launch`."""
        reports: dict[int, Report] = {}
        for serial, beginning in tasks.items():
            if beginning is not None and (failure := self._begin(serial, beginning)):
                reports[serial] = Report(failure=failure)
        able = {serial: self._sessions[serial] for serial in tasks if serial not in reports}
        if able:
            sessions = [held.session for held in able.values()]
            failures = self._engine.run(kind, sessions, num_busy)
            for (serial, held), error in zip(able.items(), failures, strict=True):
                reports[serial] = held.report(error)
        if any(report.failure for report in reports.values()):
            self._engine.check_device()
        wait = self._engine.mark_end()
        if wait is not None:
            self._waits.append(wait)
        return Launch(reports, wait is None, self._engine.measure_memory())

    def wait(self) -> float:
        """See `Lane.wait`."""
        self._waits.popleft()()
        return time.monotonic()

    def forget_batch(self) -> None:
        """See `Lane.forget_batch`."""
        self._engine.forget_batch()

    def _begin(self, serial: int, beginning: Beginning) -> Exception | None:
        """Begin a request; returns the error that keeps it from its first action."""
        try:
            self._sessions[serial] = HeldSession.begin(beginning, self._engine.pipeline)
        except Exception as error:  # noqa: BLE001 - it becomes the outcome of this request
            return error
        return None


def _describe_model(pipeline: FoleyPipeline) -> ModelStatus:
    return ModelStatus(
        state="ready",
        preset=pipeline.preset.name,
        about=pipeline.preset.about,
        prompts=pipeline.preset.prompts,
        num_inference_steps=pipeline.preset.default_plan.num_inference_steps,
        guidance_scale=pipeline.preset.default_guidance,
        description=pipeline.description,
        revision=pipeline.revision,
        licence=pipeline.licence.name,
        territory=pipeline.licence.territory,
        adapters=tuple(AdapterStatus(**info._asdict()) for info in pipeline.adapters),
    )
