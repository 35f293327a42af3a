"""What `foley.weights` takes from `huggingface_hub`."""

import ast
import importlib
import types
from pathlib import Path

import pytest

from foley import weights

# Submodules that the library documents: environment variables, and its HTTP client's exceptions.
DOCUMENTED_MODULES = {"huggingface_hub.constants", "huggingface_hub.utils.httpx"}


def imported_names() -> list[tuple[str, str]]:
    """The names imported from the library, each with its module."""
    return [
        (node.module, alias.name)
        for path in sorted(Path(weights.__file__).parent.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module is not None
        if node.module.split(".")[0] == "huggingface_hub"
        for alias in node.names
    ]


@pytest.mark.parametrize(("module", "name"), imported_names())
def test_only_public_names_of_the_hub_s_library_are_used(module: str, name: str) -> None:
    assert not any(part.startswith("_") for part in [*module.split("."), name])
    container = importlib.import_module(module)
    found = getattr(container, name)
    if isinstance(found, types.ModuleType):
        assert f"{module}.{name}" in DOCUMENTED_MODULES
        return
    assert name in getattr(container, "__all__", [name])
    assert found.__module__.startswith("huggingface_hub")  # not what it imported for itself
