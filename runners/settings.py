"""Environment -> Settings. The only reader of os.environ."""

import difflib
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from foley.configs import MAX_CLIP_SECONDS
from foley.errors import ConfigError
from foley.request import describe_validation_error

PREFIX = "FOLEY_"
# Read by scripts, by the tests, by `foley download`, and by the image's entry point.
KNOWN_ELSEWHERE = (
    "FOLEY_PYTHON",
    "FOLEY_REQUIRE_GPU",
    "FOLEY_ACCEPT_LICENSE",
    "FOLEY_ROLE",
    "FOLEY_VOLUME",
)
MIB = 1024 * 1024
MAX_THREADS = 4  # as many as a decoder gets
KEY = re.compile(r"[!-+\--~]+", re.ASCII)  # visible ASCII without the comma
# Docker gives a container 64 MiB of shared memory by default; the frames of one clip take more.
MIN_SHARED_MEMORY_BYTES = 1024 * MIB


class Settings(BaseSettings):
    """Everything that whoever runs the service may set."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    preset: Annotated[
        Literal["auto", "tiny", "xl", "xxl"],
        Field(
            description="Model to serve. `auto`: the one whose weights are given; without them, "
            "the largest that was downloaded and fits the GPU, else `tiny`."
        ),
    ] = "auto"
    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|cuda(:\d+)?)$",
            description="Where the model runs: cpu, cuda:N, or auto and cuda: every GPU there is.",
        ),
    ] = "auto"
    weights: Annotated[
        Path | None,
        Field(
            description="Folder of the weights. Absent: the one that `foley download` fills. "
            "`tiny` needs none, it has its own."
        ),
    ] = None
    precision: Annotated[
        Literal["bf16", "fp8"],
        Field(
            description="Of the transformer's products on a GPU: fp8 is faster and less exact. "
            "The CPU computes in float32."
        ),
    ] = "bf16"
    memory: Annotated[
        Literal["auto", "full", "balanced", "low"],
        Field(
            description="Weights on a GPU: `full` keeps all there, `balanced` the transformer, "
            "`low` a part of it; the rest lies in pinned host memory. `auto`: the first that fits."
        ),
    ] = "auto"
    api_workers: Annotated[
        int, Field(ge=1, le=64, description="Processes that read, decode and write media.")
    ] = 1
    # A worker keeps at most 100 connections to the runner, and probes need some of them.
    max_concurrency: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Generations admitted at once by all API workers together, those whose clip "
            "is being decoded and waiting ones included; more are answered 429.",
        ),
    ] = 16
    request_timeout_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=86_400,
            description="Seconds from a request's first byte to its answer; "
            "after them the work is dropped and 504 answered.",
        ),
    ] = 300.0
    max_upload_bytes: Annotated[
        ByteSize,
        Field(
            gt=0,
            description="Largest body of a request in bytes; units may be given, such as 200MiB.",
        ),
    ] = ByteSize(100 * MIB)
    max_clip_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=MAX_CLIP_SECONDS,
            description="Longest clip in seconds; longer ones are refused, or trimmed on request.",
        ),
    ] = MAX_CLIP_SECONDS
    max_clip_pixels: Annotated[
        int, Field(gt=0, description="Most pixels that a frame of a clip may have.")
    ] = 4096 * 2304
    video_codecs: Annotated[
        str,
        Field(
            pattern=r"^([a-z0-9_]+,)*[a-z0-9_]+$",
            description="Picture codecs that are decoded, by FFmpeg's names, separated by commas; "
            "clips in others are refused.",
        ),
    ] = (
        "h264,hevc,av1,vp8,vp9,mpeg1video,mpeg2video,mpeg4,h263,msmpeg4v3,flv1,wmv2,wmv3,vc1,"
        "theora,mjpeg,prores,dnxhd,ffv1,png,qtrle,gif,rawvideo"
    )
    decode_memory_bytes: Annotated[
        ByteSize,
        Field(
            ge=64 * MIB,
            description="Memory that reading one clip may take; a clip that takes more is refused.",
        ),
    ] = ByteSize(2048 * MIB)
    decode_cpu_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=86_400,
            description="Processor seconds, of all cores, that reading one clip may take; "
            "a clip that takes more is refused.",
        ),
    ] = 120
    grpc_port: Annotated[
        int,
        Field(ge=0, le=65535, description="Port of gRPC; 0 switches it off."),
    ] = 50051
    grpc_host: Annotated[
        str | None,
        Field(min_length=1, description="Address of gRPC. Absent: the one that HTTP listens on."),
    ] = None
    api_keys: Annotated[
        SecretStr | None,
        Field(
            description="ApiKeys that open the service, separated by commas. Absent, and without a "
            "file of them: open to everybody who reaches it."
        ),
    ] = None
    api_keys_file: Annotated[
        Path | None,
        Field(description="File of further keys, one a line, as secrets are mounted."),
    ] = None
    keep_results_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=86_400,
            description="Seconds for which the files of a streamed request can be fetched.",
        ),
    ] = 600.0
    keep_results_bytes: Annotated[
        ByteSize,
        Field(
            gt=0,
            description="Bytes that these files may take in all; over them, the oldest go first.",
        ),
    ] = ByteSize(512 * MIB)
    scratch_dir: Annotated[
        Path | None,
        Field(
            description="Folder for the files of requests in work, emptied as they end, and for "
            "results that are kept. Absent: /dev/shm when it holds 1 GiB or more, else the "
            "system's temporary folder."
        ),
    ] = None
    fetch_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=3600, description="Seconds that fetching a clip from its address may take."),
    ] = 60.0
    bucket: Annotated[
        str | None,
        Field(
            description="Bucket into which a queue worker puts results; its address and keys are "
            "in BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY."
        ),
    ] = None
    max_result_bytes: Annotated[
        ByteSize,
        Field(
            gt=0,
            description="Largest result that a queue worker returns in the job itself; RunPod "
            "takes 10 MB from /run and 20 MB from /runsync. Larger ones need a bucket.",
        ),
    ] = ByteSize(10_000_000)
    health_path: Annotated[
        str,
        Field(
            pattern=r"^/[A-Za-z0-9._/-]*$",
            description="Path that tells a load balancer: 200 ready, 204 loading, 503 broken.",
        ),
    ] = "/ping"
    health_port: Annotated[
        int | None,
        Field(ge=1, le=65535, description="Further port that answers that path, and no other."),
    ] = None
    health_host: Annotated[
        str, Field(min_length=1, description="Address on which that port is opened.")
    ] = "127.0.0.1"
    container_started: Annotated[
        float | None,
        Field(
            gt=0,
            description="Unix time at which the container started, from its entry point; the log "
            "then tells the time until requests can be served.",
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least level logged.")
    ] = "info"

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys of both settings.

        Raises:
            ConfigError: a key that no header can carry, or no file; the message names no key.
        """
        given = self.api_keys.get_secret_value().split(",") if self.api_keys else []
        if self.api_keys_file is not None:
            try:
                given += self.api_keys_file.read_text().splitlines()
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or "not text"
                raise ConfigError(f"{PREFIX}API_KEYS_FILE cannot be read: {reason}") from error
        keys = tuple(filter(None, (key.strip() for key in given)))
        for number, key in enumerate(keys, start=1):
            if not KEY.fullmatch(key):
                raise ConfigError(
                    f"API key number {number} has characters that no header carries; "
                    "use visible ASCII, without commas and spaces"
                )
        if not keys and (self.api_keys is not None or self.api_keys_file is not None):
            raise ConfigError(f"{PREFIX}API_KEYS and {PREFIX}API_KEYS_FILE hold no key")
        return keys

    @property
    def scratch_root(self) -> Path:
        """The folder that `scratch_dir` names or defaults to."""
        if self.scratch_dir is not None:
            return self.scratch_dir
        shared = Path("/dev/shm")
        if shared.is_dir() and os.access(shared, os.W_OK):
            stats = os.statvfs(shared)
            if stats.f_frsize * stats.f_blocks >= MIN_SHARED_MEMORY_BYTES:
                return shared
        return Path(tempfile.gettempdir())


def traces_wanted() -> bool:
    """Whether OpenTelemetry's own settings name a collector; its SDK reads the rest of them."""
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and any(os.environ.get(name) for name in named)


def child_environment() -> dict[str, str]:
    """The environment of processes that read clips from outside: no secret is in it."""
    kept = (
        *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"),
        "PYTHONPATH",  # leads to this project where it is not installed, as in the image
    )
    return {
        # Scaling a frame gains little from more, and each takes address space, which is limited.
        "OMP_NUM_THREADS": str(min(MAX_THREADS, os.cpu_count() or 1)),
        **{name: os.environ[name] for name in kept if name in os.environ},
        "CUDA_VISIBLE_DEVICES": "",
        # Forking is safe while there is one thread, and NumPy's library would start some.
        "OPENBLAS_NUM_THREADS": "1",
        # A thread's arena of the C library takes 64 MiB of address space.
        "MALLOC_ARENA_MAX": "2",
    }


def load_settings() -> Settings:
    """The settings that the environment asks for.

    Raises:
        ConfigError: a value out of range, or a FOLEY_* name that nothing reads.
    """
    known = [*(PREFIX + name.upper() for name in Settings.model_fields), *KNOWN_ELSEWHERE]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ConfigError(f"no setting is called {name}; did you mean {nearest}?")
    try:
        settings = Settings()
        settings.keys  # noqa: B018 - wrong ones end the start, not the first request
    except ValidationError as error:
        raise ConfigError(f"settings ({PREFIX}*): {describe_validation_error(error)}") from error
    return settings
