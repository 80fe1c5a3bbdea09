"""Read the report that a past run stored; writes nothing."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from pipeline.commit.read import locate
from pipeline.core.errors import InfraError, JobError
from pipeline.report.document import REPORT_VERSION, Report
from pipeline.report.slowdowns import compare_with_before
from pipeline.storage.store import Store


def load_report(
    uri: str, partition: str | None, run_id: str | None, storage_options: dict[str, Any]
) -> dict[str, Any]:
    """Read a stored report.json.

    Args:
        uri: The sink's root, a partition's folder, or a report.json itself.
        partition: Which partition; None takes the latest run of all.
        run_id: Which run; None takes the latest.
        storage_options: fsspec options.

    Raises:
        JobError: There is no such report, or a newer version of the pipeline wrote it.
        InfraError: What is there is not a report.
    """
    folder, _, name = uri.rpartition("/")
    if name == "report.json":
        store, path = Store(folder or ".", storage_options), name
    else:
        store, path = _find_report(uri, partition, run_id, storage_options)
    try:
        document = json.loads(store.read_bytes(path))
        if document["version"] > REPORT_VERSION:
            raise JobError(f"{store.url(path)}: written by a newer version; upgrade this one")
        document = Report.model_validate(document, extra="ignore").model_dump(mode="json")
    except FileNotFoundError:
        raise JobError(f"{store.url(path)}: there is no such report") from None
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise InfraError(f"{store.url(path)}: not a report: {_first_line(error)}") from None
    is_known = name == "report.json" or document["slower_than_before"] is not None
    return dict(document) if is_known else compare_with_before(store, document)


def _find_report(
    uri: str, partition: str | None, run_id: str | None, storage_options: dict[str, Any]
) -> tuple[Store, str]:
    store, found = locate(uri, storage_options)
    if partition is None and found is not None and found.partition:
        partition = found.name
    prefix = f"reports/{partition}" if partition else "reports"
    paths = [
        PurePosixPath(file.path)
        for file in store.list_files(prefix)
        if file.path.endswith("/report.json")
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
