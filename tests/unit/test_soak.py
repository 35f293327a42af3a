"""Long runs, by `make soak`."""

import gc

import psutil
import pytest

from tests.toys import toy_frames, toy_pipeline


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_five_hundred_generations_do_not_grow() -> None:
    process = psutil.Process()
    lengths = (16, 29, 40, 57, 100)

    def generate(count: int) -> int:
        for i in range(count):
            toy_pipeline()(toy_frames(lengths[i % 5]), num_inference_steps=2, seed=i)
        gc.collect()
        return process.memory_info().rss

    before = generate(50)
    assert generate(450) - before < 30 * 2**20  # measured: 3.4 MB
