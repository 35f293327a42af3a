"""The optimiser of the transformer: Muon for the matrices inside it, AdamW for all else."""

import torch
from torch import Tensor, nn

_OUTSIDE = ("audio_in", "velocity_out", "embeddings", "pooler", "place", "onset", "aligned")


class MuonAndAdamW:
    """Two optimisers as one.

    Muon orthogonalises a whole matrix's step, which fits the weights between hidden layers. It
    takes matrices alone, so a convolution's weight is seen as one, [out, in * taps].

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
        self._matrices = list(inside.values())
        self._views = [nn.Parameter(p.detach().flatten(1)) for p in self._matrices]
        self._muon = torch.optim.Muon(
            self._views, rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        fused = outside[0].is_cuda
        self._adamw = torch.optim.AdamW(
            outside, rate, betas=(0.9, 0.98), weight_decay=0.01, fused=fused
        )
        self._parameters = [*self._matrices, *outside]

    def step(self, rate: float) -> None:
        """Change the parameters by their gradients, and drop these."""
        for matrix, view in zip(self._matrices, self._views, strict=True):
            view.grad = None if matrix.grad is None else matrix.grad.flatten(1)
        for optimizer in (self._muon, self._adamw):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None

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
            weight_decay=0.01,
            fused=self._parameters[0].is_cuda,
        )

    def step(self, rate: float) -> None:
        """Change the parameters by their gradients, and drop these."""
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """Those there are."""
        return [p.grad for p in self._parameters if p.grad is not None]
