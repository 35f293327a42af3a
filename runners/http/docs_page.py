"""The OpenAPI document as a page for people, without scripts and without foreign addresses."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template

# The bounds of a JSON schema that the page shows.
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "maxLength", "pattern")


def render_docs(document: dict[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        document: of `openapi.build_document`.
    """
    operations = list(_describe_operations(document))
    return _load_template().render({**document, "operations": operations})


@functools.cache
def _load_template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent / "assets")
    return Environment(autoescape=True, trim_blocks=True, loader=folder).get_template("docs.html")


def _describe_operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            fields = [_describe_parameter(item) for item in operation.get("parameters", ())]
            body = "Parts of the path"
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                if "$ref" not in content["schema"]:
                    body = f"Headers and parts of the path (the body is {media_type})"
                    continue
                body = f"Fields of the form ({media_type})"
                fields += _describe_form(_resolve(document, content["schema"]))
            yield {
                "method": method.upper(),
                "path": path,
                "summary": operation["summary"],
                "description": operation.get("description", ""),
                "body": body,
                "fields": fields,
                "responses": [
                    {
                        "status": status,
                        "description": response["description"],
                        "types": ", ".join(response.get("content", ())),
                    }
                    for status, response in operation["responses"].items()
                ],
            }


def _describe_parameter(parameter: dict[str, Any]) -> dict[str, str]:
    return _describe_field(
        parameter["name"], {**parameter["schema"], "description": parameter.get("description", "")}
    )


def _describe_form(schema: dict[str, Any]) -> list[dict[str, str]]:
    return [_describe_field(name, field) for name, field in schema["properties"].items()]


def _describe_field(name: str, schema: dict[str, Any]) -> dict[str, str]:
    default = schema.get("default")
    return {
        "name": name,
        "bounds": _describe_values(schema),
        "default": "" if default is None else str(default),
        "description": schema.get("description", ""),
    }


def _describe_values(schema: dict[str, Any]) -> str:
    """Return the type of a schema in words, with its bounds."""
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind.get("type") != "null"]
        return " or ".join(_describe_values(kind) for kind in kinds)
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    bounds = [f"{name} {schema[name]}" for name in BOUNDS if name in schema]
    return ", ".join([str(schema.get("format") or schema.get("type", "")), *bounds])


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema that a reference inside the document names."""
    found: dict[str, Any] = document
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found
