"""What an API process tells the executor that it starts."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from runners.durable.bucket_files import AnyFiles, BucketFiles
from runners.durable.files import JobFiles
from runners.durable.receivers import WebhookSettings


class ExecutorSettings(BaseModel):
    """Where jobs are kept, and what becomes of them.

    Attributes:
        folder: of the jobs on this machine.
        keep_seconds: how long ended jobs are kept.
        webhooks: how they are sent.
        database_url: of PostgreSQL; None for SQLite in the folder.
        results: s3://bucket/prefix for the files of jobs; None for the folder.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    keep_seconds: float
    webhooks: WebhookSettings
    database_url: str | None = None
    results: str | None = None

    def find_database(self) -> Path | str:
        """Return what `JobQueue` opens."""
        return self.database_url or JobFiles(self.folder).database

    def open_files(self) -> AnyFiles:
        """Return the files of all jobs.

        Raises:
            ConfigError: the library for buckets is not installed.
            OSError: the folder cannot be written.
        """
        local = JobFiles(self.folder)
        return BucketFiles(self.results, local) if self.results else local
