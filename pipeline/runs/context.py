"""What every step of one run shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.commit.layout import Layout
from pipeline.job.job import Job
from pipeline.report.recorder import RunRecorder
from pipeline.storage.store import Store


@dataclass(frozen=True)
class RunOptions:
    """What the command line adds to a job."""

    address: str | None = None
    """The Ray cluster; None starts an embedded local one."""
    allow_import: tuple[str, ...] = ()
    """Module prefixes that `model.factory` may name."""
    accepted: Mapping[str, str] = field(default_factory=dict)
    """Gate -> why its failure is accepted."""
    owns_process: bool = False
    """The process is there for this run only: signals stop it, and it may be ended."""


@dataclass(frozen=True)
class RunContext:
    """What every step of one run shares."""

    job: Job
    options: RunOptions
    store: Store
    layout: Layout
    record: RunRecorder
