"""The encoders for a GPU compute what their modules compute."""

import pytest
import torch

from foley.gpu.fused_encoders import fuse_encoders, fuse_text_encoder
from tests.toys import toy_components

STANCES = ["force_eager", pytest.param("default", marks=pytest.mark.soak)]  # not compiled, compiled


@pytest.mark.parametrize("stance", STANCES)
@torch.inference_mode()
def test_fused_visual_encoders_compute_what_the_modules_compute(stance: str) -> None:
    torch.compiler.reset()
    parts, fast = toy_components(), toy_components()
    fuse_encoders(fast.vision, fast.synchformer)
    for part, fused in ((parts.vision, fast.vision), (parts.synchformer, fast.synchformer)):
        kept = fused.state_dict()
        assert list(kept) == list(part.state_dict())
        assert all(torch.equal(kept[name], weight) for name, weight in part.state_dict().items())
    torch.manual_seed(0)
    for count in (4, 3, 1):
        pixels, video = torch.randn(count, 3, 32, 32), torch.randn(8 * count + 8, 3, 32, 32)
        with torch.compiler.set_stance(stance):
            visual = fast.vision(pixel_values=pixels).pooler_output
            sync = fast.synchformer(video)
        expected = parts.vision(pixel_values=pixels).pooler_output
        torch.testing.assert_close(visual, expected, rtol=0, atol=1e-5)
        # The activations are the tanh approximation of GELU.
        torch.testing.assert_close(sync, parts.synchformer(video), rtol=0, atol=1e-3)


def words(*counts: int) -> dict[str, torch.Tensor]:
    """Prompts with these numbers of tokens, padded to the longest."""
    ids = torch.full((len(counts), max(counts)), 1)
    for row, count in zip(ids, counts, strict=True):
        row[:count] = 5 + torch.arange(count) % 90
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


@pytest.mark.parametrize("stance", STANCES)
@torch.inference_mode()
def test_the_fused_text_encoder_computes_what_the_module_computes(stance: str) -> None:
    torch.compiler.reset()  # code compiled for another encoder would count as a recompilation
    plain, fast = toy_components().text, toy_components().text
    fuse_text_encoder(fast)
    with torch.compiler.set_stance(stance), torch._dynamo.config.patch(error_on_recompile=True):
        for counts in ((2, 6), (6, 6), (7, 2), (2, 2), (77, 40), (3, 512)):
            expected = plain(**words(*counts)).last_hidden_state
            result = fast(**words(*counts)).last_hidden_state
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_text_layers_are_compiled_for_unknown_lengths() -> None:
    # On a GPU the compiler's one-pass softmax warns of them, and warnings are errors here.
    text = toy_components().text
    fuse_text_encoder(text)
    for layer in text.encoder.layer:
        assert not layer._compiled_call_impl.get_compiler_config()["online_softmax"]
