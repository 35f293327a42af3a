"""`foley serve`: the BentoML service, in place of this process."""

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foley.cli.options import quiet_imports
from foley.errors import ConfigError
from foley.hardware.doctor import refuse_unfit

DRAIN_SECONDS = 30
SOURCE_ROOT = Path(__file__).resolve().parents[2]


def serve(
    *,
    host: Annotated[
        str, Parameter(help="Address to listen on; 0.0.0.0 for every interface.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port of HTTP.")] = 3000,
    preset: Annotated[
        str | None,
        Parameter(env_var="FOLEY_PRESET", help="tiny, xl, xxl or auto."),
    ] = None,
    weights: Annotated[
        Path | None,
        Parameter(env_var="FOLEY_WEIGHTS", help="Folder of the weights."),
    ] = None,
    device: Annotated[
        str | None,
        Parameter(env_var="FOLEY_DEVICE", help="auto, cpu, cuda or cuda:N."),
    ] = None,
) -> None:
    """Serve over HTTP. Settings come from FOLEY_* in the environment; options go before them."""
    if not (SOURCE_ROOT / "service.py").is_file():
        raise ConfigError(f"service.py is not in {SOURCE_ROOT}; install with the extra 'serve'")
    command = [sys.executable, "-m", "bentoml", "serve", "service:FoleyApi"]
    command += ["--working-dir", str(SOURCE_ROOT), "--host", host, "--port", str(port)]
    # A caller who stops reading would otherwise hold back the end of the process for ever.
    command += ["--timeout-graceful-shutdown", str(DRAIN_SECONDS)]
    # Here it ends in one line; in the service's processes it would end in tracebacks.
    with quiet_imports():
        refuse_unfit(preset=preset or "auto", device=device or "auto", weights=weights, port=port)
    sys.stdout.flush()
    # Handed on, not read: what the variables mean is known to runners.settings alone.
    os.execve(sys.executable, command, {**os.environ, **overrides(preset, weights, device)})


def overrides(preset: str | None, weights: Path | None, device: str | None) -> dict[str, str]:
    """The settings that options were given for."""
    given = {
        "FOLEY_PRESET": preset,
        "FOLEY_WEIGHTS": str(weights.resolve()) if weights else None,
        "FOLEY_DEVICE": device,
    }
    return {name: value for name, value in given.items() if value is not None}
