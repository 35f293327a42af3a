"""`foley doctor`: check whether this machine can run a preset."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foley.cli.whole import WHOLE
from foley.quiet import silence_imports

EXIT_UNFIT = 3
_MARKS = {"ok": "ok", "warning": "note", "error": "WRONG"}


def doctor(
    *,
    preset: Annotated[
        str,
        Parameter(env_var="FOLEY_PRESET", help="Preset to check: tiny, xl, xxl or auto."),
    ] = "auto",
    weights: Annotated[
        Path | None,
        Parameter(
            env_var="FOLEY_WEIGHTS",
            help="Folder of the weights. By default the folder of `foley download`.",
        ),
    ] = None,
    device: Annotated[
        str, Parameter(env_var="FOLEY_DEVICE", help="auto, cpu, cuda or cuda:N.")
    ] = "auto",
    port: Annotated[int, WHOLE, Parameter(help="Port to check for the service.")] = 3000,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")] = False,
) -> int:
    """Check versions, driver, GPU, attention, FFmpeg, weights, disk and port.

    The exit code is 0 if the preset can run and 3 if it cannot.
    """
    with silence_imports():
        from foley.hardware.doctor import check_machine
        from foley.hardware.machine import inspect_machine

        findings = check_machine(inspect_machine(weights, port=port), preset=preset, device=device)
    is_fit = all(finding.state != "error" for finding in findings)
    if as_json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"fit": is_fit, "findings": listed}, indent=2))
    else:
        for finding in findings:
            print(f"{_MARKS[finding.state]:7}{finding.check:17}{finding.message}")
    return 0 if is_fit else EXIT_UNFIT
