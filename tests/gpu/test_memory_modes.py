"""Memory modes: which one fits, and which options exclude each other."""

from typing import Any

import pytest
import torch

from foley.errors import ConfigError
from foley.gpu.matrix import Precision
from foley.gpu.memory_modes import Memory, choose_memory
from foley.pipeline import FoleyPipeline
from tests.toys import toy_components

CPU = torch.device("cpu")
GB = 10**9


@pytest.mark.parametrize(
    ("precision", "memory"), [("fp8", "auto"), ("bf16", "low"), ("bf16", "balanced")]
)
def test_options_for_a_gpu_are_refused_on_the_cpu(precision: Precision, memory: Memory) -> None:
    with pytest.raises(ConfigError, match="are for GPUs"):
        FoleyPipeline(toy_components(), CPU, precision=precision, memory=memory)
    with pytest.raises(ConfigError, match="are for GPUs"):
        FoleyPipeline.from_preset("tiny", "cpu", precision=precision, memory=memory)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp4"}, "precision 'fp4' does not exist; use bf16, fp8"),
        ({"memory": "lots"}, "memory 'lots' does not exist; use auto, full, balanced, low"),
    ],
)
def test_options_that_do_not_exist_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FoleyPipeline(toy_components(), CPU, **options)


@pytest.mark.parametrize(
    ("free", "mode"), [(80, "full"), (16, "full"), (14, "balanced"), (11, "balanced"), (10, "low")]
)
def test_the_first_mode_that_fits_is_chosen(free: int, mode: Memory) -> None:
    assert choose_memory(int(11.7 * GB), int(8.9 * GB), free * GB) == mode
