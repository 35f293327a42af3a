"""A folder of jobs as the first version has left it, which was killed with one of them running."""

import sqlite3
from contextlib import closing
from pathlib import Path

from runners.durable.files import JobFiles
from tests.server import ROOT

DUMP = ROOT / "tests/assets/jobs/first.sql"
WAITING, RUNNING = "731e7971fec02a22278145851668b7e4", "14d371df2ad1e98ce9617a200987a9e4"
REQUEST = {"prompt": "rain", "seed": 7, "num_inference_steps": 1}  # of both
CLIP = b"clip"  # of both, when they were accepted
# Without the fields that came later.
ACCEPTED = (
    '{"options":{"prompt":"rain","num_inference_steps":1,"seed":7,"format":"mp4",'
    '"priority":"bulk"},"has_clip":true,"digest":"DIGEST"}'
)


def restore(folder: Path, clip: bytes = CLIP) -> JobFiles:
    """Make the folder.

    Args:
        folder: created if missing.
        clip: of both jobs.
    """
    files = JobFiles(folder)
    with closing(sqlite3.connect(files.database)) as connection:
        connection.executescript(DUMP.read_text())
        (digest,) = connection.execute(
            "SELECT json_extract(inputs, '$.positionalArgs[2].digest') FROM workflow_input"
        ).fetchone()
    for job_id in (WAITING, RUNNING):
        files.clip(job_id).parent.mkdir()
        files.clip(job_id).write_bytes(clip)
        request = files.clip(job_id).with_name("request.json")
        request.write_text(ACCEPTED.replace("DIGEST", digest))
    return files
