"""The service without a model: every job becomes one file."""

import contextlib
from collections.abc import Iterator
from typing import Any

from runners.jobs.job import GenerationJob
from runners.jobs.outputs import JobResult, OutputFile


class FakeService:
    """Runs jobs as `GenerationService` does, and makes no sound.

    Attributes:
        num_bytes: size of each file.
        num_active: requests that are worked on.
        jobs: that were run.
    """

    def __init__(self, num_bytes: int = 1000) -> None:
        self.num_bytes = num_bytes
        self.num_active = 0
        self.jobs: list[GenerationJob] = []

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        self.num_active += 1
        try:
            yield
        finally:
            self.num_active -= 1

    async def run(self, job: GenerationJob, *_: Any) -> JobResult:
        self.jobs.append(job)
        path = job.folder / "foley-1.wav"
        path.write_bytes(bytes(self.num_bytes))
        return JobResult(
            request_id=job.request_id,
            preset="tiny",
            seeds=(1,),
            duration_seconds=1.0,
            sample_rate=48_000,
            timings={"total": 1.0},
            notices=(),
            files=(OutputFile(variation=1, seed=1, path=path, container="wav"),),
        )
