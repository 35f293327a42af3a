"""Plot a record of `benchmarks.quality.adapter`: what scales of an adapter do, and the losses.

    python -m benchmarks.quality.plot_adapter RECORD.json [--variant default]

docs/images/adapter.svg is of 2026-11-30_adapter_tiny_h200_d977dd7.json and share-0.6.

The program needs matplotlib (extra `page`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.pictures import save_picture
from benchmarks.quality.adapter import BASE
from benchmarks.records import ROOT


def list_scales(record: dict[str, Any], variant: str, key: str) -> list[tuple[float, float]]:
    """Return scales of an adapter, from 0 on, and a figure of the clips that it was taught.

    Args:
        record: of `benchmarks.quality.adapter`.
        variant: of the training.
        key: of the figure: asked or f1.
    """
    figures = record["figures"]
    measured = figures[BASE]["taught"] | figures[variant]["taught"]
    return sorted((float(scale), figure[key]) for scale, figure in measured.items())


def plot(record: dict[str, Any], variant: str, out: Path) -> None:
    """Write the plot.

    Args:
        record: see `list_scales`.
        variant: see `list_scales`.
        out: whose suffix selects the format, such as .svg.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.8), layout="constrained")
    for key, label, colour in (
        ("asked", "hits that sound as asked", "#4c78a8"),
        ("f1", "onset F1", "#f58518"),
    ):
        points = list_scales(record, variant, key)
        left.plot(*zip(*points, strict=True), "o-", color=colour)
        left.text(0, points[0][1] + 0.12, label, color=colour, fontsize=8)
    left.set_xlabel("scale of the adapter")
    left.set_ylim(0, 1)
    left.set_title("unseen clips of what was taught", fontsize=9)
    trained = record["figures"][variant]["training"]
    for key, label, colour in (
        ("validation", "unseen clips", "#1f77b4"),
        ("training", "clips of the training, and what is kept", "#d95f02"),
    ):
        right.plot(*zip(*trained[key], strict=True), color=colour)
        step, loss = trained[key][-1]
        right.text(step, loss + 0.03, label, color=colour, fontsize=8, ha="right")
    right.set_xlabel("step")
    right.set_ylim(bottom=0)
    right.set_title("loss", fontsize=9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save_picture(figure, out)


def main() -> None:
    """Plot the record that the command names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("--variant", default="default")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "adapter.svg")
    args = parser.parse_args()
    plot(json.loads(args.record.read_text()), args.variant, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
