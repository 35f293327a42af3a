"""A mark: what a result says of how its sound was made."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from foley.errors import ConfigError
from foley.mix import MixOptions
from foley.request import GenerationRequest
from foley.version import __version__

Algorithm = Literal["Es256", "Es384", "Es512", "Ps256", "Ed25519"]

SOFTWARE = "foley"
# The containers that C2PA defines a place for.
SIGNED_CONTAINERS = ("mp4", "mov", "wav", "flac")
# What a prompt says stays out of marks, unless it is allowed.
_WORDS = frozenset({"prompt", "negative_prompt", "cues"})
_OF_EACH_FILE = frozenset({"seed", "num_variations"})
_PREFIX = "AI-generated sound: "
# Source: IPTC's NewsCodes, "Digital Source Type".
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_ALONE = f"{_SOURCE_TYPES}trainedAlgorithmicMedia"
_COMPOSITE = f"{_SOURCE_TYPES}compositeWithTrainedAlgorithmicMedia"


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Signs manifests.

    Attributes:
        chain: certificates in PEM, that of the key first.
        algorithm: of the key.
        sign: returns the signature of bytes. It may ask another process, which has the key.
        name: whom the certificate names.
        is_own: whether the certificate was made here, so that nobody else vouches for it.
    """

    chain: str
    algorithm: Algorithm
    sign: Callable[[bytes], bytes] = field(repr=False)
    name: str = ""
    is_own: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How the sound of one file was made.

    Attributes:
        model: name of the preset.
        seed: gives this sound again; None where it is not known.
        settings: options that differ from their defaults, as JSON holds them, by `list_settings`.
        signer: for a C2PA manifest; None for plain tags alone.
    """

    model: str
    seed: int | None
    settings: dict[str, Any] = field(default_factory=dict)
    signer: Signer | None = None

    def describe(self, *, is_composite: bool) -> dict[str, Any]:
        """Return what the mark says, as JSON holds it.

        Args:
            is_composite: whether the file also holds the clip's picture or its own sound.
        """
        return {
            "software": f"{SOFTWARE} {__version__}",
            "model": self.model,
            **({} if self.seed is None else {"seed": self.seed}),
            "settings": self.settings,
            "digitalSourceType": _COMPOSITE if is_composite else _ALONE,
        }

    def to_tag(self, *, is_composite: bool) -> str:
        """Return the text of the plain tag: words for people, and one object of JSON.

        Args:
            is_composite: as `describe`.
        """
        return _PREFIX + json.dumps(self.describe(is_composite=is_composite))


def parse_tag(text: str) -> dict[str, Any] | None:
    """Return what a line of a plain tag says; None if it is no mark.

    Args:
        text: one line.
    """
    if not text.startswith(_PREFIX):
        return None
    try:
        said = json.loads(text.removeprefix(_PREFIX))
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def list_settings(
    request: GenerationRequest, mix: MixOptions, *, with_words: bool
) -> dict[str, Any]:
    """Return the options that differ from their defaults, as JSON holds them.

    Args:
        request: the options of the generation.
        mix: the options of the finished sound.
        with_words: whether prompts and cues are among them.
    """
    settings = request.model_dump(mode="json", exclude_defaults=True, exclude=set(_OF_EACH_FILE))
    settings |= mix.changed()
    return settings if with_words else _leave_words_out(settings)


def _leave_words_out(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without prompts and cues, those of layers too."""
    return {
        name: [_leave_words_out(part) for part in value] if name == "layers" else value
        for name, value in settings.items()
        if name not in _WORDS
    }


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Which marks results get.

    Attributes:
        signer: for C2PA manifests; None for plain tags alone.
        with_words: whether marks hold prompts and cues.
    """

    signer: Signer | None = None
    with_words: bool = False

    def make(
        self, model: str, seed: int | None, request: GenerationRequest, mix: MixOptions
    ) -> Mark:
        """Return the mark of one file.

        Args:
            model: name of the preset.
            seed: of this sound; None where it is not known.
            request: the options of the generation.
            mix: the options of the finished sound.
        """
        settings = list_settings(request, mix, with_words=self.with_words)
        return Mark(model=model, seed=seed, settings=settings, signer=self.signer)


def can_sign() -> bool:
    """Whether the extra `marks` is installed."""
    return all(importlib.util.find_spec(name) for name in ("c2pa", "cryptography"))


def load_marks(
    *,
    key: Path | None = None,
    chain: Path | None = None,
    with_words: bool = False,
    folder: Path | None = None,
) -> Marks:
    """Return the marks of a service or a user.

    Args:
        key: file of a private key in PEM.
        chain: file of its certificates in PEM, that of the key first.
        with_words: whether marks hold prompts and cues.
        folder: keeps a certificate of its own where no key is given; made if it is missing. None
            for `foley-marks` in Hugging Face's home, where downloaded weights are too.

    Raises:
        ConfigError: the key or the chain cannot be used, or the extra for them is missing.
    """
    if not can_sign():
        if key is not None or chain is not None:
            raise ConfigError(
                "a key for marks needs the extra 'marks', which is not installed; install "
                "foley-serving[marks], or leave the key and the chain out for plain tags"
            )
        return Marks(with_words=with_words)
    # Imported here: two are an extra, and the third brings an HTTP client.
    from huggingface_hub import constants

    from foley.marks.keys import load_own_signer, load_signer

    if key is None and chain is None:
        home = Path(constants.HF_HOME)
        # A user without a home, as containers have, has nowhere to keep one.
        kept = None if str(home).startswith("~") else home / "foley-marks"
        signer = load_own_signer(folder or kept)
    else:
        signer = load_signer(key, chain)
    return Marks(signer=signer, with_words=with_words)
