"""On a GPU: the same numbers within half precision, and the same sound for a seed."""

from pathlib import Path

import pytest
import torch

from foley.models.dit import build_dit
from foley.pipeline import FoleyPipeline
from tests.parity import fixtures
from tests.toys import toy_components, toy_frames

pytestmark = pytest.mark.needs_gpu
GOLDEN = Path(__file__).parents[1] / "assets" / "golden"


@torch.no_grad()
def test_bfloat16_stays_close_to_the_golden_velocity() -> None:
    golden = fixtures.load(GOLDEN / "dit_tiny.safetensors")
    reference = fixtures.dit(golden)
    dit = build_dit(fixtures.dit_config(golden))
    dit.load_state_dict(reference.state_dict())
    dit = torch.nn.Module.to(dit, device="cuda", dtype=torch.bfloat16)
    context = dit.context(
        golden["in.clip_feat"].cuda(),
        golden["in.sync_feat"].cuda(),
        golden["in.cond"].cuda(),
        golden["in.x"].shape[-1],
    )
    times = dit.time_modulation(golden["in.t"].cuda() / 1000)
    velocity = dit(golden["in.x"].cuda(), times, context).cpu()
    expected = golden["out.x"]
    error = (velocity - expected).norm() / expected.norm()
    assert error < 0.015  # the published program has 0.0075; on the CPU this one has 0.0072


def test_a_seed_repeats_its_sound_bit_for_bit() -> None:
    pipeline = FoleyPipeline(toy_components(), torch.device("cuda"))
    first, again = (
        pipeline(toy_frames(), "tap", seed=1, num_inference_steps=3).waveforms for _ in range(2)
    )
    assert torch.equal(first, again)
