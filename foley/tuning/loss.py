"""The loss of an adapter: flow matching, as the model itself was trained."""

# B clips, N latent frames of all clips together, L latent channels

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foley.configs import TINY
from foley.models.adapter_stacks import find_borders
from foley.models.adapters import (
    STEP_KINDS,
    AdapterBatch,
    Groups,
    LowRank,
    find_adapters,
    find_kind,
    list_layers,
    use_adapters,
)
from foley.models.context import DiTContext
from foley.models.dit import FoleyDiT
from foley.tuning.examples import Example

# Of the clips of a step, so many come without conditions, as guidance needs, and so many with a
# prompt for something else. In both cases the model's own velocity is what is to be computed. With
# fewer kept, other prompts sound changed; see docs/guides/training.md.
UNCONDITIONAL_SHARE = 0.1
KEPT_SHARE = 0.6
TARGETS = {
    # Where each token looks, and what it takes from there: small files, and the least harm to what
    # the model knows.
    "attention": ("qkv", "out", "cross_q", "cross_out", "kv"),
    # With the MLPs, where much of a sound's timbre is made: twice as large, for unheard materials.
    "all": ("qkv", "out", "cross_q", "cross_out", "kv", "mlp.0", "mlp.2", "gate", "up", "down"),
}


class TrainedAdapter(nn.Module):
    """An adapter whose matrices are parameters, float32.

    Args:
        dit: that it changes; its own weights get no gradients.
        rank: R.
        targets: a key of `TARGETS`.
        seed: of the initial matrices. `up` is zero, so that the adapter changes nothing at first.
    """

    def __init__(self, dit: FoleyDiT, rank: int, targets: str, seed: int) -> None:
        super().__init__()
        blocks = ("joint_blocks.", "audio_blocks.", "text_projections.")
        generator = torch.Generator().manual_seed(seed)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self._taps: dict[str, int] = {}
        for name, (inputs, outputs, taps) in list_layers(dit).items():
            if not name.startswith(blocks) or not name.endswith(TARGETS[targets]):
                continue
            key = name.replace(".", "/")  # a dictionary of parameters takes no dots
            start = torch.randn(inputs * taps, rank, generator=generator)
            self.down[key] = nn.Parameter(start / (inputs * taps) ** 0.5)
            self.up[key] = nn.Parameter(torch.zeros(rank, outputs))
            self._taps[key] = taps

    def list_layers(self, state: Mapping[str, Tensor] | None = None) -> dict[str, LowRank]:
        """Return the matrices by the layer's name in `FoleyDiT`.

        Args:
            state: a former `state_dict` to take them from; None for the current ones.
        """
        if state is None:
            state = dict(self.named_parameters())
        return {
            key.replace("/", "."): LowRank(
                state[f"down.{key}"].unflatten(0, (-1, taps)), state[f"up.{key}"]
            )
            for key, taps in self._taps.items()
        }

    def make_batch(self, clip_lengths: Sequence[int], like: Tensor) -> AdapterBatch:
        """Return the adapter as it changes a batch, with gradients.

        Args:
            clip_lengths: latent frames of each clip.
            like: a tensor on the device and in the dtype of the layers.
        """
        stacks = {
            name: LowRank(*(matrix[None].to(like.dtype) for matrix in layer))
            for name, layer in self.list_layers().items()
        }
        kinds = {*STEP_KINDS, *(find_kind(name) for name in stacks)}
        groups = dict.fromkeys(kinds, Groups(0, None, None))
        return AdapterBatch(stacks, groups, find_borders(clip_lengths, like.device))


def draw_sigmas(preset_name: str, count: int, generator: torch.Generator) -> Tensor:
    """Return noise levels, float32 [count], by the law with which the model was trained.

    For the official models that law is not published. High levels, where the picture is followed,
    and all others have to stay as they are, so half of the levels are drawn evenly there too.

    Args:
        preset_name: of the model.
        count: number of clips.
        generator: on the CPU.
    """
    mean, spread = (0.5, 1.1) if preset_name == TINY.name else (0.0, 1.0)
    normal = torch.sigmoid(mean + spread * torch.randn(count, generator=generator))
    even = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.5, normal, even)


def compute_loss(
    dit: FoleyDiT,
    adapter: TrainedAdapter | None,
    examples: Sequence[Example],
    sigmas: Tensor,
    generator: torch.Generator,
    *,
    unconditional: Sequence[bool],
    kept: Sequence[bool] | None = None,
    mine: Sequence[int] | None = None,
) -> Tensor:
    """Return the mean squared error of the velocity of clips of any lengths.

    The true velocity is that from the clip's sound to the noise. For clips that are unconditional
    or kept it is the one that the model computes without the adapter.

    Args:
        dit: without gradients of its own; its blocks may be checkpointed.
        adapter: to train; None for the model itself.
        examples: the clips.
        sigmas: float32 [B], their noise levels, on the CPU.
        generator: of the noise, on the CPU, so that all devices draw the same.
        unconditional: of each clip, whether it has the empty features and the negative prompt.
        kept: of each clip, whether the model's own velocity is to be kept; None for no clip.
        mine: indices of the clips whose part of the mean is returned; None for all.
    """
    like = examples[0].latents.new_empty(0, dtype=dit.dtype)
    lengths = [example.conditions.num_latents for example in examples]
    num_channels = dit.config["latent_dim"]
    states, targets = [], []
    for example, sigma in zip(examples, sigmas.tolist(), strict=True):
        clean = example.latents
        noise = torch.randn(num_channels, clean.shape[1], generator=generator).to(clean)
        learnt = noise[: len(clean)]
        states.append(torch.cat(((1 - sigma) * clean + sigma * learnt, noise[len(clean) :])))
        targets.append(learnt - clean)
    mine = range(len(examples)) if mine is None else mine
    as_model = [
        index
        for index in mine
        if adapter is not None and (unconditional[index] or (kept is not None and kept[index]))
    ]

    def compute(indices: Sequence[int], batch: AdapterBatch | None) -> Tensor:
        with use_adapters(batch):
            contexts = [_make_context(dit, examples[i], unconditional[i]) for i in indices]
            context = DiTContext.concatenate(contexts, packed=True)
            time = dit.make_time_modulation(sigmas[list(indices)].to(like.device))
            state = torch.cat([states[i] for i in indices], dim=1)[None]
            velocity: Tensor = dit(state, time, context)[0]
        return velocity[: len(targets[0])]

    if as_model:
        with torch.no_grad():
            own = compute(as_model, None).split([lengths[i] for i in as_model], dim=1)
        for index, velocity in zip(as_model, own, strict=True):
            targets[index] = velocity
    own_lengths = [lengths[i] for i in mine]
    batch = None if adapter is None else adapter.make_batch(own_lengths, like)
    made = compute(mine, batch).float()
    target = torch.cat([targets[i] for i in mine], dim=1).float()
    return nn.functional.mse_loss(made, target) * (sum(own_lengths) / sum(lengths))


def _make_context(dit: FoleyDiT, example: Example, empty: bool) -> DiTContext:
    made = example.conditions
    if empty:
        visual, sync = len(made.visual_tokens), len(made.sync_tokens)
        return dit.make_empty_context(visual, sync, made.text_tokens[:1], made.num_latents)
    return dit.make_context(
        made.visual_tokens[None], made.sync_tokens[None], made.text_tokens[1:2], made.num_latents
    )


def checkpoint_blocks(dit: FoleyDiT) -> None:
    """Let blocks compute their inner values again in the backward pass, to save memory.

    Args:
        dit: its blocks' forward is replaced.
    """
    for block in (*dit.joint_blocks, *dit.audio_blocks):
        block.forward = _Checkpointed(block.forward)


class _Checkpointed:
    """A block's forward that is run again in the backward pass, with the same adapters.

    On a GPU that runs on a thread of PyTorch's, which knows nothing of `use_adapters`.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        adapters = find_adapters()

        def run(*inputs: Any) -> Any:
            with use_adapters(adapters):
                return self._forward(*inputs, **options)

        return checkpoint(run, *inputs, use_reentrant=False)
