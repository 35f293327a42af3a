"""The settings of a result as a link to the page, a curl command and a Python program."""

import json
import shlex
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from foley.client import RequestOptions
from foley.client.request import format_field


@dataclass(frozen=True, kw_only=True)
class ResultSettings:
    """What repeats a result.

    Attributes:
        options: the options of the request.
        clip_name: name of the clip's file; empty for a sound without a clip.
        example: name of the example, if the clip is one; else empty.
        server_url: address of the service.
        with_key: whether the service asks for a key.
    """

    options: RequestOptions
    clip_name: str
    example: str
    server_url: str
    with_key: bool

    def with_seed(self, seed: int) -> "ResultSettings":
        """Return the same settings with another seed.

        Args:
            seed: the seed that the service used.
        """
        return replace(self, options={**self.options, "seed": seed})

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the page's address that set every control, without the clip itself."""
        given = {name: format_field(value) for name, value in self.options.items()}
        return {**({"example": self.example} if self.example else {}), **given}

    @property
    def link(self) -> str:
        """The query of the page's address."""
        return "?" + urlencode(self.query)

    @property
    def curl(self) -> str:
        """A shell command that writes the same sounds."""
        several = self.options.get("num_variations", 1) > 1 or self.options.get("layers")
        output = "foley.zip" if several else f"foley.{self.options['format']}"
        lines = [f"curl --fail-with-body -o {output} {shlex.quote(self.server_url)}/v1/generate"]
        if self.with_key:
            lines.append('-H "Authorization: Bearer $FOLEY_API_KEY"')
        # Without the double quotes, curl ends the name at a comma or semicolon.
        quoted = self.clip_name.replace("\\", "\\\\").replace('"', '\\"')
        clip = f'clip=@"{quoted}"'
        if self.clip_name:
            lines.append(f"-F {shlex.quote(clip)}")
        # -F would read a file if the value begins with @ or <; --form-string does not.
        lines += [
            f"--form-string {shlex.quote(f'{name}={format_field(value)}')}"
            for name, value in self.options.items()
        ]
        return " \\\n     ".join(lines)

    @property
    def python(self) -> str:
        """A Python program that writes the same sounds."""
        key = ', api_key=os.environ["FOLEY_API_KEY"]' if self.with_key else ""
        options = "".join(
            f"        {name}={_format_literal(value)},\n" for name, value in self.options.items()
        )
        return (
            f"{'import os' + chr(10) * 2 if self.with_key else ''}"
            "from foley.client import FoleyClient\n\n"
            f"with FoleyClient({_format_literal(self.server_url)}{key}) as client:\n"
            "    result = client.generate(\n"
            f"        {_format_literal(self.clip_name or None)},\n"
            '        destination="results",\n'
            f"{options}"
            "    )\n"
            "    print(*result.saved)\n"
        )


def _format_literal(value: object) -> str:
    """Write a value as Python source, texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
