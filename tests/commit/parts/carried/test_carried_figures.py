"""What carried predictions are like is known without reading more than it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.carried_nights import (
    OWN,
    SCHEMA,
    Old,
    Shard,
    divide,
    look_up,
    predictions,
    publish_shards,
    stage,
)
from support.runs.published import run_here

from pipeline.commit.layout import Layout
from pipeline.commit.parts.carried.figures import measure_carried, measure_found
from pipeline.commit.parts.carried.rows import LookedUp
from pipeline.commit.parts.carried.version import OldReader, OldRows
from pipeline.commit.staging import count_labels
from pipeline.core.figures.histograms import Distribution, measure_numbers
from pipeline.storage.store import Store

COLUMNS = ["embedding"]
SHARDS = [Shard(f"s{n}", tuple(range(n, n + 9))) for n in range(8)]


def measured(rows: pa.Table) -> Distribution:
    numbers = measure_numbers(rows, COLUMNS)
    return Distribution(dict(count_labels(rows, COLUMNS)), 0, numbers)


def with_distribution(old: Old) -> Old:
    """The version says in its manifest what its predictions are like."""
    rows = predictions([row for unit in divide(old.shards, old.broken, ()).whole for row in unit])
    manifest = replace(old.version.manifest, distribution=measured(rows).to_dict())
    return replace(old, version=replace(old.version, manifest=manifest))


def check_measured(kept: set[int], tells: bool, gone: set[int]) -> None:
    """Carry some shards of two versions, and compare with what their predictions are like."""
    with TemporaryDirectory() as folder:
        store = Store(folder)
        olds = [
            publish_shards(store, Layout(f"date={n}"), n, SHARDS, frozenset(["s3#3"]), [20, 31])
            for n in (1, 2)
        ]
        olds = [with_distribution(old) if tells else old for old in olds]
        night = divide([SHARDS[n] for n in sorted(kept)], frozenset(), olds)
        first, count = night.carried.runs.T[3:]
        numbers = np.array(sorted(gone), np.int64)
        found, traffic = measure_carried(
            store, [old.version for old in olds], night.carried, SCHEMA, COLUMNS, run_here,
            gone=numbers,
        )  # fmt: skip
        chosen = np.concatenate(
            [np.arange(a, a + n) for a, n in zip(first, count, strict=True)] or [numbers]
        )
        chosen = np.setdiff1d(chosen, numbers)
        reader = OldReader(store, OldRows.of([olds[0].version]), SCHEMA)
        assert found == measured(reader.at(chosen))
        if tells and len(kept) == 8 and not gone:
            assert traffic.bytes_read == 0


@pytest.mark.parametrize(
    ("kept", "tells", "gone"),
    [({0, 1}, False, set()), ({*range(7)}, True, {5}), ({*range(8)}, True, set())],
    ids=["by themselves", "by what is left out", "by the manifest"],
)
def test_carried_predictions_are_measured(kept: set[int], tells: bool, gone: set[int]):
    check_measured(kept, tells, gone)


@given(st.sets(st.sampled_from(range(8))), st.booleans(), st.sets(st.integers(0, 71), max_size=3))
@pytest.mark.slow
def test_carried_predictions_are_measured_by_themselves_or_by_what_is_left_out(
    kept: set[int], tells: bool, gone: set[int]
):
    check_measured(kept, tells, gone)


def test_a_version_whose_numbers_count_rows_that_it_does_not_have_is_measured(tmp_path: Path):
    """Of rows that lost their prediction because of their id."""
    store = Store(str(tmp_path))
    old = with_distribution(publish_shards(store, Layout("date=1"), 1, SHARDS))
    more = {**old.version.manifest.distribution}
    norm = {**more["numbers"]["norm"]}
    norm["counts"] = {key: rows + 1 for key, rows in norm["counts"].items()}
    more["numbers"] = {**more["numbers"], "norm": norm}
    version = replace(old.version, manifest=replace(old.version.manifest, distribution=more))
    night = divide(SHARDS, frozenset(), [old])
    found, traffic = measure_carried(store, [version], night.carried, SCHEMA, COLUMNS, run_here)
    assert found.to_dict() == old.version.manifest.distribution
    assert traffic.bytes_read > 0


def test_rows_found_by_content_are_measured_where_their_predictions_are(tmp_path: Path):
    store = Store(str(tmp_path))
    old = publish_shards(store, Layout("date=1"), 1, SHARDS, frozenset(), [20, 31])
    changed = [replace(shard, name=f"t{n}") for n, shard in enumerate(SHARDS)]
    night = look_up(divide(changed, frozenset(["t3#3"]), [old]), [old], [1, 0, 4, 2])
    slices = stage(store, "work", night.work)
    rows = [row for unit in night.work for row in unit]
    taken = [row for row in rows if row.known and not row.has_own and row.place != "t0#2"]
    duplicate = {slices[0][0]: (2,)}
    assert rows[2].known
    assert not rows[2].has_own
    versions = [old.version]
    found, number, traffic = measure_found(
        store, versions, slices, duplicate, LookedUp.of(versions, SCHEMA, OWN), COLUMNS, run_here
    )
    assert number == len(taken) > 20
    assert found == measured(predictions([replace(row, has_own=True) for row in taken]))
    assert traffic.bytes_read > 0


NUMBERS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30)


@given(NUMBERS, NUMBERS)
def test_a_distribution_without_some_is_that_of_the_others_or_unknown(some, others):
    def of(values: list[float]) -> Distribution:
        rows = pa.table({"value": pa.array(values, pa.float32())})
        labels = {str(value > 0): values.count(value) for value in values}
        return Distribution(labels, 0, measure_numbers(rows, ["value"]))

    whole = of(others) + of(some)
    found = whole.without(of(some))
    inside = min(others) < min(some) and max(some) < max(others)
    assert found == (of(others) if inside else None)
    assert whole.without(Distribution()) == whole
    assert Distribution().without(Distribution()) is None
    assert of(others).without(of([*others, 0.0])) is None
