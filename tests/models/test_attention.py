"""Attention of a single query agrees with the library's."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from foley.models.attention import attend_single_query


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 0.005)])
def test_single_query_attention_agrees_with_the_library(dtype: torch.dtype, error: float) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 4, n, 16, generator=generator) for n in (1, 50, 50))
    expected = scaled_dot_product_attention(query, key, value)
    result = attend_single_query(query.to(dtype), key.to(dtype), value.to(dtype))
    assert result.dtype == dtype
    assert ((result.float() - expected).norm() / expected.norm()).item() < error
