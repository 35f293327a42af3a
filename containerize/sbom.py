"""Writes what an image holds as CycloneDX 1.5 JSON: `sbom.py LOCK VERSION > sbom.cdx.json`.

Runs inside the image while it is built, with the distribution's Python and nothing else. The Python
packages are those of the lock file, by name, version and the hashes that an installer accepts; the
system's packages are those that dpkg lists.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENTRY = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def python_packages(lock: str) -> Iterator[dict[str, Any]]:
    """The components of a hashed lock file."""
    entries = list(ENTRY.finditer(lock))
    ends = [entry.start() for entry in entries[1:]] + [len(lock)]
    for entry, end in zip(entries, ends, strict=True):
        name, version = entry["name"], entry["version"]
        accepted = HASH.findall(lock, entry.end(), end)
        yield {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name.lower()}@{version.replace('+', '%2B')}",
            "properties": [{"name": "accepted-sha256", "value": digest} for digest in accepted],
        }


def system_packages() -> Iterator[dict[str, Any]]:
    """The components that the distribution's package manager knows."""
    distribution = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().split("\n") if line
    )["ID"].strip('"')
    listing = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for line in listing.splitlines():
        name, version, architecture = line.split("\t")
        escaped = version.replace("+", "%2B")
        yield {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/{distribution}/{name}@{escaped}?arch={architecture}",
        }


def main() -> None:
    """Print the document."""
    lock, version = Path(sys.argv[1]).read_text(), sys.argv[2]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "container", "name": "foley", "version": version},
        },
        "components": [*python_packages(lock), *system_packages()],
    }
    json.dump(document, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
