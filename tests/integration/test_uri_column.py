"""Image URIs in a column: what the job allows is fetched, everything else costs its row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from support.runs.reading import plan_job, read, rows

from pipeline.storage.store import Store


def read_uris(
    store: Store, uris: list[str | None] | pa.Array, **fields: Any
) -> list[dict[str, Any]]:
    """Put one shard of URIs into a store and read it as a job does."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"link": uris, "n": range(len(uris))}), sink)
    store.put("table/s.parquet", sink.getvalue().to_pybytes())
    reader, plan = plan_job(
        store.url("table"),
        3,
        uri_column="link",
        pass_through=["n"],
        storage_options=dict(store.storage_options),
        **fields,
    )
    uri_rows = rows(read(reader, plan)[0])
    assert [row["n"] for row in uri_rows] == list(range(len(uris)))
    assert [row["row_id"] for row in uri_rows] == [f"s.parquet#{n}" for n in range(len(uris))]
    return uri_rows


def outcome(row: dict[str, Any]) -> Any:
    return row["error"] or row["image"]


def test_uris_below_the_roots_are_read_and_no_others(any_store: Store):
    any_store.put("table/near.jpg", b"near")
    any_store.put("photos/a/far.jpg", b"far")
    any_store.put("photos2/secret.jpg", b"secret")
    uris = [
        "near.jpg",
        "./near.jpg",
        any_store.url("table/near.jpg"),
        any_store.url("photos/a/far.jpg"),
        any_store.url("photos/none.jpg"),
        any_store.url("photos/../photos2/secret.jpg"),
        any_store.url("photos2/secret.jpg"),
        "../photos2/secret.jpg",
        "/etc/passwd",
        "file:///etc/passwd",
        "https://example.com/a.jpg",
        None,
        "",
    ]
    uri_rows = read_uris(any_store, uris, uri_roots=[any_store.url("photos")])
    forbidden = ["forbidden_uri"] * 6
    assert [outcome(row) for row in uri_rows] == [
        *(b"near", b"near", b"near", b"far", "missing"),
        *forbidden,
        *("null_input", "null_input"),
    ]
    assert uri_rows[3]["uri"] == uris[3]
    assert uri_rows[11]["uri"] == any_store.url("table/s.parquet")


def test_text_that_is_no_utf8_and_lines_in_it_stay_harmless(tmp_path: Path):
    raw = pa.array([b"\xff\xfe.jpg", b"a\nforged.jpg", b"https://u:hush@h/x"], pa.binary())
    uris = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    uri_rows = read_uris(Store(str(tmp_path)), uris)
    assert [row["error"] for row in uri_rows] == ["missing", "forbidden_uri", "forbidden_uri"]
    assert uri_rows[1]["uri"] == "a\nforged.jpg", "as the input has it"
    assert not any("\n" in row["message"] or "hush" in str(row) for row in uri_rows)
