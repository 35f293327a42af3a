"""Whole numbers on the command line."""

from collections.abc import Sequence
from typing import Any

from cyclopts import Parameter, Token, convert


def parse_whole(kind: Any, tokens: Sequence[Token]) -> Any:
    """Return the value of an option; the parser alone would round 1.5.

    Args:
        kind: type of the option: int, or a tuple of them.
        tokens: what was typed.

    Raises:
        ValueError: a number has a fraction.
    """
    for token in tokens:
        if "." in token.value:
            raise ValueError(f'"{token.value}" is not a whole number')
    return convert(kind, tokens)


# Every option of whole numbers has this beside its own parameter.
WHOLE = Parameter(converter=parse_whole)
