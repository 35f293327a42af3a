"""Clients of a service in Python: the clip is sent there, the sound comes from there.

from foley.client import FoleyClient

with FoleyClient("http://127.0.0.1:3000") as client:
    made = client.generate("clip.mp4", prompt="footsteps on gravel", destination="results")
    print(made.saved)

What the service refuses is raised as the same class that `foley` itself raises (`foley.errors`).
Neither torch nor PyAV is imported.
"""

from foley.client.async_client import AsyncFoleyClient
from foley.client.results import RemoteFile, RemoteGeneration, RemoteModel, RemoteUpdate
from foley.client.sync_client import FoleyClient
from foley.client.transport import Format, Options
from foley.errors import ConnectionFailedError

__all__ = [
    "AsyncFoleyClient",
    "ConnectionFailedError",
    "FoleyClient",
    "Format",
    "Options",
    "RemoteFile",
    "RemoteGeneration",
    "RemoteModel",
    "RemoteUpdate",
]
