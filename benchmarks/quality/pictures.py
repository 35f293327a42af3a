"""Sounds a folder of clips and draws each: frames, waveform and spectrogram, true and found events.

    python -m benchmarks.quality.pictures DIR --out OUT [--steps N] [--solver euler] ...

DIR holds NAME.mp4, and where the events are known NAME.json as for `sync`; where there is a
NAME.wav, its true sound is drawn below. OUT gets NAME.png and NAME.mp4 with the new sound. The last
line is one JSON object with the synchrony of the clips whose events are known.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.drawing import Sound, draw
from benchmarks.quality.onsets import Match, merged, onsets
from benchmarks.quality.sync import add_options, load, options_of
from foley.media.mux import write_video
from foley.pipeline import FoleyPipeline
from runners.page.plots import read_sound


def heard(name: str, waveform: torch.Tensor, rate: int) -> Sound:
    """A waveform [S] with its onsets, as the picture takes it."""
    return Sound(
        name=name,
        samples=waveform.numpy(),
        rate=rate,
        found=onsets(waveform) if len(waveform) else [],
    )


def sound_and_draw(
    pipeline: FoleyPipeline, clip: Path, out: Path, total: Match, **options: Any
) -> None:
    """Make the files of one clip; count its onsets in `total` where the events are known."""
    labels = clip.with_suffix(".json")
    known = json.loads(labels.read_text()) if labels.is_file() else {}
    options["prompt"] = known.get("prompt", options["prompt"])
    made = pipeline(clip, **options, trim=True)
    waveform = made.waveforms[0, 0]
    write_video(
        clip, made.waveforms[0], out / f"{clip.stem}.mp4", stop_seconds=made.duration_seconds
    )
    sounds = [heard("generated", waveform, made.sample_rate)]
    true = clip.with_suffix(".wav")
    if true.is_file() and (read := read_sound(true)) is not None:
        sounds.append(heard("true", torch.from_numpy(read[0]), read[1]))
    events, said = None, ""
    if "events" in known:
        times = [event["time"] for event in known["events"]]
        events = merged([time for time in times if time < made.duration_seconds])
        unscored = [moment["time"] for moment in known.get("unscored", ())]
        own = Match()
        for match in (own, total):
            match.add(sounds[0].found, events, unscored)
        said = f"   F1 {own.f1:.2f}"
    title = f"{clip.name}   {options['prompt']!r}   seed {made.seeds[0]}{said}"
    draw(clip, sounds, out / f"{clip.stem}.png", title=title, events=events)
    print(title, flush=True)


def main() -> None:
    """Draw a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompt", default="", help="of clips without a description")
    add_options(parser, steps=None)
    args = parser.parse_args()
    clips = sorted(args.folder.glob("*.mp4"))
    if not clips:
        raise SystemExit(f"{args.folder} holds no NAME.mp4")
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline = load(args)
    options, total = options_of(args), Match()
    for clip in clips:
        sound_and_draw(pipeline, clip, args.out, total, prompt=args.prompt, **options)
    print(
        json.dumps(
            {
                "what": "pictures",
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
