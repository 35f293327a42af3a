"""The modulations of a block are views of its product, in the checkpoint's order."""

import torch

from foley.models.layers import modulate
from foley.models.modulation import AudioModulation, JointModulation, Modulation, expand_rows

C = 4


def numbered(parts: int) -> torch.Tensor:
    """Rows [2, parts * C] whose parts hold their own number."""
    return torch.arange(parts).repeat_interleave(C).float().expand(2, -1).contiguous()


def test_a_joint_block_has_shift_scale_and_gate_of_attention_cross_and_mlp_in_this_order() -> None:
    modulation = JointModulation.of(numbered(9))
    assert modulation._fields == ("attention", "cross", "mlp")
    assert Modulation._fields == ("shift", "scale", "gate")
    for number, part in enumerate(part for block in modulation for part in block):
        assert part.shape == (2, C)
        assert part.unique().tolist() == [number]


def test_an_audio_block_has_shift_scale_and_gate_of_attention_and_mlp_in_this_order() -> None:
    modulation = AudioModulation.of(numbered(6))
    assert modulation._fields == ("attention", "mlp")
    for number, part in enumerate(part for block in modulation for part in block):
        assert part.unique().tolist() == [number]


def test_splitting_a_product_copies_nothing() -> None:
    rows = numbered(9)
    storage = rows.untyped_storage().data_ptr()
    for part in (part for block in JointModulation.of(rows) for part in block):
        assert part.untyped_storage().data_ptr() == storage


def test_a_scale_of_zero_keeps_the_normed_input() -> None:
    x = torch.randn(1, 3, C)
    zero, shift = torch.zeros(1, 1, C), torch.full((1, 1, C), 2.0)
    normed = torch.nn.functional.layer_norm(x, (C,), eps=1e-6)
    modulated = modulate(x, Modulation(shift, zero, zero), 1e-6)
    torch.testing.assert_close(modulated, normed + 2.0, rtol=0, atol=1e-6)
    doubled = modulate(x, Modulation(zero, zero + 1, zero), 1e-6)
    torch.testing.assert_close(doubled, 2 * normed, rtol=0, atol=1e-6)


def test_packed_tokens_take_their_own_clips_row() -> None:
    rows = torch.tensor([[1.0], [2.0]])
    assert expand_rows(rows, None).tolist() == [[[1.0]], [[2.0]]]
    assert expand_rows(rows, torch.tensor([0, 1, 1])).tolist() == [[[1.0], [2.0], [2.0]]]
