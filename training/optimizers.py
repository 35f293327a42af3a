"""The optimisers: Muon for the matrices inside a transformer and AdamW for all else; or AdamW.

Both are told the rate at each step.
"""

# G matrices of one shape, R rows, C columns

import torch
from torch import Tensor, nn

# Parts of names: what goes in and out of a model, and the heads that training alone has.
_OUTSIDE = ("audio_in", "velocity_out", "embeddings", "pooler", "place", "onset", "aligned")
_OUTSIDE += ("patch_in", "sync_heads", "vision_heads")
_MOMENTUM, _DECAY = 0.95, 0.01
_NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5


def orthogonalise(updates: Tensor) -> Tensor:
    """Matrices [G, R, C] with all singular values near 1, R at most C.

    Source: K. Jordan, Muon, 2024: five Newton-Schulz iterations with those coefficients; singular
    values end between about 0.7 and 1.2.
    """
    a, b, c = _NEWTON_SCHULZ
    x = updates.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class MuonAndAdamW:
    """Two optimisers as one.

    Muon orthogonalises a whole matrix's step, which fits the weights between hidden layers. A
    convolution's weight is seen as a matrix, [out, in * taps]. PyTorch's own Muon takes one matrix
    after another: 1,700 launches, 48 ms a step of this model; here all of one shape go together.

    Args:
        model: its parameters are changed in place.
        rate: of AdamW; Muon's steps are scaled to be as large.
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
        self._groups: list[tuple[list[nn.Parameter], Tensor]] = []  # matrices and their momenta
        self._adamw = torch.optim.AdamW(
            outside, rate, betas=(0.9, 0.98), weight_decay=_DECAY, fused=outside[0].is_cuda
        )
        self._parameters = [*inside.values(), *outside]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Change the parameters by their gradients."""
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
            # As large as AdamW's steps, whose entries are about 0.2 times the rate.
            made = made * (-0.2 * rate * max(rows, columns) ** 0.5)
            steps = [part.view_as(p) for part, p in zip(made.unbind(), group, strict=True)]
            torch._foreach_mul_(group, 1 - rate * _DECAY)
            torch._foreach_add_(group, steps)
        for options in self._adamw.param_groups:
            options["lr"] = rate
        self._adamw.step()

    def _group_matrices(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        """By shape; what is dead in the last joint block has no gradient, and is left alone."""
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in self._inside:
            if parameter.grad is not None:
                shapes.setdefault(parameter.flatten(1).shape, []).append(parameter)
        return [
            (group, torch.zeros(len(group), *shape, device=group[0].device))
            for shape, group in shapes.items()
        ]

    def gradients(self) -> list[Tensor]:
        """Those there are."""
        return [p.grad for p in self._parameters if p.grad is not None]


class PlainAdamW:
    """AdamW for all."""

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
        """Change the parameters by their gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()

    def gradients(self) -> list[Tensor]:
        """Those there are."""
        return [p.grad for p in self._parameters if p.grad is not None]


OPTIMIZERS = {"muon": MuonAndAdamW, "adamw": PlainAdamW}
