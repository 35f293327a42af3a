"""Jobs as the first versions have left them, which were killed with one of them running."""

import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import sqlalchemy as sa

from foley.storage import open_storage
from runners.durable.files import JobFiles
from tests.postgres import Postgres
from tests.server import ROOT

DUMP = ROOT / "tests/assets/jobs/first.sql"
SHARED_DUMP = ROOT / "tests/assets/jobs/first-postgresql.sql"
WAITING, RUNNING = "731e7971fec02a22278145851668b7e4", "14d371df2ad1e98ce9617a200987a9e4"
REQUEST = {"prompt": "rain", "seed": 7, "num_inference_steps": 1}  # of both
CLIP = b"clip"  # of both, when they were accepted
# Without the fields that came later.
ACCEPTED = (
    '{"options":{"prompt":"rain","num_inference_steps":1,"seed":7,"format":"mp4",'
    '"priority":"bulk"},"has_clip":true,"digest":"DIGEST"}'
)


def restore(folder: Path, clip: bytes = CLIP) -> JobFiles:
    """Make the folder of a single machine.

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


def restore_shared(postgres: Postgres, results: str) -> str:
    """Make the queue of several machines, and its files; returns the URL of its database.

    Args:
        postgres: that has no database `first`.
        results: s3://bucket/prefix of the files.
    """
    server = sa.make_url(postgres.url)
    url = server.set(database="first").render_as_string(hide_password=False)
    with psycopg.connect(
        server.set(database="postgres").render_as_string(hide_password=False), autocommit=True
    ) as connection:
        connection.execute("CREATE DATABASE first")
    with psycopg.connect(url) as connection:
        connection.execute(SHARED_DUMP.read_bytes())
        (digest,) = connection.execute(
            "SELECT inputs::json #>> '{positionalArgs,2,digest}' FROM dbos.workflow_input"
        ).fetchone()
    for job_id in (WAITING, RUNNING):
        folder = open_storage(f"{results}/{job_id}")
        folder.write("request.json", ACCEPTED.replace("DIGEST", digest).encode())
        folder.write(f"inputs/{digest}/clip", CLIP)
    return url
