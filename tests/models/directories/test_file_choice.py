"""Test that an .onnx file is copied with its external data, and runs as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.models import onnx_files
from support.runs.jobs import job_of
from support.servers.object_stores import S3Server

from pipeline.core.errors import JobError
from pipeline.models.directories.opening import open_facts
from pipeline.models.directories.snapshot import local
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec

LABELS = ["a", "b", "c", "d", "e"]


def resolve(path: Path, **model: Any) -> ModelSpec:
    source = {"uri": "in", "format": "parquet", "features": ["x"]}
    job = job_of({"path": str(path), **model}, source)
    return resolve_model(job)


def refusal(path: Path) -> str:
    with pytest.raises(JobError) as caught:
        resolve(path, labels=LABELS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_external_data_travel_with_the_file_and_are_in_the_digest(tmp_path: Path):
    path = onnx_files.save_apart(onnx_files.features_model(), tmp_path / "m.onnx")
    (tmp_path / "other.txt").write_text("is not copied")
    directory, facts = open_facts(str(path), {}, "features")
    assert {path.name for path in local(directory).iterdir()} == {"m.onnx", "weights.bin"}
    assert facts.format_name == "onnx"
    beside = tmp_path / "weights.bin"
    beside.write_bytes(beside.read_bytes()[:-4] + b"\0\0\0\0")
    assert open_facts(str(path), {}, "features")[0].sha256 != directory.sha256


def test_it_is_read_from_an_object_store(s3: S3Server, tmp_path: Path):
    store, path = s3.store(), tmp_path / "m.onnx"
    onnx_files.save_apart(onnx_files.features_model(), path)
    for file in tmp_path.iterdir():
        store.put_file(f"models/{file.name}", str(file))
    directory, facts = open_facts(store.url("models/m.onnx"), store.storage_options, "features")
    assert facts.module.inputs[0].shape[1] == 6
    assert directory.sha256 == open_facts(str(path), {}, "features")[0].sha256


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/etc/passwd", "lies in '/etc/passwd', outside the directory of the file"),
        ("../outside.bin", "outside the directory of the file"),
        ("a/../../outside.bin", "outside the directory of the file"),
        ("..\\outside.bin", "outside the directory of the file"),
        ("C:outside.bin", "outside the directory of the file"),
        ("", "outside the directory of the file"),
        ("missing.bin", "there is no such file beside it"),
        ("link.bin", "which is a link; refused"),
        ("folder/outside.bin", "which is a link; refused"),
        ("short.bin", "up to byte 192, and that file has 5 bytes: cut off"),
        ("line\nbreak", "there is no such file beside it"),
    ],
)
def test_nothing_outside_its_directory_is_copied(tmp_path: Path, location: str, words: str):
    (tmp_path / "outside.bin").write_bytes(bytes(1000))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "short.bin").write_bytes(b"short")
    model = onnx_files.place_apart(onnx_files.features_model(), location=location, length="192")
    assert words in refusal(onnx_files.save(model, folder / "m.onnx"))


def test_what_is_no_model_is_refused(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(b"<!doctype html>")
    assert "is not an ONNX model" in refusal(tmp_path / "m.onnx")
    assert "no such file" in refusal(tmp_path / "none.onnx")


def test_a_wrong_kind_of_rows_is_refused(tmp_path: Path):
    path = onnx_files.save(onnx_files.image_model(), tmp_path / "m.onnx")
    assert "model.path" in refusal(path)
