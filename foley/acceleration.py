"""What runs faster than the modules' own forward, chosen in one place.

On the CPU nothing: the modules' forward is the definition, and the fastest there. On a GPU the
transformer's step is fused, its functions compiled, and replayed from a CUDA graph.
"""

from torch import Tensor

from foley.models.dit import DiTContext, FoleyDiT, TimeModulation
from foley.models.fused import FusedContext, FusedDiT, Precision
from foley.models.graphs import Capture, StepGraphs, capture_cuda
from foley.models.pointwise import Pointwise, compiled


class FusedStep:
    """`FusedDiT` behind graphs, for `foley.denoise.VelocityModel`.

    Args:
        dit: see `FusedDiT`.
        precision: likewise.
        pointwise: likewise.
        capture: see `StepGraphs`.
    """

    def __init__(
        self, dit: FoleyDiT, precision: Precision, pointwise: Pointwise, capture: Capture
    ) -> None:
        self._graphs = StepGraphs(FusedDiT(dit, precision, pointwise), capture)
        self._context: DiTContext | None = None
        self._fused: FusedContext | None = None

    def __call__(self, latents: Tensor, time: TimeModulation, context: DiTContext) -> Tensor:
        """The velocities [sum of A, L] of packed clips."""
        if self._fused is None or context is not self._context:
            self._context, self._fused = context, FusedContext.of(context)
        return self._graphs(latents, time, self._fused)

    def forget(self) -> None:
        """Let go of what earlier steps left in memory."""
        self._graphs.forget()
        self._context, self._fused = None, None


def fused_step(dit: FoleyDiT, precision: Precision) -> FusedStep:
    """The fastest step for a transformer that lies wholly on a GPU."""
    return FusedStep(dit, precision, compiled(), capture_cuda)
