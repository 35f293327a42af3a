"""The licence is shown, and must be accepted, before a download."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foley.cli.download import require_acceptance
from foley.errors import ConfigError
from foley.weights.licences import ACCEPTANCE_FILE, OWN, TENCENT, get_licence, is_accepted
from tests.server import ROOT
from tests.weights.hub_server import Hub


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Put a terminal in place of standard input; returns the end to type at."""
    typed, terminal = os.openpty()
    with os.fdopen(terminal, closefd=True) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield typed
    os.close(typed)


def test_the_user_is_asked_and_the_acceptance_is_recorded(
    keyboard: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.write(keyboard, b"yes\n")
    require_acceptance(TENCENT, tmp_path, accepted=False)
    shown = capsys.readouterr().err
    assert TENCENT.notice in shown
    record = json.loads((tmp_path / ACCEPTANCE_FILE).read_text())
    assert record["how"] == "typed yes at a terminal"
    assert record["text"] == TENCENT.notice
    assert " on " in record["who"]
    require_acceptance(TENCENT, tmp_path, accepted=False)  # not asked again


@pytest.mark.parametrize("answer", [b"no\n", b"\n", b"y\n"])
def test_anything_but_yes_is_no(keyboard: int, tmp_path: Path, answer: bytes) -> None:
    os.write(keyboard, answer)
    with pytest.raises(ConfigError, match="was not accepted; nothing was downloaded"):
        require_acceptance(TENCENT, tmp_path / "weights", accepted=False)
    assert not (tmp_path / "weights").exists()


def test_an_acceptance_of_another_text_does_not_count(tmp_path: Path) -> None:
    require_acceptance(TENCENT, tmp_path, accepted=True)
    record = json.loads((tmp_path / ACCEPTANCE_FILE).read_text())
    (tmp_path / ACCEPTANCE_FILE).write_text(json.dumps(record | {"sha256": "0" * 64}))
    assert not is_accepted(TENCENT, tmp_path)


def test_presets_have_their_terms() -> None:
    assert get_licence("xl") == get_licence("xxl") == TENCENT
    assert get_licence("tiny") == OWN
    for place in ("European Union", "United Kingdom", "South Korea"):
        assert place in TENCENT.territory
        assert place in TENCENT.notice


def command(hub: Hub, home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FOLEY_", "HF_"))}
    return subprocess.run(
        [sys.executable, "-m", "foley.cli.app", "download", "xl"],
        cwd=ROOT,
        env=kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "*"} | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_fetches_nothing_unaccepted(hub: Hub, tmp_path: Path) -> None:
    result = command(hub, tmp_path)
    assert result.returncode == 3
    assert TENCENT.notice in result.stderr
    assert "there is no terminal to ask at" in result.stderr
    assert hub.seen == []
    assert list(tmp_path.iterdir()) == []


def test_the_command_asks_for_the_pinned_files(hub: Hub, tmp_path: Path) -> None:
    result = command(hub, tmp_path, FOLEY_ACCEPT_LICENSE="yes")
    assert result.returncode == 3
    assert "tencent/HunyuanVideo-Foley: vae_128d_48k.pth: it is not at" in result.stderr
    assert is_accepted(TENCENT, tmp_path / "foley")
    asked = [seen.path for seen in hub.seen if seen.method == "HEAD"]
    revision = "3abd4e833b95b8db0fc9c687afc52483a48e9a97"
    assert asked[-1] == f"/tencent/HunyuanVideo-Foley/resolve/{revision}/vae_128d_48k.pth"
