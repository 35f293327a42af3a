"""A service without a model accepts the jobs that one with a model does, over one PostgreSQL."""

import contextlib
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil
import pytest

from foley.errors import ConfigError
from foley.v1 import foley_pb2, foley_pb2_grpc
from runners.settings import Settings
from tests.patience import wait_until
from tests.postgres import serve_postgres
from tests.s3 import serve_bucket
from tests.server import Server


def end_group(server: Server) -> None:
    """Kill what is left of a server after a failure."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()


def list_services(server: Server) -> set[str]:
    """Return the names of the services that the processes of a server run."""
    below = psutil.Process(server.process.pid).children(recursive=True)
    commands = [process.cmdline() for process in below]
    return {
        command[command.index("--service-name") + 1]
        for command in commands
        if "--service-name" in command
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "has_worker",
    [
        pytest.param(False, marks=pytest.mark.long),
        pytest.param(True, marks=pytest.mark.soak),  # starts one more service
    ],
)
def test_an_api_without_a_model_has_its_jobs_done_elsewhere(
    tmp_path: Path, short_clip: bytes, has_worker: bool
) -> None:
    """Without another service, the job waits."""
    with ExitStack() as held:
        bucket = held.enter_context(serve_bucket())
        postgres = held.enter_context(serve_postgres())

        def start(name: str, **settings: str) -> Server:
            (tmp_path / name).mkdir()
            shared = {
                "FOLEY_JOBS_DIR": str(tmp_path / name / "jobs"),
                "FOLEY_DATABASE_URL": postgres.url,
                "FOLEY_RESULTS": f"{bucket}/jobs",
            }
            server = Server(tmp_path / name, {**shared, **settings})
            held.callback(end_group, server)
            return server

        api = start("api", FOLEY_MODEL="none")
        api.wait_until_ready()
        assert "GpuRunner" not in list_services(api)
        assert api.client.get("/livez").status_code == 200
        for path in ("/v1/generate", "/v1/mix"):
            refused = api.client.post(path, files={"clip": short_clip})
            assert refused.status_code == 503, refused.text
            assert refused.json()["error"]["code"] == "no_model"
        assert api.client.get("/v1/models").json()["error"]["code"] == "no_model"
        with grpc.insecure_channel(api.grpc_address) as channel:
            stub = foley_pb2_grpc.FoleyServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refusal:
                list(stub.Generate(iter([foley_pb2.GenerateRequest()])))
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "send a job" in (refusal.value.details() or "")

        sent = api.client.post(
            "/v1/jobs", files={"clip": short_clip}, data={"num_inference_steps": "1"}
        )
        assert sent.status_code == 202, sent.text
        path = f"/v1/jobs/{sent.json()['id']}"
        # Its own executor is there, and takes nothing.
        wait_until(lambda: "jobs_ready" in api.log.read_text(), 60, what=api.log.read_text)
        assert api.client.get(path).json()["state"] == "queued"
        assert api.metric('foley_jobs{state="queued"}') == 1

        if not has_worker:
            assert api.stop() == 0, api.log.read_text()
            return
        worker = start("worker")
        worker.wait_until_ready()
        assert "GpuRunner" in list_services(worker)
        wait_until(
            lambda: api.client.get(path).json()["state"] == "succeeded",
            120,
            what=worker.log.read_text,
        )
        result = api.client.get(f"{path}/result")
        assert result.status_code == 200, result.text
        assert len(result.content) > len(short_clip)
        assert worker.stop() == 0, worker.log.read_text()
        assert api.stop() == 0, api.log.read_text()


def test_no_model_needs_a_queue_that_others_share() -> None:
    with pytest.raises(ConfigError, match="FOLEY_MODEL=none needs FOLEY_DATABASE_URL"):
        _ = Settings(model="none").has_model
