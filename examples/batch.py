"""Generate the sounds of all clips of a folder with a service, several at a time.

python examples/batch.py clips results --server http://127.0.0.1:3000

A clip whose result exists is skipped, so the command can be repeated after an interruption. With
`--csv`, `foley generate` does the same for a table of clips, one at a time.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from foley.client import AsyncFoleyClient
from foley.errors import FoleyError

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")


async def run_batch(server: str, clips: list[Path], destination: Path, num_parallel: int) -> int:
    """Send a request for each clip; return how many failed."""
    places = asyncio.Semaphore(num_parallel)
    num_failed = 0

    async def generate(clip: Path) -> None:
        nonlocal num_failed
        async with places:
            try:
                result = await client.generate(
                    clip,
                    seed=0,  # with a fixed seed, a repeated request gives the same sound
                    priority="bulk",  # interactive requests of other callers go first
                    trim=True,
                    destination=destination,
                    max_wait_seconds=3600,  # retry while the service is busy
                )
            except FoleyError as error:
                num_failed += 1
                print(f"{clip}: {error}", file=sys.stderr)
            else:
                print(*result.saved)

    async with AsyncFoleyClient(server, api_key=os.environ.get("FOLEY_API_KEY")) as client:
        await asyncio.gather(*(generate(clip) for clip in clips))
    return num_failed


def find_clips(folder: Path, destination: Path) -> list[Path]:
    """Return the videos of a folder that have no result yet."""
    finished = {path.name.partition(".foley.")[0] for path in destination.glob("*.foley.*")}
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return [path for path in videos if path.stem not in finished]


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=Path, help="folder of videos")
parser.add_argument("destination", type=Path, help="folder for the results")
parser.add_argument("--server", default="http://127.0.0.1:3000", help="address of the service")
parser.add_argument("--parallel", type=int, default=4, help="requests at a time")
args = parser.parse_args()
waiting = find_clips(args.folder, args.destination)
sys.exit(bool(asyncio.run(run_batch(args.server, waiting, args.destination, args.parallel))))
