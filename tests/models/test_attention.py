"""Attention beside the library's."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from foley.models.attention import attend_once


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 0.005)])
def test_one_query_spelt_out_is_the_librarys_attention(dtype: torch.dtype, error: float) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 4, n, 16, generator=generator) for n in (1, 50, 50))
    expected = scaled_dot_product_attention(query, key, value)
    made = attend_once(query.to(dtype), key.to(dtype), value.to(dtype))
    assert made.dtype == dtype
    assert ((made.float() - expected).norm() / expected.norm()).item() < error
