"""The API's document in Swagger UI, which BentoML brings along."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route

from tests.patience import scale
from tests.server import Server

pytestmark = pytest.mark.long

SWAGGER = """<!doctype html><meta charset="utf-8"><div id="ui"></div>
<script src="swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/docs.json", dom_id: "#ui", tryItOutEnabled: true});</script>"""


def find_bundle() -> Path:
    spec = find_spec("bentoml")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "_internal/server/static_content"
    return folder / "swagger-ui-bundle.js"


@pytest.mark.skipif(not find_bundle().is_file(), reason="this BentoML has no Swagger UI")
def test_try_it_out_makes_a_sound_from_a_file_alone(
    browser: Browser, server: Server, clips: Path
) -> None:
    root = f"http://127.0.0.1:{server.port}"
    page = browser.new_page()
    page.set_default_timeout(1000 * scale(20))

    def answer(route: Route) -> None:
        if route.request.url.endswith(".js"):
            kind = "text/javascript; charset=utf-8"
            route.fulfill(body=find_bundle().read_bytes(), content_type=kind)
        else:
            route.fulfill(body=SWAGGER, content_type="text/html")

    page.route(f"{root}/swagger/**", answer)
    try:
        page.goto(f"{root}/swagger/")
        call = page.locator(".opblock").first
        call.locator("button").first.click()
        call.locator("input[type=file]").first.set_input_files(clips / "short.mp4")
        with page.expect_response(lambda found: found.url.endswith("/v1/generate")) as answered:
            call.get_by_role("button", name="Execute").click()
        response = answered.value
        assert response.status == 200, response.text()
        assert response.headers["content-type"] == "video/mp4"
        assert 'filename="foley.mp4"' in response.headers["content-disposition"]
    finally:
        page.close()
