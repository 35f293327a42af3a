"""The service without a model: every job becomes one file."""

from typing import Any

from runners.jobs.job import GenerationJob
from runners.jobs.outputs import JobResult, OutputFile


class FakeService:
    """Runs jobs as `GenerationService` does, and makes no sound.

    Attributes:
        num_bytes: size of each file.
        jobs: that were run.
    """

    def __init__(self, num_bytes: int = 1000) -> None:
        self.num_bytes = num_bytes
        self.jobs: list[GenerationJob] = []

    def require_runner(self) -> None:
        """There is one, as far as callers know."""

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
            device_seconds=0.5,
            notices=(),
            files=(OutputFile(variation=1, seed=1, path=path, container="wav"),),
        )
