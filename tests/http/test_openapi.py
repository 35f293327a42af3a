"""The OpenAPI document agrees with the code."""

import json
import subprocess
import sys
from typing import Any

import pytest

from foley.configs import TINY
from foley.request import GenerationRequest
from runners.http import openapi
from runners.http.docs_page import render_docs
from runners.jobs.job import MEDIA_TYPES, GenerationOptions
from runners.settings import Settings
from tests.conftest import MAX_UPLOAD_BYTES
from tests.server import ROOT, Server

REQUEST = GenerationRequest.model_json_schema()["properties"]


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    return server.client.get("/docs.json").json()


@pytest.mark.parametrize(
    "name", [name for name in REQUEST if name not in ("cues", "layers", "adapters", "edit")]
)
def test_every_option_is_described_as_it_is_checked(document: dict[str, Any], name: str) -> None:
    field = document["components"]["schemas"]["GenerationOptions"]["properties"][name]
    checked = dict(REQUEST[name])
    if "anyOf" in checked:  # a form has no null: the part is absent
        (kind,) = (part for part in checked.pop("anyOf") if part["type"] != "null")
        assert checked.pop("default") is None
        checked |= kind
    assert field == checked
    assert field["description"]
    if field["type"] in ("integer", "number"):
        assert {"minimum", "maximum"} <= field.keys()


def test_no_answer_and_no_field_is_null_and_a_truth_value_is_a_boolean() -> None:
    document = openapi.build_document(Settings())
    assert '"null"' not in json.dumps(document)
    assert "null" not in json.dumps(document["components"]["schemas"]["GenerationOptions"])
    operation = document["paths"]["/v1/requests/{request_id}/cancel"]["post"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["properties"]["cancelled"]["type"] == "boolean"


def test_cues_are_a_text_since_they_are_a_part_of_a_form(document: dict[str, Any]) -> None:
    field = document["components"]["schemas"]["GenerationOptions"]["properties"]["cues"]
    assert (field["type"], field["contentMediaType"]) == ("string", "application/json")
    assert field["description"] == REQUEST["cues"]["description"]
    assert GenerationOptions.model_validate({"cues": field["default"]}).cues == ()


def test_nothing_is_required_since_a_prompt_alone_may_stand_for_the_clip(
    document: dict[str, Any],
) -> None:
    form = document["components"]["schemas"]["GenerationOptions"]
    assert "required" not in form
    assert "unless there is a `duration_seconds`" in form["properties"]["clip"]["description"]
    assert list(form["properties"]) == [
        "clip",
        "edit_source",
        *GenerationOptions.model_fields,
    ]
    assert all(field["description"] for field in form["properties"].values())
    assert form["additionalProperties"] is False


def test_the_clip_is_described_with_the_limits_of_this_service(document: dict[str, Any]) -> None:
    clip = document["components"]["schemas"]["GenerationOptions"]["properties"]["clip"]
    assert clip["x-max-seconds"] == 6
    assert clip["x-max-pixels"] == 1280 * 720
    assert clip["x-max-request-bytes"] == MAX_UPLOAD_BYTES
    for words in ("6 s", "921600 pixels", f"{MAX_UPLOAD_BYTES} bytes"):
        assert words in clip["description"]


def test_responses_are_described(document: dict[str, Any]) -> None:
    responses = document["paths"]["/v1/generate"]["post"]["responses"]
    files = {*MEDIA_TYPES.values(), "application/zip"}
    assert set(responses["200"]["content"]) == files
    events = document["paths"]["/v1/generate/events"]["post"]["responses"]
    assert set(events["200"]["content"]) == {"text/event-stream"}
    assert set(events) == set(responses)
    assert "X-Foley-Seed" in responses["200"]["headers"]
    assert set(responses) == {
        "200", "400", "401", "403", "406", "408", "413", "415", "422", "429", "499", "500", "503",
        "504",
    }  # fmt: skip
    assert "upload_too_large" in responses["413"]["description"]
    assert {"/livez", "/readyz", "/metrics"} < set(document["paths"])


def test_the_headers_described_are_those_sent(
    document: dict[str, Any], server: Server, short_clip: bytes
) -> None:
    described = document["paths"]["/v1/generate"]["post"]["responses"]["200"]["headers"]
    options = {"gain_db": -6, "avoid_speech": "report"}
    sent = server.generate(short_clip, num_inference_steps=1, **options).headers
    ours = {name for name in sent if name.startswith("x-foley") or name == "server-timing"}
    assert {name.lower() for name in described} == ours | {"x-request-id"}


def test_the_model_is_described_as_it_is_sent(document: dict[str, Any], server: Server) -> None:
    answer = server.client.get("/v1/models")
    assert answer.status_code == 200
    (model,) = answer.json()["models"]
    assert model.keys() == document["components"]["schemas"]["Model"]["properties"].keys()
    assert (model["preset"], model["state"]) == ("tiny", "ready")
    assert model["prompts"] == list(TINY.prompts)
    request = GenerationRequest()
    own = (model["num_inference_steps"], model["guidance_scale"])
    assert own == (request.choose_sampling(TINY).num_inference_steps, request.choose_guidance(TINY))
    assert (model["licence"], model["territory"]) == ("Apache-2.0", "worldwide")
    (adapter,) = model["adapters"]
    assert adapter == {"name": "rattle", "rank": 2, "about": "a test", "trigger": "a rattle"}
    described = document["components"]["schemas"]["Model"]["properties"]["adapters"]["items"]
    assert described["properties"].keys() == adapter.keys()


def test_references_resolve() -> None:
    document = openapi.build_document(Settings())

    def visit(node: object) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                _, *path = node["$ref"].split("/")
                target: Any = document
                for part in path:
                    target = target[part]
            for child in node.values():
                visit(child)
        elif isinstance(node, list):
            for child in node:
                visit(child)

    visit(document)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_service_is_imported_without_torch() -> None:
    program = "import sys, service; sys.exit(bool({'torch', 'av'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_docs_show_every_operation_and_load_nothing(
    document: dict[str, Any], server: Server
) -> None:
    answer = server.client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in answer.text
    for name in document["components"]["schemas"]["GenerationOptions"]["properties"]:
        assert f"<td><code>{name}</code></td>" in answer.text
    assert "<td>mp4, mov, mkv" in answer.text
    for loading in ("<script", "<link", "<img", "<iframe", "@import", "url(", "p://", "s://"):
        assert loading not in answer.text


def test_the_docs_escape_what_they_show(document: dict[str, Any]) -> None:
    info = {**document["info"], "description": "<script>alert(1)</script>"}
    assert "<script>" not in render_docs({**document, "info": info})


@pytest.mark.parametrize("path", ["/", "/ui"])
def test_the_start_leads_to_the_page_below_any_path(server: Server, path: str) -> None:
    answer = server.client.get(path)
    assert (answer.status_code, answer.headers["location"]) == (307, "ui/")


def test_the_pages_of_bentoml_are_not_served(server: Server) -> None:
    for path in ("/static_content/index.css", "/static_content/swagger-ui.css", "/schema.json"):
        assert server.client.get(path).status_code == 404
