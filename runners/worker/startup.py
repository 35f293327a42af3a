"""Start the worker with the model that the settings name."""

from typing import TYPE_CHECKING

from runners.settings import Settings, plan_model_environments
from runners.worker.loading import ModelChoice, count_gpus, freeze_gc, load_pipeline
from runners.worker.memory import hold_freed_memory
from runners.worker.process_device import ProcessDevice
from runners.worker.worker import Worker

if TYPE_CHECKING:
    from runners.worker.device import Device


def start_worker(settings: Settings) -> Worker:
    """Return a worker that loads the model of the settings on each of their devices.

    Several GPUs get a process each, which load side by side.

    Args:
        settings: name the model, its devices and the number of places. Loading takes place on a
            thread of the worker, so what goes wrong is in `Worker.status`.
    """
    choice = ModelChoice(
        preset=settings.preset,
        device=settings.device,
        weights=settings.weights,
        precision=settings.precision,
        memory=settings.memory,
        adapters=settings.adapters,
    )

    def load() -> "list[Device]":
        num_gpus = count_gpus(settings.device)
        if num_gpus > 1:
            return [
                ProcessDevice(f"cuda:{index}", choice._replace(device="cuda"), environment)
                for index, environment in enumerate(plan_model_environments(num_gpus))
            ]
        pipeline = load_pipeline(choice)
        from runners.worker.device import LocalDevice

        return [LocalDevice(pipeline)]

    hold_freed_memory(settings.device)
    return Worker(
        load,
        capacity=settings.max_concurrency,
        key_share=settings.key_share,
        freeze_gc=freeze_gc,
    )
