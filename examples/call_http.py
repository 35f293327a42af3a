"""Generate the sound of a clip with a service, over HTTP.

python examples/call_http.py examples/hammer.mp4 results --server http://127.0.0.1:3000

The key of a service that asks for one is read from FOLEY_API_KEY.
"""

import argparse
import os
import sys
from pathlib import Path

from foley.client import FoleyClient, RemoteUpdate
from foley.errors import FoleyError


def show_update(update: RemoteUpdate) -> None:
    """Print one line for each report of progress."""
    print(update.stage, update.step or "", update.num_steps or "")


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("clip", type=Path, help="a video")
parser.add_argument("destination", type=Path, help="folder for the results")
parser.add_argument("--server", default="http://127.0.0.1:3000", help="address of the service")
parser.add_argument("--prompt", default="", help="what should be heard")
args = parser.parse_args()

try:
    with FoleyClient(args.server, api_key=os.environ.get("FOLEY_API_KEY")) as client:
        result = client.generate(
            args.clip,
            prompt=args.prompt,
            num_variations=2,
            destination=args.destination,
            on_update=show_update,
            max_wait_seconds=60,  # retry while the service is busy
        )
except FoleyError as error:  # the class says whose fault it is; see foley.errors
    sys.exit(f"{error.code}: {error}")

for path, seed in zip(result.saved, result.seeds, strict=True):
    print(f"{path}: seed {seed}")
