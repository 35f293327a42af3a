"""Generate the sound of a clip with a model in this process.

python examples/generate_file.py examples/hammer.mp4 out.mp4 --prompt "a hammer hits stone"
"""

import argparse
from pathlib import Path

from foley import FoleyPipeline, Progress


def show_progress(progress: Progress) -> None:
    """Print one line for each step of each stage."""
    print(f"{progress.stage} {progress.step}/{progress.num_steps}")


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("clip", type=Path, help="a video of at most 15 s")
parser.add_argument("output", type=Path, help=".mp4, .mov, .mkv or .webm")
parser.add_argument("--prompt", default="", help="what should be heard")
parser.add_argument("--preset", default="tiny", help="tiny, xl, xxl or auto")
parser.add_argument("--seed", type=int, help="repeats a result; random by default")
args = parser.parse_args()

# Loading takes seconds. A program that generates more than one sound keeps the pipeline.
pipeline = FoleyPipeline.from_preset(args.preset)
generation = pipeline(args.clip, args.prompt, seed=args.seed, on_progress=show_progress)

# One file for each variation. The video packets are copied.
(file,) = generation.save(args.output)
print(f"{file.path}: {generation.duration_seconds:.2f} s of sound, seed {generation.seeds[0]}")
