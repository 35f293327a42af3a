"""`foley convert`: official files -> our own layout."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foley.cli.options import quiet_imports


def convert(
    source: Annotated[Path, Parameter(help="Folder of the official or third-party files.")],
    destination: Annotated[Path, Parameter(help="Folder to make; must not hold anything.")],
    *,
    preset: Annotated[
        str, Parameter(help="xl, xxl, or auto: the larger one that the folder holds.")
    ] = "auto",
) -> None:
    """Write a model as one folder of safetensors files that load by memory map."""
    with quiet_imports():
        from foley.checkpoints import load_components, save_components
        from foley.pipeline import choose_preset

    components = load_components(source, choose_preset(preset, source))
    save_components(components, destination, source=f"converted from {source.name}")
    num_bytes = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file())
    print(f"{destination}: preset {components.preset.name}, {num_bytes / 1e9:.2f} GB")
