"""Jobs inside budgets, each in a process of its own: context and allocator begin anew."""

import json
from collections.abc import Mapping

from ..meters.fresh_process import ProcessError, run_module
from ..records.rows import Basis
from .point import MemoryJob, Outcome, as_dict

# The system's answer to a process that takes too much, as on Linux.
_SIGKILL = 9


def run_in_process(job: MemoryJob, environment: Mapping[str, str] | None = None) -> Outcome:
    """What the probe finds out about ``job`` with ``environment`` beyond that of this process.

    Raises:
        ProcessError: it failed for another reason than lack of memory, or was killed.
    """
    return Outcome.from_dict(
        run_module("budgets.memory_probe", json.dumps(as_dict(job)), environment=environment)
    )


class ProcessRunner:
    """Runs every job in a fresh process.

    Attributes:
        basis: of what is found.
    """

    def __init__(self, *, is_emulated: bool) -> None:
        self.basis: Basis = "emulated" if is_emulated else "measured"

    def run(self, job: MemoryJob) -> Outcome:
        """Run a short job; one that the system kills had too little memory.

        Raises:
            ProcessError: it failed for another reason, which says nothing about a ceiling.
        """
        try:
            return run_in_process(job)
        except ProcessError as error:
            if error.signal == _SIGKILL:
                return Outcome(status="out of memory", text="killed by the system")
            raise
