"""`foley doctor`: what is wrong with this machine, and what would fit."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foley.cli.options import quiet_imports

EXIT_UNFIT = 3
_MARKS = {"ok": "ok", "warning": "note", "error": "WRONG"}


def doctor(
    *,
    preset: Annotated[
        str,
        Parameter(env_var="FOLEY_PRESET", help="What should run: tiny, xl, xxl, or auto."),
    ] = "auto",
    weights: Annotated[
        Path | None,
        Parameter(
            env_var="FOLEY_WEIGHTS",
            help="Folder of the weights. Without it, the one that `foley download` fills.",
        ),
    ] = None,
    device: Annotated[
        str, Parameter(env_var="FOLEY_DEVICE", help="auto, cpu, cuda or cuda:N.")
    ] = "auto",
    port: Annotated[int, Parameter(help="Port that the service should listen on.")] = 3000,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="For programs.")] = False,
) -> int:
    """Check versions, driver, GPU, attention, FFmpeg, weights, disk and port.

    Exit code 0 where the preset can run, 3 where it cannot.
    """
    with quiet_imports():
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
