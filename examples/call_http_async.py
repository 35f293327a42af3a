"""Generate several sounds of one clip at the same time, over HTTP with asyncio.

python examples/call_http_async.py examples/hammer.mp4 stone metal --server http://127.0.0.1:3000
"""

import argparse
import asyncio
import os
from pathlib import Path

from foley.client import AsyncFoleyClient


async def generate_all(server: str, clip: Path, prompts: list[str]) -> None:
    """Send one request for each prompt; print the size of each sound as it arrives."""

    async def generate(prompt: str) -> None:
        # Cancelling this task would cancel the request on the service.
        result = await client.generate(clip, prompt=prompt, format="wav", max_wait_seconds=60)
        content = await client.read(result.files[0])  # the file is not written to the disk
        print(f"{prompt}: {result.duration_seconds:.2f} s, {len(content)} bytes of wav")

    key = os.environ.get("FOLEY_API_KEY")
    async with AsyncFoleyClient(server, api_key=key) as client, asyncio.TaskGroup() as tasks:
        for prompt in prompts:
            tasks.create_task(generate(prompt))


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("clip", type=Path, help="a video")
parser.add_argument("prompts", nargs="+", help="what should be heard, one sound for each")
parser.add_argument("--server", default="http://127.0.0.1:3000", help="address of the service")
args = parser.parse_args()
asyncio.run(generate_all(args.server, args.clip, args.prompts))
