"""The part of the OpenAPI document that describes resumable uploads."""

from collections.abc import Callable
from typing import Any

from runners.http.schemas import INTEGER, TEXT, Schema
from runners.http.uploads import CONTENT_TYPE, VERSION

_VERSION = {
    "name": "Tus-Resumable",
    "in": "header",
    "required": True,
    "description": "Of the protocol, tus.",
    # A pattern, since openapi-python-client makes no operation with a constant in its header.
    "schema": {**TEXT, "pattern": f"^{VERSION.replace('.', '[.]')}$"},
}
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "Of the upload.",
    "schema": {**TEXT, "pattern": "^[0-9a-f]{32}$"},
}


def build_upload_paths(
    describe_error: Callable[[str], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Return the paths of resumable uploads.

    Args:
        describe_error: returns an error response with a description.
    """
    general = {
        "401": describe_error("No API key, or a wrong one, where the service needs one."),
        "412": describe_error("Another version of the protocol."),
    }
    missing = {"404": describe_error("There is no such upload, or it belongs to another key.")}
    full = {
        "429": describe_error("Uploads take all of the room, or of the caller's share."),
        "503": describe_error("The disk has no room for it, or the service is ending."),
    }
    done: Schema = {"description": "What has arrived is in Upload-Offset."}
    return {
        "/v1/uploads": {
            "post": {
                "summary": "Begin an upload that survives broken connections (tus 1.0)",
                "operationId": "createUpload",
                "description": "A job names it by its field `upload`, once it is complete. It is "
                "kept for a day after its last byte.",
                "parameters": [
                    _VERSION,
                    {**_header("Upload-Length", INTEGER), "required": True},
                    _header("Upload-Metadata", TEXT),
                ],
                "responses": {
                    "201": {
                        "description": "Its path is in Location; its id is the last part.",
                        "headers": {"Location": {"schema": TEXT}},
                    },
                    **general,
                    **full,
                    "413": describe_error("It is larger than an upload may be."),
                    "422": describe_error("A header is missing or malformed."),
                },
            }
        },
        "/v1/uploads/{id}": {
            "head": {
                "summary": "How many bytes of an upload have arrived",
                "operationId": "getUpload",
                "parameters": [_VERSION, _ID],
                "responses": {"200": done, **general, **missing},
            },
            "patch": {
                "summary": "Add bytes to an upload",
                "operationId": "addToUpload",
                "parameters": [
                    _VERSION,
                    _ID,
                    {**_header("Upload-Offset", INTEGER), "required": True},
                ],
                "requestBody": {
                    "required": True,
                    "content": {CONTENT_TYPE: {"schema": {**TEXT, "format": "binary"}}},
                },
                "responses": {
                    "204": done,
                    **general,
                    **missing,
                    **full,
                    "408": describe_error("The bytes came too slowly. Those that came are kept."),
                    "409": describe_error("The bytes do not belong there, or another adds some."),
                    "413": describe_error("More bytes than Upload-Length has said."),
                    "415": describe_error("The body is of another type."),
                    "422": describe_error("A header is missing or malformed."),
                },
            },
            "delete": {
                "summary": "Remove an upload",
                "operationId": "deleteUpload",
                "parameters": [_VERSION, _ID],
                "responses": {"204": {"description": "It is gone."}, **general, **missing},
            },
        },
    }


def _header(name: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": schema}
