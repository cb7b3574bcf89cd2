"""In which state a job is, or the video that it makes."""

from enum import StrEnum


class JobState(StrEnum):
    """One word for a job wherever it is told: in events, over HTTP, on the page and in the terminal.

    A job that is kept on the disk and on which nobody works is STOPPED; a service remembers why: PAUSED, FAILED or
    CANCELLED. Of a DELETED one the files are still to be removed.
    """

    QUEUED = "queued"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DELETED = "deleted"

    @property
    def is_under_way(self) -> bool:
        """Whether it waits or runs."""
        return self in (JobState.QUEUED, JobState.RUNNING)

    @property
    def is_over(self) -> bool:
        """Whether it stays as it is, unless somebody takes it up again."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)

    @property
    def can_resume(self) -> bool:
        """Whether it can be taken up again from its last finished section."""
        return self in (JobState.STOPPED, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED)
