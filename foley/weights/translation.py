"""Rename and rearrange tensors by rules, from a published layout to this project's.

The rules themselves are in `foley.weights.key_maps`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rule:
    """What becomes of the keys that match a pattern.

    Attributes:
        pattern: a regular expression that the whole key must match.
        name: this project's key, as a template for `re.Match.expand` or a function of the match;
            None drops the tensor.
        transform: rearranges the tensor.
    """

    pattern: str
    name: str | Callable[[re.Match[str]], str] | None
    transform: Transform | None = None


@dataclass(frozen=True)
class Translation:
    """Weights under this project's names, and the keys that no rule matches.

    Attributes:
        weights: this project's key -> tensor.
        unknown: the checkpoint's keys that no rule matches.
        origins: this project's key -> the checkpoint's key, for messages.
    """

    weights: dict[str, Tensor]
    unknown: list[str]
    origins: dict[str, str]


def is_used(key: str, rules: Sequence[Rule]) -> bool:
    """Return whether a tensor must be read; False if a rule drops it."""
    rule = next((rule for rule in rules if re.fullmatch(rule.pattern, key)), None)
    return rule is None or rule.name is not None


def translate(weights: Mapping[str, Tensor], rules: Sequence[Rule]) -> Translation:
    """Rename and rearrange each tensor by the first rule that matches its key.

    Args:
        weights: the checkpoint's keys -> tensors. The results are views of them where the
            arrangement allows.
        rules: tried in order.
    """
    translation = Translation({}, [], {})
    for key, tensor in weights.items():
        for rule in rules:
            match = re.fullmatch(rule.pattern, key)
            if match is None:
                continue
            if rule.name is not None:
                name = match.expand(rule.name) if isinstance(rule.name, str) else rule.name(match)
                translation.weights[name] = rule.transform(tensor) if rule.transform else tensor
                translation.origins[name] = key
            break
        else:
            translation.unknown.append(key)
    return translation
