"""`foley inspect`: show and verify what a file says of how it was made."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from foley.errors import ParameterError

if TYPE_CHECKING:
    from foley.media.inspection import Inspection

_STATES = {
    "trusted": "C2PA manifest, valid, by a certificate of --trust",
    "valid": "C2PA manifest, valid: the file is as it was signed; nobody vouches for the signer",
    "invalid": "C2PA manifest, INVALID: the file or its manifest was changed",
    "unsigned": "a plain tag alone, which anybody can write or change",
    "unmarked": "none",
}


def inspect(
    file: Annotated[Path, Parameter(help="Video or sound file.")],
    *,
    trust: Annotated[
        Path | None,
        Parameter(help="File of certificates, in PEM, whose signatures are believed."),
    ] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")] = False,
) -> int:
    """Show and verify how a file says that it was made: model, seed and settings.

    Nothing is fetched. The exit code is 0 for a mark that is as it was written, and 1 for none or
    for one that is not.
    """
    from foley.media.inspection import inspect_file

    if trust is not None and not trust.is_file():
        raise ParameterError(f"--trust: there is no file {trust}; check the path")
    found = inspect_file(file, trust=trust)
    if as_json:
        print(json.dumps({"file": str(file), **found.to_json()}, indent=2))
    else:
        print(_describe(file, found))
    return 1 if found.state in ("invalid", "unmarked") else 0


def _describe(file: Path, found: "Inspection") -> str:
    rows = [("file", f"{file} ({found.format})"), ("mark", _STATES[found.state])]
    rows += [("problem", problem) for problem in found.problems]
    if found.manifests:
        own = found.manifests[0]
        rows.append(("signed by", f"{own.signed_by} ({own.algorithm})"))
        if own.made is None:
            rows.append(("made by", own.software))
    if found.made is not None:
        rows += _describe_making(found.made)
    rows += [
        ("made from", f"a file of {older.software}, signed by {older.signed_by}")
        for older in found.manifests[1:]
    ]
    # What a file says may hold anything, such as codes that write to the terminal.
    lines = (f"{name + ':':11}{text}" for name, text in rows)
    return "\n".join(
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        for line in lines
    )


def _describe_making(made: dict[str, Any]) -> list[tuple[str, str]]:
    settings = made.get("settings")
    listed = settings.items() if isinstance(settings, dict) else ()
    kind = str(made.get("digitalSourceType") or "not said")
    return [
        ("made by", str(made.get("software"))),
        ("model", str(made.get("model"))),
        ("seed", str(made.get("seed", "not said"))),
        *((("settings", "those of the model"),) if not settings and "seed" in made else ()),
        *(("setting", f"{name} {json.dumps(value)}") for name, value in listed),
        ("kind", kind.rpartition("/")[2]),
    ]
