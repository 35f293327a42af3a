"""The Prometheus metrics of the service. /metrics shows those of all its processes together.

BentoML's own metrics of the runner are exported too. Its metrics of the API are switched off: one
of their labels is the path that a client sent, so that every stored result, and every path that
somebody tries, would add time series that are never removed.

BentoML sets PROMETHEUS_MULTIPROC_DIR for each process, a folder in which they all write.
"""

import contextlib
import os

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from runners.settings import metrics_folder

STAGE_SECONDS = Histogram(
    "foley_stage_seconds",
    "Seconds that a request spent in a stage",
    ["stage"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
REQUESTS = Counter("foley_requests", "Requests answered over HTTP or gRPC", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "foley_request_seconds",
    "Seconds from the start of a request to the end of its response",
    ["route"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
ERRORS = Counter("foley_errors", "Requests answered with an error, by its code", ["code"])
AUDIO_SECONDS = Counter("foley_audio_seconds", "Seconds of sound generated")
WAIT_SECONDS = Histogram(
    "foley_wait_seconds",
    "Seconds that a request waited before the model began it",
    ["priority"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
BATCH_SIZE = Histogram(
    "foley_batch_size", "Requests in a model evaluation", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
)
BATCH_TOKENS = Histogram(
    "foley_batch_tokens",
    "Latent frames in a model evaluation, of all variations and both halves of guidance",
    buckets=(100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200),
)
STEP_SECONDS = Histogram(
    "foley_step_seconds",
    "Seconds of a model evaluation",
    buckets=(0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 3, 10),
)
# Only the runner sets these, and an API process adds 0. "live" leaves out processes that have
# ended, so that these are 0 as soon as a runner is killed, and of its successor alone after that.
QUEUE_DEPTH = Gauge(
    "foley_queue_depth",
    "Admitted requests that the model has not begun, with those whose clip is being decoded",
    multiprocess_mode="livesum",
)
RUNNING = Gauge(
    "foley_running", "Requests that the model is processing", multiprocess_mode="livesum"
)
# An API process counts them when it is asked for the metrics. All machines have the same queue, and
# count the same jobs.
JOBS = Gauge(
    "foley_jobs",
    "Durable jobs that have not ended, by their state: queued or running. Of a queue that several "
    "machines share each tells all",
    ["state"],
    multiprocess_mode="livemostrecent",
)
GPU_MEMORY = Gauge(
    "foley_gpu_memory_bytes",
    "Memory that tensors take on a GPU, in bytes",
    ["device"],
    multiprocess_mode="livesum",
)


def render_metrics() -> bytes:
    """Return the metrics of all processes of this server, in Prometheus' text format."""
    registry = CollectorRegistry()
    _forget_dead_processes()
    try:
        multiprocess.MultiProcessCollector(registry)
    except ValueError:  # PROMETHEUS_MULTIPROC_DIR is not set: there is one process
        registry = REGISTRY
    return generate_latest(registry)


def _forget_dead_processes() -> None:
    """Remove the gauges of processes that have ended, which autoscalers would go on reading."""
    folder = metrics_folder()
    if folder is None:
        return
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            # Another API process may do the same at this moment.
            with contextlib.suppress(FileNotFoundError):
                multiprocess.mark_process_dead(pid, str(folder))
        except PermissionError:  # it lives, as another user
            continue
