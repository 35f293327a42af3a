"""A small S3 service in this process, in place of Amazon's."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer

from runners.process import find_free_port

BUCKET = "bucket"


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
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": f"http://{host}:{port}",
                "AWS_ALLOW_HTTP": "true",
            }.items():
                patch.setenv(name, value)
            import boto3

            boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=BUCKET)
            yield f"s3://{BUCKET}"
    finally:
        server.stop()
