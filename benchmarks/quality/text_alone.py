"""Measure whether a sound without a clip is what the prompt says.

    python -m benchmarks.quality.text_alone [--prompts 3] [--variations 3] [--record]

The prompts name a material, as a user would. `training.judge` says of each onset which material
was hit. `hits` is the share of onsets with the material asked for, `sounds` the share of sounds in
which at least half of the onsets have it, and `without_onset` the number of sounds without any.
"""

import argparse
from functools import partial

import numpy as np
import torch

from benchmarks.quality.sync import add_options, add_record_options, report_figures
from foley.pipeline import FoleyPipeline
from training import judge, text
from training.materials import MATERIALS
from training.settings import load_state
from training.unpack import CHECKPOINTS

SECONDS = 3.0
PROMPT_SEED = 2026


@torch.inference_mode()
def count_asked(
    materials: judge.MaterialJudge, waveform: torch.Tensor, material: int
) -> tuple[int, int]:
    """Return how many onsets have the material that was asked for, and how many there are.

    Args:
        materials: the trained judge.
        waveform: [S], 48 kHz.
        material: index into `MATERIALS`.
    """
    onsets = judge.detect_onsets(waveform)
    if not onsets:
        return 0, 0
    owner = torch.zeros(len(onsets), dtype=torch.long)
    windows = judge.cut_hit_windows(waveform[None], owner, torch.tensor(onsets))
    heard = materials(materials.features(windows)).argmax(1)
    return int((heard == material).sum()), len(onsets)


def measure(
    pipeline: FoleyPipeline, num_prompts: int, num_variations: int, seed: int, **options: object
) -> dict[str, float]:
    """Return the figures.

    Args:
        pipeline: the model.
        num_prompts: for each material.
        num_variations: for each prompt, 1 to 8.
        seed: of the first sound.
        options: of the pipeline's call.
    """
    materials = judge.MaterialJudge().eval()
    materials.load_state_dict(load_state(CHECKPOINTS / "judge.safetensors"))
    rng = np.random.default_rng(PROMPT_SEED)
    counts: list[tuple[int, int]] = []
    for _ in range(num_prompts):
        for index, material in enumerate(MATERIALS):
            prompt = text.name_material(rng, material)
            made = pipeline(  # type: ignore[call-overload]
                None,
                prompt,
                duration_seconds=SECONDS,
                seed=seed + len(counts),
                num_variations=num_variations,
                **options,
            )
            found = [count_asked(materials, one, index) for one in made.waveforms[:, 0]]
            print(f"{prompt!r}: {found}", flush=True)
            counts += found
    heard = [pair for pair in counts if pair[1]]
    num_onsets = sum(total for _, total in heard)
    return {
        "hits": round(sum(asked for asked, _ in heard) / max(num_onsets, 1), 4),
        "sounds": round(sum(2 * a >= n for a, n in heard) / len(counts), 4),
        "num_onsets": num_onsets,
        "num_sounds": len(counts),
        "without_onset": len(counts) - len(heard),
        "chance": round(1 / len(MATERIALS), 4),
    }


def main() -> None:
    """Measure a preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=3, help="for each material")
    parser.add_argument("--variations", type=int, default=3, help="for each prompt")
    add_record_options(parser)
    add_options(parser, steps=None)
    args = parser.parse_args()
    counts = {"num_prompts": args.prompts, "num_variations": args.variations}
    report_figures(args, "text-alone", SECONDS, partial(measure, **counts))


if __name__ == "__main__":
    main()
