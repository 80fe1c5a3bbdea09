"""`pipeline predict`: make a job of an input and a model, and run it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from shlex import quote
from typing import TYPE_CHECKING

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import list_partitions, require_one_key
from pipeline.core.errors import JobError
from pipeline.job.reading.loader import Overrides
from pipeline.job.reading.yaml_reader import parse
from pipeline.operations.draft import MARK, draft_job
from pipeline.operations.rows import stored_rows
from pipeline.operations.run import run
from pipeline.report.document import Report
from pipeline.runs.preparing.sink_below_source import require_disjoint
from pipeline.runs.progress import Progress, Silent, shown_on
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pipeline.operations.rows import Rows

log = logging.getLogger(__name__)

JOB_FILE = "job.yaml"


def predict(
    input: Rows,
    *,
    model: str | os.PathLike[str],
    to: str | os.PathLike[str],
    features: Sequence[str] = (),
    overrides: Overrides = (),
    address: str | None = None,
    allow_import: Sequence[str] = (),
    progress: Progress | None = None,
    owns_process: bool = False,
) -> Report:
    """Predict all rows of an input; the format, columns, row id and task are detected.

    The job is written beside the output, as `job.yaml`, which can be edited and run by
    `pipeline run`.

    Args:
        input: A folder, a file or a glob; or rows in memory: a table of pyarrow, a DataFrame of
            pandas without its index, or a list of texts. Those are written once, as Parquet, into
            the folder `input` of the output.
        model: A model directory or an .onnx file, the name of an installed model, or a factory.
        to: Root of the output.
        features: The model's numeric columns, in order, unless the model names them.
        overrides: Fields that override those that were detected.
        address: The Ray cluster; None starts a local Ray.
        allow_import: Prefixes of the modules that the job may name.
        progress: As for `run`. What was detected is logged, unless it is `Silent`.
        owns_process: As for `run`.

    Raises:
        JobError: Something is ambiguous (one line has the choices), or another job is there.
        PipelineError: As for `run`.
    """
    with shown_on(progress) as shown:
        uri = stored_rows(input, to)
        shown.phase(f"looking at {os.fspath(uri)}", is_logged=False)
        draft = draft_job(uri, model, to, overrides, allow_import, features)
        store = Store(os.fspath(to), draft.job.sink.storage_options)
        require_disjoint(draft.job.source, store)
        require_one_key(store, Layout(draft.job.sink.partition))
        _write(store, draft.text)
        where = store.url(JOB_FILE)
        level = logging.DEBUG if isinstance(progress, Silent) else logging.INFO
        for line in (*draft.notes, f"job: {where}; the next run is `pipeline run {quote(where)}`"):
            log.log(level, "%s", line)
        return run(
            draft.job,
            address=address,
            allow_import=allow_import,
            progress=shown,
            owns_process=owns_process,
        )


def _write(store: Store, text: str) -> None:
    """Write the job file; replace only one of a `predict` that has published nothing.

    Raises:
        JobError: There is another job.
    """
    where = store.url(JOB_FILE)
    try:
        before = store.read_bytes(JOB_FILE)
    except FileNotFoundError:
        store.put(JOB_FILE, text.encode())
        return
    if _is_same(before, text):
        return
    if not before.startswith(MARK.encode()) or list_partitions(store):
        raise JobError(
            f"{where} already holds another job; run it by `pipeline run {quote(where)}`, or pass "
            "a different --to (in Python to=)"
        )
    log.info("%s: replaces the job of a predict that published nothing", where)
    store.put(JOB_FILE, text.encode())


def _is_same(before: bytes, text: str) -> bool:
    """Tell whether two job files have the same fields; their comments may differ."""
    try:
        return bool(parse(before.decode()).value == parse(text).value)
    except ValueError:  # it was edited, and is no longer YAML
        return False
