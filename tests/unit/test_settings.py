"""Settings from the environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foley.errors import ConfigError
from runners.settings import load_settings, plan_model_environments
from tests.server import ROOT


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("FOLEY_PRESET", "FOLEY_DEVICE", "FOLEY_SCRATCH_DIR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_settings_come_from_the_environment(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("FOLEY_MAX_UPLOAD_BYTES", "2MiB")
    clean_environment.setenv("FOLEY_SCRATCH_DIR", "/somewhere")
    clean_environment.setenv("FOLEY_REQUIRE_GPU", "0")  # the tests' own, known here
    settings = load_settings()
    assert settings.max_upload_bytes == 2 * 1024**2
    assert settings.scratch_root == Path("/somewhere")
    assert settings.preset == "auto"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FOLEY_MAX_UPLOAD_BITES", "1", "did you mean FOLEY_MAX_UPLOAD_BYTES"),
        ("FOLEY_DEVICE", "tpu", "FOLEY_DEVICE: "),
        ("FOLEY_REQUEST_TIMEOUT_SECONDS", "0", "FOLEY_REQUEST_TIMEOUT_SECONDS"),
        ("FOLEY_MAX_CLIP_SECONDS", "3601", "FOLEY_MAX_CLIP_SECONDS: "),
        ("FOLEY_MAX_UPLOAD_BYTES", "lots", "FOLEY_MAX_UPLOAD_BYTES: must be .* 512MiB .* 'lots'"),
    ],
)
def test_wrong_settings_are_named(
    clean_environment: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    clean_environment.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        load_settings()


@pytest.mark.long
def test_no_start_of_the_service_reports_to_bentoml_unless_asked() -> None:
    program = (
        "import service; from bentoml._internal.utils.analytics.usage_stats import do_not_track; "
        "print(do_not_track())"
    )
    for given, off in (({}, "True"), ({"BENTOML_DO_NOT_TRACK": "False"}, "False")):
        inherited = {k: v for k, v in os.environ.items() if k != "BENTOML_DO_NOT_TRACK"}
        command = [sys.executable, "-c", program]
        ran = subprocess.run(
            command, cwd=ROOT, env={**inherited, **given}, capture_output=True, text=True
        )
        assert ran.stdout.splitlines()[-1:] == [off], ran.stderr


def test_each_process_with_a_model_sees_one_gpu_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hidden")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/shared")
    environments = plan_model_environments(2)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments] == ["0", "1"]
    for one in environments:
        assert int(one["OMP_NUM_THREADS"]) == max(1, (os.cpu_count() or 1) // 2)
        assert one["TRITON_CACHE_DIR"] == "/shared"
        assert "HF_TOKEN" not in one
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b,GPU-c")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environments = plan_model_environments(2)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments] == ["GPU-a", "GPU-b"]
    assert {one["OMP_NUM_THREADS"] for one in environments} == {"3"}
