"""Promise: output paths read back exactly and sort in order, and one file spells them."""

from __future__ import annotations

import ast
import datetime as dt
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.package_source import trees

from pipeline.commit.layout import (
    Layout,
    earlier_names,
    new_run_id,
    parse_staged_name,
    part_name,
    part_target,
    partition_order,
    renumber,
    staged_name,
)
from pipeline.core.output_folders import calibrated_model, measured_profile
from pipeline.core.slices import SliceKey

_FOLDERS = "predictions|quarantine|reports|staging|history|lease|keys|choice|tensors|profiles"
_SPELLED = re.compile(
    r"_control|current\.json|report\.(json|html)$|(shards|places)\.parquet"
    rf"|(^|/)({_FOLDERS}|log)/|/({_FOLDERS})$"
)
ATTEMPT = "0123456789ab"
FINGERPRINT = "f" * 64
NAMES = ["date=2026-11-22", "date=2026-11-09", "date=2026-11-24", "day=2026-11-01", "models"]


@given(
    unit=st.integers(0, 10**7),
    start=st.integers(0, 10**10),
    rows=st.integers(1, 10**10),
    is_last=st.booleans(),
)
def test_a_staged_name_reads_back_exactly(unit: int, start: int, rows: int, is_last: bool):
    key = SliceKey(unit, start, start + rows, is_last)
    name = staged_name(key, ATTEMPT)
    assert parse_staged_name(name) == key
    assert parse_staged_name(f"{Layout(None).staging(FINGERPRINT)}/{name}") == key


@given(
    keys=st.lists(
        st.tuples(st.integers(0, 999_999), st.integers(0, 10**8), st.integers(1, 10**8)),
        max_size=20,
    )
)
def test_staged_names_sort_as_their_slices(keys: list[tuple[int, int, int]]):
    slices = [SliceKey(u, s, s + n, is_last=False) for u, s, n in keys]
    names = sorted(staged_name(key, ATTEMPT) for key in slices)
    order = [(k.unit, k.start, k.end) for k in map(parse_staged_name, names) if k is not None]
    assert order == sorted((k.unit, k.start, k.end) for k in slices)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "000000-000000000-000000010-.parquet",
        "000000-000000000-000000010.parquet",
        "000000-000000000-000000010-abc.parquet.tmp",
        "000000-000000000-000000010y-abc.parquet",
        "x000000-000000000-000000010-abc.parquet",
        "00000-000000000-000000010-abc.parquet",
        "part-00000-000001-0123456789ab.parquet",
    ],
)
def test_other_names_are_not_staged_parts(name: str):
    assert parse_staged_name(name) is None


@given(index=st.integers(0, 10**6), number=st.integers(1, 10**7))
def test_a_part_name_tells_its_log_number(index: int, number: int):
    name = part_name(index, f"{number:06d}-{ATTEMPT}")
    assert part_target(name) == number
    assert part_target(f"predictions/date=2026-11-24/{name}") == number


@pytest.mark.parametrize(
    "name",
    [
        "_SUCCESS",
        "part-00000.parquet",
        "part-00000-000001.parquet",
        "part-00000-000001-0123456789AB.parquet",
        "my-part-00000-000001-0123456789ab.parquet",
        "part-00000-000001-0123456789ab.parquet.crc",
    ],
)
def test_other_files_are_not_published_parts(name: str):
    assert part_target(name) is None
    assert part_target(f"predictions/{name}") is None


def test_parts_sort_in_input_order():
    names = [part_name(index, f"000001-{ATTEMPT}") for index in range(1000)]
    assert names == sorted(names)


def test_paths_are_those_of_the_contract():
    layout = Layout("date=2026-11-24")
    assert layout.name == "date=2026-11-24"
    assert layout.predictions == "predictions/date=2026-11-24"
    assert layout.success == "predictions/date=2026-11-24/_SUCCESS"
    assert layout.current == "_control/date=2026-11-24/current.json"
    assert layout.quarantine == "quarantine/date=2026-11-24"
    assert layout.report("R1") == "reports/date=2026-11-24/R1/report.json"
    assert layout.plan("F1") == "_control/date=2026-11-24/plan/F1.json"
    assert layout.staging("F1") == "_control/date=2026-11-24/staging/F1"
    assert layout.lease(7) == "_control/date=2026-11-24/lease/0000000007.json"
    assert layout.log_entry(7) == "_control/date=2026-11-24/log/0000000007.json"
    assert layout.heartbeat(7) == "_control/date=2026-11-24/lease/0000000007.hb"
    assert layout.history(7) == "_control/date=2026-11-24/history/0000000007"
    assert layout.compacted("F1", "7-a") == "_control/date=2026-11-24/staging/F1/compacted-7-a"
    assert layout.tensors("F1") == "_control/date=2026-11-24/tensors/F1.json"
    assert layout.keys("7-a") == "_control/date=2026-11-24/keys/7-a"
    assert layout.choice("F1") == "_control/date=2026-11-24/choice/F1.json"
    assert layout.choice("F1", "gpu") == "_control/date=2026-11-24/choice/F1-gpu.json"
    assert calibrated_model("S1") == "_control/models/S1.onnx"
    assert measured_profile("K1") == "_control/profiles/K1.json"
    whole = Layout(None)
    assert (whole.name, whole.predictions, whole.success) == (
        "all",
        "predictions",
        "predictions/_SUCCESS",
    )
    assert whole.control == "_control/all"


def test_run_ids_sort_by_time_and_are_unique():
    start = dt.datetime(2026, 12, 31, 23, 59, 58, tzinfo=dt.UTC)
    steps_s = (0, 1e-6, 0.1, 0.999_999, 1, 2)
    ids = [new_run_id(start + dt.timedelta(seconds=step_s)) for step_s in steps_s]
    assert all(earlier < later for earlier, later in pairwise(ids))
    assert ids[0].startswith("20261231T235958Z-")
    assert len({new_run_id(start) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("name", "names", "earlier"),
    [
        ("date=2026-11-23", NAMES, ["date=2026-11-22", "date=2026-11-09"]),
        ("date=2026-11-09", NAMES, []),
        ("all", NAMES, []),
        ("hour=10", ["hour=9", "hour=11", "hour=2"], ["hour=9", "hour=2"]),
        ("region=us", ["region=eu", "region=de"], []),
        ("model=v2", ["model=v1", "model=2"], []),
    ],
)
def test_only_ordered_partitions_have_earlier_ones(name: str, names: list[str], earlier: list[str]):
    assert earlier_names(name, names) == earlier


def test_partitions_sort_by_date_or_number_after_those_without():
    names = ["hour=10", "region=us", "hour=9", "date=2026-11-24", "all", "date=2026-11-09"]
    assert sorted(names, key=partition_order) == [
        "all", "region=us", "hour=9", "hour=10", "date=2026-11-09", "date=2026-11-24"
    ]  # fmt: skip


@pytest.mark.parametrize("folder", ["", "predictions/", "predictions/label=a-b/"])
def test_another_index_keeps_the_folder_and_the_version_of_a_part(folder: str):
    version = f"000001-{ATTEMPT}"
    path = f"{folder}{part_name(3, version)}"
    assert renumber(path, 12) == f"{folder}{part_name(12, version)}"


def test_a_path_inside_a_partition_lacks_its_folder():
    layout = Layout("date=2026-11-24")
    for folder in ("predictions", "quarantine"):
        assert layout.inside(f"{folder}/date=2026-11-24/label=a/part") == f"{folder}/label=a/part"
        assert Layout(None).inside(f"{folder}/part") == f"{folder}/part"
    for path in ("predictions/date=2026-11-25/part", "reports/date=2026-11-24/part"):
        with pytest.raises(ValueError, match=rf"^{path}: not a part of date=2026-11-24$"):
            layout.inside(path)


def test_no_other_file_spells_a_path_of_the_output():
    spelled = set()
    for name, tree in trees():
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
        if any(
            _SPELLED.search(text.value)
            for text in texts
            if isinstance(text.value, str) and id(text) not in docstrings
        ):
            spelled.add(name)
    assert spelled == {"commit.layout", "core.output_folders"}
