"""The sound decoder for a GPU computes what the module's decoder computes."""

import pytest
import torch

from foley.gpu.fused_vae import FusedSoundDecoder
from tests.toys import toy_components


@torch.inference_mode()
def test_the_fused_sound_decoder_computes_what_the_module_computes() -> None:
    plain, laid_out = toy_components().vae, toy_components().vae
    fast = FusedSoundDecoder(laid_out, compiled=False)
    # Odd and even lengths, some of them multiples of the dilations 3 and 9.
    for num_variations, length in ((1, 1), (1, 31), (1, 32), (1, 36), (3, 50), (1, 81)):
        latents = torch.randn(num_variations, 8, length)
        torch.testing.assert_close(fast(latents), plain(latents), rtol=0, atol=1e-5)
    for (name, weight), other in zip(
        plain.state_dict().items(), laid_out.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, other), name


@pytest.mark.parametrize("length", [1, 49, 50, 51, 137])
@torch.inference_mode()
def test_a_sound_that_is_decoded_in_pieces_is_the_whole_one(length: int) -> None:
    plain = toy_components().vae
    in_pieces = FusedSoundDecoder(toy_components().vae, compiled=False, frames_at_once=50)
    latents = torch.randn(2, 8, length)
    torch.testing.assert_close(in_pieces(latents), plain(latents), rtol=0, atol=1e-5)


@pytest.mark.soak
@pytest.mark.timeout(600)
@torch.inference_mode()
def test_one_compiled_sound_decoder_serves_all_lengths() -> None:
    torch.compiler.reset()  # code compiled for another decoder would count as a recompilation
    plain, laid_out = toy_components().vae, toy_components().vae
    fast = FusedSoundDecoder(laid_out, compiled=True)
    # Above 160: for fewer samples the CPU has other convolutions, which are compiled separately.
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (201, 200, 202, 203, 204, 205, 206, 207, 208, 250, 270, 400):
            latents = torch.randn(2, 8, length)[1:]
            torch.testing.assert_close(fast(latents), plain(latents), rtol=0, atol=1e-5)
