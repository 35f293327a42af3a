"""The reception of jobs in the tests' own process, without a server."""

from runners.durable.reception import JobReception
from runners.durable.service import JobService
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.clip_url import ClipLoader
from runners.jobs.ending import Ending
from runners.jobs.intake import make_intake
from runners.settings import Settings


def make_reception(settings: Settings, jobs: JobService) -> JobReception:
    """Return the reception of a service whose jobs nobody runs; the settings name its folder."""
    assert settings.jobs_dir is not None
    return JobReception(
        settings,
        jobs,
        make_intake(settings),
        ClipLoader(settings),
        Ending(5.0),
        CancellationRegistry(settings.jobs_dir / "requests"),
    )
