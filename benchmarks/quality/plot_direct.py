"""Draw what the options of docs/guides/direct.md do to one example.

    python -m benchmarks.quality.plot_direct [--steps 16]

The example is examples/hammer.mp4. Ranges that an option names are shaded. The last sound is made
without the clip, of the prompts `TEXTURES` one after the other.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.quality.drawing import Sound, draw
from benchmarks.quality.sync import add_options, collect_options, load_pipeline
from training.judge import detect_onsets

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples" / "hammer.mp4"
PICTURE = ROOT / "docs" / "images" / "direct.webp"
PROMPT, OTHER = "wooden taps", "metal clangs"
TEXTURES = ("wind", "steady rain")
RANGE = (1.8, 3.4)
KEPT_SECONDS = 2.4
BORDER = 2.6  # of the textures, in seconds


def list_ways(first: Any) -> list[tuple[str, dict[str, Any], tuple[float, float] | None]]:
    """Return the name, the options and the range of each sound but the first.

    Args:
        first: the `Generation` that edits start from.
    """
    part = {"start_seconds": RANGE[0], "stop_seconds": RANGE[1]}
    cue = part | {"prompt": OTHER}
    beginning = first.waveforms[0][:, : round(KEPT_SECONDS * first.sample_rate)]
    begun = type(first)(waveforms=beginning[None], sample_rate=first.sample_rate, seeds=first.seeds)
    end = (KEPT_SECONDS, first.duration_seconds)
    return [
        ("cue", {"prompt": PROMPT, "cues": [cue]}, RANGE),
        (
            "cue, -12 dB",
            {"prompt": PROMPT, "cues": [part | {"prompt": PROMPT, "gain_db": -12}]},
            RANGE,
        ),
        ("edit of a range", {"prompt": OTHER, "edit": {"source": first, "ranges": [part]}}, RANGE),
        ("strength 0.5", {"prompt": OTHER, "edit": {"source": first, "strength": 0.5}}, None),
        ("continued", {"prompt": PROMPT, "edit": {"source": begun}}, end),
        (
            "two layers",
            {"layers": [{"prompt": PROMPT}, {"prompt": "wind", "gain_db": -6}]},
            None,
        ),
    ]


def list_texture_cues(seconds: float, border: float) -> list[dict[str, Any]]:
    """Return the cues of `TEXTURES`, which touch at the border.

    Args:
        seconds: of the sound.
        border: in seconds.
    """
    ends = ((0.0, border), (border, seconds))
    return [
        {"start_seconds": start, "stop_seconds": stop, "prompt": prompt}
        for (start, stop), prompt in zip(ends, TEXTURES, strict=True)
    ]


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, steps=16)
    args = parser.parse_args()
    pipeline, options = load_pipeline(args), collect_options(args)
    first = pipeline(CLIP, PROMPT, **options)

    def describe(name: str, made: Any, shaded: tuple[float, float] | None) -> Sound:
        sound = made.waveforms[0, 0]
        print(name, flush=True)
        return Sound(
            name=name,
            samples=sound.numpy(),
            rate=made.sample_rate,
            found=detect_onsets(sound),
            shaded=shaded,
        )

    sounds = [describe("prompt alone", first, None)]
    for name, given, shaded in list_ways(first):
        made = pipeline(CLIP, **{**options, **given, "seed": options["seed"] + 1})
        sounds.append(describe(name, made, shaded))
    seconds = first.duration_seconds
    cues = list_texture_cues(seconds, BORDER)
    made = pipeline(None, TEXTURES[0], duration_seconds=seconds, cues=cues, **options)
    sounds.append(describe("cues, no clip", made, (BORDER, seconds)))
    title = f"examples/hammer.mp4   prompts {PROMPT!r} and {OTHER!r}"
    draw(CLIP, sounds, PICTURE, title=title)


if __name__ == "__main__":
    main()
