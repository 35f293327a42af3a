"""Read the service's settings from the environment. No other module of the service reads it.

The descriptions of the fields are rendered into docs/reference/settings.md.
"""

import ctypes
import difflib
import ipaddress
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from foley.configs import DEFAULT_CLIP_SECONDS, MAX_CLIP_SECONDS, SAMPLE_RATE
from foley.errors import ConfigError, ParameterError
from foley.request import describe_validation_error
from foley.webhook_secrets import split_secrets

PREFIX = "FOLEY_"
# Scripts, the tests, `foley download` and the image's entry point read these.
KNOWN_ELSEWHERE = (
    "FOLEY_PYTHON",
    "FOLEY_REQUIRE_GPU",
    "FOLEY_ACCEPT_LICENSE",
    "FOLEY_ROLE",
    "FOLEY_VOLUME",
)
# Keys that neither the API's processes nor the GPU process need once the settings are read.
SECRETS = (
    "FOLEY_API_KEYS",
    "FOLEY_DATABASE_URL",
    "FOLEY_WEBHOOK_SECRET",
    "BUCKET_ACCESS_KEY_ID",
    "BUCKET_SECRET_ACCESS_KEY",
    "RUNPOD_API_KEY",
    "HF_TOKEN",
)
MIB = 1024 * 1024
UNIT_SECONDS = 15.0  # of a clip, for which limits on its cost are stated
_BUCKET = r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9._=-]+)*/?"
BUCKETS = rf"^{_BUCKET}(,{_BUCKET})*$"
MAX_THREADS = 4  # a decoder uses as many
DATABASE_URL = re.compile(r"postgres(ql)?://[^/]*/[^/?]+(\?.*)?$")
API_KEY = re.compile(r"[!-+\--~]+", re.ASCII)  # visible ASCII without the comma
# By default Docker gives a container 64 MiB of shared memory, less than the frames of one clip.
MIN_SHARED_MEMORY_BYTES = 1024 * MIB


class Settings(BaseSettings):
    """The settings of the service. Each field is read from `FOLEY_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    preset: Annotated[
        Literal["auto", "tiny", "xl", "xxl"],
        Field(
            description="Model to serve. `auto` serves the model whose weights `FOLEY_WEIGHTS` "
            "names. Without that it serves the largest model that was downloaded and fits the GPU, "
            "or `tiny`."
        ),
    ] = "auto"
    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|cuda(:\d+)?)$",
            description="Where the model runs. `cpu` is the CPU and `cuda:N` one GPU. `cuda` uses "
            "every GPU, and `auto` does so where there is one.",
        ),
    ] = "auto"
    weights: Annotated[
        Path | None,
        Field(
            description="Folder with the model's weights. The default is the folder that "
            "`foley download` fills. The weights of `tiny` are in the package."
        ),
    ] = None
    adapters: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Adapters that requests may ask for: a folder of safetensors files, or "
            "files and folders separated by commas. An adapter has its file's name, without the "
            "suffix.",
        ),
    ] = None
    precision: Annotated[
        Literal["bf16", "fp8"],
        Field(
            description="Precision of the transformer's matrix products on a GPU. `fp8` is faster "
            "and less exact than `bf16`. The CPU computes in float32."
        ),
    ] = "bf16"
    memory: Annotated[
        Literal["auto", "full", "balanced", "low"],
        Field(
            description="Which weights stay in GPU memory. `full` keeps all of them there, "
            "`balanced` the transformer, and `low` as much of it as fits. The others stay in "
            "pinned host memory. `auto` takes the first of these that fits."
        ),
    ] = "auto"
    api_workers: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Number of API processes, which receive requests and read and write media.",
        ),
    ] = 1
    # An API process keeps at most 100 connections to the runner, and probes need some of them.
    max_concurrency: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Generations that all API processes admit at once: those in decoding, in "
            "the queue and in the model. A further request is refused with 429. So many sounds may "
            "each API process mix at once, besides.",
        ),
    ] = 16
    request_timeout_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=86_400,
            description="Seconds from the first byte of a request to its response, for a clip or a "
            "sound of up to 15 s; longer ones get more in proportion. After them the request is "
            "cancelled and answered with 504.",
        ),
    ] = 300.0
    max_upload_bytes: Annotated[
        ByteSize,
        Field(
            gt=0,
            description="Largest body of a request. A larger one is refused with 413.",
        ),
    ] = ByteSize(512 * MIB)
    max_uploads: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Uploads that one API process receives at once. They hold no place of the "
            "model. A further one is refused with 429.",
        ),
    ] = 64
    max_uploads_bytes: Annotated[
        ByteSize,
        Field(
            gt=0,
            description="Bytes that the uploads which one API process receives may have together. "
            "An upload that would pass them is refused with 429.",
        ),
    ] = ByteSize(1024 * MIB)
    min_upload_bytes_per_second: Annotated[
        int,
        Field(
            ge=0,
            description="Least rate of an upload, over each 10 s of it. A slower one is refused "
            "with 408. 0 for no least rate.",
        ),
    ] = 4096
    requests_per_minute: Annotated[
        int,
        Field(
            ge=0,
            description="Generations, mixes and jobs that one API process takes from one API key, "
            "or from one address without a key, in a minute. A further request is refused with "
            "429. Uploads for jobs do not count, nor does what the service does for a job. 0 for "
            "no limit.",
        ),
    ] = 0
    key_share: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Largest share of the places, of the uploads, of the jobs that wait and of "
            "the room for results that the requests of one API key, or of one address without a "
            "key, may hold. A further request is refused with 429. Each may hold one. 1 for no "
            "limit.",
        ),
    ] = 1.0
    max_clip_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=MAX_CLIP_SECONDS,
            description="Longest clip, in seconds. A longer one is refused with 422, or cut to "
            "this length if the request asks for trimming.",
        ),
    ] = DEFAULT_CLIP_SECONDS
    max_clip_pixels: Annotated[
        int,
        Field(
            gt=0,
            description="Most pixels that a frame of a clip may have. A clip with larger frames is "
            "refused with 413.",
        ),
    ] = 4096 * 2304
    video_codecs: Annotated[
        str,
        Field(
            pattern=r"^([a-z0-9_]+,)*[a-z0-9_]+$",
            description="Video codecs that are decoded: names of FFmpeg, separated by commas. A "
            "clip with another codec is refused with 422.",
        ),
    ] = (
        "h264,hevc,av1,vp8,vp9,mpeg1video,mpeg2video,mpeg4,h263,msmpeg4v2,msmpeg4v3,flv1,wmv1,"
        "wmv2,wmv3,vc1,theora,mjpeg,prores,dnxhd,dvvideo,ffv1,png,apng,qtrle,gif,rawvideo"
    )
    decode_memory_bytes: Annotated[
        ByteSize,
        Field(
            ge=64 * MIB,
            description="Memory that decoding one clip may take. A clip that takes more is refused "
            "with 422.",
        ),
    ] = ByteSize(2048 * MIB)
    decode_cpu_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=86_400,
            description="CPU time in seconds, all cores together, that decoding one clip of up to "
            "15 s may take; longer ones get more in proportion. A clip that takes more is refused "
            "with 422.",
        ),
    ] = 60
    watchdog_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=86_400,
            description="Seconds for which the GPU process may stand still, once its model is "
            "ready. After them it writes where its threads are to the log, ends, and is started "
            "again. It does so too when the model works on one piece for these and the seconds of "
            "`FOLEY_REQUEST_TIMEOUT_SECONDS`. 0 for no watchdog.",
        ),
    ] = 60.0
    sandbox: Annotated[
        Literal["auto", "required", "off"],
        Field(
            description="Confinement of the processes that read clips, by Landlock and seccomp. "
            "`auto` uses what the kernel has, and logs what it lacks. `required` refuses to start "
            "if a part is missing. `off` confines nothing, which is for debugging. Limits on "
            "memory, CPU time and files hold with each."
        ),
    ] = "auto"
    dumpable: Annotated[
        bool,
        Field(
            description="Whether debuggers and profilers of the same user may attach to the API's "
            "processes and to the GPU process, and whether these may leave core files. Without "
            "it, no process of that user reads their memory or their environment."
        ),
    ] = False
    grpc_port: Annotated[
        int,
        Field(ge=0, le=65535, description="Port of gRPC. 0 switches gRPC off."),
    ] = 50051
    grpc_host: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Address that gRPC listens on. The default is the address of HTTP.",
        ),
    ] = None
    api_keys: Annotated[
        SecretStr | None,
        Field(
            description="API keys, separated by commas. Each request must carry one of these or of "
            "`FOLEY_API_KEYS_FILE`. Without keys the service answers every request."
        ),
    ] = None
    api_keys_file: Annotated[
        Path | None,
        Field(description="File with further API keys, one a line, such as a mounted secret."),
    ] = None
    allowed_hosts: Annotated[
        str | None,
        Field(
            pattern=r"^(([A-Za-z0-9._:-]+|\*)(,([A-Za-z0-9._:-]+|\*))*)$",
            description="Names that the header `Host` of a request may have, separated by commas, "
            "without ports. `localhost`, `127.0.0.1`, `::1` and the address listened on are "
            "always allowed, and `*` allows all. Without names `Host` is checked only if the "
            "service listens on a loopback address. Probes are not checked.",
        ),
    ] = None
    root_path: Annotated[
        str | None,
        Field(
            pattern=r"^(/[A-Za-z0-9._~-]+)+$",
            description="Path below which a proxy serves the service, such as `/foley`, if the "
            "proxy passes that path on. Requests are served with it and without it. A proxy that "
            "takes the path off needs no setting.",
        ),
    ] = None
    cors_origins: Annotated[
        str | None,
        Field(
            pattern=r"^(https?://[A-Za-z0-9.:\[\]-]+(,https?://[A-Za-z0-9.:\[\]-]+)*)?$",
            description="Sites whose pages may send requests and read the answers (CORS), such as "
            "`https://example.com`, separated by commas. Without it no other site may.",
        ),
    ] = None
    frame_ancestors: Annotated[
        str,
        Field(
            pattern=r"^('none'|'self'|https?://[^\s;,'\"]+)( ('self'|https?://[^\s;,'\"]+))*$",
            description="Sites that may show the page in a frame, separated by spaces: `'none'`, "
            "`'self'` or addresses such as `https://example.com`.",
        ),
    ] = "'none'"
    keep_results_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=86_400,
            description="Seconds for which the files of a streamed request can be downloaded.",
        ),
    ] = 600.0
    keep_results_bytes: Annotated[
        ByteSize,
        Field(
            gt=0,
            description="Bytes that the files of all streamed requests may take together. The "
            "oldest files are removed first.",
        ),
    ] = ByteSize(1024 * MIB)
    scratch_dir: Annotated[
        Path | None,
        Field(
            description="Folder for the uploads, frames and sounds of the requests that run, and "
            "for the results of streamed requests. The default is `/dev/shm` if that has 1 GiB or "
            "more, or the system's temporary folder."
        ),
    ] = None
    jobs_dir: Annotated[
        Path | None,
        Field(
            description="Folder for durable jobs, on a disk that outlives the service, and of one "
            "machine. Without it the service takes no jobs. Several machines share a queue by "
            "`FOLEY_DATABASE_URL`."
        ),
    ] = None
    database_url: Annotated[
        SecretStr | None,
        Field(
            description="PostgreSQL that keeps the queue of durable jobs, such as "
            "`postgresql://user:password@host/foley`. Any number of machines may share it. Without "
            "it SQLite in `FOLEY_JOBS_DIR` does, for one machine."
        ),
    ] = None
    results: Annotated[
        str | None,
        Field(
            pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9._=-]+)*/?$",
            description="Bucket and prefix, such as `s3://bucket/foley`, for the clips and results "
            "of durable jobs that several machines share. Keys, region and address are in the "
            "variables of AWS. Needed with `FOLEY_DATABASE_URL`, and only with it.",
        ),
    ] = None
    model: Annotated[
        Literal["here", "none"],
        Field(
            description="`none`: this machine has no model and needs no GPU. It accepts durable "
            "jobs, and tells about them and their results; machines with a model on the same "
            "`FOLEY_DATABASE_URL` do them. What needs a model at once is refused with 503 "
            "`no_model`."
        ),
    ] = "here"
    max_jobs: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="Jobs that may wait. A further one is refused with 429.",
        ),
    ] = 10_000
    keep_jobs_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=31_536_000,
            description="Seconds for which a job that has ended is kept with its files.",
        ),
    ] = 86_400.0
    webhook_secret: Annotated[
        SecretStr | None,
        Field(
            description="Secret that signs webhooks: `whsec_` and the base64 of 24 to 64 bytes. "
            "Receivers check the signature with it. Several secrets, separated by commas, all "
            "sign, so that one can replace another. Without it the service sends no webhooks."
        ),
    ] = None
    webhook_networks: Annotated[
        str | None,
        Field(
            description="Private networks that webhooks may reach, such as `10.0.0.0/8`, separated "
            "by commas. Without it they reach the open internet alone."
        ),
    ] = None
    clip_urls: Annotated[
        bool,
        Field(
            description="Whether HTTP and gRPC fetch the clip of a request that names it by an "
            "https:// or http:// address in `clip_url`. Addresses of private networks are refused. "
            "Queue workers always fetch, over https:// only."
        ),
    ] = True
    clip_buckets: Annotated[
        str | None,
        Field(
            pattern=BUCKETS,
            description="Buckets and prefixes, such as `s3://clips,s3://media/raw`, below which "
            "`clip_url` may name a clip. The service reads them with the keys in the variables of "
            "AWS. Without it `clip_url` takes no `s3://` address.",
        ),
    ] = None
    output_buckets: Annotated[
        str | None,
        Field(
            pattern=BUCKETS,
            description="Buckets and prefixes, such as `s3://sounds/out`, below which a durable "
            "job may have its files written by `output`, with the same keys. Without it all "
            "results are kept by the service.",
        ),
    ] = None
    fetch_timeout_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=3600,
            description="Seconds that the download of a clip from a URL may take.",
        ),
    ] = 60.0
    bucket: Annotated[
        str | None,
        Field(
            description="S3 bucket to which a queue worker uploads results. Its address and keys "
            "are in `BUCKET_ENDPOINT_URL`, `BUCKET_ACCESS_KEY_ID` and `BUCKET_SECRET_ACCESS_KEY`."
        ),
    ] = None
    max_result_bytes: Annotated[
        ByteSize,
        Field(
            gt=0,
            description="Largest result that a queue worker returns inside the job's output. "
            "RunPod takes 10 MB from `/run` and 20 MB from `/runsync`. A larger result needs a "
            "bucket.",
        ),
    ] = ByteSize(10_000_000)
    marks: Annotated[
        Literal["on", "off"],
        Field(
            description="Whether results are marked as machine-made, by C2PA and plain tags. Who "
            "publishes such sound must mark it: the law of the European Union and the licence of "
            "the official weights ask for it. With `off` that is up to you."
        ),
    ] = "on"
    marks_key: Annotated[
        Path | None,
        Field(
            description="File of the private key, in PEM and without a password, that signs marks: "
            "P-256, P-384, P-521, Ed25519 or RSA. The default is a key of the service's own with a "
            "self-signed certificate. It is made at the first start, in `foley-marks` in Hugging "
            "Face's home."
        ),
    ] = None
    marks_chain: Annotated[
        Path | None,
        Field(
            description="File of the certificates of `FOLEY_MARKS_KEY`, in PEM, that of the key "
            "first."
        ),
    ] = None
    marks_prompt: Annotated[
        bool,
        Field(
            description="Whether marks hold prompts and cues too. Anyone with the file can then "
            "read them."
        ),
    ] = False
    health_path: Annotated[
        str,
        Field(
            pattern=r"^/[A-Za-z0-9._/-]*$",
            description="Path of the health check for load balancers. It answers 200 when the "
            "service is ready, 204 while the model loads, and 503 if loading failed.",
        ),
    ] = "/ping"
    health_port: Annotated[
        int | None,
        Field(
            ge=1,
            le=65535,
            description="A second port for the health check. It answers no other path.",
        ),
    ] = None
    health_host: Annotated[
        str, Field(min_length=1, description="Address that the second health port listens on.")
    ] = "127.0.0.1"
    container_started: Annotated[
        float | None,
        Field(
            gt=0,
            description="Unix time at which the container started. The image's entry point sets "
            "it, and the log then has the seconds from there to readiness.",
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="Lowest level that is logged."),
    ] = "info"

    def find_time_limit(self, clip_seconds: float) -> float:
        """Return the seconds that a request may take.

        Args:
            clip_seconds: length of its clip or of its sound.
        """
        return self.request_timeout_seconds * max(1.0, clip_seconds / UNIT_SECONDS)

    @property
    def decode_cpu_limit(self) -> int:
        """Seconds of CPU time that decoding the longest clip may take."""
        return math.ceil(self.decode_cpu_seconds * max(1.0, self.max_clip_seconds / UNIT_SECONDS))

    @property
    def max_sound_bytes(self) -> int:
        """Bytes of the longest sound in a file: 8 channels of 24 bits."""
        return math.ceil(self.max_clip_seconds) * SAMPLE_RATE * 8 * 3

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys of `api_keys` and `api_keys_file` together.

        Raises:
            ConfigError: a key that no header can carry, a file that cannot be read, or a setting
                without a key. The message contains no key.
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
            if not API_KEY.fullmatch(key):
                raise ConfigError(
                    f"API key number {number} has characters that no header carries; "
                    "use visible ASCII, without commas and spaces"
                )
        if not keys and (self.api_keys is not None or self.api_keys_file is not None):
            raise ConfigError(f"{PREFIX}API_KEYS and {PREFIX}API_KEYS_FILE hold no key")
        return keys

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The secrets of `webhook_secret`.

        Raises:
            ConfigError: one is malformed. The message contains no secret.
        """
        given = self.webhook_secret.get_secret_value() if self.webhook_secret else ""
        try:
            return split_secrets(given)
        except ParameterError as error:
            raise ConfigError(f"{PREFIX}WEBHOOK_SECRET: {error}") from error

    @property
    def jobs_database(self) -> str | None:
        """The URL of `database_url`; None for SQLite.

        Raises:
            ConfigError: it is none of PostgreSQL, or what belongs to it is missing.
        """
        url = self.database_url.get_secret_value() if self.database_url else None
        if (url is None) != (self.results is None):
            raise ConfigError(
                f"{PREFIX}DATABASE_URL and {PREFIX}RESULTS belong together: machines that share a "
                "queue share its files, in a bucket; set both or neither"
            )
        if url is None:
            return None
        if self.jobs_dir is None:
            raise ConfigError(
                f"{PREFIX}DATABASE_URL needs {PREFIX}JOBS_DIR, a folder for what this machine "
                "receives and fetches"
            )
        if not DATABASE_URL.match(url):
            raise ConfigError(
                f"{PREFIX}DATABASE_URL: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
            )
        return url

    @property
    def has_model(self) -> bool:
        """Whether this machine runs the model.

        Raises:
            ConfigError: it does not, and shares no queue with one that does.
        """
        if self.model == "none" and self.database_url is None:
            raise ConfigError(
                f"{PREFIX}MODEL=none needs {PREFIX}DATABASE_URL, the queue of the machines that do "
                f"the jobs; set it, or leave {PREFIX}MODEL out"
            )
        return self.model == "here"

    @property
    def private_networks(self) -> tuple[str, ...]:
        """The networks of `webhook_networks`.

        Raises:
            ConfigError: one is malformed.
        """
        given = tuple(filter(None, map(str.strip, (self.webhook_networks or "").split(","))))
        for network in given:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ConfigError(f"{PREFIX}WEBHOOK_NETWORKS: {error}") from error
        return given

    @property
    def readable_buckets(self) -> tuple[str, ...]:
        """The addresses of `clip_buckets`."""
        return tuple(self.clip_buckets.split(",")) if self.clip_buckets else ()

    @property
    def writable_buckets(self) -> tuple[str, ...]:
        """The addresses of `output_buckets`."""
        return tuple(self.output_buckets.split(",")) if self.output_buckets else ()

    @property
    def hosts(self) -> list[str]:
        """The names of `allowed_hosts`."""
        return list(filter(None, (self.allowed_hosts or "").split(",")))

    @property
    def origins(self) -> list[str]:
        """The sites of `cors_origins`."""
        return list(filter(None, (self.cors_origins or "").split(",")))

    @property
    def scratch_root(self) -> Path:
        """The folder that `scratch_dir` names, or its default."""
        if self.scratch_dir is not None:
            return self.scratch_dir
        shared = Path("/dev/shm")
        if shared.is_dir() and os.access(shared, os.W_OK):
            stats = os.statvfs(shared)
            if stats.f_frsize * stats.f_blocks >= MIN_SHARED_MEMORY_BYTES:
                return shared
        return Path(tempfile.gettempdir())


def is_tracing_configured() -> bool:
    """Whether OpenTelemetry's own variables name a collector. Its SDK reads the others itself."""
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and any(os.environ.get(name) for name in named)


def metrics_folder() -> Path | None:
    """Return the folder in which the processes of this server keep their metrics; None without."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def child_environment() -> dict[str, str]:
    """Return the environment for processes that read untrusted clips. It holds no secret."""
    kept = (
        *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"),
        "PYTHONPATH",  # finds this project where it is not installed, as in the image
    )
    return {
        # More threads make scaling little faster, and each takes some of the limited address space.
        "OMP_NUM_THREADS": str(min(MAX_THREADS, os.cpu_count() or 1)),
        **{name: os.environ[name] for name in kept if name in os.environ},
        "CUDA_VISIBLE_DEVICES": "",
        # OpenMP's threads spin while they wait, which starves those of the model on the same cores.
        "GOMP_SPINCOUNT": "1000",
        # A process with one thread forks safely, and NumPy's library would start more.
        "OPENBLAS_NUM_THREADS": "1",
        # The C library reserves 64 MiB of address space for each arena.
        "MALLOC_ARENA_MAX": "2",
    }


def plan_model_environments(num_gpus: int) -> list[dict[str, str]]:
    """Return the environments of processes with a model each. They hold no secret.

    A process sees one GPU, so that it holds no memory of the others, and has its share of the
    cores.

    Args:
        num_gpus: that this process sees, at least 1.
    """
    common = {name: value for name, value in os.environ.items() if name not in SECRETS}
    common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_gpus)))
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = given.split(",") if given else map(str, range(num_gpus))
    return [{**common, "CUDA_VISIBLE_DEVICES": name.strip()} for name in names][:num_gpus]


def switch_telemetry_off() -> None:
    """Keep BentoML from reporting each start to its makers, unless the environment wants that.

    BentoML reads the variable after it has loaded the service.
    """
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")


def forget_secrets() -> None:
    """Remove `SECRETS` from the environment of this process, and from what /proc shows of it."""
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    for name in SECRETS:
        if address := libc.getenv(name.encode()):
            ctypes.memset(address, 0, len(ctypes.string_at(address)))
        os.environ.pop(name, None)


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigError: a value is out of range, an API key is wrong, or a FOLEY_* variable is unknown.
    """
    known = [*(PREFIX + name.upper() for name in Settings.model_fields), *KNOWN_ELSEWHERE]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ConfigError(f"no setting is called {name}; did you mean {nearest}?")
    try:
        settings = Settings()
        # What is wrong in these ends the start, not the first request.
        settings.keys, settings.webhook_secrets, settings.private_networks  # noqa: B018
        settings.jobs_database  # noqa: B018
        # Elsewhere an empty variable counts as absent. Here that would let everybody in.
        for name in (f"{PREFIX}API_KEYS", f"{PREFIX}API_KEYS_FILE"):
            if not settings.keys and os.environ.get(name) == "":
                raise ConfigError(
                    f"{name} is set but empty; set a key, or unset it to let everybody in"
                )
    except ValidationError as error:
        said = describe_validation_error(error)
        named = re.sub(r"(^|; )([a-z_]+)(?=: )", lambda m: m[1] + PREFIX + m[2].upper(), said)
        raise ConfigError(f"settings: {named}") from error
    return settings
