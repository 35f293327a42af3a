"""`foley serve`: the BentoML service, in place of this process."""

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foley.cli.options import ModelOptions
from foley.errors import ConfigError

DRAIN_SECONDS = 30
SOURCE_ROOT = Path(__file__).resolve().parents[2]


def serve(
    *,
    host: Annotated[
        str, Parameter(help="Address to listen on; 0.0.0.0 for every interface.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port of HTTP.")] = 3000,
    model: ModelOptions | None = None,
) -> None:
    """Serve over HTTP. Further settings come from FOLEY_* in the environment."""
    if not (SOURCE_ROOT / "service.py").is_file():
        raise ConfigError(f"service.py is not in {SOURCE_ROOT}; install with the extra 'serve'")
    model = model or ModelOptions()
    settings = {"FOLEY_PRESET": model.preset, "FOLEY_DEVICE": model.device}
    if model.weights is not None:
        settings["FOLEY_WEIGHTS"] = str(model.weights.resolve())
    command = [sys.executable, "-m", "bentoml", "serve", "service:FoleyApi"]
    command += ["--working-dir", str(SOURCE_ROOT), "--host", host, "--port", str(port)]
    # A caller who stops reading would otherwise hold back the end of the process for ever.
    command += ["--timeout-graceful-shutdown", str(DRAIN_SECONDS)]
    sys.stdout.flush()
    # Handed on, not read: what the variables mean is known to runners.settings alone.
    os.execve(sys.executable, command, {**os.environ, **settings})
