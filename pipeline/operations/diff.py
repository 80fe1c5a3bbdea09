"""`pipeline diff`: compare two published versions row by row."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.layout import Layout, earlier_names
from pipeline.commit.manifest import current_manifest
from pipeline.core.errors import JobError
from pipeline.core.output_folders import CONTROL
from pipeline.core.printable import clean_message
from pipeline.core.schema import LABEL
from pipeline.published.describe import write_page
from pipeline.published.diff.comparing import Difference, Mover, WriteRows, compare_versions
from pipeline.published.diff.joining import Version
from pipeline.published.output import Partition, open_output
from pipeline.report.render import page_html
from pipeline.report.showing.printed import Printed, document_html

if TYPE_CHECKING:
    import pandas as pd

_KEPT = 100
_NUMBERED = re.compile(r"(?P<url>.+)@(?P<number>\d+)")
Place = str | os.PathLike[str] | Partition


@dataclass(frozen=True, repr=False)
class Diff(Printed):
    """The differences of two versions; it prints as a summary."""

    difference: Difference

    @property
    def summary(self) -> str:
        """The result in one line."""
        return self.difference.verdict

    @property
    def changed_pct(self) -> float:
        """Percentage of common rows in which a column differs."""
        return self.difference.changed_pct

    @property
    def differing_pct(self) -> float:
        """Percentage of all rows that changed, came or went."""
        return self.difference.differing_pct

    @property
    def flips(self) -> list[tuple[str, str, int]]:
        """Label before, label now, and the number of rows that changed from one to the other."""
        return self.difference.flips(LABEL) if LABEL in self.difference.columns else []

    @property
    def confusion(self) -> pd.DataFrame:
        """The flips as a table: labels before as rows, labels now as columns."""
        import pandas as pd

        rows = pd.DataFrame(self.flips, columns=["before", "now", "rows"])
        return rows.pivot_table("rows", "before", "now", "sum", fill_value=0)

    def movers(self, n: int = 24) -> list[Mover]:
        """Return the rows that differ most, at most 100: id, values before, values now."""
        return list(self.difference.largest[:n])

    def to_dict(self) -> dict[str, Any]:
        """Return the form of `--json`; long lists are cut."""
        return self.difference.to_dict()

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one page that loads nothing, with all values escaped.

        Args:
            path: A local file.

        Raises:
            JobError: It cannot be written.
        """
        write_page(page_html(self.summary, self._pieces()), Path(path))

    def shown(self) -> dict[str, Any]:
        """Return the part that fits a terminal."""
        document = self.to_dict()
        columns = document.pop("columns")
        document["columns"] = [
            {"column": name, **figures}
            for name, figures in columns.items()
            if figures["differing_rows"]
        ]
        flips = document.pop("flips")
        document["flips"] = [
            {"column": name, "before": before, "now": now, "rows": rows}
            for name, pairs in flips.items()
            for before, now, rows in pairs[:10]
        ]
        scores = document.pop("label_scores")
        document["label_scores"] = [
            {"label": name, **means}
            for name, means in scores.items()
            if means["mean_before"] != means["mean_now"]
        ][:10]
        document["movers"] = [
            {"row_id": m.row_id, "before": _short(m.before), "now": _short(m.now)}
            for m in self.movers(10)
        ]
        return document

    def _pieces(self) -> Iterator[str]:
        shown = self.shown()
        del shown["verdict"]
        return document_html("versions", shown)

    def __repr__(self) -> str:
        return self.summary

    def _repr_html_(self) -> str:
        """Return the verdict, and the rest as tables, for a notebook."""
        return f"<p><b>{escape(clean_message(self.summary))}</b></p>{''.join(self._pieces())}"


def diff(
    before: Place,
    now: Place | None = None,
    *,
    rows_to: str | os.PathLike[str] | None = None,
    tolerance: float = 0.001,
    storage_options: Mapping[str, Any] | None = None,
) -> Diff:
    """Compare two published versions row by row, by row id; files that both share are not read.

    The location of a row (`uri`) is not compared, since each date may have its own folder.

    Args:
        before: Root of the output (its latest partition), or folder of a partition, either with
            `@3` for version 3; or a partition of `open_output`.
        now: The version to compare with; None: compare `before` with what was published before
            it, which is the previous partition by date or number, or else its previous version.
        rows_to: A local Parquet file for the rows that differ: `row_id`, `change` and `size`.
        tolerance: Numbers differ if they are further apart: absolute up to 1, relative above.
            Vectors differ if their cosine similarity is lower than 1 by more than this.
        storage_options: fsspec options of both outputs.

    Raises:
        JobError: There is no such version, or row ids are not unique.
        InfraError: A part is missing, also from the history, or a store failed.
    """
    if not 0 <= tolerance < 1:
        raise JobError(f"tolerance {tolerance}: it must be at least 0 and below 1")
    options = dict(storage_options or {})
    first = _partition_at(before, options)
    sides = (_before(first), first) if now is None else (first, _partition_at(now, options))
    versions = [Version(side.store, side.layout, side.manifest) for side in sides]
    with _writer(rows_to) as write_rows:
        difference = compare_versions(
            *versions, tolerance=tolerance, num_movers=_KEPT, write_rows=write_rows
        )
    return Diff(difference)


def _partition_at(place: Place, options: Mapping[str, Any]) -> Partition:
    if isinstance(place, Partition):
        return place
    is_path = isinstance(place, str | os.PathLike)
    numbered = _NUMBERED.fullmatch(os.fspath(place)) if is_path else None
    url = numbered["url"] if numbered else place
    partition = open_output(url, storage_options=options).latest
    return partition.version(int(numbered["number"])) if numbered else partition


def _before(now: Partition) -> Partition:
    """Return the previous partition, or else the previous version."""
    for name in earlier_names(now.name, now.store.list_folders(CONTROL)):
        if (manifest := current_manifest(now.store, Layout(name))) is not None:
            return replace(now, layout=Layout(name), manifest=manifest)
    numbers = [number for number in now.versions if number < now.number]
    if not numbers:
        where = f"{now.store.url('')}: partition {now.name}, version {now.number}"
        raise JobError(f"{where}: nothing was published before it; give a second version")
    return now.version(numbers[-1])


@contextmanager
def _writer(path: str | os.PathLike[str] | None) -> Iterator[WriteRows | None]:
    """Yield a function that appends rows to a Parquet file, which appears when it is complete."""
    if path is None:
        yield None
        return
    target = Path(path)
    if target.is_dir():
        raise JobError(f"{target} is a folder; give a file")
    draft = target.with_name(f".{target.name}.part")
    schema = pa.schema([("row_id", pa.string()), ("change", pa.string()), ("size", pa.float64())])
    try:
        writer = pq.ParquetWriter(draft, schema, compression="zstd")
    except OSError as error:
        raise JobError(f"{target}: cannot be written: {error.strerror or error}") from error
    try:
        with writer:
            yield partial(_append, writer, schema)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _append(writer: pq.ParquetWriter, schema: pa.Schema, rows: pa.Table) -> None:
    writer.write_table(rows.cast(schema))


def _short(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_brief(value)}" for name, value in values.items())


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return f"({len(value)})"
    return str(value)
