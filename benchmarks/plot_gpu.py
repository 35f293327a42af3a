"""Draws a record of `bench_gpu`: each stage of a clip's generation beside its arithmetic floor.

    python -m benchmarks.plot_gpu RECORD.json [--out docs/images/performance.svg]

Needs matplotlib (extra `page`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.model import step_flop
from benchmarks.records import ROOT
from foley.configs import PRESETS

# Operations of the other stages, for a second of clip or sound, at the sizes of xl and xxl: 216
# GFLOP a frame, 394 a segment, and 0.92 TFLOP for 8 s. Source: specification, section 14.
_CONDITION_FLOP = 8 * 216e9 + 25 / 8 * 394e9
_DECODE_FLOP = 0.92e12 / 8


def bars(record: dict[str, Any], precision: str) -> list[tuple[str, float, float]]:
    """Each stage's name, its measured and its least seconds."""
    median = record["stages"][precision]["median"]
    rate = record["ceilings"]["matrix_bf16"]
    seconds, steps = record["audio_seconds"], record["num_inference_steps"]
    flop = {
        "condition": _CONDITION_FLOP * seconds,
        "sample": steps * step_flop(PRESETS[record["preset"]].dit, seconds),
        "decode": _DECODE_FLOP * seconds,
    }
    names = {"condition": "conditions", "sample": f"{steps} steps", "decode": "sound"}
    return [(names[stage], median[stage], flop[stage] / rate) for stage in flop]


def draw(record: dict[str, Any], precision: str, out: Path) -> None:
    """The picture, as a file of the suffix's format."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    rows = bars(record, precision)
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
    for name, measured, floor in rows:
        text = f"  {1000 * measured:.0f} ms; floor {1000 * floor:.3g}, {measured / floor:.1f} times"
        axes.text(1000 * measured, name, text, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(right=1.45e3 * max(measured for _, measured, _ in rows))
    axes.set_xlabel(
        f"ms for one clip of {record['audio_seconds']:g} s, {record['preset']}, "
        f"{record['num_inference_steps']} steps, {record.get('gpu') or record['device']}"
    )
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "foley"
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "performance.svg")
    args = parser.parse_args()
    record = json.loads(args.record.read_text())
    if record["preset"] not in ("xl", "xxl"):
        parser.error("the floors of the other stages are known for xl and xxl alone")
    draw(record, args.precision, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
