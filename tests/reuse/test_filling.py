"""Known rows are read from wherever their version has them; what cannot be read is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.models.model_cases import colours_state
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import KINDS
from support.runs.selection import quick_cases

from pipeline.commit.published.version_rows import NotReadable, PartReader
from pipeline.core.aside import num_computed
from pipeline.core.figures.slice_figures import SliceFigures
from pipeline.core.schema import INPUT_HASH, INPUT_HASH_FIELD, IS_COMPUTED, ROW_ID, SOURCE
from pipeline.core.slices import Packed, pack, unpack
from pipeline.reuse.content import ContentIndex
from pipeline.reuse.filling import Filler, _read_rows
from pipeline.runs.builders import make_reader
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.work import divide
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit
from pipeline.storage.store import Store

NUM_ROWS = 120
NO_ROWS = np.zeros((0, 2), np.int64)


def published(tmp_path: Path, kind: str = "parquet", **sections: Any) -> EarlierPartition:
    """One shard of 120 rows, of which there are seven different ones, in several parts."""
    of_kind, folder = KINDS[kind], tmp_path / "in"
    folder.mkdir()
    of_kind.write(folder / f"s{of_kind.suffix}", [row % 7 for row in range(NUM_ROWS)])
    torch.save(colours_state(), tmp_path / "weights.pt")
    out, weights = Store(str(tmp_path / "out")), str(tmp_path / "weights.pt")
    sections = {"sink": {"target_part_mib": 0.006}, **sections}
    sections["run"] = {"slice_rows": 30, **sections.get("run", {})}
    partition = EarlierPartition(
        str(folder), out, of_kind.source, {f"s{of_kind.suffix}#7"}, sections, weights
    )
    partition.run()
    assert len(partition.current().parts) > 2
    return partition


def read_with(reader: Reader) -> Callable[[Unit, frozenset[int]], Iterator[pa.Table]]:
    def read(unit: Unit, starts: frozenset[int]) -> Iterator[pa.Table]:
        yield from (pack(*each) for each in read_slices(reader, unit, starts))

    return read


def fill(
    partition: EarlierPartition, prepare_version: Callable[[], object], usual_rows: int = 1
) -> list[Packed]:
    """The slices that a next run stages, after something has happened to the version."""
    partition.sections["run"] = {**partition.sections.get("run", {}), "slice_rows": 5}
    for path in Path(partition.inputs).iterdir():
        path.with_name(f"z{path.name}").write_bytes(path.read_bytes())
    run = partition.new_run()
    plan, model = prepare(run)
    work = divide(run, plan, model, partition.current(), lambda _: None)
    assert work.known is not None
    prepare_version()
    reader, found = make_reader(run.job, work.plan), list[Packed]()
    for unit in work.plan.units:
        known = replace(work.known.of_unit(unit.index), usual_rows=usual_rows, most_rows=64)
        starts = frozenset(() if unit.cut else unit.bounds[:-1])
        for block in Filler(known).slices(reader, unit, starts, read_with(reader)):
            found += unpack(block)
    return found


def ids_of(slices: list[Packed]) -> list[str]:
    ids: list[str] = []
    for each in slices:
        assert each.aside is not None
        assert num_computed(each.aside) == each.rows.num_rows
        computed = iter(each.rows.column(ROW_ID).to_pylist())
        for row in each.aside.select([ROW_ID, IS_COMPUTED]).to_pylist():
            ids.append(next(computed) if row[IS_COMPUTED] else row[ROW_ID])
            assert row[ROW_ID] in (None, ids[-1])
    return ids


@pytest.mark.parametrize(
    ("kind", "lost"),
    quick_cases(
        product(["parquet", "tars", "jsonl"], [(), (-1,), (0, 1, 2)]),
        lambda *case: case in (("tars", ()), ("parquet", (-1,)), ("jsonl", (0, 1, 2))),
    ),
    ids=str,
)
def test_slices_are_tiled_and_no_row_is_lost_or_there_twice_whichever_part_is_gone(
    kind: str, lost: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.reuse.dividing._FEWEST_ROWS", 64)
    monkeypatch.setattr("pipeline.reuse.dividing._ASIDE_BYTES", 1)
    partition = published(tmp_path, kind)
    parts = partition.current().parts
    slices = fill(partition, lambda: partition.out.delete([parts[place].path for place in lost]))
    position, unit = 0, -1
    for key in (each.key for each in slices):
        assert (key.unit == unit) == (key.start > 0)
        assert key.start in (0, position)
        position, unit = key.end, key.unit
    whole = EarlierPartition(partition.inputs, Store(str(tmp_path / "whole")), partition.source)
    whole.sections["run"] = {"slice_rows": 200}
    whole.run()
    assert ids_of(slices) == whole.computed
    known = sum(each.aside.column(SOURCE).is_valid().to_pylist().count(True) for each in slices)
    num_predicted = partition.current().num_predicted
    if len(lost) < 2:
        assert 0 < known <= num_predicted
        assert (known == num_predicted) == (not lost)
    if lost:
        of_old = [e.key.num_rows for e in slices if e.aside.column(SOURCE).null_count > 1]
        assert max(of_old) <= 34, "with many rows to compute a slice is staged in pieces"


@pytest.mark.parametrize("by", [(), ("label", "camera")], ids=["flat", "by value"])
def test_rows_are_found_by_ordinal_and_by_content_in_any_order(by: tuple[str, ...], tmp_path: Path):
    sink = {"target_part_mib": 0.006, "partition_columns": by}
    partition = published(tmp_path, sink=sink, run={"reuse": "content"})
    run = partition.new_run()
    plan, model = prepare(run)
    for path in Path(partition.inputs).iterdir():
        path.with_name(f"z{path.name}").write_bytes(path.read_bytes())
    plan, model = prepare(run)
    known = divide(run, plan, model, partition.current(), lambda _: None).known
    assert known is not None
    version = known.versions[0]
    schema = pa.schema(
        [*(plan.staged_schema().field(n) for n in plan.source_columns), INPUT_HASH_FIELD]
    )
    reader = PartReader(version, schema)
    ids = [f"s.parquet#{row}" for row in range(NUM_ROWS) if row != 7]
    ordinals = np.random.default_rng(1).integers(0, len(ids), 500)
    rows = reader.at(ordinals)
    assert rows.column(ROW_ID).to_pylist() == [ids[ordinal] for ordinal in ordinals.tolist()]
    assert reader.at(ordinals[:0]).schema == schema
    with pytest.raises(NotReadable):
        reader.at(np.array([0, len(ids)]))
    with pytest.raises(NotReadable, match="another version has its number now"):
        PartReader(replace(version, token="of a version before"), schema)
    assert len(known.checked)
    filler, rows_of = Filler(replace(known, checked_probability=0.0)), make_reader(run.job, plan)
    for unit in plan.units:
        for block in filler.slices(rows_of, unit, frozenset([0]), read_with(rows_of)):
            for key, _, _, aside in unpack(block):
                assert aside is not None
                is_computed = np.asarray(aside.column(IS_COMPUTED))
                assert is_computed[known.are_checked(key)].all(), "not looked up, but computed"

    left_out = np.array([[0, 5], [8, 110]])
    hashes = rows.column(INPUT_HASH).to_pylist()
    keys = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)
    found = ContentIndex(version, NO_ROWS).find(keys)
    assert reader.at(found).column(INPUT_HASH).to_pylist() == hashes
    found = ContentIndex(version, left_out).find(keys)
    allowed = {-1, 5, 6, 7, *range(110, len(ids))}
    assert {*found.tolist()} <= allowed

    for part in partition.current().parts:  # equal rows in other bytes
        path = Path(partition.out.uri) / part.path
        pq.write_table(pq.ParquetFile(path).read(), path, compression="none")
    with pytest.raises(NotReadable, match="bytes, its manifest says"):
        PartReader(version, schema).at(np.array([0]))


def test_rows_that_cannot_be_read_are_counted_from_the_first_slice_on(tmp_path: Path):
    partition = published(tmp_path)
    parts = [part.path for part in partition.current().parts]
    slices = fill(partition, lambda: partition.out.delete(parts), usual_rows=NUM_ROWS)
    told = [SliceFigures.from_json(each.counters).advice for each in slices]
    num_rows = [count for advice in told for count in advice.values()]
    assert sum(num_rows) == partition.current().num_predicted


def test_a_part_whose_footer_names_other_fields_is_not_read(tmp_path: Path):
    partition = published(tmp_path)
    [path, *_] = [Path(partition.out.uri) / part.path for part in partition.current().parts]
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\x08label_id", 0, data.index(b"ARROW:schema"))
    data[at + 1] ^= 1
    path.write_bytes(data)
    slices = fill(partition, lambda: None)
    names = ids_of(slices)
    assert len(names) == 2 * NUM_ROWS
    assert all(
        top is None or top[0]["label_id"] is not None
        for each in slices
        for top in each.aside.column("top_k").to_pylist()
    )


@pytest.mark.parametrize("kind", ["tars", "jsonl"])
def test_of_a_shard_that_breaks_off_each_row_behind_fails_under_an_id_of_its_own(
    kind: str, tmp_path: Path
):
    partition = published(tmp_path, kind)
    run = partition.new_run()
    [path] = Path(partition.inputs).iterdir()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    plan, _ = prepare(run)
    reader, counters = make_reader(run.job, plan), {}
    before = [1] if kind == "tars" else []  # of so few lines none can be read
    for behind in ([NUM_ROWS - 1], [NUM_ROWS - 2, NUM_ROWS - 1]):
        rows = np.array([*before, *behind])
        found = _read_rows(reader, plan.units[0], rows, read_with(reader), counters)
        assert found.column("error").to_pylist() == [
            *(None for _ in before), *("unreadable_shard" for _ in behind)
        ]  # fmt: skip
        ids = found.column(ROW_ID).to_pylist()[len(before) :]
        assert ids == [f"{path.name}#{row}" for row in behind]
