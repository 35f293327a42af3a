"""Responses to generated requests, valid and not, conform to the OpenAPI document."""

import collections
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from runners.http.negotiation import EVENTS_PATH
from runners.http.uploads import CONTENT_TYPE
from tests.server import Server

schemathesis.serializer.alias(CONTENT_TYPE, "application/octet-stream")
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture
def schema(
    server: Server, short_clip: bytes, mode: schemathesis.GenerationMode
) -> schemathesis.BaseSchema:
    """The schema that the service serves; one body in four has a real clip."""
    document = server.client.get("/docs.json").json()
    if mode is schemathesis.GenerationMode.NEGATIVE:
        # Its generator of wrong bodies fails by chance over its own type for binary values.
        for form in ("GenerationOptions", "JobOptions"):
            del document["components"]["schemas"][form]["properties"]["clip"]["format"]
    loaded = schemathesis.openapi.from_dict(document)

    @loaded.hook
    def map_body(_context: schemathesis.HookContext, body: Any) -> Any:
        if isinstance(body, dict) and "clip" in body and len(repr(body)) % 4 == 0:
            body["clip"] = short_clip
            body["num_inference_steps"] = 1  # hundreds of steps find no more than one does
            body["num_variations"] = 1
        elif isinstance(body, dict) and "duration_seconds" in body:  # as above, without a clip
            body["num_inference_steps"] = body["num_variations"] = 1
        return body

    return loaded


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize(
    "num_examples", [20, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])]
)
def test_responses_conform_to_the_document(
    server: Server,
    schema: schemathesis.BaseSchema,
    mode: schemathesis.GenerationMode,
    num_examples: int,
) -> None:
    base_url = str(server.client.base_url)
    statuses = collections.Counter[int]()
    with requests.Session() as session:
        session.trust_env = False
        for found in schema.get_all_operations():
            operation = found.ok()
            if operation.path == EVENTS_PATH:
                # It takes the form of /v1/generate. Schemathesis holds each event to the schema of
                # the whole stream, which is a text.
                continue
            if not operation.body and not operation.path_parameters:
                cases = hypothesis.strategies.just(operation.Case())
            else:
                cases = operation.as_strategy(generation_mode=mode)

            @hypothesis.settings(
                max_examples=num_examples, deadline=None, database=None, derandomize=True
            )
            @hypothesis.given(case=cases)
            def check_response(case: schemathesis.Case) -> None:
                response = case.call_and_validate(base_url, session, checks=CHECKS)
                statuses[response.status_code] += 1

            check_response()
    print(statuses)
    server.end_jobs()
    assert statuses[404]
    assert statuses[422]
