"""Show everything on real photos and texts: build shards with bad rows, run all jobs, print.

The jobs are those of jobs/classify_images.yaml, classify_parquet.yaml and embed_texts.yaml, which
an installed package has not got. Without the model of the texts these are left out. Building again
gives the same files, so a second demo has nothing to do.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path, PurePosixPath
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.commands.demo.photos import Built, build_images, build_parquet
from pipeline.commands.demo.texts import MODEL, build_texts, find_model, how_to_get, nearest
from pipeline.commands.options import progress_on_terminal
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.published.read import read_part
from pipeline.core.errors import InfraError
from pipeline.core.printable import printable
from pipeline.core.schema import EMBEDDING, LABEL, MESSAGE, ROW_ID, SCORE
from pipeline.execution.cluster.sharing import share_ray
from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.operations.run import run
from pipeline.process.screen import show_rendered
from pipeline.sources.image_files import ImageFiles
from pipeline.sources.parquet.format import Parquet
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.report.document import Report

# One row in four is an image file; the others lie in shards.
_ROWS_PER_FILE = 4
_NUM_SHARDS = 4
TEXTS = "texts"
_IMAGES_SEED, _PARQUET_SEED = 1, 2
# So few rows would otherwise be a single slice, and one actor's alone: 32 images are a batch; texts
# of like length are looked for among those of a slice.
_SLICE_ROWS = {TEXTS: 160}
# At most 5 % from 100 rows on, or the gates refuse; every reason if there are enough rows.
_ROWS_PER_BAD_FILE, _MAX_BAD_FILES = 16, 5
_ROWS_PER_BAD_CELL, _MAX_BAD_CELLS = 20, 6
_PREDICTIONS_SHOWN = 6


@dataclass(frozen=True)
class _Done:
    """One job of the demo after its run."""

    name: str
    output: Path
    report: Report
    store: Store
    manifest: Manifest

    def read(self, *, quarantined: bool, columns: Sequence[str]) -> list[dict[str, Any]]:
        parts = self.manifest.quarantine_parts if quarantined else self.manifest.parts
        rows: list[dict[str, Any]] = []
        for part in parts:
            rows += read_part(self.store, part, columns).to_pylist()
        return rows

    @property
    def report_path(self) -> str:
        """Where the report lies of the run that published what is there now."""
        layout = Layout(None)
        return str(self.output / layout.report(self.manifest.run_id, "report.html"))

    def summary(self) -> dict[str, Any]:
        return {
            "status": self.report.status,
            "rows": self.manifest.num_rows,
            "predicted": self.manifest.num_predicted,
            "quarantined": self.manifest.num_quarantined,
            "rows_per_s": self.report.rows_per_s,
        }


def run_demo(folder: Path, rows: int, *, quiet: bool) -> dict[str, Any]:
    """Classify photos twice (as files, as Parquet), embed texts, and show all of it.

    Args:
        folder: Gets `input/` and `output/`, with `images`, `parquet` and `texts`, and `models/`.
        rows: How many photos, a quarter of which become image files; and how many texts.
        quiet: Print nothing and draw no progress.

    Returns:
        The figures of all jobs, some predictions, the texts nearest to some queries, the whole
        quarantine, the reports.

    Raises:
        JobError: The demo packages are missing, or the folder holds other files.
        PipelineError: As `run_job` does.
    """
    started = perf_counter()
    build_demo(folder, rows)
    texts = build_texts(folder / "input" / TEXTS, rows) if find_model(folder) else None
    names = [ImageFiles.name, Parquet.name, *([] if texts is None else [TEXTS])]
    with share_ray():
        done = [_run(name, folder, quiet=quiet) for name in names]
    document = {
        **{one.name: one.summary() for one in done},
        "predictions": _choose_predictions([one for one in done if one.name != TEXTS]),
        **(_left_out(folder) if texts is None else {"nearest": _nearest(done[-1], texts)}),
        "quarantine": _read_quarantine(done),
        "reports": [one.report_path for one in done],
        "seconds": round(perf_counter() - started, 1),
    }
    if not quiet:
        _print(done, document)
    return document


def build_demo(folder: Path, rows: int) -> tuple[Built, Built]:
    """Write the inputs of both jobs; return what was built, image files first."""
    num_files = rows // _ROWS_PER_FILE
    num_cells = rows - num_files
    return (
        build_images(
            folder / "input" / ImageFiles.name,
            num_files,
            seed=_IMAGES_SEED,
            num_bad=_num_bad(num_files, _ROWS_PER_BAD_FILE, _MAX_BAD_FILES),
        ),
        build_parquet(
            folder / "input" / Parquet.name,
            num_cells,
            seed=_PARQUET_SEED,
            num_shards=_NUM_SHARDS,
            num_bad=_num_bad(num_cells, _ROWS_PER_BAD_CELL, _MAX_BAD_CELLS),
        ),
    )


def _num_bad(num_rows: int, rows_per_bad: int, most: int) -> int:
    return min(most, max(1, num_rows // rows_per_bad))


def demo_job(name: str, folder: Path) -> Job:
    """Return the job `images`, `parquet` or `texts` of the demo."""
    source: dict[str, Any] = {"uri": str(folder / "input" / name), "format": name}
    model: dict[str, Any] = {"name": "efficientnet-lite0"}
    if name == TEXTS:
        source |= {"format": Parquet.name, "text_column": "text", "id_column": "id"}
        model = {"path": str(folder / MODEL)}
    if name == Parquet.name:
        source["id_column"] = "id"
        source["pass_through"] = ["taken_at", "camera", "width", "height"]
    document = {
        "source": source,
        "model": model,
        "sink": {"uri": str(folder / "output" / name)},
        "run": {"slice_rows": _SLICE_ROWS.get(name, 32)},
    }
    return parse_job(document, date=dt.datetime.now(dt.UTC).date(), origin=f"demo {name}")


def _run(name: str, folder: Path, *, quiet: bool) -> _Done:
    job = demo_job(name, folder)
    with progress_on_terminal(quiet=quiet) as progress:
        report = run(job, progress=progress)
    store = Store(job.sink.uri)
    manifest = current_manifest(store, Layout(None))
    if manifest is None:
        raise InfraError(f"{store.url('')}: the published version is gone again")
    return _Done(name, folder / "output" / name, report, store, manifest)


def _choose_predictions(done: Sequence[_Done]) -> list[dict[str, Any]]:
    """Choose predictions of different subjects, taking turns between the jobs."""
    columns = [ROW_ID, LABEL, SCORE]
    streams = [iter(one.read(quarantined=False, columns=columns)) for one in done]
    chosen: dict[str, dict[str, Any]] = {}
    for stream in islice(cycle(streams), _PREDICTIONS_SHOWN):
        row = next((row for row in stream if _subject(row[ROW_ID]) not in chosen), None)
        if row is not None:
            chosen[_subject(row[ROW_ID])] = {**row, SCORE: round(row[SCORE], 4)}
    return list(chosen.values())


def _subject(row_id: str) -> str:
    return PurePosixPath(row_id).name.partition("-")[0]


def _left_out(folder: Path) -> dict[str, Any]:
    return {TEXTS: {"status": "left_out", "hint": how_to_get(folder)}}


def _nearest(done: _Done, texts: dict[str, str]) -> dict[str, Any]:
    rows = done.read(quarantined=False, columns=[ROW_ID, EMBEDDING])
    vectors = np.array([row[EMBEDDING] for row in rows], np.float32)
    return nearest([row[ROW_ID] for row in rows], vectors, texts)


def _read_quarantine(done: Sequence[_Done]) -> list[dict[str, Any]]:
    columns = [ROW_ID, "reason", MESSAGE]
    return [row for one in done for row in one.read(quarantined=True, columns=columns)]


def _print(done: Sequence[_Done], document: dict[str, Any]) -> None:
    for part in _parts(done, document):
        show_rendered(part)
    places = [
        *(str(one.output / "predictions") for one in done),
        *(str(one.output / "quarantine") for one in done),
        *document["reports"],
    ]
    for place in places:
        sys.stdout.write(f"  {printable(place)}\n")  # a folded path cannot be copied


def _parts(done: Sequence[_Done], document: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    from pipeline.report.showing.document_table import render_document
    from pipeline.report.showing.render import render_table

    for one in done:
        yield Text(f"\n{one.name}", style="bold")
        yield render_table(one.report.but(output={}))  # all places stand at the end
    if all(one.report.status == "nothing_to_do" for one in done):
        yield Text("\nEverything had been published before: there was nothing to do.")
    yield render_document(
        {
            "some predictions": document["predictions"],
            "nearest texts": document.get("nearest"),
            "quarantine": document["quarantine"],
        }
    )
    if "hint" in document[TEXTS]:
        yield Text(f"\n{document[TEXTS]['hint']}")
    yield Text(f"\noutputs, after {document['seconds']} s", style="bold")
