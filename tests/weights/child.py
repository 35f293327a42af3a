"""`foley download` with a table of its own: python -m tests.weights.child TABLE FOLDER."""

import json
import logging
import sys
from pathlib import Path

from foley.cli.download import download_preset
from foley.errors import FoleyError
from foley.weights.sources import HubFile

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="foley: %(message)s", stream=sys.stderr)
    table = [HubFile(**file) for file in json.loads(Path(sys.argv[1]).read_text())]
    try:
        download_preset("xl", table, Path(sys.argv[2]), accepted=True, quiet=False)
    except FoleyError as error:
        print(f"foley: {error}", file=sys.stderr)
        sys.exit(3)
