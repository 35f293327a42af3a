"""The metrics of all processes together, also when one of them was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = """
import sys
from runners import metrics
metrics.QUEUE_DEPTH.set(5)
metrics.RUNNING.set(2)
metrics.AUDIO_SECONDS.inc(7)
print("set", flush=True)
sys.stdin.read()
"""
RENDER = "from runners import metrics; print(metrics.render_metrics().decode())"


@pytest.mark.slow
def test_the_gauges_of_a_killed_process_are_zero_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "set\n"
        lines = render(environment)
        assert "foley_queue_depth 5.0" in lines
        assert "foley_running 2.0" in lines
        runner.send_signal(signal.SIGKILL)
    lines = render(environment)
    assert "foley_queue_depth 0.0" in lines
    assert "foley_running 0.0" in lines
    assert "foley_audio_seconds_total 7.0" in lines  # what was counted stays


def render(environment: dict[str, str]) -> list[str]:
    """Return the metrics as a process sees them that did not set them."""
    command = [sys.executable, "-c", RENDER]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()
