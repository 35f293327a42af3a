"""Plot a record of `bench_gpu`: each stage of a generation and its arithmetic floor.

    python -m benchmarks.plot_gpu RECORD.json [--out docs/images/performance.svg]

The program needs matplotlib (extra `page`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.model import step_flop
from benchmarks.pictures import save_picture
from benchmarks.records import ROOT
from foley.configs import PRESETS
from foley.types import Stage

# Operations of the other stages per second of the clip, at the sizes of xl and xxl: 216 GFLOP per
# frame, 394 GFLOP per segment, and 0.92 TFLOP for 8 s. Source: specification, section 14.
_ENCODE_FLOP = 8 * 216e9 + 25 / 8 * 394e9
_DECODE_AUDIO_FLOP = 0.92e12 / 8

# The stages' names in records that are older than `foley.types.Stage`.
_OLD_NAMES = {Stage.ENCODE: "condition", Stage.DECODE_AUDIO: "decode"}


def compute_bars(record: dict[str, Any], precision: str) -> list[tuple[str, float, float]]:
    """Each stage's label, its measured seconds, and its floor in seconds.

    Args:
        record: of `bench_gpu`, with the parts `ceilings` and `stages`.
        precision: bf16 or fp8, as measured.
    """
    median = record["stages"][precision]["median"]
    rate = record["ceilings"]["matrix_bf16"]
    seconds, steps = record["audio_seconds"], record["num_inference_steps"]
    flop = {
        Stage.ENCODE: _ENCODE_FLOP * seconds,
        Stage.SAMPLE: steps * step_flop(PRESETS[record["preset"]].dit, seconds),
        Stage.DECODE_AUDIO: _DECODE_AUDIO_FLOP * seconds,
    }
    labels = {Stage.SAMPLE: f"sample, {steps} steps"}
    return [
        (
            labels.get(stage, stage.value),
            median[stage if stage in median else _OLD_NAMES[stage]],
            flop[stage] / rate,
        )
        for stage in flop
    ]


def plot(record: dict[str, Any], precision: str, out: Path) -> None:
    """Write the plot.

    Args:
        record: see `compute_bars`.
        precision: see `compute_bars`.
        out: whose suffix selects the format, such as .svg.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    rows = compute_bars(record, precision)
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    names = [name for name, _, _ in rows]
    axes.barh(
        names, [1000 * measured for _, measured, _ in rows], color="#4c78a8", label="measured"
    )
    axes.barh(
        names,
        [1000 * floor for _, _, floor in rows],
        height=0.4,
        color="#f58518",
        label="floor: its work over this GPU's measured bf16 product",
    )
    for place, (_, measured, floor) in enumerate(rows):
        text = f"  {1000 * measured:.0f} ms; floor {1000 * floor:.3g}, {measured / floor:.1f} times"
        axes.text(1000 * measured, place, text, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(right=1.45e3 * max(measured for _, measured, _ in rows))
    axes.set_xlabel(
        f"ms for one clip of {record['audio_seconds']:g} s, {record['preset']}, "
        f"{record['num_inference_steps']} steps, {record.get('gpu') or record['device']}"
    )
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    save_picture(figure, out)


def main() -> None:
    """Plot the record that the command names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "performance.svg")
    args = parser.parse_args()
    record = json.loads(args.record.read_text())
    if record["preset"] not in ("xl", "xxl"):
        parser.error("the floors of the other stages are known only for xl and xxl")
    plot(record, args.precision, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
