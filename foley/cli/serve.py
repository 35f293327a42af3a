"""`foley serve`: replace this process by the BentoML service."""

import importlib.util
import ipaddress
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foley.cli.whole import WHOLE
from foley.errors import ConfigError, ParameterError
from foley.hardware.doctor import refuse_unfit
from foley.quiet import silence_imports

DRAIN_SECONDS = 30
# BentoML would report each start to its makers. Who wants that sets the variable to False.
NO_TELEMETRY = {"BENTOML_DO_NOT_TRACK": "True"}
SOURCE_ROOT = Path(__file__).resolve().parents[2]


def serve(
    *,
    host: Annotated[
        str, Parameter(help="Address to listen on; 0.0.0.0 listens on every interface.")
    ] = "127.0.0.1",
    port: Annotated[int, WHOLE, Parameter(help="Port for HTTP.")] = 3000,
    preset: Annotated[
        str | None,
        Parameter(env_var="FOLEY_PRESET", help="Preset: tiny, xl, xxl or auto."),
    ] = None,
    weights: Annotated[
        Path | None,
        Parameter(env_var="FOLEY_WEIGHTS", help="Folder of the weights."),
    ] = None,
    device: Annotated[
        str | None,
        Parameter(env_var="FOLEY_DEVICE", help="auto, cpu, cuda or cuda:N."),
    ] = None,
    adapters: Annotated[
        str | None,
        Parameter(
            env_var="FOLEY_ADAPTERS",
            help="Folder of adapters, or files and folders separated by commas.",
        ),
    ] = None,
) -> None:
    """Serve over HTTP and gRPC.

    Settings come from FOLEY_* environment variables. The options override them.
    """
    if not 1 <= port <= 65535:
        raise ParameterError(f"--port: {port} is no port; give 1 to 65535")
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise ParameterError(
            f"--host: {host!r} is no IP address; give 127.0.0.1, or 0.0.0.0 for every interface"
        ) from error
    if importlib.util.find_spec("bentoml") is None:
        raise ConfigError("foley serve needs the extra 'serve': pip install 'foley-serving[serve]'")
    command = [sys.executable, "-m", "bentoml", "serve", "service:FoleyApi"]
    command += ["--working-dir", str(SOURCE_ROOT), "--host", host, "--port", str(port)]
    # Without a limit, a client that stops reading would delay the shutdown for ever.
    command += ["--timeout-graceful-shutdown", str(DRAIN_SECONDS)]
    # The checks end with one line here; in the service's processes they would end in tracebacks.
    with silence_imports():
        refuse_unfit(preset=preset or "auto", device=device or "auto", weights=weights, port=port)
    # Standard output has the log, in lines of JSON.
    if importlib.util.find_spec("gradio") is not None:
        print(f"The page will be at {page_address(host, port)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # The variables are passed on and not read: only runners.settings interprets them.
    environment = {
        **NO_TELEMETRY,
        **make_home(),
        **os.environ,
        **override_settings(preset, weights, device, adapters),
    }
    os.execve(sys.executable, command, environment)


def make_home() -> dict[str, str]:
    """Return variables for a user who has no home, or may not write to it.

    BentoML creates its store in the home, and PyTorch asks for the user's name. OpenShift's random
    users have neither. A home that cannot be written still has what was downloaded to it, so it
    stays, and the store alone moves.

    Raises:
        ConfigError: another user made a folder of that name.
    """
    if os.path.expanduser("~") == "~":
        return {"HOME": str(_make_folder()), "LOGNAME": f"uid-{os.getuid()}"}
    if "BENTOML_HOME" in os.environ or _is_writable(Path.home() / "bentoml"):
        return {}
    return {"BENTOML_HOME": str(_make_folder() / "bentoml")}


def _make_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"foley-home-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():  # anybody can make a folder there
        raise ConfigError(f"{folder}: it belongs to another user; set HOME to a folder of your own")
    return folder


def _is_writable(folder: Path) -> bool:
    """Whether a folder can be written, or made where there is none yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def page_address(host: str, port: int) -> str:
    """Return the page's address for a browser on this machine.

    Args:
        host: the address that the service listens on; an IPv6 address stands in brackets in a URL.
        port: for HTTP.
    """
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{port}/ui/"


def override_settings(
    preset: str | None, weights: Path | None, device: str | None, adapters: str | None = None
) -> dict[str, str]:
    """Return the environment variables that the given options set.

    Args:
        preset: tiny, xl, xxl or auto; None sets nothing.
        weights: folder of the weights; None sets nothing.
        device: auto, cpu, cuda or cuda:N; None sets nothing.
        adapters: files and folders of adapters, separated by commas; None sets nothing.
    """
    given = {
        "FOLEY_PRESET": preset,
        "FOLEY_WEIGHTS": str(weights.resolve()) if weights else None,
        "FOLEY_DEVICE": device,
        # The service has another folder.
        "FOLEY_ADAPTERS": adapters
        and ",".join(str(Path(place.strip()).resolve()) for place in adapters.split(",")),
    }
    return {name: value for name, value in given.items() if value is not None}
