"""The trainings at their real sizes: one step each, and what the kept checkpoints can do."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foley.models.analysis import ACTIVE, Analysis
from foley.models.layers import TokenConv
from foley.models.rope import RotaryTable, rotate
from foley.models.synchformer import build_synchformer
from foley.sampling import integrate, make_sigmas
from foley.weights.loading import load_components
from foley.weights.selection import EMBEDDED_WEIGHTS
from training import clips, export, judge
from training.fast import convolve_as_product, rotate_as_complex
from training.flow import FlowModel, align_sync_tokens, compute_losses
from training.optimizers import MuonAndAdamW, PlainAdamW, orthogonalise
from training.settings import TRAINED, load_state
from training.train_encoders import compute_segment_tokens
from training.train_vae import evaluate_decoder
from training.unpack import HEADS, unpack_state

CHECKPOINTS = Path(__file__).parents[2] / "training" / "checkpoints"


@pytest.fixture
def entry() -> dict[str, torch.Tensor]:
    """Two clips of 1.28 s, as the cache gives them: 64 latents, 3 segments, 10 images."""
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(2, ACTIVE, 64, generator=generator).half(),
        "visual": torch.randn(2, 10, TRAINED.dit.visual_dim, generator=generator).half(),
        "sync": torch.randn(2, 24, TRAINED.dit.sync_dim, generator=generator).half(),
        "curve": torch.rand(2, 64, generator=generator).half(),
        "tokens": torch.randint(3, 600, (2, 40), generator=generator),
        "lengths": torch.tensor([5, 9]),
    }


def test_flow_loss_starts_at_the_variance_and_reaches_every_part(
    entry: dict[str, torch.Tensor],
) -> None:
    torch.manual_seed(0)
    model = FlowModel()
    losses = compute_losses(model, entry, torch.randint(3, 600, (6, 5)), 7)
    # The velocity is zero at first, so the loss is the variance of noise minus data.
    assert losses.flow.item() == pytest.approx(2.0, abs=0.2)
    losses.total.backward()
    assert model.dit.velocity_out.weight.grad is not None
    assert float(model.dit.velocity_out.weight.grad[:ACTIVE].abs().sum()) > 0
    assert float(model.dit.velocity_out.weight.grad[ACTIVE:].abs().sum()) == 0
    for head in (model.onset, model.place, model.aligned):
        assert head.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_each_latent_frame_is_told_the_sync_token_of_its_own_moment() -> None:
    # One vector for each tubelet of 80 ms: both segments that show it say the same.
    moments = torch.randn(1, 16, TRAINED.dit.sync_dim)
    segments = [moments[:, first : first + 8] for first in (0, 4, 8)]
    wanted, there = align_sync_tokens(torch.cat(segments, dim=1), 70)
    expected = F.layer_norm(moments, moments.shape[-1:]).repeat_interleave(4, dim=1)
    assert there.tolist() == [True] * 64 + [False] * 6  # the frames that fill no segment
    torch.testing.assert_close(wanted[:, :64], expected)


def test_fast_convolutions_and_rotations_are_the_same() -> None:
    torch.manual_seed(0)
    conv, tokens = TokenConv(8, 6, 3, bias=True), torch.randn(2, 9, 8)
    # measured: 1e-7, from another order of the same sums
    torch.testing.assert_close(convolve_as_product(conv, tokens), conv(tokens), rtol=0, atol=1e-6)
    heads, table = torch.randn(2, 9, 3, 32), RotaryTable.at(torch.arange(9), 32)
    torch.testing.assert_close(
        rotate_as_complex(heads, table), rotate(heads, table), rtol=0, atol=1e-6
    )


def test_updates_are_orthogonalised_whatever_their_scale() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(1e-3 * torch.randn(3, 32, 96)).float())
    assert values.min() > 0.5  # measured: 0.68 to 1.15
    assert values.max() < 1.3


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(MuonAndAdamW, marks=pytest.mark.soak),  # makes every matrix orthogonal
        pytest.param(PlainAdamW, marks=pytest.mark.long),
    ],
)
def test_an_optimiser_changes_every_parameter_that_has_a_gradient(
    entry: dict[str, torch.Tensor], kind: type[MuonAndAdamW] | type[PlainAdamW]
) -> None:
    torch.manual_seed(0)
    model = FlowModel()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)  # open gates
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = kind(model, 1e-3)
    compute_losses(model, entry, torch.randint(3, 600, (6, 5)), 7).total.backward()
    reached = {
        name
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    optimizer.step(1e-3)
    after = model.state_dict()
    assert {n for n in reached if torch.equal(before[n], after[n])} == set()


@torch.no_grad()
def test_noise_channels_pass_through_the_sampler(entry: dict[str, torch.Tensor]) -> None:
    model = FlowModel().eval()
    words = torch.randn(2, 6, TRAINED.dit.text_dim)
    context = model.dit.make_context(entry["visual"].float(), entry["sync"].float(), words, 64)
    noise = torch.randn(2, TRAINED.dit.latent_dim, 64)
    latents = integrate(
        lambda point: model.dit(
            point.latents, model.dit.make_time_modulation(torch.full((2,), point.sigma)), context
        ),
        noise,
        make_sigmas(2),
    )
    torch.testing.assert_close(latents[:, ACTIVE:], noise[:, ACTIVE:], rtol=0, atol=0)


@torch.no_grad()
def test_tokens_in_training_are_those_of_serving() -> None:
    torch.manual_seed(0)
    sync = build_synchformer(TRAINED.synchformer).eval()
    pictures = torch.rand(1, 24, 3, 224, 224) * 2 - 1
    tokens, _ = compute_segment_tokens(sync, pictures)
    served = sync(pictures[0])
    # measured: 4e-7, from another order of the same sums
    torch.testing.assert_close(tokens.flatten(0, 1), served, rtol=0, atol=1e-5)


@pytest.mark.soak
def test_the_kept_decoder_passes_its_gate() -> None:
    analysis, model = Analysis(), judge.MaterialJudge().eval()
    vae = load_components(EMBEDDED_WEIGHTS, TRAINED).vae.float()
    analysis.load_state_dict(load_state(CHECKPOINTS / "analysis.safetensors"))
    model.load_state_dict(load_state(CHECKPOINTS / "judge.safetensors"))
    batches = [
        clips.make_batch(909, 0, 4, 3.0, action=action, quiet=True) for action in ("bounce", "tap")
    ]
    figures = evaluate_decoder(vae, analysis, model, batches)
    assert figures["material_accuracy"] >= 0.95  # measured on 144 clips: 1.000
    assert figures["level_error_db_median"] < 3.0  # measured: 1.0
    assert figures["onset_f1"] > 0.9  # measured: 0.98


def test_what_is_unpacked_to_resume_is_what_was_exported(tmp_path: Path) -> None:
    unpack_state(tmp_path / "state")
    command = ["export", "--state", str(tmp_path / "state"), "--out", str(tmp_path / "again")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, "--checkpoints", str(tmp_path / "checkpoints")])
        export.main()
    for path in EMBEDDED_WEIGHTS.rglob("*.safetensors"):
        again = tmp_path / "again" / path.relative_to(EMBEDDED_WEIGHTS)
        assert again.read_bytes() == path.read_bytes()
    assert (
        load_state(tmp_path / "checkpoints" / HEADS).keys()
        == load_state(CHECKPOINTS / HEADS).keys()
    )
