"""Offline batch inference on Ray Data: shards in, predictions out as Parquet, exactly once.

    import pipeline

    report = pipeline.run("jobs/nightly.yaml", date="2026-11-24", overrides={"model.top_k": 3})

Each function is the command of the same name: the same arguments, the same result, the same errors,
which have an `exit_code`. Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.core import errors
    from pipeline.job.job import Job
    from pipeline.operations.backfill import backfill
    from pipeline.operations.history import history
    from pipeline.operations.jobs import load_job
    from pipeline.operations.maintenance import gc, rollback
    from pipeline.operations.outputs import verify
    from pipeline.operations.plan import plan
    from pipeline.operations.retry import retry
    from pipeline.operations.run import run
    from pipeline.operations.status import status
    from pipeline.operations.stop import stop
    from pipeline.operations.tune import tune
    from pipeline.report.document import Report

__all__ = [
    "Job",
    "Report",
    "backfill",
    "errors",
    "gc",
    "history",
    "load_job",
    "plan",
    "retry",
    "rollback",
    "run",
    "status",
    "stop",
    "tune",
    "verify",
]

_HOMES = {
    "Job": "pipeline.job.job",
    "Report": "pipeline.report.document",
    "backfill": "pipeline.operations.backfill",
    "errors": "pipeline.core.errors",
    "gc": "pipeline.operations.maintenance",
    "history": "pipeline.operations.history",
    "load_job": "pipeline.operations.jobs",
    "plan": "pipeline.operations.plan",
    "retry": "pipeline.operations.retry",
    "rollback": "pipeline.operations.maintenance",
    "run": "pipeline.operations.run",
    "status": "pipeline.operations.status",
    "stop": "pipeline.operations.stop",
    "tune": "pipeline.operations.tune",
    "verify": "pipeline.operations.outputs",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    found = module if name == "errors" else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
