"""Test that first shards of another type end a job, and that one among good ones costs its rows."""

from __future__ import annotations

import gzip
import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.encoded import base_image, png

from pipeline.core import registry
from pipeline.core.errors import JobError
from pipeline.job.source import Source
from pipeline.sources.listing.inputs import Inputs, list_inputs
from pipeline.sources.listing.refused import file_type_of

ROWS = [{"text": f"row {row}, of several", "n": row} for row in range(3)]


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def tar(tar_format: int = tarfile.PAX_FORMAT, name: str = "0.png") -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tar_format) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(IMAGE)
        archive.addfile(info, io.BytesIO(IMAGE))
    return sink.getvalue()


IMAGE = png(base_image(1))
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
CSV = b"text,n\nrow 0,0\nrow 1,1\n"
DATA: dict[str, bytes] = {
    "Parquet": parquet(),
    "a tar": tar(),
    "JSON lines": LINES,
    "CSV": CSV,
    "PNG": IMAGE,
    "gzip": gzip.compress(b"?"),
    "zstd": zstd(b"?"),
}
READS = {
    "parquet": ["Parquet"],
    "jsonl": ["JSON lines", "gzip", "zstd"],
    "csv": ["CSV", "gzip", "zstd"],
    "webdataset": ["a tar", "gzip", "zstd"],
    "images": [name for name in DATA if name not in ("Parquet", "a tar")],
}
"""The types that a format reads, or whose files cost their rows: for images, all but shards."""
TEXTS = ("JSON lines", "CSV")
"""Types without magic bytes: their files cost their rows whatever the format is."""
FIELDS: dict[str, dict[str, Any]] = {
    "parquet": {"text_column": "text"},
    "jsonl": {"text_column": "text"},
    "csv": {"text_column": "text"},
}
SUFFIXES = {form: registry.load(registry.SOURCES, form).suffixes[0] for form in READS}


def listed(folder: Path, form: str, **fields: Any) -> Inputs:
    source = Source(uri=str(folder), format=form, **FIELDS.get(form, {}), **fields)
    return list_inputs(source, max_extent_rows=9)


def put(folder: Path, form: str, *shards: bytes, suffix: str = "") -> None:
    for number, data in enumerate(shards):
        (folder / f"{number}{suffix or SUFFIXES[form]}").write_bytes(data)


@pytest.mark.parametrize("file_type", sorted(DATA.keys() - {*TEXTS}))
@pytest.mark.parametrize("form", READS)
def test_what_no_row_can_come_of_ends_the_job(form: str, file_type: str, tmp_path: Path):
    put(tmp_path, form, DATA[file_type], DATA[file_type])
    if file_type in READS[form]:
        listed(tmp_path, form)
        return
    with pytest.raises(
        JobError, match=rf"^source: 0\{SUFFIXES[form]} begins .*: it is {file_type}; "
    ):
        listed(tmp_path, form)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\x00 nothing of this kind",
        b"PAR",
        LINES,
        CSV,
        b"\0" * 600,
        b"x" * 257 + b"ustar" + b"x" * 300,
    ],
)
def test_what_is_not_certain_is_not_told(data: bytes):
    assert file_type_of(data[:512]) is None


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_told_whatever_its_first_name(layout: int):
    for name in ("PAR1.png", "{.png", "\x1f\x8b", "n" * 100):
        file_type = file_type_of(tar(layout, name)[:512])
        assert file_type is not None
        assert file_type.name == "a tar" or name == "PAR1.png"


def test_the_way_out_names_the_format_and_the_suffix_that_it_lists(tmp_path: Path):
    put(tmp_path, "jsonl", parquet())
    with pytest.raises(JobError, match=r"; name the shards \*.parquet and set source.format: par"):
        listed(tmp_path, "jsonl")
    for way in ({"files": ("0.jsonl",)}, {"uri": str(tmp_path / "0.jsonl")}):
        fields: dict[str, Any] = {"uri": str(tmp_path), "text_column": "text", **way}
        with pytest.raises(
            JobError, match=r"begins with PAR1: it is Parquet; set source.format: p"
        ):
            list_inputs(Source(format="jsonl", **fields), max_extent_rows=9)


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "webdataset"])
def test_a_wrong_shard_among_good_ones_costs_its_rows_and_is_told(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    good = DATA[READS[form][0]]
    wrong = tar() if form == "parquet" else parquet()
    put(tmp_path, form, wrong, good)
    with caplog.at_level(logging.WARNING):
        assert len(listed(tmp_path, form).shards) == 2
    assert f"0{SUFFIXES[form]} begins with" in caplog.text
    assert "its rows will be quarantined" in caplog.text
    put(tmp_path, form, wrong, b"", good)
    assert len(listed(tmp_path, form).shards) == 3, "an empty shard is not of another kind"


def test_three_wrong_shards_are_enough(tmp_path: Path):
    put(tmp_path, "parquet", tar(), tar(), tar(), parquet())
    with pytest.raises(JobError, match=r"name the shards \*.tar and set source.format: webdata"):
        listed(tmp_path, "parquet")
