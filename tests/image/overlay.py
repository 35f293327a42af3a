"""What `kubectl kustomize` makes of a folder, as far as the folders here use it.

The tests of the fleet run with it where kubectl is not installed. One test holds it to kubectl.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

# What tells the entries of a list apart, by the list's name. Other lists are replaced as a whole.
KEYS = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}


def build(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of a kustomization.

    Args:
        folder: with its `kustomization.yaml`, which lists files as resources, and patches: one that
            is merged by its own kind and name, one of operations with a target, or a deletion.
    """
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() == {"apiVersion", "kind", "resources", "patches"}
    objects = [
        document
        for name in kustomization["resources"]
        for document in yaml.safe_load_all((folder / name).read_text())
    ]
    for entry in kustomization["patches"]:
        text = entry["patch"] if "patch" in entry else (folder / entry["path"]).read_text()
        patch = yaml.safe_load(text)
        if isinstance(patch, list):
            target = entry["target"]
            (index,) = (i for i, one in enumerate(objects) if _names(one) == tuple(target.values()))
            for operation in patch:
                _operate(objects[index], operation)
            continue
        (index,) = (i for i, one in enumerate(objects) if _names(one) == _names(patch))
        if patch.pop("$patch", None) == "delete":
            del objects[index]
        else:
            objects[index] = _merge(objects[index], patch)
    return objects


def _names(document: dict[str, Any]) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def _merge(base: Any, patch: Any, name: str = "") -> Any:
    if isinstance(base, dict) and isinstance(patch, dict):
        assert not any(key.startswith("$") for key in patch), patch
        merged = {key: _merge(base.get(key), value, key) for key, value in patch.items()}
        return {**base, **merged}
    if isinstance(base, list) and isinstance(patch, list) and name in KEYS:
        entries = {entry[KEYS[name]]: entry for entry in base}
        for entry in patch:
            key = entry[KEYS[name]]
            entries[key] = _merge(entries.get(key), entry)
        return list(entries.values())
    return copy.deepcopy(patch)


def _operate(document: dict[str, Any], operation: dict[str, Any]) -> None:
    """Add an entry at the end of a list, which is the only operation here."""
    *parents, last = operation["path"].strip("/").split("/")
    assert (operation["op"], last) == ("add", "-"), operation
    place: Any = document
    for parent in parents:
        place = place[parent]
    place.append(operation["value"])
