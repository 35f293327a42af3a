"""A stub of RunPod's queue on loopback. It sends jobs and stop signals and receives results."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.patience import Deadline

POLL_SECONDS = 0.5  # how long a request for jobs or stop signals waits
WORKER = "worker-1"
API_KEY = "a-key-of-the-platform"


class JobQueue(ThreadingHTTPServer):
    """Gives jobs to one worker and stores its messages about them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Calls)
        self.changed = threading.Condition()  # guards the attributes below
        self.waiting: list[dict[str, Any]] = []
        self.to_stop: list[str] = []
        self.batch_sizes: list[int] = []
        self.messages: dict[str, list[dict[str, Any]]] = {}
        self.num_pings = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def environment(self) -> dict[str, str]:
        """Return the environment variables that the platform sets for a worker."""
        base = f"http://127.0.0.1:{self.server_port}/v2/endpoint"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": API_KEY,
            "RUNPOD_POD_ID": WORKER,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def send(self, job_id: str, given: object) -> None:
        """Add a job to the queue."""
        with self.changed:
            self.waiting.append({"id": job_id, "input": given})
            self.messages[job_id] = []
            self.changed.notify_all()

    def stop(self, job_id: str) -> None:
        """Cancel a job."""
        with self.changed:
            self.to_stop.append(job_id)
            self.changed.notify_all()

    def wait_for(self, job_id: str, condition: Any, seconds: float = 60) -> Any:
        """Wait for the first message about a job that fulfils a condition, and return it."""

        def found() -> Any:
            return next((m for m in self.messages[job_id] if condition(m)), None)

        deadline = Deadline(seconds)
        with self.changed:
            while not self.changed.wait_for(found, 1):
                assert not deadline.is_over(), (job_id, self.messages[job_id])
            return found()

    def result(self, job_id: str, seconds: float = 60) -> dict[str, Any]:
        """Wait for the last message about a job and return it."""
        answer: dict[str, Any] = self.wait_for(
            job_id, lambda message: message.get("status") != "IN_PROGRESS", seconds
        )
        return answer

    def take(self, num_jobs: int) -> list[dict[str, Any]]:
        """Wait for jobs; return at most `num_jobs`, or none."""
        with self.changed:
            self.batch_sizes.append(num_jobs)
            self.changed.wait_for(lambda: self.waiting, POLL_SECONDS)
            taken, self.waiting = self.waiting[:num_jobs], self.waiting[num_jobs:]
            return taken

    def take_stops(self) -> list[str]:
        """Wait for cancelled jobs; return their ids, or none."""
        with self.changed:
            self.changed.wait_for(lambda: self.to_stop, POLL_SECONDS)
            taken, self.to_stop = self.to_stop, []
            return taken

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: a worker may end while its request is open."""


class _Calls(BaseHTTPRequestHandler):
    server: JobQueue
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        call = url.path.split("/")[3]
        if self.headers["Authorization"] != API_KEY:
            self.answer(401, None)
        elif call == "job-take":
            jobs = self.server.take(1)
            self.answer(200 if jobs else 204, jobs[0] if jobs else None)
        elif call == "job-take-batch":
            jobs = self.server.take(int(parse_qs(url.query)["batch_size"][0]))
            self.answer(200 if jobs else 204, jobs or None)
        elif call == "job-stop":
            self.answer(200, {"jobsToStop": self.server.take_stops()})
        elif call == "ping":
            self.server.num_pings += 1
            self.answer(200, {})
        else:
            self.answer(404, None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, _, _, call, worker, job_id = urlsplit(self.path).path.split("/")
        assert (call, worker) == ("job-done", WORKER)
        with self.server.changed:
            self.server.messages[job_id].append({**body, "received": time.monotonic()})
            self.server.changed.notify_all()
        self.answer(200, {})

    def answer(self, status: int, body: object) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        if content:
            self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
