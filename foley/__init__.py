"""Generate synchronised 48 kHz sound for video.

from foley import FoleyPipeline

pipeline = FoleyPipeline.from_preset("tiny")
sounds = pipeline("clip.mp4", "footsteps on gravel", seed=1)
sounds.save("out.mp4")
"""

from typing import TYPE_CHECKING, Any

from foley.errors import FoleyError, RequestError, ServerError
from foley.quiet import silence_imports
from foley.version import __version__

if TYPE_CHECKING:
    from foley.generation import Generation
    from foley.pipeline import FoleyPipeline, Progress
    from foley.request import GenerationRequest
    from foley.session import SoundPiece
    from foley.types import Conditions, VideoFrames

__all__ = [
    "Conditions",
    "FoleyError",
    "FoleyPipeline",
    "Generation",
    "GenerationRequest",
    "Progress",
    "RequestError",
    "ServerError",
    "SoundPiece",
    "VideoFrames",
    "__version__",
]

_LAZY = {
    "Conditions": "foley.types",
    "FoleyPipeline": "foley.pipeline",
    "Generation": "foley.generation",
    "GenerationRequest": "foley.request",
    "Progress": "foley.pipeline",
    "SoundPiece": "foley.session",
    "VideoFrames": "foley.types",
}


def __getattr__(name: str) -> Any:
    # Most of these import torch, which takes seconds: a command's --help must not wait for it.
    if name in _LAZY:
        from importlib import import_module

        with silence_imports():
            module = import_module(_LAZY[name])
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # so that help(foley) describes the lazy names too
