"""On a GPU: code that training compiles has the gradients of plain PyTorch."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from foley.models.synchformer import Synchformer, build_synchformer
from training.settings import TRAINED
from training.train_encoders import FRAMES, compute_segment_tokens, normalise

pytestmark = pytest.mark.needs_gpu
CLIPS = 8


def _gradients(
    sync: Synchformer, pictures: Tensor, *, compiled: bool, half: bool
) -> dict[str, Tensor]:
    function = torch.compile(compute_segment_tokens) if compiled else compute_segment_tokens
    sync.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        tokens, patches = function(sync, pictures)
    generator = torch.Generator("cuda").manual_seed(1)
    wanted = torch.randn(tokens.shape, device="cuda", generator=generator)
    (tokens.float() * wanted).sum().add(0.05 * patches.float().square().sum()).backward()
    return {name: p.grad for name, p in sync.named_parameters() if p.grad is not None}


def test_the_sync_encoder_is_trained_by_its_true_gradients() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    sync = build_synchformer(TRAINED.synchformer).cuda().train()
    for parameter in sync.parameters():
        if parameter.ndim > 2:
            torch.nn.init.normal_(parameter, std=0.02)
    coarse = torch.rand(CLIPS * FRAMES, 3, 28, 28, device="cuda")
    pictures = F.interpolate(coarse, scale_factor=8).unflatten(0, (CLIPS, FRAMES))
    pictures = normalise((pictures * 255).byte())
    exact = _gradients(sync, pictures, compiled=False, half=False)
    made = _gradients(sync, pictures, compiled=True, half=True)
    assert made.keys() == exact.keys()
    for name, value in exact.items():
        assert (made[name] - value).norm() < 0.1 * value.norm(), name
