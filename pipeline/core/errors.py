"""Errors that a user can see, each with its exit code.

    PipelineError (1, unexpected)
    |-- JobError (2)            the command or the job file is wrong
    |   `-- JobErrors (2)       in several places
    |-- GateRefused (3)         a check refused; nothing was published
    |-- PartitionBusy (4)       another run holds the partition
    |-- PublishConflict (5)     another run published something different meanwhile
    |-- Stopped (6)             the run was asked to stop; finished slices are kept
    |-- InfraError (7)          storage or cluster trouble that running again may cure
    `-- InputMissing (8)        the input does not exist yet

Each class takes one string, so that it survives pickling between Ray's processes.
"""

from __future__ import annotations

from typing import ClassVar


class PipelineError(Exception):
    """One line: what happened, to which thing, what would be right."""

    exit_code: ClassVar[int] = 1
    report: str | None = None
    """The path of the report of the run that ended with this error, if there is one."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self._message = message

    def __str__(self) -> str:
        # Not from `args`: Ray Data appends its own advice to those of any error that a task raises.
        return self._message


class JobError(PipelineError):
    """The command line or the job file asks for something impossible."""

    exit_code = 2


class AccessDenied(JobError):
    """A file must not be read, or is archived; other files beside it may be readable."""

    @property
    def why(self) -> str:
        """Return the message without the name of the file."""
        return str(self).partition(": ")[2] or str(self)


class JobErrors(JobError):
    """Several errors of a job: a line with their number, then a line for each."""

    @property
    def lines(self) -> list[str]:
        """Return the lines: the number of errors, then each error."""
        return str(self).split("\n")


class GateRefused(PipelineError):
    """A gate refused the staged predictions; the published partition is unchanged."""

    exit_code = 3


class PartitionBusy(PipelineError):
    """Another live run holds the lease of this partition."""

    exit_code = 4


class PublishConflict(PipelineError):
    """Another run published something different while this one was working."""

    exit_code = 5


class Stopped(PipelineError):
    """The run was asked to stop; finished slices are kept, and a rerun continues from there."""

    exit_code = 6


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a caller's Python: the run has ended like one that is `Stopped`.

    Run again to continue. A KeyboardInterrupt also ends a loop that continues after errors.
    """

    exit_code = Stopped.exit_code
    report: str | None = None
    """As of `PipelineError`."""


class InfraError(PipelineError):
    """Storage or the cluster failed in a way that running again may cure."""

    exit_code = 7


class InputMissing(PipelineError):
    """The input that the job names does not exist yet; running again later may find it."""

    exit_code = 8


def find_cause(error: BaseException) -> PipelineError | None:
    """Return the first of our own errors in the chain of causes, through Ray's wrappers."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        # Ray's wrapper poses as an instance of its cause: look inside first.
        wrapped = getattr(current, "cause", None)
        if isinstance(wrapped, BaseException):
            current = wrapped
        elif isinstance(current, PipelineError):
            return current
        else:
            current = current.__cause__
    return None
