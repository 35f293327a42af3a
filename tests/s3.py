"""Small S3 services in place of Amazon's: one in this process, and one that checks keys."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from runners.process import find_free_port
from tests.patience import Deadline, wait_for_exit

BUCKET = "bucket"
KEY = "test"  # and its secret


@contextmanager
def serve_bucket(host: str = "127.0.0.1") -> Iterator[str]:
    """Yield the address of an empty bucket, which the variables of AWS lead to inside the block.

    Args:
        host: address of this machine.
    """
    port = find_free_port()
    server = ThreadedMotoServer(ip_address=host, port=port, verbose=False)
    server.start()
    try:
        with use_bucket(f"http://{host}:{port}") as address:
            yield address
    finally:
        server.stop()


@contextmanager
def serve_weed(folder: Path) -> Iterator[str]:
    """Yield the same of SeaweedFS, a server of its own; skips the test but on Linux.

    Args:
        folder: empty, for its files.
    """
    if sys.platform != "linux":
        pytest.skip("the development lock has SeaweedFS for Linux alone")
    program = Path(sys.executable).with_name("weed")  # the environment need not be on the path
    credentials = [{"accessKey": KEY, "secretKey": KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": KEY, "credentials": credentials, "actions": actions}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [str(program), "server", "-ip=127.0.0.1", f"-dir={folder}", "-filer", "-s3"]
    command += ["-master.telemetry=false"]  # it would report to its makers
    command += [f"-s3.config={folder}/s3.json", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    ports = {
        name: find_free_port()
        for part in ("master", "volume", "filer", "s3")
        for name in (f"{part}.port", f"{part}.port.grpc")
    }
    command += [f"-{name}={port}" for name, port in ports.items()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with use_bucket(f"http://127.0.0.1:{ports['s3.port']}") as address:
            yield address
    finally:
        process.kill()
        wait_for_exit(process)


@contextmanager
def use_bucket(endpoint: str) -> Iterator[str]:
    """Yield the address of an empty bucket of a service, once that answers.

    Args:
        endpoint: of the service.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    variables = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        deadline = Deadline(60)
        with closing(boto3.client("s3", region_name="us-east-1")) as client:
            while True:
                try:
                    client.create_bucket(Bucket=BUCKET)
                    client.put_object(Bucket=BUCKET, Key="first", Body=b"")
                    client.delete_object(Bucket=BUCKET, Key="first")
                    break
                except (BotoCoreError, ClientError):  # it is starting
                    if deadline.is_over():
                        raise
                    time.sleep(0.2)
        yield f"s3://{BUCKET}"
