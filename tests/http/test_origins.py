"""Foreign hosts and foreign pages, without a server."""

import asyncio

import httpx
import pytest
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp

from foley.errors import ForbiddenError
from runners.auth import ApiKeys
from runners.browser import BrowserHeaders
from runners.http import origins
from runners.http.middleware import ErrorMiddleware
from runners.http.origins import OriginCheck
from runners.http.routes import CORS
from runners.settings import Settings

SITE = "https://example.com"


def ask(
    app: ASGIApp,
    method: str = "GET",
    path: str = "/v1/models",
    *,
    hosts: tuple[str, ...] = (),
    sites: tuple[str, ...] = (),
    frame_ancestors: str = "'none'",
    **headers: str,
) -> httpx.Response:
    """Ask an application behind the middleware of `service.py`."""
    app = ErrorMiddleware(app, ApiKeys([]), hosts=hosts, origins=sites)
    if sites:
        app = CORSMiddleware(app, allow_origins=sites, **CORS)
    app = BrowserHeaders(app, frame_ancestors)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, path, headers=named)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:3000", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:3000", 200),
        ("[::1]:3000", 200),
        ("evil.example", 403),
        ("localhost.evil.example:3000", 403),
        ("user@localhost@evil.example", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_a_service_on_this_machine_answers_to_local_names_alone(host: str, status: int) -> None:
    answer = ask(PlainTextResponse("ok"), Host=host)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "forbidden"
        assert "FOLEY_ALLOWED_HOSTS" in answer.json()["error"]["message"]


def test_named_hosts_are_allowed_and_probes_are_not_checked() -> None:
    app = PlainTextResponse("ok")
    assert ask(app, hosts=("Foley.example",), Host="foley.example:80").status_code == 200
    assert ask(app, hosts=("foley.example",), Host="other.example").status_code == 403
    assert ask(app, hosts=("*",), Host="other.example").status_code == 200
    for path in ("/livez", "/readyz", "/healthz", "/ping"):
        assert ask(app, path=path, hosts=("foley.example",), Host="10.1.2.3").status_code == 200
    assert ask(app, path="/metrics", hosts=("foley.example",), Host="10.1.2.3").status_code == 403


def test_the_address_that_the_caller_reached_is_allowed() -> None:
    """The page's process calls the service of a container by it."""
    check = OriginCheck(["foley"])
    check.check("GET", "/", {"host": "172.17.0.2:3000"}, "172.17.0.2")
    check.check("GET", "/", {"host": "[fd00::2]:3000"}, "fd00::2")
    for host, address in (("172.17.0.3", "172.17.0.2"), ("", ""), ("", None)):
        with pytest.raises(ForbiddenError):
            check.check("GET", "/", {"host": host}, address)


@pytest.mark.parametrize(("bound", "allowed"), [("0.0.0.0", True), ("::", True), ("::1", False)])
def test_without_names_all_are_allowed_where_the_network_reaches_the_service(
    bound: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origins, "find_http_host", lambda: bound)
    check = OriginCheck()
    if allowed:
        check.check("GET", "/", {"host": "pod-3000.proxy.example"})
    else:
        with pytest.raises(ForbiddenError):
            check.check("GET", "/", {"host": "pod-3000.proxy.example"})


@pytest.mark.parametrize(
    ("method", "site", "origin", "status"),
    [
        ("POST", "cross-site", "https://evil.example", 403),
        ("DELETE", "cross-site", "", 403),
        ("POST", "cross-site", SITE, 200),
        ("POST", "same-origin", "", 200),
        ("POST", "none", "", 200),
        ("GET", "cross-site", "", 200),  # a link on another page
    ],
)
def test_pages_of_other_sites_change_nothing_unless_named(
    method: str, site: str, origin: str, status: int
) -> None:
    headers = {"Sec_Fetch_Site": site, "Origin": origin}
    answer = ask(PlainTextResponse("ok"), method, sites=(SITE,), **headers)
    assert answer.status_code == status


def test_only_named_sites_read_answers() -> None:
    allow = "access-control-allow-origin"
    app = PlainTextResponse("ok")
    assert allow not in ask(app, Origin=SITE).headers  # off by default
    for origin, found in ((SITE, SITE), ("https://evil.example", None), ("null", None)):
        assert ask(app, sites=(SITE,), Origin=origin).headers.get(allow) == found
    refused = ask(PlainTextResponse("no", 404), sites=(SITE,), Origin=SITE)
    assert refused.headers[allow] == SITE  # so that the page can read the reason


def test_every_answer_forbids_guessing_its_type() -> None:
    for app in (PlainTextResponse("ok"), PlainTextResponse("no", 500), HTMLResponse("<p>")):
        assert ask(app).headers["x-content-type-options"] == "nosniff"
    assert ask(PlainTextResponse("x"), Host="evil.example").headers["x-content-type-options"]


def test_html_has_a_policy_with_the_frames_of_the_setting() -> None:
    policy = ask(HTMLResponse("<p>"), frame_ancestors="'self' https://a.example").headers
    directives = policy["content-security-policy"].split("; ")
    assert "frame-ancestors 'self' https://a.example" in directives
    assert "object-src 'none'" in directives
    assert "default-src 'self'" in directives
    assert "content-security-policy" not in ask(PlainTextResponse("x")).headers


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("cors_origins", "*"),
        ("cors_origins", "https://a.example/path"),
        ("frame_ancestors", "*; script-src *"),
        ("allowed_hosts", "https://a.example"),
    ],
)
def test_a_setting_that_opens_more_than_it_says_is_refused(name: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=name):
        Settings(**{name: wrong})
