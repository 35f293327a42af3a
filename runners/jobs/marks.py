"""The service's marks: its key, and signatures for the confined children that write results.

A child may have been taken over by the clip that it read, so it never has the key. It asks for each
signature, and gets one only for what a manifest's signature is made of.
"""

import base64
import binascii
import functools
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from foley.marks.mark import Mark, Marks, Signer, load_marks
from foley.mix import MixOptions
from foley.request import GenerationRequest
from runners.settings import Settings

log = structlog.get_logger(__name__)

# Source: RFC 9052, section 4.4: an array of four, of which this is the first. What a certificate or
# another protocol has signed does not begin so.
SIGNED_PREFIX = b"\x84jSignature1"
MAX_SIGNED_BYTES = 65536  # a claim of one clip takes 2 kB, and a chain of certificates 5


def load_service_marks(settings: Settings) -> Marks | None:
    """Return the marks of results, and log once what they are; None if they are off.

    Args:
        settings: of the service.

    Raises:
        ConfigError: the key or the chain cannot be used.
    """
    if settings.marks == "off":
        log.warning(
            "marks_off", duty="who publishes machine-made sound must mark it, by law in the EU"
        )
        return None
    marks = load_marks(
        key=settings.marks_key, chain=settings.marks_chain, with_words=settings.marks_prompt
    )
    if marks.signer is None:
        log.warning("marks_unsigned", reason="the extra 'marks' is not installed: plain tags alone")
    else:
        log.info("marks_signed", by=marks.signer.name, self_signed=marks.signer.is_own)
    return marks


def make_write_arguments(
    marks: Marks | None,
    preset: str,
    seeds: Sequence[int | None],
    request: GenerationRequest,
    mix: MixOptions,
) -> dict[str, Any]:
    """Return the arguments with which a task writes marked results, as JSON can hold them.

    Args:
        marks: of the service; None for none.
        preset: name of the model.
        seeds: of each variation; None where it is not known.
        request: the options of the generation.
        mix: the options of the finished sound.
    """
    if marks is None:
        return {}
    return {"marks": describe_marks([marks.make(preset, seed, request, mix) for seed in seeds])}


def make_answer(marks: Marks | None) -> Callable[[Any], Any] | None:
    """Return what answers the questions of a task that writes results; None if it asks nothing.

    Args:
        marks: of the service; None for none.
    """
    if marks is None or marks.signer is None:
        return None
    return functools.partial(answer_with_signature, marks.signer)


def log_unsigned(written: list[list[dict[str, Any]]]) -> None:
    """Log why results could not be signed.

    Args:
        written: what the task `write` returned.
    """
    for reason in {file["unsigned"] for copies in written for file in copies} - {""}:
        log.error("mark_not_signed", reason=reason)


def describe_marks(marks: list[Mark]) -> list[dict[str, Any]]:
    """Return the marks of a request's variations as a task takes them, without the key.

    Args:
        marks: of each variation.
    """
    return [
        {
            "model": mark.model,
            "seed": mark.seed,
            "settings": mark.settings,
            "signer": mark.signer
            and {"chain": mark.signer.chain, "algorithm": mark.signer.algorithm},
        }
        for mark in marks
    ]


def answer_with_signature(signer: Signer, question: Any) -> dict[str, str]:
    """Return the answer to a child that asks for a signature.

    Args:
        signer: has the key.
        question: as the child sent it; anything.
    """
    text = question.get("sign") if isinstance(question, dict) else None
    try:
        data = base64.b64decode(text or "", validate=True)
    except (TypeError, ValueError, binascii.Error):
        data = b""
    if len(data) > MAX_SIGNED_BYTES or not data.startswith(SIGNED_PREFIX):
        log.error("mark_refused", num_bytes=len(data))
        return {"refused": "this is no claim of a manifest"}
    return {"signature": base64.b64encode(signer.sign(data)).decode()}
