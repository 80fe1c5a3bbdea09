"""The context of one run, which all of its steps share."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property

from pipeline.commit.layout import Layout, new_run_id
from pipeline.commit.lease import Lease, hold_lease
from pipeline.commit.sink_table import AnyTable
from pipeline.commit.tables import table_of
from pipeline.gates.golden import GoldenRows
from pipeline.job.job import Job
from pipeline.job.reading.dates import seconds_until
from pipeline.models.spec import ModelSpec
from pipeline.planning.allocation import Allocation
from pipeline.planning.plan import Plan
from pipeline.report.recorder import RunRecorder
from pipeline.report.so_far import SoFar
from pipeline.reuse.dividing import Known
from pipeline.runs.exports import Exports
from pipeline.runs.preparing.settled_source import settled_source
from pipeline.runs.preparing.sink_below_source import require_disjoint
from pipeline.storage.store import Store


@dataclass(frozen=True)
class RunOptions:
    """The options of the command line, beside the job."""

    address: str | None = None
    """The Ray cluster; None starts an embedded local one."""
    allow_import: tuple[str, ...] = ()
    """Module prefixes that `model.factory` may name."""
    accepted: Mapping[str, str] = field(default_factory=dict)
    """Gate -> why its failure is accepted."""
    owns_process: bool = False
    """The process exists for this run only: signals stop it, and it may be ended."""
    reuse: bool = True
    """Rows are carried over as `run.reuse` says."""
    job_name: str | None = None
    """The name of the job file, without its ending."""
    retried: frozenset[str] | None = None
    """For a retry: the reasons of the published quarantine whose rows are computed again."""


@dataclass(frozen=True)
class RunContext:
    """The job of a run, its options, its output and its record."""

    job: Job
    options: RunOptions
    store: Store
    layout: Layout
    record: RunRecorder
    exports: Exports = field(default_factory=Exports)

    @classmethod
    def of(cls, job: Job, options: RunOptions) -> RunContext:
        """Return the context of a new run of a job; starts nothing, writes nothing.

        Raises:
            JobError: As `require_disjoint`, before a file is written below the sink.
        """
        layout = Layout(job.sink.partition)
        record = RunRecorder(new_run_id(dt.datetime.now(dt.UTC)), layout.name)
        store = Store(job.sink.uri, job.sink.storage_options)
        require_disjoint(job.source, store)
        return cls(job, options, store, layout, record)

    def with_settled_source(self) -> RunContext:
        """Return the run with the columns of its source settled by files and the model.

        Raises:
            JobError: As `settled_source`.
        """
        source = settled_source(self.job)
        return replace(self, job=self.job.model_copy(update={"source": source}))

    @property
    def deadline_at_s(self) -> float | None:
        """Return when the run stops, seconds since 1970; None if the job has no deadline."""
        deadline, started_at = self.job.run.deadline, self.record.started_at
        return started_at.timestamp() + seconds_until(deadline, started_at) if deadline else None

    def held(self) -> AbstractContextManager[Lease]:
        """Hold the partition's lease for the body, with the progress of the run in its heartbeat.

        Raises:
            PartitionBusy: A live run holds it.
        """
        tell = SoFar(self.record, self.options.job_name, self.job.run.price_of)
        ttl_s = self.job.run.lease_ttl_s
        return hold_lease(self.store, self.layout, self.record.run_id, ttl_s, tell)

    @cached_property
    def table(self) -> AnyTable | None:
        """Return the table that also names the published parts; None if the job has none."""
        return table_of(self.job.sink, self.store)


@dataclass(frozen=True)
class Settled:
    """A plan with everything that is decided once the cluster is known."""

    plan: Plan
    """With the choice in its model; the fingerprint stays."""
    model: ModelSpec
    """With the chosen runtime and precision."""
    allocation: Allocation
    golden: GoldenRows | None = None
    known: Known | None = None
    """The rows that earlier versions know, and how rows are hashed; None if neither is used."""
