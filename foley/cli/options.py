"""Options that several commands share."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from foley.pipeline import FoleyPipeline


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide what libraries note about each other's versions while they are imported."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and where it runs."""

    preset: Annotated[
        str,
        Parameter(
            help="tiny, xl, xxl, or auto: the largest in --weights; without them, the largest that "
            "was downloaded and fits the GPU, else tiny."
        ),
    ] = "auto"
    weights: Annotated[
        Path | None,
        Parameter(
            env_var="FOLEY_WEIGHTS",
            help="Folder of the official files, or of what `foley convert` made. Without it, what "
            "`foley download` fetched.",
        ),
    ] = None
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto"
    precision: Annotated[
        Literal["bf16", "fp8"],
        Parameter(help="On a GPU: fp8 is faster and less exact. The CPU computes in float32."),
    ] = "bf16"
    memory: Annotated[
        Literal["auto", "full", "balanced", "low"],
        Parameter(
            help="Weights on a GPU: all, the transformer, or a part of it; auto is the first that "
            "fits."
        ),
    ] = "auto"

    def load(self) -> "FoleyPipeline":
        """The pipeline that these options name."""
        with quiet_imports():
            from foley.pipeline import FoleyPipeline

        return FoleyPipeline.from_preset(
            self.preset,
            device=self.device,
            weights=self.weights,
            precision=self.precision,
            memory=self.memory,
        )
