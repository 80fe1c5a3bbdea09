"""Promise: rows of a version are read as they were published, or not at all."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.runs.published import DAY, publish_rows, read_part_table

from pipeline.reuse.version_rows import NotReadable, PartReader, Version
from pipeline.storage.store import Store


def test_damaged_rows_of_a_version_are_not_read(tmp_path: Path):
    store = Store(str(tmp_path))
    manifest = publish_rows(store)
    whole = pa.concat_tables([read_part_table(store, part) for part in manifest.parts])
    version = Version(store, DAY, 1, manifest.token)
    reader = PartReader(version, whole.schema)
    ordinals = np.array([3, 0, 9, 3])
    assert reader.at(ordinals).equals(whole.take(pa.array(ordinals)))
    with pytest.raises(NotReadable, match="has fewer predictions"):
        reader.at(np.array([0, manifest.num_predicted]))
    with pytest.raises(NotReadable, match="another version has its number now"):
        PartReader(replace(version, token="of another"), whole.schema)
    path = tmp_path / manifest.parts[0].path
    data = bytearray(path.read_bytes())
    data[[at.start() for at in re.finditer(b"\x08label_id", data)][1] + 1] ^= 1  # within `top_k`
    path.write_bytes(data)
    with pytest.raises(NotReadable, match="has other columns"):
        PartReader(version, whole.schema).at(ordinals)
