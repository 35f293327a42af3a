"""`foley convert`: write a model as one folder of safetensors files."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from foley.quiet import silence_imports


def convert(
    source: Annotated[Path, Parameter(help="Folder of the official or third-party files.")],
    destination: Annotated[Path, Parameter(help="Folder to create. It must be empty or missing.")],
    *,
    preset: Annotated[
        str, Parameter(help="xl, xxl or auto. auto is the larger preset that the folder holds.")
    ] = "auto",
    storage: Annotated[
        Literal["bf16", "fp8"],
        Parameter(help="fp8 halves the transformer's file. It still runs in bfloat16."),
    ] = "bf16",
) -> None:
    """Write a model as one folder of safetensors files, which load by memory mapping.

    The transformer is written in bfloat16 or fp8. The other networks keep their types, and the
    encoders lose the towers that are not used. The folder appears when it is complete.
    """
    with silence_imports():
        import torch

        from foley.weights.layout import save_components
        from foley.weights.loading import load_components
        from foley.weights.selection import choose_preset

    components = load_components(source, choose_preset(preset, source))
    components = dataclasses.replace(
        components, dit=torch.nn.Module.to(components.dit, torch.bfloat16)
    )
    origin = f"converted from {source.name}"
    save_components(components, destination, source=origin, storage=storage, terms=source)
    num_bytes = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file())
    print(f"{destination}: preset {components.preset.name}, {storage}, {num_bytes / 1e9:.2f} GB")
