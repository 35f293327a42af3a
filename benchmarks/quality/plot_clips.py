"""Generate the sounds of a folder of clips, and plot each with its events and onsets.

    python -m benchmarks.quality.plot_clips DIR --out OUT [--steps N] [--solver euler] ...

DIR contains NAME.mp4 and, if the events are known, NAME.json as for `sync`. The sound of NAME.wav,
if there is one, is plotted below the generated one. The program writes NAME.png and NAME.mp4 to
OUT. The last line is one JSON object with the synchrony of the clips whose events are known.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.drawing import Sound, draw
from benchmarks.quality.sync import add_options, collect_options, load_pipeline
from foley.media.mux import write_video
from foley.pipeline import FoleyPipeline
from runners.page.plots import read_sound
from training.judge import Match, detect_onsets, merge_close_events


def make_sound(name: str, waveform: torch.Tensor, rate: int) -> Sound:
    """A sound with its onsets, for `draw`.

    Args:
        name: its label.
        waveform: float32 [S].
        rate: in Hz.
    """
    return Sound(
        name=name,
        samples=waveform.numpy(),
        rate=rate,
        found=detect_onsets(waveform) if len(waveform) else [],
    )


def generate_and_plot(
    pipeline: FoleyPipeline, clip: Path, out: Path, total: Match, **options: Any
) -> None:
    """Write the files of one clip.

    Args:
        pipeline: the model.
        clip: NAME.mp4, perhaps beside NAME.json and NAME.wav.
        out: folder to write to.
        total: the clip's onsets are added if its events are known.
        options: of the pipeline's call; a description's prompt takes precedence.
    """
    labels = clip.with_suffix(".json")
    known = json.loads(labels.read_text()) if labels.is_file() else {}
    options["prompt"] = known.get("prompt", options["prompt"])
    result = pipeline(clip, **options, trim=True)
    waveform = result.waveforms[0, 0]
    write_video(
        clip, result.waveforms[0], out / f"{clip.stem}.mp4", stop_seconds=result.duration_seconds
    )
    sounds = [make_sound("generated", waveform, result.sample_rate)]
    true = clip.with_suffix(".wav")
    if true.is_file() and (read := read_sound(true)) is not None:
        sounds.append(make_sound("true", torch.from_numpy(read[0]), read[1]))
    events, score = None, ""
    if "events" in known:
        times = [event["time"] for event in known["events"]]
        events = merge_close_events([time for time in times if time < result.duration_seconds])
        unscored = [moment["time"] for moment in known.get("unscored", ())]
        own = Match()
        for match in (own, total):
            match.add(sounds[0].found, events, unscored)
        score = f"   F1 {own.f1:.2f}"
    title = f"{clip.name}   {options['prompt']!r}   seed {result.seeds[0]}{score}"
    draw(clip, sounds, out / f"{clip.stem}.png", title=title, events=events)
    print(title, flush=True)


def main() -> None:
    """Process a folder of clips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompt", default="", help="for clips without a description")
    add_options(parser, steps=None)
    args = parser.parse_args()
    clips = sorted(args.folder.glob("*.mp4"))
    if not clips:
        raise SystemExit(f"{args.folder} contains no NAME.mp4")
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(args)
    options, total = collect_options(args), Match()
    for clip in clips:
        generate_and_plot(pipeline, clip, args.out, total, prompt=args.prompt, **options)
    print(
        json.dumps(
            {
                "what": "plot_clips",
                "clips": len(clips),
                "events": total.truth,
                "f1": total.f1,
                "precision": total.precision,
                "recall": total.recall,
                "median_error_ms": total.median_error_ms if total.hits else None,
                "model": pipeline.description,
                **options,
            }
        )
    )


if __name__ == "__main__":
    main()
