"""A look-up sets aside what earlier versions have, and copies; what fails costs computed rows."""

from __future__ import annotations

import base64
import hashlib
import pickle
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_rows import KnownRows
from support.inputs.tars import Entry
from support.inputs.tars import pack as pack_tar
from support.runs.reading import read_whole

from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.figures.counters import Counters, merge
from pipeline.core.figures.slice_figures import SliceFigures
from pipeline.core.rows.aside import put_back
from pipeline.core.rows.row_digests import HASH_BYTES, input_hashes
from pipeline.core.schema import CARRIED_ROW, CARRIED_SOURCE, INPUT_HASH
from pipeline.core.slices import SliceKey, pack, unpack
from pipeline.sources.lookup import LookUp

FACTS = (INPUT_HASH, CARRIED_SOURCE, CARRIED_ROW)
TEXTS = [b"", b"a", b"aa", b"aaa", b"b"]


def rows_of(texts: Sequence[bytes | None]) -> pa.Table:
    failures = [None if t is not None else Failure(Reason.NULL_INPUT, "read", "") for t in texts]
    return pa.table(
        {
            "row_id": [f"r{row}" for row in range(len(texts))],
            "uri": pa.array(["in"] * len(texts), pa.string()),
            "n": pa.array(range(len(texts)), pa.int64()),
            "_text": pa.array(texts, pa.large_binary()),
            **failure_columns(failures),
        }
    )


def hashes_of(texts: Sequence[bytes | None]) -> list[bytes | None]:
    found: list[bytes | None] = input_hashes(rows_of(texts), ["_text"]).to_pylist()
    return found


def staged(rows: pa.Table) -> pa.Table:
    """What a model makes of rows: the length of each text."""
    lengths = [None if t is None else float(len(t)) for t in rows.column("_text").to_pylist()]
    place = rows.schema.get_field_index("_text")
    return rows.set_column(place, "length", pa.array(lengths, pa.float32()))


def looked_up(
    lookup: LookUp, texts: Sequence[bytes | None], slice_rows: int = 100
) -> tuple[pa.Table, pa.Table, Counters]:
    """Look rows up slice by slice; return those that are to be computed, and all as staged."""
    rows, bounds = rows_of(texts), [*range(0, len(texts), slice_rows), len(texts)]
    packed = [
        pack(SliceKey(1, start, end, is_last=False), {}, rows.slice(start, end - start))
        for start, end in pairwise(bounds if len(texts) else [0, 0])
    ]
    computed, back, counters = [], [], Counters()
    for block in pickle.loads(pickle.dumps(lookup)).slices(packed):
        [(_, counted, some, aside)] = unpack(block)
        assert aside is not None
        computed.append(some)
        back.append(put_back(staged(some), aside, FACTS))
        counters = merge(counters, counted)
    return pa.concat_tables(computed), pa.concat_tables(back), counters


@given(
    texts=st.lists(st.none() | st.sampled_from(TEXTS), max_size=12),
    newer=st.sets(st.sampled_from(TEXTS)),
    older=st.sets(st.sampled_from(TEXTS)),
)
def test_the_model_sees_what_no_version_knows_and_every_row_is_staged(
    texts: list[bytes | None], newer: set[bytes], older: set[bytes]
):
    known = {number: sorted(each) for number, each in ((3, newer), (0, older))}
    indices = tuple((number, KnownRows.of(hashes_of(each))) for number, each in known.items())
    lookup = LookUp(("_text",), indices)
    computed, back, counters = looked_up(lookup, texts)
    new = [text for text in texts if text not in newer | older]
    seen = [text for text in computed.column("_text").to_pylist() if text is not None]
    assert seen == [text for text in new if text is not None]
    own = ["row_id", "uri", "n"]
    assert back.select(own).equals(rows_of(texts).select(own))
    for text, row in zip(texts, back.to_pylist(), strict=True):
        version = next((n for n, each in known.items() if text in each), None)
        pointer = (row[CARRIED_SOURCE], row[CARRIED_ROW])
        if text is None:
            assert (row["error"], row[INPUT_HASH], row["length"]) == ("null_input", None, None)
            assert pointer == (None, None)
        elif version is None:
            assert (row["length"], pointer) == (len(text), (None, None))
        else:
            assert (row["error"], row["length"]) == (None, None)
            assert pointer == (version, known[version].index(text))
    assert back.column(INPUT_HASH).to_pylist() == hashes_of(texts)
    figures = SliceFigures.from_json(counters)
    assert figures.looked_up is not None
    asked = [text for text in texts if text is not None]
    assert figures.looked_up.num_rows == len(asked)
    assert figures.looked_up.num_known == len(asked) - len([t for t in new if t is not None])
    assert figures.looked_up.num_failed == 0


def test_the_hash_of_an_image_is_of_its_bytes_however_they_come(tmp_path: Path):
    """Files, binary and base64 columns, URIs that are fetched, and tars."""
    photos = {f"p{number}.jpg": f"photo {number}".encode() for number in range(3)}
    in_base64 = [base64.b64encode(data).decode() for data in photos.values()]
    for name in ("files", "binary", "base64", "uris", "tars"):
        (tmp_path / name).mkdir()
    for name, data in photos.items():
        (tmp_path / "files" / name).write_bytes(data)
    write(tmp_path / "binary", image=[*photos.values()])
    write(tmp_path / "base64", image=in_base64)
    write(tmp_path / "uris", u=[str(tmp_path / "files" / name) for name in photos])
    (tmp_path / "tars" / "s.tar").write_bytes(pack_tar(Entry(n, d) for n, d in photos.items()))
    sources: dict[str, dict[str, Any]] = {
        "files": {"format": "images"},
        "binary": {},
        "base64": {"image_encoding": "base64"},
        "uris": {"uri_column": "u", "uri_roots": [str(tmp_path / "files")]},
        "tars": {"format": "webdataset"},
    }
    for name, source in sources.items():
        rows, plan = read_whole(tmp_path / name, 2, **source)
        hashes = input_hashes(rows, plan.fields.names).to_pylist()
        wanted = [hashlib.sha256(data).digest()[:HASH_BYTES] for data in photos.values()]
        assert hashes == wanted, name


def write(folder: Path, **columns: list[Any]) -> None:
    pq.write_table(pa.table(columns), folder / "s.parquet")


def test_without_an_earlier_version_rows_only_get_their_hash():
    computed, back, counters = looked_up(LookUp(("_text",)), TEXTS)
    assert computed.equals(rows_of(TEXTS))
    assert back.column(INPUT_HASH).to_pylist() == hashes_of(TEXTS)
    assert not {CARRIED_SOURCE, CARRIED_ROW} & {*back.column_names}
    assert SliceFigures.from_json(counters).looked_up is None


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_some_known_rows_are_computed_the_same_ones_in_each_attempt(probability: float):
    texts = [str(row).encode() for row in range(400)]
    indices = ((0, KnownRows.of(hashes_of(texts))),)
    lookup = LookUp(("_text",), indices, checked_probability=probability, seed="f" * 64)
    found = [looked_up(lookup, texts, slice_rows)[1] for slice_rows in (400, 7)]
    assert found[0].equals(found[1])
    num_computed = found[0].column("length").is_valid().to_pylist().count(True)
    if 0 < probability < 1:
        assert num_computed == pytest.approx(400 * probability, abs=40)
    else:
        assert num_computed == 400 * probability
    assert found[0].column(CARRIED_ROW).to_pylist() == [*range(400)]


def test_rows_that_the_plan_has_chosen_are_computed_and_not_looked_up():
    texts = [str(row).encode() for row in range(20)]
    chosen = np.array([[0, 3], [1, 0], [1, 4], [1, 11], [1, 19], [2, 5]])
    lookup = LookUp(("_text",), ((0, KnownRows.of(hashes_of(texts))),), computed=chosen)
    own = lookup.of_unit(1)
    assert own.computed.tolist() == chosen[1:5].tolist()
    for each in (lookup, own):
        computed, back, counters = looked_up(each, texts, 8)
        assert computed.column("n").to_pylist() == [0, 4, 11, 19]
        places = back.column(CARRIED_ROW).to_pylist()
        assert [row for row, place in enumerate(places) if place is None] == [0, 4, 11, 19]
        assert SliceFigures.from_json(counters).looked_up.num_rows == 16


def test_rows_that_cannot_be_looked_up_are_computed_and_counted():
    """The version that fails is asked once; what another version knows is known all the same."""
    texts = [b"old", b"a", b"b", b"old", None, b"c"]
    broken = KnownRows.of(hashes_of([b"a", b"b", b"c"]))
    broken = KnownRows(broken.hashes, error="keys/7-abc/bucket=000.parquet: checksum differs")
    indices = ((1, broken), (0, KnownRows.of(hashes_of([b"old"]))))
    computed, back, counters = looked_up(LookUp(("_text",), indices), texts, slice_rows=3)
    assert computed.column("_text").to_pylist() == [b"a", b"b", None, b"c"]
    assert back.column(CARRIED_SOURCE).to_pylist() == [0, None, None, 0, None, None]
    figures = SliceFigures.from_json(counters)
    assert figures.looked_up is not None
    counted = (figures.looked_up.num_rows, figures.looked_up.num_known)
    assert (*counted, figures.looked_up.num_failed) == (5, 2, 3)
    [line] = figures.advice
    assert line.endswith("so rows were computed: keys/7-abc/bucket=000.parquet: checksum differs")
