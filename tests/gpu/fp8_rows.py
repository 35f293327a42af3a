"""Whether PyTorch multiplies fp8 matrices with a scale for each row on this machine's CPU."""

import pytest
import torch


def skip_without_fp8_rows() -> None:
    """Skip the test where PyTorch has no such product: 2.11 had none on an Intel Xeon."""
    eights = torch.ones(16, 16).to(torch.float8_e4m3fn)
    scale = torch.ones(16, 1)
    try:
        torch._scaled_mm(
            eights, eights.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16
        )
    except RuntimeError as error:
        pytest.skip(f"PyTorch multiplies no fp8 rows on this CPU: {str(error).splitlines()[0]}")
