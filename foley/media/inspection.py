"""What a file says of how it was made, and whether that is true."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from foley.errors import ConfigError, VideoDecodeError
from foley.marks.mark import can_sign
from foley.media.marks import read_tag
from foley.media.source import read_tags

State = Literal["trusted", "valid", "invalid", "unsigned", "unmarked"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One C2PA manifest.

    Attributes:
        label: its name in the file.
        software: what made it, with its version.
        signed_by: whom the certificate names.
        algorithm: of the signature.
        kinds: IPTC's digital source types of its actions.
        made: how a sound of this project was made, as `foley.marks.mark.Mark.describe`; None for
            other software.
        ingredients: relationship and label of the manifest of each; the label is empty where an
            ingredient has none.
    """

    label: str
    software: str
    signed_by: str
    algorithm: str
    kinds: tuple[str, ...]
    made: dict[str, Any] | None
    ingredients: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a file says of how it was made.

    Attributes:
        format: FFmpeg's name.
        state: trusted (signed, as it was signed, by one of the certificates that are believed),
            valid (the same, by anybody), invalid (changed since it was signed, or not signed as it
            should be), unsigned (a plain tag alone, which anybody can write), or unmarked.
        problems: what is wrong with an invalid manifest, or where one is that was not fetched.
        manifests: the file's own first, then those of what it was made from.
        tag: what its plain tag says, as `foley.marks.mark.Mark.describe`; None without one.
    """

    format: str
    state: State
    problems: tuple[str, ...] = ()
    manifests: tuple[Manifest, ...] = ()
    tag: dict[str, Any] | None = None

    @property
    def made(self) -> dict[str, Any] | None:
        """How the sound was made: by the file's own manifest, or else by its plain tag."""
        own = self.manifests[0].made if self.manifests else None
        return own if own is not None else self.tag

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON holds it."""
        return {**asdict(self), "made": self.made}


def inspect_file(path: Path, *, trust: Path | None = None) -> Inspection:
    """Read and verify the marks of a file. Nothing is fetched.

    Args:
        path: of a video or a sound.
        trust: file of certificates in PEM that are believed; None for no one's.

    Raises:
        VideoError: the file is neither a video nor a sound that can be read.
        ConfigError: `trust` has no certificates, or the extra that verifies manifests is missing.
    """
    name, tags = read_tags(path)
    tag = read_tag(tags)
    if not can_sign():
        raise ConfigError(
            "manifests are verified by the extra 'marks', which is not installed; install "
            "foley-serving[marks]"
        )
    # Imported here, because the libraries are an extra.
    from foley.marks.keys import read_certificates
    from foley.marks.manifest import RemoteManifestError, SigningError, read_manifests

    anchors = None if trust is None else read_certificates(trust)
    try:
        with path.open("rb") as file:
            found = read_manifests(file, anchors)
    except RemoteManifestError as error:
        state: State = "unsigned" if tag else "unmarked"
        return Inspection(format=name, state=state, problems=(str(error),), tag=tag)
    except SigningError as error:
        return Inspection(format=name, state="invalid", problems=(str(error),), tag=tag)
    except OSError as error:
        raise VideoDecodeError(f"{path} cannot be read: {error.strerror}") from error
    if found is None:
        return Inspection(format=name, state="unsigned" if tag else "unmarked", tag=tag)
    states: dict[str, State] = {"Trusted": "trusted", "Valid": "valid"}
    state = states.get(found["validation_state"], "invalid")
    return Inspection(
        format=name,
        state=state,
        problems=_list_problems(found["validation_results"]) if state == "invalid" else (),
        manifests=_list_manifests(found),
        tag=tag,
    )


def _list_problems(results: dict[str, Any]) -> tuple[str, ...]:
    failures = list(results.get("activeManifest", {}).get("failure", ()))
    for ingredient in results.get("ingredientDeltas", ()):
        failures += ingredient["validationDeltas"]["failure"]
    # That nobody vouches for a certificate makes no manifest invalid.
    return tuple(
        f"{failure.get('explanation', '')} ({failure['code']})"
        for failure in failures
        if failure["code"] != "signingCredential.untrusted"
    )


def _list_manifests(found: dict[str, Any]) -> tuple[Manifest, ...]:
    """Return the manifests of a file, beginning with its own and going back in time."""
    waiting, listed = [found["active_manifest"]], dict[str, Manifest]()
    while waiting:
        label = waiting.pop(0)
        if label in listed or label not in found["manifests"]:
            continue
        manifest = _read_manifest(label, found["manifests"][label])
        listed[label] = manifest
        waiting += [ingredient for _, ingredient in manifest.ingredients if ingredient]
    return tuple(listed.values())


def _read_manifest(label: str, said: dict[str, Any]) -> Manifest:
    from foley.marks.manifest import OWN_PARAMETERS

    # Other software may have written anything that is valid CBOR.
    actions = [
        action
        for assertion in _list_objects(said, "assertions")
        if str(assertion.get("label")).startswith("c2pa.actions")
        for action in _list_objects(_get_object(assertion, "data"), "actions")
    ]
    kinds = dict.fromkeys(str(a["digitalSourceType"]) for a in actions if "digitalSourceType" in a)
    made = None
    for action in actions:
        if own := _get_object(_get_object(action, "parameters"), OWN_PARAMETERS):
            made = {**own, "digitalSourceType": action.get("digitalSourceType")}
            break
    generator = next(iter(_list_objects(said, "claim_generator_info")), {})
    signature = _get_object(said, "signature_info")
    return Manifest(
        label=label,
        software=f"{generator.get('name', '')} {generator.get('version', '')}".strip(),
        signed_by=str(signature.get("common_name") or signature.get("issuer") or ""),
        algorithm=str(signature.get("alg", "")),
        kinds=tuple(kinds),
        made=made,
        ingredients=tuple(
            (str(i.get("relationship", "")), str(i.get("active_manifest") or ""))
            for i in _list_objects(said, "ingredients")
        ),
    )


def _get_object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def _list_objects(parent: dict[str, Any], name: str) -> list[dict[str, Any]]:
    values = parent.get(name)
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []
