"""The direction of imports, and that the environment is read in one place."""

import ast
import itertools
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # the first of them reads every file

ROOT = Path(__file__).parents[2]

# A unit is a folder of the package, or a module directly in `foley`, `runners` or the root. The
# table lists the units that each one may import. A unit's name ends in "/" if it is a folder.
BASE = {
    "foley.atomic",
    "foley.configs",
    "foley.errors",
    "foley.mix",
    "foley.plans",
    "foley.processes",
    "foley.quiet",
    "foley.request",
    "foley.types",
    "foley.version",
}
ALLOWED: dict[str, set[str]] = {
    # The library.
    "foley.atomic": set(),
    "foley.errors": set(),
    "foley.processes": set(),
    "foley.quiet": set(),
    "foley.types": {"foley.configs"},
    "foley.version": set(),
    "foley.webhook_secrets": {"foley.errors"},
    "foley.plans": set(),
    "foley.configs": {"foley.errors", "foley.plans"},
    "foley.request": {"foley.configs", "foley.errors", "foley.plans"},
    "foley.mix": {"foley.configs", "foley.errors", "foley.request"},
    "foley.marks/": BASE,
    "foley.media/": BASE | {"foley.marks/"},
    "foley.attention_kernels": set(),
    "foley.models/": BASE | {"foley.attention_kernels"},
    "foley.weights/": BASE | {"foley.models/"},
    "foley.hardware/": BASE | {"foley.attention_kernels", "foley.weights/"},
    "foley.gpu/": BASE | {"foley.models/", "foley.weights/"},
    "foley.sampling": BASE,
    "foley.windows": BASE,
    "foley.cuts": set(),
    "foley.denoise": BASE | {"foley.models/", "foley.sampling", "foley.windows"},
    "foley.conditioning": BASE | {"foley.cuts", "foley.gpu/", "foley.models/"},
    "foley.generation": BASE | {"foley.marks/", "foley.media/"},
    "foley.session": BASE
    | {
        "foley.cues",
        "foley.denoise",
        "foley.edits",
        "foley.generation",
        "foley.layers",
        "foley.models/",
        "foley.sampling",
        "foley.sound_file",
        "foley.speech",
        "foley.windows",
    },
    "foley.sound_file": {"foley.errors"},
    "foley.speech": set(),
    "foley.cues": BASE,
    "foley.edits": BASE,
    "foley.layers": BASE,
    "foley.parts": BASE | {"foley.generation", "foley.layers", "foley.pipeline", "foley.sampling"},
    "foley.adapter_files": BASE,
    "foley.adapters": BASE | {"foley.models/", "foley.weights/"},
    "foley.pipeline": BASE
    | {
        "foley.adapter_files",
        "foley.adapters",
        "foley.conditioning",
        "foley.cues",
        "foley.denoise",
        "foley.edits",
        "foley.generation",
        "foley.gpu/",
        "foley.media/",
        "foley.models/",
        "foley.sampling",
        "foley.session",
        "foley.sound_file",
        "foley.weights/",
        "foley.windows",
    },
    "foley.tuning/": BASE
    | {
        "foley.denoise",
        "foley.generation",
        "foley.media/",
        "foley.models/",
        "foley.pipeline",
        "foley.sampling",
        "foley.speech",
        "foley.weights/",
    },
    "foley": BASE | {"foley.generation", "foley.pipeline", "foley.session"},
    "foley.bulk": BASE,
    "foley.storage": BASE,
    "foley.client/": BASE | {"foley.webhook_secrets"},
    "foley.v1/": set(),
    "foley.cli/": BASE
    | {
        "foley.attention_kernels",
        "foley.bulk",
        "foley.client/",
        "foley.generation",
        "foley.hardware/",
        "foley.marks/",
        "foley.media/",
        "foley.parts",
        "foley.pipeline",
        "foley.session",
        "foley.storage",
        "foley.tuning/",
        "foley.weights/",
    },
    # The server.
    "runners": set(),
    "runners.browser": set(),
    "runners.buckets": BASE | {"foley.storage"},
    "runners.fetch": BASE | {"runners.guard"},
    "runners.guard": BASE,
    "runners.logs": BASE,
    "runners.metrics": BASE | {"runners.settings"},
    "runners.orphans": set(),
    "runners.process": BASE | {"runners.orphans", "runners.stop_signals"},
    "runners.runner_socket": BASE,
    "runners.stop_signals": BASE,
    "runners.settings": BASE | {"foley.webhook_secrets"},
    "runners.status": BASE | {"runners.storage"},
    "runners.storage": {"foley.errors"},
    "runners.auth": BASE,
    "runners.messages": BASE,
    "runners.handoff": BASE | {"foley.sound_file"},
    "runners.tracing": BASE | {"runners.messages", "runners.settings"},
    "runners.sandbox/": BASE
    | {
        "foley.marks/",
        "foley.media/",
        "foley.sound_file",
        "foley.speech",
        "runners.handoff",
        "runners.orphans",
        "runners.storage",
    },
    "runners.jobs/": BASE
    | {
        "foley.marks/",
        "foley.storage",
        "runners.buckets",
        "runners.fetch",
        "runners.handoff",
        "runners.messages",
        "runners.metrics",
        "runners.sandbox/",
        "runners.settings",
        "runners.tracing",
    },
    "runners.worker/": BASE
    | {
        "foley.conditioning",
        "foley.denoise",
        "foley.gpu/",
        "foley.hardware/",
        "foley.media/",
        "foley.pipeline",
        "foley.sampling",
        "foley.session",
        "foley.sound_file",
        "foley.weights/",
        "foley.windows",
        "runners.handoff",
        "runners.jobs/",
        "runners.logs",
        "runners.messages",
        "runners.metrics",
        "runners.orphans",
        "runners.settings",
        "runners.storage",
        "runners.tracing",
    },
    "runners.bulk/": BASE
    | {
        "foley.bulk",
        "foley.media/",
        "foley.storage",
        "runners.handoff",
        "runners.jobs/",
        "runners.logs",
        "runners.messages",
        "runners.sandbox/",
        "runners.settings",
        "runners.storage",
        "runners.worker/",
    },
    "runners.durable/": BASE
    | {
        "foley.adapter_files",
        "foley.client/",
        "foley.storage",
        "runners.buckets",
        "runners.guard",
        "runners.handoff",
        "runners.jobs/",
        "runners.logs",
        "runners.messages",
        "runners.process",
        "runners.settings",
        "runners.storage",
        "runners.status",
    },
    "runners.http/": BASE
    | {
        "runners.auth",
        "runners.durable/",
        "runners.handoff",
        "runners.jobs/",
        "runners.messages",
        "runners.metrics",
        "runners.process",
        "runners.settings",
        "runners.status",
        "runners.tracing",
    },
    "runners.editor/": BASE,
    "runners.grpc/": BASE
    | {
        "foley.v1/",
        "runners.auth",
        "runners.durable/",
        "runners.handoff",
        "runners.jobs/",
        "runners.messages",
        "runners.metrics",
        "runners.process",
        "runners.settings",
        "runners.status",
        "runners.tracing",
    },
    "runners.runpod/": BASE
    | {
        "foley.client/",
        "runners.fetch",
        "runners.jobs/",
        "runners.logs",
        "runners.process",
        "runners.settings",
    },
    "runners.page/": BASE
    | {
        "foley.client/",
        "foley.media/",
        "runners.browser",
        "runners.editor/",
        "runners.jobs/",
        "runners.logs",
        "runners.process",
        "runners.sandbox/",
        "runners.settings",
        "runners.storage",
    },
    "service": BASE
    | {
        "foley.marks/",
        "runners.auth",
        "runners.browser",
        "runners.durable/",
        "runners.editor/",
        "runners.grpc/",
        "runners.handoff",
        "runners.http/",
        "runners.jobs/",
        "runners.logs",
        "runners.messages",
        "runners.page/",
        "runners.process",
        "runners.runner_socket",
        "runners.sandbox/",
        "runners.settings",
        "runners.stop_signals",
        "runners.tracing",
        "runners.worker/",
    },
    "handler": {"runners.runpod/"},
}
# Folders of the repository that the package does not contain, and what they must not import.
OUTSIDE = {
    "training": {"benchmarks", "runners", "scripts", "service", "tests"},
    "benchmarks": {"scripts"},
    "scripts": set(),
}
# Libraries that only some units may import.
LIBRARIES = {
    "c2pa": {"foley.marks/"},
    "opentimelineio": {"foley.media/"},
    "cryptography": {"foley.marks/"},
    "dbos": {"runners.durable/"},
    "obstore": {"foley.storage", "runners.buckets"},
    "bentoml": {"service", "runners.jobs/", "runners.runner_socket", "runners.stop_signals"},
    "grpc": {"foley.v1/", "runners.grpc/"},
    "gradio": {"runners.page/"},
    "starlette": {
        "runners.browser",
        "runners.editor/",
        "runners.http/",
        "runners.page/",
        "runners.runner_socket",
        "service",
    },
    "runpod": {"runners.runpod/"},
}
# `foley doctor` and `foley download` work if PyTorch cannot be imported.
MODEL_LIBRARIES = {"torch", "transformers", "diffusers"}
WITHOUT_MODELS = (
    "foley/weights/sources.py",
    "foley/weights/manifest.py",
    "foley/weights/hub.py",
    "foley/weights/download.py",
    "foley/weights/licences.py",
    "foley/hardware/doctor.py",
)
MODEL_LOADING = {
    "foley.weights.components",
    "foley.weights.parts",
    "foley.weights.layout",
    "foley.weights.loading",
    "foley.weights.tensors",
}
# Who may touch os.environ: the settings, the command that hands it on unread, and the entry point
# that sets what OpenMP reads.
ENVIRONMENT_READERS = {"runners/settings.py", "foley/cli/serve.py", "foley/cli/app.py"}
ENVIRONMENT_READERS |= {"foley/cli/bulk/cluster.py"}  # switches Ray's telemetry off
ENVIRONMENT_READERS |= {
    "foley/cli/bulk/stations.py"
}  # gives each process a GPU and its share of cores
# What opens media files for reading. The second reads only the files that this package has written.
MEDIA_READERS = {"foley/media/source.py", "foley/media/metadata.py"}


def python_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported_modules(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports (relative imports are forbidden)."""
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return names


def unit_of(module: str) -> str | None:
    """The unit that a module or a name in it belongs to; None for other packages."""
    parts = module.split(".")
    if parts[0] in ("foley", "runners"):
        if len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir():
            return f"{parts[0]}.{parts[1]}/"
        if len(parts) > 1 and (ROOT / parts[0] / f"{parts[1]}.py").is_file():
            return f"{parts[0]}.{parts[1]}"
        return parts[0]
    return parts[0] if parts[0] in ("service", "handler") else None


def package_files() -> dict[str, list[Path]]:
    """The files of each unit of the package."""
    units: dict[str, list[Path]] = {}
    for place in ("foley", "runners", "service.py", "handler.py"):
        for path in python_files(ROOT / place):
            module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            unit = unit_of(module.removesuffix(".__init__"))
            assert unit is not None
            units.setdefault(unit, []).append(path)
    return units


def imported_units(paths: list[Path]) -> dict[str, Path]:
    """The units that files import, each with a file that does."""
    found: dict[str, Path] = {}
    for path in paths:
        names = imported_modules(path)
        # `from foley import media` names the folder and its parent; only the folder counts.
        parents = {name.rpartition(".")[0] for name in names}
        for name in names:
            unit = unit_of(name)
            if unit is not None and not (unit in ("foley", "runners") and name in parents):
                found[unit] = path
    return found


PACKAGE = package_files()


def test_the_table_names_every_unit() -> None:
    assert PACKAGE.keys() == ALLOWED.keys()


@pytest.mark.parametrize("unit", sorted(PACKAGE))
def test_a_unit_imports_only_what_the_table_allows(unit: str) -> None:
    for imported, path in imported_units(PACKAGE[unit]).items():
        assert imported == unit or imported in ALLOWED[unit], f"{path} imports {imported}"


def test_the_units_form_no_circle() -> None:
    order = TopologicalSorter(ALLOWED).static_order()
    assert set(order) == ALLOWED.keys()  # an exception names a circle


def imported_roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported_modules(path)}


def test_the_package_imports_no_folder_outside_it() -> None:
    outside = {*OUTSIDE, "tests", "examples"}
    for path in itertools.chain.from_iterable(PACKAGE.values()):
        assert not imported_roots(path) & outside, path


@pytest.mark.parametrize("folder", OUTSIDE)
def test_folders_outside_the_package_import_in_one_direction(folder: str) -> None:
    for path in python_files(ROOT / folder):
        assert not imported_roots(path) & OUTSIDE[folder], path


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_by_its_units(library: str) -> None:
    for unit, paths in PACKAGE.items():
        for path in paths if unit not in LIBRARIES[library] else ():
            assert library not in imported_roots(path), f"{path} imports {library}"


@pytest.mark.parametrize("place", WITHOUT_MODELS)
def test_downloads_and_the_doctor_import_no_model_library(place: str) -> None:
    names = imported_modules(ROOT / place)
    assert not {name.partition(".")[0] for name in names} & MODEL_LIBRARIES
    assert not names & MODEL_LOADING


def test_the_environment_is_read_in_one_place() -> None:
    for place in ("foley", "runners", "service.py"):
        for path in python_files(ROOT / place):
            if path.relative_to(ROOT).as_posix() in ENVIRONMENT_READERS:
                continue
            for node in ast.walk(parse(path)):
                read = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
                assert not read, f"{path}:{node.lineno} reads the environment"


def test_media_files_are_opened_in_one_place() -> None:
    """One list of formats holds for every reader: no file is a playlist for one of them alone."""
    for place in ("foley", "runners", "scripts", "service.py", "handler.py"):
        for path in python_files(ROOT / place):
            if path.relative_to(ROOT).as_posix() in MEDIA_READERS:
                continue
            tree = parse(path)
            assert not {"av.open", "av.container.open"} & imported_modules(path), path
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                if ast.unparse(call.func) in ("av.open", "av.container.open"):
                    modes = [ast.unparse(argument) for argument in call.args[1:2]]
                    assert modes == ["'w'"], f"{path}:{call.lineno} opens a media file"
