"""Python clients of a Foley service over HTTP: `FoleyClient` and `AsyncFoleyClient`.

from foley.client import FoleyClient

with FoleyClient("http://127.0.0.1:3000") as client:
    result = client.generate("clip.mp4", prompt="footsteps on gravel", destination="results")
    print(result.saved)

The service's error responses are raised as the classes of `foley.errors`. The clients import
neither PyTorch nor PyAV.
"""

from foley.client.async_client import AsyncFoleyClient
from foley.client.jobs import RemoteJob
from foley.client.request import RequestOptions
from foley.client.results import (
    RemoteAdapter,
    RemoteFile,
    RemoteGeneration,
    RemoteModel,
    RemotePiece,
    RemoteUpdate,
)
from foley.client.sync_client import FoleyClient
from foley.client.webhooks import RemoteWebhook, verify_webhook
from foley.errors import ConnectionFailedError
from foley.request import Format

__all__ = [
    "AsyncFoleyClient",
    "ConnectionFailedError",
    "FoleyClient",
    "Format",
    "RemoteAdapter",
    "RemoteFile",
    "RemoteGeneration",
    "RemoteJob",
    "RemoteModel",
    "RemotePiece",
    "RemoteUpdate",
    "RemoteWebhook",
    "RequestOptions",
    "verify_webhook",
]
