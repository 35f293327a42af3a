"""Start the worker with the model that the settings name."""

import gc
from typing import TYPE_CHECKING

from runners.logs import adopt_libraries
from runners.settings import Settings
from runners.worker.memory import hold_freed_memory
from runners.worker.worker import Worker

if TYPE_CHECKING:
    from foley.pipeline import FoleyPipeline


def start_worker(settings: Settings) -> Worker:
    """Return a worker that loads the model of the settings on each of their devices.

    Args:
        settings: name the model, its devices and the number of places. Loading takes place on a
            thread of the worker, so what goes wrong is in `Worker.status`.
    """

    def load() -> "list[FoleyPipeline]":
        import diffusers.utils.logging
        import transformers.utils.logging

        # Both libraries set up their handlers at the first call, and warn while they are imported.
        diffusers.utils.logging.get_logger()
        transformers.utils.logging.get_logger()
        adopt_libraries()
        from foley.hardware.doctor import refuse_unfit
        from foley.pipeline import FoleyPipeline
        from runners.worker.engine import find_devices

        refuse_unfit(preset=settings.preset, device=settings.device, weights=settings.weights)
        pipelines = [
            FoleyPipeline.from_preset(
                settings.preset,
                device=str(device),
                weights=settings.weights,
                precision=settings.precision,
                memory=settings.memory,
            )
            for device in find_devices(settings.device)
        ]
        for pipeline in pipelines:
            if settings.adapters is not None:
                pipeline.load_adapters(settings.adapters)
        return pipelines

    hold_freed_memory(settings.device)
    return Worker(
        load,
        capacity=settings.max_concurrency,
        key_share=settings.key_share,
        freeze_gc=freeze_gc,
    )


def freeze_gc() -> None:
    """Exclude all existing objects from garbage collection.

    The libraries and a warm model have half a million objects that live as long as the process. A
    full collection visits each of them and stops the thread that feeds a GPU for 0.1 s.
    """
    gc.collect()
    gc.freeze()
