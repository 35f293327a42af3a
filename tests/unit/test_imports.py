"""The direction of imports, and that the environment is read in one place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# `foley doctor` and `foley download` work if PyTorch cannot be imported.
MODEL_LOADING = {
    "foley.weights.components",
    "foley.weights.parts",
    "foley.weights.layout",
    "foley.weights.loading",
    "foley.weights.tensors",
}
FORBIDDEN = {
    "foley": {"bentoml", "grpc", "runners", "service", "tests", "benchmarks", "training"},
    "foley/media": {
        "foley.models",
        "foley.sampling",
        "foley.pipeline",
        "foley.conditioning",
        "foley.weights.loading",
        "transformers",
        "diffusers",
    },
    "foley/models": {
        "foley.gpu",
        "foley.weights",
        "foley.media",
        "foley.sampling",
        "foley.denoise",
        "foley.conditioning",
        "foley.pipeline",
    },
    "foley/gpu": {
        "foley.media",
        "foley.sampling",
        "foley.denoise",
        "foley.conditioning",
        "foley.pipeline",
    },
    "foley/weights": {
        "foley.gpu",
        "foley.hardware",
        "foley.media",
        "foley.sampling",
        "foley.pipeline",
        "foley.cli",
    },
    "foley/hardware": {"foley.gpu", "foley.media", "foley.sampling", "foley.pipeline", "foley.cli"},
    "foley/sampling.py": {"foley.models", "foley.media", "foley.pipeline"},
    "foley/conditioning.py": {"foley.pipeline", "foley.media", "foley.sampling"},
    "foley/pipeline.py": {"foley.cli"},
    **{
        place: {"torch", "transformers", "diffusers", *MODEL_LOADING}
        for place in (
            "foley/weights/sources.py",
            "foley/weights/manifest.py",
            "foley/weights/hub.py",
            "foley/weights/download.py",
            "foley/weights/licences.py",
            "foley/hardware/doctor.py",
        )
    },
    "runners": {"service", "tests", "benchmarks"},
    "service.py": {"tests", "benchmarks"},
}
# Who may touch os.environ: the settings, and the command that hands it on unread.
ENVIRONMENT_READERS = {"runners/settings.py", "foley/cli/serve.py"}


def python_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports (relative imports are forbidden)."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return names


@pytest.mark.parametrize("place", FORBIDDEN)
def test_imports_point_one_way(place: str) -> None:
    files = [path for path in python_files(ROOT / place) if path.parent != ROOT / "foley" / "v1"]
    assert files
    for path in files:
        for name in imported_modules(path):
            for forbidden in FORBIDDEN[place]:
                assert name != forbidden, f"{path} imports {name}"
                assert not name.startswith(f"{forbidden}."), f"{path} imports {name}"


def test_the_environment_is_read_in_one_place() -> None:
    for place in ("foley", "runners", "service.py"):
        for path in python_files(ROOT / place):
            if path.relative_to(ROOT).as_posix() in ENVIRONMENT_READERS:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                read = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
                assert not read, f"{path}:{node.lineno} reads the environment"
