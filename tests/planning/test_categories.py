"""The categories of a feature, from the job or from a file, are part of the fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runs.jobs import job_of
from support.runs.plan_examples import SPEC, inputs_of, shard_extents

from pipeline.planning.plan import Plan, make_plan
from pipeline.runs.staleness import what_changed
from pipeline.sources.features.encodings import with_categories


def plan_of(categories: list[str] | str) -> Plan:
    """Plan over a feature whose categories are a list, or lie in a file."""
    feature = {"column": "kind", "unknown": "own", "categories": categories}
    model = {"factory": "models:sums", "task": "regress", "targets": ["total", "largest"]}
    job = job_of(model, {"uri": "in", "format": "parquet", "features": [feature]})
    job = job.model_copy(update={"source": with_categories(job.source)})
    return make_plan(job, inputs_of(shard_extents([[3]])), SPEC, batch_size=4)


@pytest.mark.parametrize(
    "changed", [["cat", "dog", "fox"], ["cat"], ["cat", "fox"], ["dog", "cat"]]
)
def test_other_categories_are_another_fingerprint(changed: list[str], tmp_path: Path):
    before, after = plan_of(["cat", "dog"]), plan_of(changed)
    was, now = before.fingerprint_parts, after.fingerprint_parts
    assert {name for name in was if was[name] != now[name]} == {"settings"}
    assert what_changed(was, now)
    (tmp_path / "kinds.txt").write_text("\n".join(changed) + "\n")
    of_file = plan_of(str(tmp_path / "kinds.txt"))
    assert before.fingerprint != after.fingerprint == of_file.fingerprint
