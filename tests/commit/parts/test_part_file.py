"""Promise: every Parquet file of an output is written with checksums and verified when read."""

from __future__ import annotations

import re

from support.runs.package_source import FILES, name_of

_UNVERIFIED = re.compile(
    r"pq\.(ParquetWriter\(|write_table|ParquetFile\(|read_\w+)|ParquetFileFormat\((?!page_checksum_verification=True\))|ds\.parquet_dataset"
)
_NOT_OF_THE_OUTPUT = {"gates.golden_files", "operations.golden", "operations.diff"}
"""Files whose places users name."""


def test_one_file_writes_and_opens_the_parquet_files_of_an_output():
    names = {name_of(path) for path in FILES if _UNVERIFIED.search(path.read_text())}
    names = {name for name in names if not name.startswith("sources.")}
    assert names - _NOT_OF_THE_OUTPUT == {"commit.parts.part_file"}
