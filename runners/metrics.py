"""What the service counts, beside what BentoML counts; /metrics shows both, of all processes.

BentoML starts each process with PROMETHEUS_MULTIPROC_DIR set, where their counts come together.
"""

from prometheus_client import Counter, Gauge, Histogram

STAGE_SECONDS = Histogram(
    "foley_stage_seconds",
    "Seconds that a request spent in a stage",
    ["stage"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
ERRORS = Counter("foley_errors", "Requests answered with an error, by its code", ["code"])
AUDIO_SECONDS = Counter("foley_audio_seconds", "Seconds of sound made")
# The runner alone writes these two, and a new runner starts anew: the latest value is the true one.
QUEUE_DEPTH = Gauge(
    "foley_queue_depth", "Requests waiting for the model", multiprocess_mode="mostrecent"
)
RUNNING = Gauge(
    "foley_running", "Requests that the model is working on", multiprocess_mode="mostrecent"
)
