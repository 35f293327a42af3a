"""Optimizers: AdamW alone, or Muon for the inner matrices and AdamW for everything else."""

# G matrices of one shape, R rows, C columns

import torch
from torch import Tensor, nn

# Parts of the names of input and output layers and of heads that only training has.
_OUTSIDE: tuple[str, ...] = (
    "audio_in",
    "velocity_out",
    "embeddings",
    "pooler",
    "place",
    "onset",
    "aligned",
)
_OUTSIDE += ("patch_in", "sync_heads", "vision_heads")
_MOMENTUM, _DECAY = 0.95, 0.01
_NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5


def orthogonalise(updates: Tensor) -> Tensor:
    """The matrices with all singular values near 1, [G, R, C].

    Args:
        updates: [G, R, C], R at most C.

    Source: K. Jordan, Muon, 2024: five Newton-Schulz iterations with these coefficients. The
    singular values end between about 0.7 and 1.2.
    """
    a, b, c = _NEWTON_SCHULZ
    x = updates.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class MuonAndAdamW:
    """Muon for the weights between hidden layers, and AdamW for the others.

    Muon orthogonalises the update of a whole matrix. A convolution's weight is treated as a matrix
    [out, in * taps]. Matrices of one shape are processed together, because PyTorch's own Muon needs
    1,700 launches and 48 ms per step of this model.

    Args:
        model: whose parameters are updated in place.
        rate: initial learning rate of AdamW.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        inside = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2
            and min(parameter.flatten(1).shape) >= 16
            and not any(part in name for part in _OUTSIDE)
        }
        outside = [p for name, p in model.named_parameters() if name not in inside]
        self._inside = list(inside.values())
        self._groups: list[tuple[list[Tensor], Tensor]] = []  # matrices and their momenta
        self._adamw = torch.optim.AdamW(
            outside, rate, betas=(0.9, 0.98), weight_decay=_DECAY, fused=outside[0].is_cuda
        )
        self._parameters = [*inside.values(), *outside]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the parameters by their gradients, at this learning rate."""
        if not self._groups:
            self._groups = self._group_matrices()
        for group, momentum in self._groups:
            gradient = torch.stack([p.grad.flatten(1) for p in group if p.grad is not None])
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = gradient.lerp(momentum, _MOMENTUM)
            rows, columns = update.shape[1:]
            upright = rows > columns
            made = orthogonalise(update.mT if upright else update)
            made = (made.mT if upright else made).float()
            # The size of AdamW's updates, whose entries are about 0.2 times the rate.
            made = made * (-0.2 * rate * max(rows, columns) ** 0.5)
            steps = [part.view_as(p) for part, p in zip(made.unbind(), group, strict=True)]
            torch._foreach_mul_(group, 1 - rate * _DECAY)
            torch._foreach_add_(group, steps)
        for options in self._adamw.param_groups:
            options["lr"] = rate
        self._adamw.step()

    def _group_matrices(self) -> list[tuple[list[Tensor], Tensor]]:
        """Group the matrices by shape; unused ones of the last joint block have no gradient."""
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in self._inside:
            if parameter.grad is not None:
                shapes.setdefault(parameter.flatten(1).shape, []).append(parameter)
        return [
            (group, torch.zeros(len(group), *shape, device=group[0].device))
            for shape, group in shapes.items()
        ]

    def gradients(self) -> list[Tensor]:
        """The gradients of all parameters that have one."""
        return [p.grad for p in self._parameters if p.grad is not None]


class PlainAdamW:
    """AdamW for all parameters.

    Args:
        model: whose parameters are updated in place.
        rate: initial learning rate.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self._parameters = list(model.parameters())
        self._adamw = torch.optim.AdamW(
            self._parameters,
            rate,
            betas=(0.9, 0.98),
            weight_decay=_DECAY,
            fused=self._parameters[0].is_cuda,
        )

    def step(self, rate: float) -> None:
        """Update the parameters by their gradients, at this learning rate."""
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()

    def gradients(self) -> list[Tensor]:
        """The gradients of all parameters that have one."""
        return [p.grad for p in self._parameters if p.grad is not None]


OPTIMIZERS: dict[str, type[MuonAndAdamW] | type[PlainAdamW]] = {
    "muon": MuonAndAdamW,
    "adamw": PlainAdamW,
}
