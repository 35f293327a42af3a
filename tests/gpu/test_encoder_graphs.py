"""A function runs from the graph whose size fits its inputs."""

import torch
from torch import Tensor

from foley.gpu.encoder_graphs import GraphInput, SizedGraphs
from tests.gpu.test_step_graphs import Recorder

CPU = torch.device("cpu")


def test_the_smallest_graph_that_is_large_enough_is_replayed() -> None:
    sizes: list[int] = []

    def run(values: Tensor) -> Tensor:
        sizes.append(len(values))
        return values.float()

    graphs = SizedGraphs(run, [GraphInput((-1, 2), torch.long, 7)], (8, 4), CPU)
    graphs.prepare(Recorder())
    assert sizes == [8, 4]  # the largest first
    for count, size in ((1, 4), (4, 4), (5, 8), (8, 8), (9, 9)):
        sizes.clear()
        assert graphs(torch.ones(count, 2, dtype=torch.long)).shape == (count, 2)
        assert sizes == [size]
    graphs.release()
    graphs(torch.ones(3, 2, dtype=torch.long))
    assert sizes[-1] == 3
