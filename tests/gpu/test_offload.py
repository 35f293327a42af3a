"""Weights that are on the device only for their turn are there for every use."""

import pytest
import torch
from torch import nn

from foley.gpu import offload
from foley.gpu.offload import (
    WeightStreamer,
    list_encoder_parts,
    list_layers,
    stream_modules,
)
from tests.toys import toy_components

CPU = torch.device("cpu")


@pytest.fixture
def poison_absent_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for a second device: weights at home read NaN until they are loaded."""
    use = offload._Home.use

    def use_or_poison(self: offload._Home, memory: torch.Tensor) -> None:
        use(self, memory)
        if memory is self.memory:
            for weight in self._weights:
                if weight.is_floating_point():
                    weight.data = torch.full_like(weight.data, float("nan"))

    monkeypatch.setattr(offload._Home, "use", use_or_poison)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.usefixtures("poison_absent_weights")
@torch.inference_mode()
def test_each_module_of_a_pass_is_loaded_in_turn(count: int) -> None:
    layers = nn.Sequential(*(nn.Linear(5, 5) for _ in range(count)))
    x = torch.randn(3, 5)
    expected = layers(x)
    streamed = WeightStreamer(list(layers), CPU)
    for _ in range(3):
        assert torch.equal(layers(x), expected)
        assert all(weight.isnan().all() for weight in layers[-1].parameters())
        # Memory is taken while a pass runs.
        assert all(place.memory is None for place in streamed._places)
        with pytest.raises(RuntimeError):
            layers(x[:, :3])  # an error in the first module; the second may be on its way
        layers[-1].register_forward_pre_hook(fail_once := FailOnce())
        with pytest.raises(ValueError, match="once"):
            layers(x)  # and one in the last module, before it has run
        assert fail_once.failed


class FailOnce:
    """A hook that raises at its first call."""

    failed = False

    def __call__(self, module: nn.Module, inputs: object) -> None:
        if not self.failed:
            self.failed = True
            raise ValueError("once")


@pytest.mark.usefixtures("poison_absent_weights")
@torch.inference_mode()
def test_what_is_streamed_outside_the_blocks_computes_the_same() -> None:
    plain, streamed = toy_components(), toy_components()
    for encoder in (streamed.vision, streamed.synchformer):
        stream_modules(encoder, [list_layers(encoder)], CPU)
        assert next(list_layers(encoder)[0].parameters()).isnan().all()
    stream_modules(streamed.text, [[streamed.text.embeddings], list_layers(streamed.text)], CPU)
    stream_modules(streamed.vae, [list_encoder_parts(streamed.vae)], CPU)
    dit = streamed.dit
    stream_modules(dit, [[*dit.time_projections], [*dit.text_projections]], CPU)
    pictures, clip = torch.randn(2, 3, 32, 32), torch.randn(40, 3, 32, 32)
    words = torch.tensor([[5, 6, 7], [8, 9, 1]])
    waveform, sigmas = torch.randn(1, 1, 9600), torch.tensor([0.3, 0.9])
    for _ in range(2):
        for compute in (
            lambda c: c.vision(pixel_values=pictures).pooler_output,
            lambda c: c.synchformer(clip),
            lambda c: c.text(input_ids=words).last_hidden_state,
            lambda c: c.vae(waveform, encode=True),
            lambda c: c.vae(torch.ones(1, 8, 10)),
            lambda c: c.dit.make_time_modulation(sigmas).audio,
            lambda c: c.dit.project_prompts(torch.ones(2, 5, 16))[0],
        ):
            assert torch.equal(compute(streamed), compute(plain))
