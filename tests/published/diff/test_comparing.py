"""Promise: a comparison of two versions finds what a naive comparison finds, for all columns."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.published import DAY, Rows, make_manifest, make_plan
from support.runs.selection import examples

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Part
from pipeline.core.errors import JobError
from pipeline.core.schema import CLASSIFY_FIELDS, ENTITIES_FIELD, LABELS_FIELD
from pipeline.published.diff import joining
from pipeline.published.diff.comparing import Difference, compare_versions
from pipeline.published.diff.joining import Version
from pipeline.storage.store import Store

LAYOUT = Layout(DAY)
BOX = pa.struct(
    [("label", pa.string()), ("score", pa.float32())]
    + [(name, pa.float32()) for name in ("x_min", "y_min", "x_max", "y_max")]
)
LABELS = ("cat", "dog", "fox")
SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string()),
        *CLASSIFY_FIELDS,
        LABELS_FIELD,
        ENTITIES_FIELD,
        pa.field("embedding", pa.list_(pa.float32(), 3)),
        pa.field("price", pa.float32()),
        pa.field("text", pa.string()),
        pa.field("detections", pa.list_(BOX)),
    ]
)


def put_part(store: Store, folder: str, table: pa.Table) -> Part:
    data = io.BytesIO()
    pq.write_table(table, data)
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    path = f"{folder}/{digest}.parquet"
    store.put(path, data.getvalue())
    return Part(path, table.num_rows, len(data.getvalue()), digest)


def publish(
    folder: Path, number: int, *tables: pa.Table, failed: dict[str, str] | None = None
) -> Version:
    """Write a version whose parts are these tables, and whose quarantine has these reasons."""
    store = Store(str(folder))
    parts = tuple(put_part(store, LAYOUT.predictions, table) for table in tables)
    failed = failed or {}
    reasons = {"row_id": list(failed), "reason": list(failed.values())}
    bad = (put_part(store, LAYOUT.quarantine, pa.table(reasons)),) if failed else ()
    return Version(store, LAYOUT, make_manifest(LAYOUT, make_plan(Rows()), number, "r", parts, bad))


def made_row(draw: np.random.Generator, number: int) -> dict[str, Any]:
    """A row with the columns of all tasks."""

    def entry() -> dict[str, Any]:
        at = int(draw.integers(3))
        return {"label": LABELS[at], "label_id": at, "score": round(float(draw.random()), 2)}

    def box() -> dict[str, Any]:
        x, y, score = (float(number) for number in draw.integers(1, 9, 3))
        place = {"x_min": x, "y_min": y, "x_max": x + 5, "y_max": y + 5}
        return {"label": LABELS[int(draw.integers(2))], "score": score / 10, **place}

    def entity() -> dict[str, Any]:
        start = int(draw.integers(5))
        return {"start": start, "end": start + 2, "text": "ab", **entry()}

    some = [entry() for _ in range(int(draw.integers(3)))]
    return {
        "row_id": f"row-{number}",
        **entry(),
        "top_k": some or None,
        "labels": some,
        "entities": [entity() for _ in range(int(draw.integers(3)))],
        "embedding": [float(number) for number in draw.integers(-2, 3, 3)],
        "price": float(draw.choice([1.0, 1.0005, 250.0, math.nan, math.inf])),
        "text": [None, "", "a cat", "two\ncats"][int(draw.integers(4))],
        "detections": [box() for _ in range(int(draw.integers(3)))],
    }


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def naive_cosine(a: list[float], b: list[float]) -> float:
    if a == b:
        return 1.0
    norms = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def naive_number_differs(a: float, b: float, tolerance: float) -> bool:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return False
    if not (math.isfinite(a) and math.isfinite(b)):
        return True
    return abs(a - b) / max(1.0, abs(a)) > tolerance


def naive_lists_differ(before: list[dict[str, Any]] | None, now: Any) -> bool:
    """Whether lists differ in length, or an entry in a value."""
    if before is None or now is None or len(before) != len(now):
        return before is not now
    return any(
        naive_number_differs(np.float32(a[name]), np.float32(b[name]), 0.001)
        if isinstance(a[name], float)
        else a[name] != b[name]
        for a, b in zip(before, now, strict=True)
        for name in a
    )


def naive(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of a comparison, computed naively."""
    old, new = ({row["row_id"]: row for row in side} for side in (before, now))
    both = [(old[key], new[key]) for key in old if key in new]
    return {
        "both": len(both),
        "text": sum(a["text"] != b["text"] for a, b in both),
        "score": sum(
            naive_number_differs(np.float32(a["score"]), np.float32(b["score"]), 0.001)
            for a, b in both
        ),
        "added": len(new.keys() - old.keys()),
        "removed": len(old.keys() - new.keys()),
        "label": sum(a["label"] != b["label"] for a, b in both),
        "price": sum(naive_number_differs(a["price"], b["price"], 0.001) for a, b in both),
        "flips": Counter((a["label"], b["label"]) for a, b in both if a["label"] != b["label"]),
        "cosines": [naive_cosine(a["embedding"], b["embedding"]) for a, b in both],
        **{
            name: sum(naive_lists_differ(a[name], b[name]) for a, b in both)
            for name in ("entities", "labels", "detections", "top_k")
        },
    }


def compare(before: Version, now: Version, **how: Any) -> Difference:
    return compare_versions(before, now, **{"tolerance": 0.001, "num_movers": 5, **how})


@examples(40)
@given(
    bucket_rows=st.sampled_from([10**6, 7]),
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(0, 30),
)
def test_a_comparison_finds_what_a_naive_one_does(
    tmp_path_factory: pytest.TempPathFactory, bucket_rows: int, seed: int, num_rows: int
):
    draw = np.random.default_rng(seed)
    before = [made_row(draw, number) for number in range(num_rows)]
    now = [
        made_row(draw, number) if draw.random() < 0.5 else before[number]
        for number in range(num_rows)
        if draw.random() < 0.8
    ]
    now += [made_row(draw, num_rows + number) for number in range(int(draw.integers(4)))]
    folder = tmp_path_factory.mktemp("diff")
    assert_as_naive(folder, before, now, bucket_rows)


def assert_as_naive(
    folder: Path, before: list[dict[str, Any]], now: list[dict[str, Any]], bucket_rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joining, "_BUCKET_ROWS", bucket_rows)
        diff = compare(
            publish(folder / "a", 1, table_of(before)), publish(folder / "b", 1, table_of(now))
        )
    wanted = naive(before, now)
    assert (diff.both, diff.added, diff.removed) == tuple(
        wanted[name] for name in ("both", "added", "removed")
    )
    columns = diff.columns
    for name in ("label", "price", "text", "score", "top_k", "labels", "entities", "detections"):
        assert columns[name].differing == wanted[name], name
    assert columns["label"].pairs == wanted["flips"]
    assert columns["embedding"].sum_diff == pytest.approx(sum(wanted["cosines"]))
    if before == now:
        assert diff.is_equal
        assert diff.verdict == f"equal: {len(now)} rows"


def rows(*labels: str, score: float = 0.5) -> pa.Table:
    """Rows of a classifier, numbered from 0."""
    entries = [
        {"row_id": f"r{n}", "label": label, "score": score} for n, label in enumerate(labels)
    ]
    return pa.Table.from_pylist(entries, SCHEMA)


def test_files_that_both_versions_have_are_equal_and_are_not_read(tmp_path: Path):
    shared, old, new = rows("cat", "dog"), rows("a", "a", "fox"), rows("a", "a", "cat")
    before = publish(tmp_path, 1, old.slice(2), shared)
    now = publish(tmp_path, 2, new.slice(2), shared)
    (tmp_path / now.manifest.parts[1].path).unlink()
    diff = compare(before, now)
    assert (diff.both, diff.same_files_rows, diff.changed) == (3, 2, 1)
    assert diff.verdict == "1 of 3 rows in both differ (33.33%): label in 1"
    assert compare(now, now).is_equal


def test_rows_that_moved_to_or_from_the_quarantine_are_counted_apart(tmp_path: Path):
    before = publish(tmp_path / "a", 1, rows("cat", "dog").slice(0, 1), failed={"r1": "timeout"})
    now = publish(tmp_path / "b", 1, rows("cat", "dog").slice(1), failed={"r0": "undecodable"})
    diff = compare(before, now)
    assert (diff.added, diff.removed) == (1, 1)
    assert (dict(diff.recovered), dict(diff.failed)) == ({"timeout": 1}, {"undecodable": 1})
    assert diff.verdict.endswith("1 added; 1 removed (1 of them in quarantine now)")


def test_the_rows_that_differ_most_come_first_with_both_values(tmp_path: Path):
    before = publish(tmp_path / "a", 1, rows("cat", "dog", "fox", score=0.5))
    changed = rows("cat", "dog", "cat", score=0.5).to_pylist()
    changed[1]["score"] = 0.75
    diff = compare(before, publish(tmp_path / "b", 1, table_of(changed)))
    assert [mover.row_id for mover in diff.largest] == ["r2", "r1"]
    assert (diff.largest[0].before, diff.largest[0].now) == ({"label": "fox"}, {"label": "cat"})
    assert [m.row_id for m in compare(before, publish(tmp_path / "c", 1, table_of(changed)),
                                      num_movers=1).largest] == ["r2"]  # fmt: skip


def test_columns_of_one_side_or_of_other_types_are_named_and_not_compared(tmp_path: Path):
    one = pa.table({"row_id": ["a"], "score": [1.0], "gone": [1]})
    other = pa.table({"row_id": ["a"], "score": ["high"], "new": [1]})
    diff = compare(publish(tmp_path / "a", 1, one), publish(tmp_path / "b", 1, other))
    assert (diff.only_before, diff.only_now) == (("gone",), ("new",))
    assert diff.other_types == {"score": ("double", "string")}
    assert not diff.is_equal
    assert "columns that cannot be compared: gone, new, score" in diff.verdict


@pytest.mark.parametrize(
    ("labels", "verdict"),
    [
        (("cat",), "0 of 1 rows in both differ (0.00%); 1 removed"),
        (("cat", "dog", "fox"), "0 of 2 rows in both differ (0.00%); 1 added"),
        (("cat", "fox"), "1 of 2 rows in both differ (50.00%): label in 1"),
        ((), "no row id is in both; 2 removed"),
    ],
)
def test_added_removed_and_changed_rows_are_differences(
    tmp_path: Path, labels: tuple[str, ...], verdict: str
):
    before = publish(tmp_path / "a", 1, rows("cat", "dog"))
    diff = compare(before, publish(tmp_path / "b", 1, rows(*labels)))
    assert (diff.is_equal, diff.verdict) == (False, verdict)


@pytest.mark.parametrize(
    ("before", "now", "differs"),
    [
        (0.0100, 0.0105, False),
        (0.0100, 0.0111, True),
        (-0.0005, 0.0004, False),
        (100.0, 100.05, False),
        (100.0, 100.11, True),
        (-100.0, -99.95, False),
    ],
)
def test_the_tolerance_is_absolute_up_to_1_and_relative_above(
    tmp_path: Path, before: float, now: float, differs: bool
):
    sides = [pa.table({"row_id": ["a"], "price": [value]}) for value in (before, now)]
    diff = compare(*(publish(tmp_path / str(n), 1, side) for n, side in enumerate(sides)))
    assert diff.tolerance == 0.001
    assert diff.is_equal == (not differs)


@pytest.mark.parametrize(
    ("now", "differs"),
    [
        ([{"label": "cat", "score": 0.5005}], False),
        ([{"label": "cat", "score": 0.502}], True),
        ([{"label": "cat", "score": None}], True),
        ([{"label": "dog", "score": 0.5}], True),
        ([None], True),
        ([], True),
    ],
)
def test_lists_differ_by_their_numbers_or_as_values(tmp_path: Path, now: list[Any], differs: bool):
    list_type = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))
    before, same = [{"label": "cat", "score": 0.5}], {"label": "dog", "score": 0.25}
    tops = (pa.array([[*entries, same]], list_type) for entries in (before, now))
    sides = (pa.table({"row_id": ["a"], "top": top}) for top in tops)
    diff = compare(*(publish(tmp_path / str(n), 1, side) for n, side in enumerate(sides)))
    assert diff.is_equal == (not differs)


def test_a_row_at_another_uri_is_equal(tmp_path: Path):
    sides = [pa.table({"row_id": ["a"], "uri": [f"in/{day}/a"], "score": [0.5]}) for day in "12"]
    before, now = (publish(tmp_path / str(n), 1, side) for n, side in enumerate(sides))
    assert compare(before, now).is_equal


def test_the_value_of_a_partition_folder_is_a_column(tmp_path: Path):
    store = Store(str(tmp_path))
    sides = []
    for label in ("cat", "dog"):
        part = put_part(store, f"{LAYOUT.predictions}/label={label}", pa.table({"row_id": ["a"]}))
        manifest = dataclasses.replace(
            make_manifest(LAYOUT, make_plan(Rows()), 1, "r", (part,), ()),
            partition_columns={"label": "string"},
        )
        sides.append(Version(store, LAYOUT, manifest))
    # The files are equal byte for byte: what tells them apart is where they lie.
    diff = compare(*sides)
    assert (diff.changed, diff.columns["label"].pairs) == (1, {("cat", "dog"): 1})


def test_ids_that_are_not_unique_cannot_be_matched(tmp_path: Path):
    twice = pa.table({"row_id": ["a", "a"], "score": [1.0, 2.0]})
    other = pa.table({"row_id": ["a"], "score": [1.0]})
    with pytest.raises(JobError, match="several rows have the id 'a'"):
        compare(publish(tmp_path / "a", 1, twice), publish(tmp_path / "b", 1, other))


def test_null_on_one_side_differs(tmp_path: Path):
    one = pa.table({"row_id": ["a", "b", "c"], "score": [None, 1.0, None]})
    other = pa.table({"row_id": ["a", "b", "c"], "score": pa.array([None, None, 2.0])})
    diff = compare(publish(tmp_path / "a", 1, one), publish(tmp_path / "b", 1, other))
    score = diff.columns["score"]
    assert (score.differing, score.became_null, score.was_null) == (2, 1, 1)


def test_a_difference_of_any_values_has_a_json_form(tmp_path: Path):
    odd: dict[str, list[Any]] = {
        "blob": [b"x" * 100],
        "at": [dt.datetime(2026, 11, 28, tzinfo=dt.UTC)],
        "price": [math.inf],
        "words": [["a"] * 50],
        "score": [math.nan],
        "label": ["cat"],
        "nested": [{"bytes": b"y", "day": dt.date(2026, 11, 28)}],
    }
    one = pa.table({"row_id": ["a"], **odd})
    nothing = {name: pa.nulls(1, one.schema.field(name).type) for name in odd}
    other = pa.table({"row_id": ["a"], **nothing})
    sides = publish(tmp_path / "a", 1, one), publish(tmp_path / "b", 1, other)
    for pair in (sides, sides[::-1]):
        document = compare(*pair).to_dict()
        assert json.loads(json.dumps(document, allow_nan=False)) == document
    before = document["movers"][0]["now"]
    assert (before["blob"], before["price"], len(before["words"])) == ("100 bytes", "inf", 10)


def test_each_row_that_differs_is_written_once(tmp_path: Path):
    before, now = rows("cat", "dog", "fox"), rows("cat", "cat", "fox", "dog").slice(1)
    written: list[pa.Table] = []
    compare(
        publish(tmp_path / "a", 1, before), publish(tmp_path / "b", 1, now),
        write_rows=written.append,
    )  # fmt: skip
    changes = pa.concat_tables(written).to_pylist()
    assert {(row["row_id"], row["change"]) for row in changes} == {
        ("r1", "changed"), ("r3", "added"), ("r0", "removed"),
    }  # fmt: skip
    assert len(changes) == 3
