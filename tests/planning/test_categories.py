"""The categories of a feature, from the job or from a file, are part of the fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs.plan_examples import SPEC

from pipeline.job.reading.loader import parse_job
from pipeline.planning.plan import Plan, make_plan
from pipeline.runs.staleness import what_changed
from pipeline.sources.features.categories import with_categories
from pipeline.sources.inputs import list_inputs

FEATURE = {"column": "kind", "unknown": "own"}
CHANGES: dict[str, tuple[str, ...]] = {
    "one more": ("cat", "dog", "fox"),
    "one less": ("cat",),
    "another one": ("cat", "fox"),
    "another order": ("dog", "cat"),
}


def of_list(folder: Path, values: tuple[str, ...]) -> dict[str, Any]:
    return {**FEATURE, "categories": [*values]}


def of_file(folder: Path, values: tuple[str, ...]) -> dict[str, Any]:
    (folder / "kinds.txt").write_text("\n".join(values) + "\n")
    return {**FEATURE, "categories": str(folder / "kinds.txt")}


def plan_of(folder: Path, feature: dict[str, Any]) -> Plan:
    document = {
        "source": {"uri": str(folder / "in"), "format": "parquet", "features": [feature]},
        "model": {"factory": "models:sums", "task": "regress", "targets": ["total", "largest"]},
        "sink": {"uri": "out"},
    }
    job = parse_job(document, date=None, origin="test")
    job = job.model_copy(update={"source": with_categories(job.source)})
    return make_plan(job, list_inputs(job.source, max_extent_rows=9), SPEC, batch_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"kind": ["cat", "dog", "cat"]}), tmp_path / "in" / "a.parquet")
    return tmp_path


@pytest.mark.parametrize("write", [of_list, of_file])
@pytest.mark.parametrize("change", CHANGES)
def test_other_categories_are_another_fingerprint(
    folder: Path, change: str, write: Callable[..., dict[str, Any]]
):
    before = plan_of(folder, write(folder, ("cat", "dog")))
    again = plan_of(folder, write(folder, ("cat", "dog")))
    after = plan_of(folder, write(folder, CHANGES[change]))
    assert again.fingerprint == before.fingerprint != after.fingerprint
    was, now = before.fingerprint_parts, after.fingerprint_parts
    assert {name for name in was if was[name] != now[name]} == {"settings"}
    assert what_changed(was, now)


def test_a_file_is_the_list_that_it_holds(folder: Path):
    values = ("cat", "dog")
    given = plan_of(folder, of_list(folder, values))
    assert plan_of(folder, of_file(folder, values)).fingerprint == given.fingerprint
