"""Downloads by URL from a real HTTPS server, and addresses that must not be reached."""

import asyncio
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from foley.errors import FetchError, FoleyError, UploadTooLargeError
from runners.fetch import MAX_REDIRECTS, Fetcher
from runners.guard import is_public
from tests.patience import scale

NAME = "clips.test"  # reserved for tests; resolved by the `names` fixture alone
CLIP = bytes(range(256)) * 40
MAX_BYTES = 20_000


class Host(ThreadingHTTPServer):
    """An HTTPS server on loopback with a certificate for NAME and a list of its requests."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.released = threading.Event()
        certificate = make_certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.trust = ssl.create_default_context(cafile=str(certificate))
        # The handshake runs in the connection's thread, because a client may abort it.
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )

    def url(self, path: str, name: str = NAME) -> str:
        return f"https://{name}:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: a client may close its connection."""


class Answers(BaseHTTPRequestHandler):
    server: Host
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        kind, _, rest = self.path[1:].partition("?")[0].partition("/")
        if kind == "clip":
            self.answer(200, CLIP)
        elif kind == "status":
            self.answer(int(rest), b"a private page")
        elif kind == "to":  # /to/STATUS/ADDRESS
            status, _, target = rest.partition("/")
            self.answer(int(status), b"", {"Location": target} if target else {})
        elif kind == "loop":
            self.answer(302, b"", {"Location": f"/loop/{int(rest) + 1}"})
        elif kind == "declared":  # more than it will send
            self.answer(200, b"", {"Content-Length": rest})
        elif kind == "endless":
            self.head(200, {"Transfer-Encoding": "chunked"})
            while not self.server.released.is_set():
                self.wfile.write(b"400\r\n" + bytes(1024) + b"\r\n")
        elif kind == "gzip":
            self.answer(200, CLIP, {"Content-Encoding": "gzip"})
        elif kind == "slow":
            self.head(200, {"Content-Length": "100"})
            self.wfile.write(b"x")
            self.wfile.flush()
            self.rfile.read(1)  # until the client leaves
        elif kind == "cut":
            self.head(200, {"Content-Length": "100"})
            self.wfile.write(b"x" * 10)
            self.close_connection = True

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.head(status, {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def make_certificate(folder: Path) -> Path:
    """Write a key and a self-signed certificate for NAME to a file and return its path."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "host.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("host"))
    thread = threading.Thread(target=host.serve_forever, args=(0.01,))
    thread.start()
    yield host
    host.released.set()
    host.shutdown()
    thread.join()
    host.server_close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The IP addresses of each host name, which the test may change."""
    known = {NAME: ["127.0.0.1"]}
    real = socket.getaddrinfo

    def look_up(name: Any, port: Any, *args: Any, **options: Any) -> Any:
        if name not in known:
            return real(name, port, *args, **options)
        found = []
        for address in known[name]:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            place = (address, port, 0, 0) if ":" in address else (address, port)
            found.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place))
        return found

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def run(fetcher: Fetcher, address: str, destination: Path) -> int:
    async def whole() -> int:
        try:
            return await fetcher.fetch(address, destination)
        finally:
            await asyncio.sleep(scale(0.05))  # broken connections close before the loop ends

    return asyncio.run(whole())


def fetch(
    host: Host,
    address: str,
    destination: Path,
    *,
    guarded: bool = False,
    schemes: tuple[str, ...] = ("https",),
    seconds: float | None = None,
) -> int:
    """Download with the host's certificate trusted; if unguarded, from loopback only."""
    fetcher = Fetcher(
        max_bytes=MAX_BYTES,
        timeout_seconds=seconds or scale(10),
        schemes=schemes,
        is_allowed=is_public if guarded else lambda address: address.is_loopback,
        tls=host.trust,
    )
    try:
        return run(fetcher, address, destination)
    finally:
        left = [path for path in destination.parent.iterdir() if path != destination]
        assert left == []


def assert_refused(
    host: Host,
    address: str,
    folder: Path,
    words: str,
    *,
    kind: type[FoleyError] = FetchError,
    **options: Any,
) -> None:
    with pytest.raises(kind, match=words):
        fetch(host, address, folder / "clip", **options)
    assert list(folder.iterdir()) == []


def test_a_clip_is_downloaded_completely(host: Host, names: object, tmp_path: Path) -> None:
    assert fetch(host, host.url("/clip?signature=x%2By"), tmp_path / "clip") == len(CLIP)
    assert (tmp_path / "clip").read_bytes() == CLIP
    path, headers = host.asked[-1]
    assert path == "/clip?signature=x%2By"  # a signed URL is sent unchanged
    assert headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in headers
    assert "Authorization" not in headers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(host: Host, names: object, tmp_path: Path, status: int) -> None:
    target = host.url("/clip") if status < 303 else "/clip"
    assert fetch(host, host.url(f"/to/{status}/{target}"), tmp_path / "clip") == len(CLIP)


def test_the_number_of_redirects_is_limited(host: Host, names: object, tmp_path: Path) -> None:
    before = len(host.asked)
    assert_refused(host, host.url("/loop/0"), tmp_path, f"more than {MAX_REDIRECTS} times")
    assert len(host.asked) - before == MAX_REDIRECTS + 1
    assert_refused(host, host.url("/to/302/"), tmp_path, "leads nowhere")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://clips.test/clip", "must begin with https://"),
        ("ftp://clips.test/clip", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("/etc/passwd", "must begin with https://"),
        ("//clips.test/clip", "must begin with https://"),
        ("", "must begin with https://"),
        ("https://name:secret@clips.test/", "user name or password"),
        ("https:///clip", "names no host|malformed"),
        ("https://clips.test:99999/", "malformed"),
        ("https://[::1/", "malformed"),
        ("https://clips..test/", "malformed: 'clips..test' is neither"),
        ("https://clips.test/a\nb", "malformed: its character 21"),
        ("https://clips.test/" + "x" * 5000, "longer than"),
    ],
)
def test_urls_that_are_not_https_are_refused_without_a_request(
    host: Host, names: object, tmp_path: Path, address: str, words: str
) -> None:
    before = len(host.asked)
    assert_refused(host, address, tmp_path, words)
    assert len(host.asked) == before


@pytest.mark.parametrize("target", ["http://clips.test/", "file:///etc/passwd", "ftp://x/"])
@pytest.mark.parametrize("schemes", [("https",), ("https", "http")])
def test_a_redirect_cannot_leave_https(
    host: Host, names: object, tmp_path: Path, target: str, schemes: tuple[str, ...]
) -> None:
    address = host.url(f"/to/302/{target}")
    assert_refused(host, address, tmp_path, "must begin with https://, got", schemes=schemes)


PRIVATE = [
    "127.0.0.1",
    "127.8.9.10",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",  # metadata of most clouds
    "100.100.100.200",  # metadata of Alibaba's
    "168.63.129.16",  # Azure's
    "192.0.0.192",  # Oracle's
    "100.64.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",  # metadata of Amazon's over IPv6
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",  # Teredo of 127.0.0.1
    "2001:db8::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "name",
    ["127.0.0.1", "[::1]", "localhost", "2130706433", "0x7f000001", "017700000001", "127.1", "0"],
)
def test_loopback_is_refused_in_every_notation(host: Host, tmp_path: Path, name: str) -> None:
    before = len(host.asked)
    words = "not the open internet|malformed"
    assert_refused(host, host.url("/clip", name), tmp_path, words, guarded=True)
    assert len(host.asked) == before


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1"])
def test_a_name_with_a_private_address_is_refused(
    host: Host, names: dict[str, list[str]], tmp_path: Path, address: str
) -> None:
    names[NAME] = [address]
    before = len(host.asked)
    assert_refused(host, host.url("/clip"), tmp_path, "not the open internet", guarded=True)
    assert len(host.asked) == before


def test_every_address_of_a_name_is_checked(
    host: Host, names: dict[str, list[str]], tmp_path: Path
) -> None:
    names[NAME] = ["169.254.169.254", "10.0.0.1", "127.0.0.1"]
    before = len(host.asked)
    assert_refused(host, host.url("/clip"), tmp_path, "not the open internet|failed", guarded=True)
    assert len(host.asked) == before


@pytest.mark.parametrize("target", ["https://169.254.169.254/latest/", "https://10.0.0.1/"])
def test_a_redirect_to_a_private_address_is_refused(
    host: Host, names: object, tmp_path: Path, target: str
) -> None:
    assert_refused(host, host.url(f"/to/307/{target}"), tmp_path, "not the open internet")


def test_the_connection_uses_the_address_that_was_checked(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The name has a public address in the first look-up and loopback in all later ones.
    look_ups = 0

    def look_up(name: Any, port: Any, *args: Any, **options: Any) -> Any:
        nonlocal look_ups
        look_ups += 1
        address = "192.0.2.1" if look_ups == 1 else "127.0.0.1"
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    checked: list[str] = []

    def is_allowed(address: object) -> bool:
        checked.append(str(address))
        return str(address) != "127.0.0.1"

    connected: list[str] = []
    real = asyncio.selector_events.BaseSelectorEventLoop.sock_connect  # type: ignore[attr-defined]

    async def sock_connect(loop: Any, sock: socket.socket, place: Any) -> None:
        connected.append(place[0])
        if place[0] == "192.0.2.1":  # reserved for documentation
            raise OSError("unreachable")
        await real(loop, sock, place)

    monkeypatch.setattr(
        asyncio.selector_events.BaseSelectorEventLoop,  # type: ignore[attr-defined]
        "sock_connect",
        sock_connect,
    )
    fetcher = Fetcher(max_bytes=1, timeout_seconds=scale(5), is_allowed=is_allowed, tls=host.trust)
    with pytest.raises(FetchError):
        run(fetcher, host.url("/clip"), tmp_path / "clip")
    assert connected == ["192.0.2.1"]  # the address that was checked
    assert checked == connected
    assert look_ups == 1


def test_a_proxy_of_the_environment_is_not_used(
    host: Host, names: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert fetch(host, host.url("/clip"), tmp_path / "clip") == len(CLIP)


@pytest.mark.parametrize("path", [f"/declared/{MAX_BYTES + 1}", "/endless"])
def test_a_download_that_is_too_large_is_aborted(
    host: Host, names: object, tmp_path: Path, path: str
) -> None:
    words = f"limit of {MAX_BYTES} bytes"
    assert_refused(host, host.url(path), tmp_path, words, kind=UploadTooLargeError)


def test_a_compressed_answer_is_refused(host: Host, names: object, tmp_path: Path) -> None:
    assert_refused(host, host.url("/gzip"), tmp_path, "compressed")


def test_a_slow_host_times_out(host: Host, names: object, tmp_path: Path) -> None:
    assert_refused(host, host.url("/slow"), tmp_path, "within 0.5 s", seconds=0.5)


def test_a_lost_connection_leaves_no_file(host: Host, names: object, tmp_path: Path) -> None:
    assert_refused(host, host.url("/cut"), tmp_path, "connection .* failed")


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_an_error_of_the_host_names_its_status_and_not_its_page(
    host: Host, names: object, tmp_path: Path, status: int
) -> None:
    with pytest.raises(FetchError, match=str(status)) as caught:
        fetch(host, host.url(f"/status/{status}"), tmp_path / "clip")
    assert "private page" not in str(caught.value)


def test_a_wrong_certificate_is_refused(
    host: Host, names: dict[str, list[str]], tmp_path: Path
) -> None:
    names["other.test"] = ["127.0.0.1"]  # the certificate is for NAME
    assert_refused(host, host.url("/clip", "other.test"), tmp_path, "no valid certificate")
    fetcher = Fetcher(max_bytes=MAX_BYTES, timeout_seconds=scale(5), is_allowed=lambda _: True)
    with pytest.raises(FetchError, match="no valid certificate"):  # no trusted signature
        run(fetcher, host.url("/clip"), tmp_path / "clip")


def test_an_unknown_name_is_refused(host: Host, tmp_path: Path, monkeypatch: Any) -> None:
    def look_up(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert_refused(host, "https://nowhere.test/", tmp_path, "not known")
