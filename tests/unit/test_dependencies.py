"""pyproject.toml declares what the code imports, and nothing else."""

import ast
import functools
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVING_EXTRAS = ("serve", "jobs", "bulk", "marks", "otio", "page", "runpod")
OURS = {"foley", "runners", "service"}
# Namespace packages that several distributions fill.
NAMESPACES = {
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "opentelemetry.exporter": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry": "opentelemetry-api",
}
# Parts of a declared package's interface that its own dependencies define.
COMES_WITH = {
    "annotated-types": "pydantic",
    "botocore": "runpod",
    "pydantic-core": "pydantic",
    "triton": "torch",
    "yarl": "aiohttp",
}

LOADED_BY_NAME = {"psycopg"}  # SQLAlchemy chooses it by the address of a database

find_distributions = functools.cache(packages_distributions)  # it reads every installed package


def declared(*extras: str) -> set[str]:
    """The names of the distributions that an installation with these extras brings."""
    listed = [*PROJECT["dependencies"]]
    for extra in extras:
        listed += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(text).name) for text in listed}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def distribution_of(module: str) -> str:
    for namespace, name in NAMESPACES.items():
        if module == namespace or module.startswith(f"{namespace}."):
            return name
    top = module.split(".")[0]
    name = canonicalize_name(find_distributions().get(top, [top])[0])
    return COMES_WITH.get(name, name)


def imported(*places: str) -> set[str]:
    """The names of the distributions that the files of these places import."""
    files = [
        file
        for place in places
        for file in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
    ]
    modules = {module for file in files for module in imported_modules(file)}
    outside = {m for m in modules if m.split(".")[0] not in OURS | sys.stdlib_module_names}
    return {distribution_of(module) for module in outside}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("places", "extras"),
    [
        (
            [p.relative_to(ROOT).as_posix() for p in (ROOT / "foley").iterdir() if p.name != "v1"],
            ["bulk", "marks", "otio"],  # imported only where a command asks for what they read
        ),
        (["foley", "runners", "service.py", "handler.py"], SERVING_EXTRAS),
    ],
    ids=["the library", "the service"],
)
def test_what_is_imported_is_declared(places: list[str], extras: list[str]) -> None:
    assert imported(*places) - declared(*extras) == set()


@pytest.mark.slow
def test_what_is_declared_is_imported() -> None:
    used = imported("foley", "runners", "service.py", "handler.py")
    assert declared(*SERVING_EXTRAS) - used == LOADED_BY_NAME


def test_setup_never_empties_the_environment_of_another_tree(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "dev.txt").write_text("")
    shutil.copy(ROOT / "scripts/setup", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "kept").touch()
    (tmp_path / ".venv").symlink_to("theirs")
    done = subprocess.run(
        [tmp_path / "scripts/setup"],
        env={"PATH": "/usr/bin:/bin", "FOLEY_PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "theirs" / "kept").exists()
    assert done.returncode == 1
    assert ".venv is a link to theirs" in done.stderr


# Stands in for the interpreter, which would fetch what has gigabytes.
PYTHON = """#!/bin/sh
case "$*" in
"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && ln -s {uv} .venv/bin/uv ;;
"-m pip"*) echo "$@" >>pip.log ;;
*"import foley.pipeline"*) ;;
*) exec {python} "$@" ;;
esac
"""


def test_setup_is_quick_with_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    without_rights = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    if not uv.exists() or (os.getuid() == 0 and not shutil.which("setpriv")):
        pytest.skip("needs uv, and for root setpriv: root may write everywhere")
    for folder in ("scripts", "requirements", "home"):
        (tmp_path / folder).mkdir()
    for name in ("dev", "image-uv", "torch", "torch-cpu", "torch-cuda"):
        (tmp_path / "requirements" / f"{name}.txt").touch()
    shutil.copy(ROOT / "scripts/setup", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON.format(uv=uv, python=sys.executable))
    python.chmod(0o755)
    (tmp_path / "home").chmod(0o555)
    done = subprocess.run(
        [*(without_rights if os.getuid() == 0 else []), tmp_path / "scripts/setup"],
        env={
            "PATH": "/usr/bin:/bin",
            "FOLEY_PYTHON": str(python),
            "HOME": str(tmp_path / "home"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "requirements/dev.txt" not in (tmp_path / "pip.log").read_text()  # uv did it
