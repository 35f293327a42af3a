"""`foley doctor`: invented machines, each with one fault, and this one."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from foley.cli.app import main
from foley.configs import PRESETS
from foley.errors import ConfigError
from foley.hardware.compatibility import (
    DRIVERS,
    FLASH_WHEEL,
    LIMITS,
    PACKAGES,
    PYTHONS,
    REFUSED,
    SERVING_PACKAGES,
    TORCH_CUDA,
    parse_version,
)
from foley.hardware.doctor import check_machine, refuse_unfit
from foley.hardware.machine import Gpu, Machine, inspect_machine
from foley.weights.components import PARTS, build_on_meta
from foley.weights.sources import DISK_BYTES, FILES, GPU_BYTES
from tests.server import ROOT

H100 = Gpu(name="H100", capability=(9, 0), num_bytes=85_000_000_000)
IMAGE = Machine(
    python=(3, 12),
    packages={
        "torch": "2.8.0+cu128",
        "flash-attn": "2.8.3",
        "transformers": "5.23.0",
        "diffusers": "0.42.1",
        "safetensors": "0.8.0",
        "huggingface_hub": "2.4.0",
        "av": "19.0.2",
        "numpy": "2.5.5",
        "bentoml": "1.4.39",
    },
    torch_error="",
    torch_cuda="12.8",
    driver="570.124.06",
    gpus=(H100,),
    flash_error="",
    attention="FlashAttention 2",
    media_error="",
    folder="/weights",
    present={"xl": "absent", "xxl": "complete"},
    free_bytes=10**12,
    port=3000,
    port_error="",
)


# Distributions whose names are no names of Python.
PACKAGE_NAMES = {"flash_attn": "flash-attn"}


def packages(**changed: str | None) -> dict[str, str]:
    merged = {**IMAGE.packages, **{PACKAGE_NAMES.get(key, key): v for key, v in changed.items()}}
    return {key: version for key, version in merged.items() if version is not None}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC "
            "2024\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14) \n",
            "535.183.01",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  "
            "(builder@)  \nGCC version:  gcc version 15.3.0 (GCC) \n",
            "580.159.04",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  570.86  \n", "570.86"),
        ("NVRM version: something else 15.3.0\n", ""),
    ],
)
def test_the_driver_version_is_read_for_proprietary_and_open_modules(
    text: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foley.hardware.machine.DRIVER_FILE", tmp_path / "version")
    assert inspect_machine(tmp_path).driver == ""
    (tmp_path / "version").write_text(text)
    assert inspect_machine(tmp_path).driver == version


def test_the_image_is_fit_for_xxl() -> None:
    assert {finding.state for finding in check_machine(IMAGE, preset="xxl")} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "check", "state", "words"),
    [
        (
            {"python": (3, 10)},
            "python",
            "error",
            "3.10 is not supported; install Python 3.11 or 3.12",
        ),
        (
            {"packages": packages(torch="2.5.1+cu121")},
            "packages",
            "error",
            "torch 2.5.1+cu121 is too old; install torch>=2.8",
        ),
        (
            {"packages": packages(diffusers=None)},
            "packages",
            "error",
            "diffusers is not installed; install diffusers>=0.36",
        ),
        (
            {"packages": packages(huggingface_hub="3.0.0")},
            "packages",
            "error",
            "huggingface_hub 3.0.0 is too new; install huggingface_hub>=1.31,<3",
        ),
        (
            {"packages": packages(bentoml="1.4.40")},
            "packages",
            "warning",
            "bentoml 1.4.40: it asks for a certifi",
        ),
        (
            {"torch_error": "libcudart.so.13: no such file"},
            "torch",
            "error",
            "cannot be imported (libcudart.so.13",
        ),
        ({"driver": "", "gpus": ()}, "driver", "error", "no NVIDIA driver is loaded; install one"),
        (
            {"packages": packages(torch="2.11.0"), "torch_cuda": "13.0", "gpus": ()},
            "driver",
            "error",
            "driver 570.124.06 is too old for torch 2.11.0, built for CUDA 13.0, which needs "
            "580.65.06 or later; update it, or install a torch from 2.8 to before 2.11 in its ",
        ),
        (
            {"driver": "470.57.02"},
            "driver",
            "error",
            "install driver 525.60.13 or later with torch 2.8",
        ),
        (
            {"torch_cuda": "", "gpus": ()},
            "driver",
            "error",
            "is built for the CPU alone; install a torch from 2.8",
        ),
        ({"gpus": ()}, "gpu", "error", "PyTorch sees no CUDA GPU"),
        (
            {"gpus": (dataclasses.replace(H100, name="L4", num_bytes=14_000_000_000),)},
            "gpu",
            "ok",
            "L4, 14.0 GB; fits tiny, xl, xxl; xxl with a part of the weights in host memory",
        ),
        (
            {"gpus": (dataclasses.replace(H100, name="T400", num_bytes=4_000_000_000),)},
            "gpu",
            "error",
            "T400, 4.0 GB: xxl needs 6.0 GB; use tiny, or a larger GPU",
        ),
        (
            {"gpus": (dataclasses.replace(H100, capability=(7, 5)),)},
            "gpu",
            "warning",
            "compute capability 7.5 has no fast bfloat16",
        ),
        (
            {"packages": packages(torch="2.9.1"), "flash_error": "undefined symbol: _ZN3c10"},
            "flash-attention",
            "warning",
            "flash-attn 2.8.3 cannot be imported beside torch 2.9.1 (undefined symbol: _ZN3c10); "
            "remove it: its project has wheels up to torch 2.8 for Python 3.11 and 3.12",
        ),
        (
            {"flash_error": "undefined symbol"},
            "flash-attention",
            "warning",
            "install flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp312-cp312-linux_x86_64.whl",
        ),
        ({"attention": "PyTorch's"}, "flash-attention", "warning", "installed and not used"),
        ({"media_error": "no aac"}, "media", "error", "no aac; install PyAV again"),
        ({"present": {"xxl": "partial"}}, "weights", "error", "run: foley download xxl"),
        (
            {"present": {"xxl": "absent"}},
            "weights",
            "error",
            "no xxl in /weights; run: foley download xxl",
        ),
        (
            {"present": {"xxl": "absent"}, "free_bytes": 10**10},
            "disk",
            "error",
            "10.0 GB free for /weights, and xxl takes 15.1 GB",
        ),
        (
            {"port_error": "Address already in use"},
            "port",
            "error",
            "port 3000 cannot be used: Address",
        ),
    ],
)
def test_a_fault_is_one_line_with_what_would_fit(
    changes: dict[str, object], check: str, state: str, words: str
) -> None:
    machine = dataclasses.replace(IMAGE, **changes)  # type: ignore[arg-type]
    findings = {finding.check: finding for finding in check_machine(machine, preset="xxl")}
    assert findings[check].state == state
    assert words in findings[check].message
    assert "\n" not in findings[check].message
    unrelated = {"driver", "gpu", "weights", "disk"} if check in ("driver", "weights") else {check}
    if check != "disk":
        others = {f.check: f.state for f in findings.values() if f.check not in unrelated | {check}}
        assert set(others.values()) <= {"ok"}, others


def test_a_laptop_without_a_gpu_is_fit_for_tiny() -> None:
    laptop = dataclasses.replace(
        IMAGE,
        driver="",
        gpus=(),
        torch_cuda="",
        attention="PyTorch's",
        packages=packages(torch="2.13.0+cpu", flash_attn=None),
        present={"xl": "absent", "xxl": "absent"},
    )
    assert {finding.state for finding in check_machine(laptop)} == {"ok"}
    assert "error" in {finding.state for finding in check_machine(laptop, device="cuda")}


def test_third_party_files_are_accepted() -> None:
    machine = dataclasses.replace(IMAGE, present={"xl": "absent", "xxl": "other"})
    assert {finding.state for finding in check_machine(machine, preset="xxl")} == {"ok"}


def test_a_start_is_refused_with_the_same_line(tmp_path: Path) -> None:
    refuse_unfit(preset="tiny", device="cpu", weights=None)
    with pytest.raises(ConfigError, match=r"weights: no xl in .*foley download xl"):
        refuse_unfit(preset="xl", device="cpu", weights=tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} cannot be used"):
            refuse_unfit(preset="tiny", device="cpu", weights=None, port=port)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"preset": "foo"}, "preset 'foo' is not known; use auto, tiny, xl, xxl"),
        ({"port": 65536}, "port 65536 cannot be used: ports go from 1 to 65535"),
        ({"port": -1}, "port -1 cannot be used: ports go from 1 to 65535"),
    ],
)
def test_what_no_machine_has_is_refused(wrong: dict[str, Any], words: str) -> None:
    start = {"preset": "tiny", "device": "cpu", "weights": None}
    with pytest.raises(ConfigError, match=words):
        refuse_unfit(**{**start, **wrong})


def test_the_matrix_agrees_with_what_the_project_says() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name, least in {**PACKAGES, **SERVING_PACKAGES}.items():
        limit = f",<{LIMITS[name]}" if name in LIMITS else ""
        assert f'"{name}>={least}{limit}' in text
    assert f'requires-python = ">={PYTHONS[0][0]}.{PYTHONS[0][1]},<3.{PYTHONS[-1][1] + 1}"' in text
    for name, versions in REFUSED.items():
        assert all(f"{name}>=" in text and f"!={version}" in text for version in versions)
    assert list(TORCH_CUDA) == sorted(TORCH_CUDA)
    assert {int(cuda.split(".")[0]) for _, cuda in TORCH_CUDA} == DRIVERS.keys()
    assert FLASH_WHEEL.torch >= parse_version(PACKAGES["torch"])


@pytest.mark.parametrize("name", ["xl", "xxl"])
def test_the_matrix_agrees_with_the_models(name: str) -> None:
    num_bytes = 4 * 10**9
    for part in PARTS:
        num_parameters = sum(p.numel() for p in build_on_meta(part, PRESETS[name]).parameters())
        num_bytes += num_parameters * (2 if part == "dit" else 4)
    assert num_bytes <= GPU_BYTES[name] < num_bytes + 10**8
    downloaded = sum(file.num_bytes or 0 for file in FILES[name])
    assert downloaded <= DISK_BYTES[name] < downloaded + 10**8


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.8.0+cu128", (2, 8, 0)), ("570.124.06", (570, 124, 6)), ("3.0rc1", (3, 0)), ("", ())],
)
def test_versions_are_read(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_this_machine_can_be_inspected() -> None:
    machine = inspect_machine(None)
    assert machine.python == sys.version_info[:2]
    assert machine.media_error == ""
    assert machine.torch_error == ""
    assert machine.packages["torch"]


Doctor = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_a_start_is_checked_without_the_libraries_of_models() -> None:
    """They would take longer to import than all the rest of `foley serve`."""
    code = (
        "import sys; from foley.hardware.doctor import refuse_unfit as check;"
        "check(preset='auto', device='cpu', weights=None);"
        "print(*sorted({'diffusers', 'torch._dynamo', 'transformers'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    def doctor(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FOLEY_", "HF_"))}
        environment = (
            kept | {"HF_HOME": str(tmp_path)} | ({"PYTHONPATH": str(path)} if path else {})
        )
        command = [sys.executable, "-m", "foley.cli.app", "doctor", "--port", "0", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    return doctor


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `foley doctor` in this process look for weights in an empty folder."""
    for name in [name for name in os.environ if name.startswith("FOLEY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))


def doctor_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `foley doctor` in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["foley", "doctor", "--port", "0", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.usefixtures("empty_folder")
def test_scripts_get_json_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert doctor_here(monkeypatch, "--json", "--preset", "xxl", "--device", "cpu") == 3
    said = json.loads(capfd.readouterr().out)
    assert said["fit"] is False
    wrong = [finding["check"] for finding in said["findings"] if finding["state"] == "error"]
    assert wrong == ["weights"]


@pytest.mark.usefixtures("empty_folder")
def test_the_output_is_one_line_for_each_check(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = doctor_here(monkeypatch, "--preset", "tiny", "--device", "cpu")
    printed = capfd.readouterr().out
    assert code == 0, printed
    assert len(printed.splitlines()) == 10
    assert "WRONG" not in printed


def test_a_broken_torch_is_a_line_and_no_traceback(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13: gone')")
    result = doctor(path=tmp_path)
    assert result.returncode == 3
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("WRONG")]
    assert "libcudart.so.13: gone" in line
    assert "Traceback" not in result.stderr
