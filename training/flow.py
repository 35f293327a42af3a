"""The transformer and the text encoder as one model for training, with heads and losses."""

# B clips, A latent frames, L latent channels, S sync tokens, C width, T text tokens

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.configs import SYNC_SEGMENT_FRAMES, SYNC_SEGMENT_STRIDE
from foley.models.analysis import ACTIVE, LATENT_DIM
from foley.models.dit import FoleyDiT, build_dit
from foley.models.embeddings import SYNC_POSITIONS
from foley.models.encoders import build_text_encoder
from training.features import PAD
from training.settings import TRAINED

DROP_ALL, DROP_PICTURE, DROP_TEXT = 0.1, 0.05, 0.05
ONSET_WEIGHT, PLACE_WEIGHT, ALIGNED_WEIGHT = 0.5, 0.3, 0.3
# Mean of the normal distribution from whose sigmoid half of the noise levels are drawn. High levels
# are preferred, because they decide about the alignment with the video.
_MEAN_NOISE = 0.5
_TUBELETS_APART = SYNC_SEGMENT_STRIDE * SYNC_POSITIONS // SYNC_SEGMENT_FRAMES  # of two segments
_LATENTS_PER_TUBELET = 4
# The largest distance of a sync token from its own time, in latent frames.
_LARGEST_SHIFT = 16.0
_ANGLES = 8


class FlowModel(nn.Module):
    """The transformer, the text encoder, and the heads that only training uses.

    A sync token's position differs from its own time by an amount that depends on the place in the
    clip. The head `place` predicts that place from the audio tokens after the joint blocks, as the
    angles by which attention has to turn. The heads `onset` and `aligned` predict the onsets and
    the sync token of each moment from the audio tokens in the middle of the audio blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        dim = TRAINED.dit.hidden_dim
        self.dit = build_dit(TRAINED.dit)
        self.text = build_text_encoder(TRAINED.text)
        self.place = nn.Linear(dim, 1 + 2 * _ANGLES)
        self.onset = nn.Linear(dim, 1)
        self.aligned = nn.Linear(dim, TRAINED.dit.sync_dim)
        start_as_identity(self.dit)
        # Audio tokens of the last call.
        self.after_joint = self.in_the_middle = torch.empty(0)
        self.dit.joint_blocks[-1].register_forward_hook(self._keep_joint)
        self.dit.audio_blocks[1].register_forward_hook(self._keep_middle)

    def _keep_joint(self, block: nn.Module, inputs: object, outputs: tuple[Tensor, Tensor]) -> None:
        self.after_joint = outputs[0]

    def _keep_middle(self, block: nn.Module, inputs: object, output: Tensor) -> None:
        self.in_the_middle = output


@dataclass(frozen=True)
class Losses:
    """The losses of a batch.

    Attributes:
        flow: of flow matching, over the active channels.
        onset, place, aligned: of the heads.
    """

    flow: Tensor
    onset: Tensor
    place: Tensor
    aligned: Tensor

    @property
    def total(self) -> Tensor:
        """The weighted sum that is minimised."""
        heads = ONSET_WEIGHT * self.onset + PLACE_WEIGHT * self.place
        return self.flow + heads + ALIGNED_WEIGHT * self.aligned

    def detach(self) -> "Losses":
        """The losses without their computation graph."""
        return Losses(
            *(loss.detach() for loss in (self.flow, self.onset, self.place, self.aligned))
        )

    def to_list(self) -> list[float]:
        """The values of flow, onset, place and aligned, rounded."""
        losses = (self.flow, self.onset, self.place, self.aligned)
        return [round(loss.item(), 4) for loss in losses]


def start_as_identity(dit: FoleyDiT) -> None:
    """Set all gates to zero, so that every block is the identity and the velocity is zero."""
    gates: list[nn.Module] = [dit.velocity_out]
    for projection in dit.time_projections:
        gates += projection.children()  # of the audio and the visual stream
    gates += [block.get_submodule("modulation") for block in dit.audio_blocks]
    for gate in gates:
        for parameter in gate.parameters():
            nn.init.zeros_(parameter)
    nn.init.normal_(dit.clip_in.sync_position, std=0.02)


def place_targets(num_latents: int, device: torch.device) -> Tensor:
    """The target of the head `place` for each latent frame, [A, 1 + 2 * angles].

    It is the place in the clip, -1 to 1, and the cosines and sines of the angles that undo the
    shift of the sync tokens there, at the highest rotary frequencies of the audio blocks.
    """
    share = (torch.arange(num_latents, device=device) + 0.5) / num_latents
    pairs = TRAINED.dit.hidden_dim // TRAINED.dit.num_heads // 2
    frequencies = 10_000.0 ** (-torch.arange(_ANGLES, device=device) / pairs)
    angles = _LARGEST_SHIFT * share[:, None] * frequencies
    return torch.cat((2 * share[:, None] - 1, angles.cos(), angles.sin()), dim=1)


def align_sync_tokens(sync: Tensor, num_latents: int) -> tuple[Tensor, Tensor]:
    """The normalised sync tokens of each latent frame's own time.

    Args:
        sync: [B, S, C], the input of the transformer.
        num_latents: A.

    Returns:
        The tokens [B, A, C], averaged if two segments show a time; and bool [A], whether a frame
        has any token.
    """
    num_segments = sync.shape[1] // SYNC_POSITIONS
    tubelet = torch.arange(num_latents, device=sync.device) // _LATENTS_PER_TUBELET
    segments = sync.unflatten(1, (num_segments, SYNC_POSITIONS))
    total, views = torch.zeros_like(sync[:, :1]), torch.zeros_like(tubelet)
    for earlier in range(SYNC_POSITIONS // _TUBELETS_APART):
        segment = tubelet // _TUBELETS_APART - earlier
        position = tubelet - segment * _TUBELETS_APART
        there = (segment >= 0) & (segment < num_segments)
        seen = segments[:, segment.clamp(0, num_segments - 1), position]
        total = total + there[:, None] * seen
        views = views + there
    mean = total / views.clamp_min(1)[:, None]
    return F.layer_norm(mean, mean.shape[-1:]), views > 0


def drop_conditions(
    model: FlowModel, entry: dict[str, Tensor], negative: Tensor, num_tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Replace some of a batch's conditions by empty ones, as guidance needs.

    Args:
        model: holds the empty features.
        entry: of the cache.
        negative: int64 [N, T'], ids of negative prompts; the last one is the empty prompt.
        num_tokens: T, at least T'. Padding affects the result, so its length must vary.

    Returns:
        Visual tokens, sync tokens, text ids, and bool [B], whether a clip's features are empty.
    """
    count, device = len(entry["latents"]), entry["latents"].device
    chance = torch.rand(count, device=device)
    blind = chance < DROP_ALL + DROP_PICTURE
    visual, sync = (
        torch.where(blind[:, None, None], empty, entry[name].float())
        for name, empty in (
            ("visual", model.dit.clip_in.empty_visual),
            ("sync", model.dit.clip_in.empty_sync),
        )
    )
    ids = entry["tokens"][:, :num_tokens]
    other = F.pad(negative, (0, num_tokens - negative.shape[1]), value=PAD)
    drawn = other[torch.randint(len(other), (count,), device=device)]
    # Half of the clips without conditions get the usual negative prompt, which is the first.
    drawn = torch.where(torch.rand(count, 1, device=device) < 0.5, other[0], drawn)
    ids = torch.where((chance < DROP_ALL)[:, None], drawn, ids)
    silent = (chance > 1 - DROP_TEXT)[:, None]
    return visual, sync, torch.where(silent, other[-1], ids), blind


def encode_prompts(model: FlowModel, ids: Tensor) -> Tensor:
    """The text tokens [B, T, C] of ids [B, T].

    The mask is given in its additive form. The conversion from a boolean mask copies a constant to
    the GPU, and a step with such a copy cannot be recorded.
    """
    mask = torch.zeros(ids.shape, device=ids.device).masked_fill(ids == PAD, -1e9)
    return model.text(input_ids=ids, attention_mask=mask[:, None, None]).last_hidden_state


def compute_losses(
    model: FlowModel, entry: dict[str, Tensor], negative: Tensor, num_tokens: int
) -> Losses:
    """The losses of a batch.

    Args:
        model: to train.
        entry: of the cache.
        negative: see `drop_conditions`.
        num_tokens: see `drop_conditions`.
    """
    clean = entry["latents"].float()
    device, num_latents = clean.device, clean.shape[-1]
    noise = torch.randn(len(clean), LATENT_DIM, num_latents, device=device)
    spread = torch.sigmoid(_MEAN_NOISE + torch.randn(len(clean), device=device) * 1.1)
    even = torch.rand(len(clean), device=device)
    sigma = torch.where(torch.rand(len(clean), device=device) < 0.5, spread, even)
    mix = sigma[:, None, None]
    active = (1 - mix) * clean + mix * noise[:, :ACTIVE]
    latents = torch.cat((active, noise[:, ACTIVE:]), dim=1)
    visual, sync, ids, blind = drop_conditions(model, entry, negative, num_tokens)
    words = encode_prompts(model, ids)
    context = model.dit.make_context(visual, sync, words, num_latents)
    velocity = model.dit(latents, model.dit.make_time_modulation(sigma), context)
    flow = (velocity[:, :ACTIVE] - (noise[:, :ACTIVE] - clean)).square().mean()
    curve = entry["curve"].float()
    middle = model.in_the_middle.float()
    # With little noise, the latents themselves show the onsets.
    weight = (1 + 4 * (curve > 0)) * 2 * sigma[:, None]
    onset = F.binary_cross_entropy_with_logits(model.onset(middle)[..., 0], curve, weight=weight)
    found = model.place(model.after_joint.float())
    place = F.mse_loss(found, place_targets(num_latents, device).expand_as(found))
    wanted, there = align_sync_tokens(entry["sync"].float(), num_latents)
    missed = (model.aligned(middle) - wanted).square().mean(-1)
    seen = (~blind[:, None] & there).float()
    aligned = (missed * seen).sum() / seen.sum().clamp_min(1)
    return Losses(flow, onset, place, aligned)
