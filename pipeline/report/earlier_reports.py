"""Reports of earlier runs: load them, find a comparable one, name the stages that became slower.

Only the newest reports are read; nothing is written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from pipeline.commit.layout import REPORT, Layout, partition_order
from pipeline.commit.manifest import locate
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.output_folders import REPORTS
from pipeline.job.model import AUTO
from pipeline.report.document import REPORT_VERSION, Report
from pipeline.report.sections.model import ModelSection
from pipeline.report.sections.stages import slower_than_before
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

MIN_ROWS = 100
"""A run that computed fewer rows has no meaningful speed."""
_ENDED = (("published", 0), ("refused", 3))
_MAY_BE_OPEN = ("runtime", "precision", "batch_size", "batch_tokens")
_NEWEST_PARTITIONS = 16
_NEWEST_RUNS = 16
"""In all partitions together."""


def is_basis(wanted: ModelSection, report: Report, *, is_finished: bool = True) -> bool:
    """Tell whether a run did the same work per row, and computed enough rows to have a speed.

    Args:
        wanted: Model and batches; `auto` or None for runtime, precision or batches matches any.
        report: The report of the run.
        is_finished: Require that the run was not stopped and did not fail.
    """
    if is_finished and (report.status, report.exit_code) not in _ENDED:
        return False
    has_few = (report.rows.computed or 0) < MIN_ROWS or not report.rows_per_s
    if has_few or report.status == "nothing_to_do":
        return False
    used = report.model
    return (wanted.name, wanted.weights_sha256) == (used.name, used.weights_sha256) and all(
        getattr(wanted, name) in (None, AUTO, getattr(used, name)) for name in _MAY_BE_OPEN
    )


def find_past_run(
    store: Store, partition: str, is_wanted: Callable[[Report], bool]
) -> Report | None:
    """Return the newest report, of any partition, that `is_wanted` accepts; None if there is none.

    Args:
        partition: Is searched even if its name is not among the last ones.
    """
    return next(filter(is_wanted, _newest_reports(store, partition)), None)


def _newest_reports(store: Store, partition: str) -> Iterator[Report]:
    """Yield the newest reports, newest first.

    The last partitions by date or number count as the newest; run ids sort by time.
    """
    names = sorted(store.list_folders(REPORTS), key=partition_order)
    looked_at = {*names[-_NEWEST_PARTITIONS:], *({partition} & {*names})}
    folders = [Layout.named(name).reports for name in looked_at]
    with ThreadPoolExecutor(max(1, len(folders))) as pool:
        listed = [*pool.map(store.list_folders, folders)]
    runs = [(run, name) for name, run_ids in zip(looked_at, listed, strict=True) for run in run_ids]
    newest = sorted(runs, reverse=True)[:_NEWEST_RUNS]
    yield from _read(store, [Layout.named(name).report(run) for run, name in newest])


def past_reports(store: Store, report: Report) -> list[Report]:
    """Return the newest reports of earlier runs; none, with a warning, if the store fails."""
    try:
        reports = [*_newest_reports(store, report.partition)]
    except PipelineError as error:
        log.warning("not compared with earlier runs: %s", error)
        return []
    return [past for past in reports if past.run_id < report.run_id]


def _read(store: Store, paths: Sequence[str]) -> Iterator[Report]:
    contents = store.read_many(paths)
    for path in paths:
        data = contents[path]
        if isinstance(data, bytes):  # a run that was killed left no report
            try:
                yield Report.model_validate_json(data, extra="ignore")
            except ValidationError:
                continue  # another version wrote it


def compare_with_before(past: Iterable[Report], report: Report) -> Report:
    """Return the report with `slower_than_before`, or as it is if no earlier run is comparable.

    Args:
        past: Reports of earlier runs, newest first.
    """
    had = (report.hardware, report.decode_in)
    if not is_basis(report.model, report):
        return report
    alike = (run for run in past if is_basis(report.model, run))
    previous = next((run for run in alike if (run.hardware, run.decode_in) == had), None)
    if previous is None:
        return report
    return report.but(slower_than_before=slower_than_before(report, previous))


def load_report(
    uri: str, partition: str | None, run_id: str | None, storage_options: dict[str, Any]
) -> Report:
    """Read a stored report.json.

    Args:
        uri: The sink's root, a partition's folder, or a report.json.
        partition: None takes the latest run of all partitions.
        run_id: None takes the latest run.

    Raises:
        JobError: There is no such report, or a newer version of the pipeline wrote it.
        InfraError: The file is not a report.
    """
    folder, _, name = uri.rpartition("/")
    if name == REPORT:
        store, path = Store(folder or ".", storage_options), name
    else:
        store, path = _find_report(uri, partition, run_id, storage_options)
    try:
        document = json.loads(store.read_bytes(path))
        if document["version"] > REPORT_VERSION:
            raise JobError(f"{store.url(path)}: written by a newer version; upgrade this one")
        report = Report.model_validate(document, extra="ignore")
    except FileNotFoundError:
        raise JobError(f"{store.url(path)}: there is no such report") from None
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise InfraError(f"{store.url(path)}: not a report: {_first_line(error)}") from None
    is_known = name == REPORT or report.slower_than_before is not None
    return report if is_known else compare_with_before(past_reports(store, report), report)


def _find_report(
    uri: str, partition: str | None, run_id: str | None, storage_options: dict[str, Any]
) -> tuple[Store, str]:
    store, uri_layout = locate(uri, storage_options)
    if partition is None and uri_layout is not None and uri_layout.partition:
        partition = uri_layout.name
    prefix = Layout.named(partition).reports if partition else REPORTS
    paths = [
        PurePosixPath(file.path)
        for file in store.list_files(prefix)
        if file.path.endswith(f"/{REPORT}")
    ]
    wanted = [path for path in paths if run_id in (None, path.parent.name)]
    if not wanted:
        what = f"of run {run_id}" if run_id else "of any run"
        raise JobError(f"{store.url(prefix)}: no report {what}; it has {len(paths)} reports")
    return store, str(max(wanted, key=lambda path: path.parent.name))


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
