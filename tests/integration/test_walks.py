"""Documents are true: the walks of pipeline/README.md are the calls of real runs, in order."""

from __future__ import annotations

import functools
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import LABELS, Colours
from safetensors.torch import save_file
from support.inputs.photos import build_parquet
from support.models.language_models import make_writer
from support.runs.checkout import ROOT
from support.runs.cli import write_job
from support.runs.documents import DOCUMENTS

import pipeline
from pipeline.reuse import dividing

PACKAGE = ROOT / "pipeline"
Step = tuple[str, str]
"""A file of the package, and a function in it."""
_STEP = re.compile(r"\[[^]]*\]\(([\w/]+\.py)\) `([\w.]+)`")


def walk(heading: str) -> list[Step]:
    """The steps below a heading of the document."""
    text = DOCUMENTS["pipeline/README.md"].split(f"\n### {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [step for row in rows for step in _STEP.findall(row)]


@contextmanager
def calls(steps: list[Step]) -> Iterator[list[Step]]:
    """Note the first call of each step that this process makes in the body."""
    wanted = {(str(PACKAGE / path), name): (path, name) for path, name in steps}
    seen = dict[Step, None]()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            step = wanted.get((frame.f_code.co_filename, frame.f_code.co_qualname))
            if step is not None:
                seen.setdefault(step)

    order: list[Step] = []
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield order
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    order += seen


def photos(folder: Path) -> Callable[..., Any]:
    """Return what runs a nightly job over shards of photos, for a date."""
    build_parquet(folder / "in", 192, seed=5, num_shards=24, num_bad=0)
    save_file(Colours().state_dict(), folder / "weights.safetensors")
    job = write_job(
        folder / "nightly.yaml",
        {"uri": str(folder / "in"), "format": "parquet", "id_column": "id"},
        str(folder / "out"),
        model={
            "factory": "models:colours",
            "labels": LABELS,
            "weights": str(folder / "weights.safetensors"),
        },
        run={"slice_rows": 4},
    )
    return functools.partial(pipeline.run, job, allow_import=["models"])


def a_photo_of_a_nightly_run(folder: Path) -> Callable[[], Any]:
    return functools.partial(photos(folder), date="2026-11-24")


def a_text_that_a_model_writes(folder: Path) -> Callable[[], Any]:
    (folder / "in").mkdir()
    rows = pa.table({"id": ["a", "b"], "text": ["the cat sat", "a dog"]})
    pq.write_table(rows, folder / "in" / "texts.parquet")
    source = {"uri": str(folder / "in"), "format": "parquet", "text_column": "text"}
    job = write_job(
        folder / "write.yaml",
        {**source, "id_column": "id"},
        str(folder / "out"),
        model={"path": str(make_writer(folder / "model")), "task": "generate"},
        transform=None,
        sink={"partition": None},
    )
    return functools.partial(pipeline.run, job)


def a_carried_row_of_the_second_night(folder: Path) -> Callable[[], Any]:
    run = photos(folder)
    late = folder / "in" / "shard-00023.parquet"
    late.rename(folder / "late.parquet")
    run(date="2026-11-24")
    (folder / "late.parquet").rename(late)
    return functools.partial(run, date="2026-11-25")


WALKS = (
    a_photo_of_a_nightly_run,
    pytest.param(a_text_that_a_model_writes, marks=pytest.mark.slow),
    a_carried_row_of_the_second_night,
)


@pytest.mark.usefixtures("without_ray_here")
@pytest.mark.parametrize("prepare", WALKS, ids=lambda prepare: prepare.__name__)
def test_a_walk_is_the_way_of_a_row_in_a_real_run(
    prepare: Callable[[Path], Callable[[], Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dividing, "_MOST_ROWS", 8)  # in few rows, too, some slices are all known
    run = prepare(tmp_path)
    steps = walk(prepare.__name__.replace("_", " ").capitalize())
    assert len(steps) >= 10
    with calls(steps) as order:
        run()
    assert order == steps
