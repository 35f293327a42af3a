"""Generate the sound of a clip with a service, over gRPC.

python examples/call_grpc.py examples/hammer.mp4 out.mp4 --server 127.0.0.1:50051

It needs grpcio. Other languages generate their stubs from proto/foley/v1/foley.proto.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import grpc

from foley.atomic import atomic_path
from foley.v1.foley_pb2 import GenerateOptions, GenerateRequest
from foley.v1.foley_pb2_grpc import FoleyServiceStub

CHUNK_BYTES = 256 * 1024
TIMEOUT_SECONDS = 300


def make_requests(clip: BinaryIO, prompt: str) -> Iterator[GenerateRequest]:
    """Yield the options, and then the clip in chunks."""
    yield GenerateRequest(options=GenerateOptions(prompt=prompt, format="mp4"))
    while chunk := clip.read(CHUNK_BYTES):
        yield GenerateRequest(chunk=chunk)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("clip", type=Path, help="a video")
parser.add_argument("output", type=Path, help="the result")
parser.add_argument("--server", default="127.0.0.1:50051", help="host and port of the service")
parser.add_argument("--prompt", default="", help="what should be heard")
args = parser.parse_args()

key = os.environ.get("FOLEY_API_KEY")
metadata = [("authorization", f"Bearer {key}")] if key else []
try:
    clip = args.clip.open("rb")
except OSError as error:
    sys.exit(f"{args.clip} cannot be read ({error.strerror}); check the path")
try:
    with (
        clip,
        atomic_path(args.output) as partial,  # the output appears whole, or stays as it was
        partial.open("wb") as output,
        grpc.insecure_channel(args.server) as channel,
    ):
        call = FoleyServiceStub(channel).Generate(
            make_requests(clip, args.prompt), timeout=TIMEOUT_SECONDS, metadata=metadata
        )
        for response in call:
            event = response.WhichOneof("event")
            if event == "progress":
                print(response.progress.stage, response.progress.step or "")
            elif event == "result":
                print(f"seed {response.result.files[0].seed}")
            elif event == "chunk":  # of the only file
                output.write(response.chunk.data)
except OSError as error:
    sys.exit(f"{args.output} cannot be written ({error.strerror}); name another file")
except grpc.RpcError as error:
    sys.exit(f"{error.code().name}: {error.details()}")
print(f"{args.output}: {args.output.stat().st_size} bytes")
