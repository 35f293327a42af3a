"""The exact settings of a result, as a link to the page, a curl command and a Python program."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from foley.request import GenerationRequest

FILE_FIELDS = ("format", "trim")
FIELDS = (*GenerationRequest.model_fields, *FILE_FIELDS)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What repeats a result.

    Attributes:
        options: fields of `POST /v1/generate`, the seed that was used included.
        clip_name: how the visitor's file is called.
        example: name of the example clip, where it was one.
        server_url: where the service is reached.
        with_key: whether it asks for a key.
    """

    options: Mapping[str, Any]
    clip_name: str
    example: str
    server_url: str
    with_key: bool

    def with_seed(self, seed: int) -> "Recipe":
        """The same with the seed that was used."""
        return replace(self, options={**self.options, "seed": seed})

    @property
    def link(self) -> str:
        """Query of the page's own address that sets every control so. The clip is not in it."""
        given = {name: _text(self.options[name]) for name in FIELDS if name in self.options}
        return "?" + urlencode({**({"example": self.example} if self.example else {}), **given})

    @property
    def curl(self) -> str:
        """A command that writes the same sounds."""
        several = self.options.get("num_variations", 1) > 1
        output = "foley.zip" if several else f"foley.{self.options['format']}"
        lines = [f"curl --fail-with-body -o {output} {shlex.quote(self.server_url)}/v1/generate"]
        if self.with_key:
            lines.append('-H "Authorization: Bearer $FOLEY_API_KEY"')
        # In quotes, commas and semicolons belong to the name.
        quoted = self.clip_name.replace("\\", "\\\\").replace('"', '\\"')
        clip = f'clip=@"{quoted}"'
        lines.append(f"-F {shlex.quote(clip)}")
        # --form-string: a text that begins with @ or < is a text.
        lines += [
            f"--form-string {shlex.quote(f'{name}={_text(value)}')}"
            for name, value in self.options.items()
        ]
        return " \\\n     ".join(lines)

    @property
    def python(self) -> str:
        """A program that writes the same sounds."""
        key = ', api_key=os.environ["FOLEY_API_KEY"]' if self.with_key else ""
        options = "".join(
            f"        {name}={_literal(value)},\n" for name, value in self.options.items()
        )
        return (
            f"{'import os' + chr(10) * 2 if self.with_key else ''}"
            "from foley.client import FoleyClient\n\n"
            f"with FoleyClient({_literal(self.server_url)}{key}) as client:\n"
            "    made = client.generate(\n"
            f"        {_literal(self.clip_name)},\n"
            '        destination="results",\n'
            f"{options}"
            "    )\n"
            "    print(*made.saved)\n"
        )


def _literal(value: object) -> str:
    """As Python writes it, texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _text(value: object) -> str:
    """As forms and addresses write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
