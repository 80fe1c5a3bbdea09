"""Find what earlier runs into the same output reported, without reading all there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from pipeline.commit.layout import WHOLE_OUTPUT, Layout
from pipeline.job.job import AUTO
from pipeline.report.document import Report
from pipeline.storage.store import Store

MIN_ROWS = 100
"""A run that computed fewer says nothing about its speed."""
_ENDED = (("published", 0), ("refused", 3))
_NEWEST_PARTITIONS = 16
_NEWEST_RUNS = 16


@dataclass(frozen=True)
class Recipe:
    """What makes two runs do the same work for a row."""

    name: str | None
    weights_sha256: str | None
    runtime: str | None
    """`auto`: any."""
    precision: str | None
    """`auto`: any."""
    batch_size: int | None

    @classmethod
    def of(cls, report: Report) -> Recipe:
        """Return what a run used."""
        model = report.model
        return cls(
            model.name, model.weights_sha256, model.runtime, model.precision, model.batch_size
        )

    def fits(self, report: Report) -> bool:
        """Tell whether a run did what this asks for, and ended so that its speed counts."""
        return (report.status, report.exit_code) in _ENDED and self.fits_unfinished(report)

    def fits_unfinished(self, report: Report) -> bool:
        """Tell whether a run did what this asks for, for enough rows, however it ended."""
        if (
            report.status == "nothing_to_do"
            or (report.rows.computed or 0) < MIN_ROWS
            or not report.rows_per_s
        ):
            return False
        used = Recipe.of(report)
        return (
            (self.name, self.weights_sha256, self.batch_size)
            == (used.name, used.weights_sha256, used.batch_size)
            and self.runtime in (AUTO, used.runtime)
            and self.precision in (AUTO, used.precision)
        )


def find_past_run(
    store: Store, partition: str, is_wanted: Callable[[Report], bool]
) -> Report | None:
    """Return the newest report that is wanted, of any partition; None where none is.

    Args:
        store: The output.
        partition: Looked at even if its name is not among the last ones.
        is_wanted: Judges a report.
    """
    return next(filter(is_wanted, _newest_reports(store, partition)), None)


def _newest_reports(store: Store, partition: str) -> Iterator[Report]:
    """Yield the newest reports, newest first: few names are listed, fewer reports are read.

    Partitions are dates as a rule, so the last by name are the newest; run ids sort by time.
    """
    names = store.list_folders("reports")
    looked_at = {*names[-_NEWEST_PARTITIONS:], *({partition} & {*names})}
    runs = [(run, name) for name in looked_at for run in store.list_folders(f"reports/{name}")]
    newest = sorted(runs, reverse=True)[:_NEWEST_RUNS]
    paths = [
        Layout(None if name == WHOLE_OUTPUT else name).report(run, "report.json")
        for run, name in newest
    ]
    found = store.read_many(paths)
    for path in paths:
        data = found[path]
        if isinstance(data, bytes):  # a run that was killed has left none
            try:
                yield Report.model_validate_json(data, extra="ignore")
            except ValidationError:
                continue  # another version wrote it
