"""A client that openapi-python-client makes of the document works, as the guide says."""

import compileall
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import av
import pytest

from tests.server import ROOT, Server

PACKAGE = "generated_foley"


@pytest.fixture
def generated(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package, made with the configuration of the guide."""
    guide = (ROOT / "docs/guides/http.md").read_text()
    (config,) = re.findall(r"^```yaml\n(content_type_overrides.*?)^```", guide, re.M | re.S)
    # Its hooks format the files, which takes most of the time and changes nothing.
    (tmp_path / "config.yml").write_text(f"{config}post_hooks: []\n")
    (tmp_path / "docs.json").write_bytes(server.client.get("/docs.json").content)
    made = subprocess.run(
        [
            *(sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"),
            *("--config", "config.yml", "--path", "docs.json", "--output-path", PACKAGE),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert "WARNING" not in made.stdout + made.stderr  # of operations that it leaves out
    assert compileall.compile_dir(tmp_path / PACKAGE, quiet=1)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module(PACKAGE)


def test_a_generated_client_returns_bytes(
    generated: ModuleType, server: Server, short_clip: bytes
) -> None:
    names = ("generate", "cancel", "models")
    calls = {name: importlib.import_module(f"{PACKAGE}.api.default.{name}") for name in names}
    options = importlib.import_module(f"{PACKAGE}.models.generation_options").GenerationOptions
    file = importlib.import_module(f"{PACKAGE}.types").File
    address = str(server.client.base_url)
    with generated.Client(base_url=address, timeout=None) as client:
        body = options(clip=file(payload=io.BytesIO(short_clip), file_name="clip"), prompt="rain")
        body.num_inference_steps = 1
        made = calls["generate"].sync_detailed(client=client, body=body)
        assert made.status_code == 200
        with av.open(io.BytesIO(made.parsed.payload.read())) as reader:
            assert {stream.type for stream in reader.streams} == {"video", "audio"}
        # What was not given is not sent: an absent field is no "None" and no "null".
        values = {content for _, (_, content, *_) in options().to_multipart()}
        assert not values & {b"None", b"null"}

        body.clip = file(payload=io.BytesIO(b"not a video"), file_name="clip")
        refused = calls["generate"].sync_detailed(client=client, body=body)
        assert (refused.status_code, refused.parsed.error.code) == (422, "video_unreadable")

        assert calls["models"].sync(client=client).models[0].preset == "tiny"
        missing = calls["cancel"].sync_detailed(client=client, request_id="nothing")
        assert (missing.status_code, missing.parsed.error.code) == (404, "not_found")
