"""Offline batch inference on Ray Data: shards in, predictions out as Parquet, exactly once.

    import pipeline

    report = pipeline.run("jobs/nightly.yaml", date="2026-11-24", overrides={"model.top_k": 3})
    night = pipeline.open_output("s3://lake/labels")["2026-11-24"]
    night.predictions(["row_id", "label", "score"]).to_pandas()

`predict`, `run`, `plan`, `tune`, `backfill`, `status`, `stop`, `diff`, `verify`, `retry`, `gc` and
`rollback` correspond to the commands of these names. They raise the exceptions of `errors`, whose
`exit_code` is that of the command. A job is the path of a job file, a mapping of its sections, or
the `Job` that `load_job` returns. A run returns a `Report`, and `diff` a `Diff`. `open_output`
returns an `Output`; `output["2026-11-24"]` and `output.latest` are each a `Partition`, with its
rows, images and texts. All results print as a summary, and notebooks show them as tables. `python
-m pydoc pipeline.predict` shows the arguments and errors of a function.

Heavy modules are imported only when a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline import errors
    from pipeline.job.job import Job
    from pipeline.operations.arguments import load_job
    from pipeline.operations.backfill import backfill
    from pipeline.operations.diff import Diff, diff
    from pipeline.operations.gc import gc
    from pipeline.operations.plan import plan
    from pipeline.operations.predict import predict
    from pipeline.operations.retry import retry
    from pipeline.operations.rollback import rollback
    from pipeline.operations.run import run
    from pipeline.operations.status import status
    from pipeline.operations.stop import stop
    from pipeline.operations.tune import tune
    from pipeline.operations.verify import verify
    from pipeline.published.output import Output, Partition, open_output
    from pipeline.report.document import Report

__all__ = [
    "Diff",
    "Job",
    "Output",
    "Partition",
    "Report",
    "backfill",
    "diff",
    "errors",
    "gc",
    "load_job",
    "open_output",
    "plan",
    "predict",
    "retry",
    "rollback",
    "run",
    "status",
    "stop",
    "tune",
    "verify",
]

_HOMES = {
    "Diff": "pipeline.operations.diff",
    "Job": "pipeline.job.job",
    "Output": "pipeline.published.output",
    "Partition": "pipeline.published.output",
    "Report": "pipeline.report.document",
    "backfill": "pipeline.operations.backfill",
    "diff": "pipeline.operations.diff",
    "errors": "pipeline.errors",
    "gc": "pipeline.operations.gc",
    "load_job": "pipeline.operations.arguments",
    "open_output": "pipeline.published.output",
    "plan": "pipeline.operations.plan",
    "predict": "pipeline.operations.predict",
    "retry": "pipeline.operations.retry",
    "rollback": "pipeline.operations.rollback",
    "run": "pipeline.operations.run",
    "status": "pipeline.operations.status",
    "stop": "pipeline.operations.stop",
    "tune": "pipeline.operations.tune",
    "verify": "pipeline.operations.verify",
}


def __getattr__(name: str) -> Any:
    """Import an exported name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    value = module if name == "errors" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
