"""Carried rows are proved each night; what was refused, retried or stopped is never mistaken."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from pathlib import Path
from typing import Any

import models
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.models.model_cases import colours_state
from support.runs.carried_runs import (
    BROKEN,
    FOLDERS,
    TODAY,
    TOMORROW,
    YESTERDAY,
    Inputs,
    assert_as_all_computed,
    stop_at,
)
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import image
from support.runs.published import age_files
from support.servers.s3server import S3Server

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import read_manifest
from pipeline.commit.published.garbage import collect_garbage
from pipeline.commit.published.verify import verify_output
from pipeline.core.arrays import Numbers
from pipeline.core.errors import GateRefused
from pipeline.core.versions import environment_versions
from pipeline.reuse.checking import choose_checked
from pipeline.storage.store import Store

NUM_ROWS = sum(FOLDERS.values())


@pytest.fixture
def out(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


@pytest.fixture
def inputs(kind: str, tmp_path: Path) -> Inputs:
    """To be changed by one test alone."""
    return Inputs.write(tmp_path / "inputs", kind)


def touch(inputs: Inputs) -> None:
    for path in inputs.photos.glob("*/*.jpg"):
        os.utime(path)


def alter(out: Store, partition: str, row_id: str) -> None:
    """Give one published row another label; the part is valid and as large as its manifest says."""
    layout = Layout(partition)
    manifest = read_manifest(out, layout, 1)
    parts = []
    for part in manifest.parts:
        file = pq.ParquetFile(io.BytesIO(out.read_bytes(part.path)))
        rows = file.read().to_pylist()
        for row in rows:
            if row["row_id"] == row_id:
                row["label"] = "green" if row["label"] == "blue" else "blue"
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, file.schema_arrow), buffer, compression="zstd")
        out.put(part.path, buffer.getvalue())
        parts.append(dataclasses.replace(part, size_bytes=buffer.tell()))
    out.put(layout.log_entry(1), dataclasses.replace(manifest, parts=tuple(parts)).to_json())


def test_an_altered_prediction_is_found_refused_and_mended_without_reuse(
    inputs: Inputs, out: Store, tmp_path: Path
):
    inputs.night(out, YESTERDAY).run()
    if inputs.kind == "content":
        touch(inputs)
    shutil.copytree(out.uri, tmp_path / "try")
    trial = inputs.night(Store(str(tmp_path / "try")))
    trial.run()
    checked = sorted({*trial.computed} - BROKEN)
    assert 16 <= len(checked) < NUM_ROWS - len(BROKEN)

    alter(out, YESTERDAY, checked[7])
    night = inputs.night(out)
    with pytest.raises(GateRefused, match=f"carried.*{checked[7]}.*--no-reuse"):
        night.run()
    assert out.list_files(Layout(TODAY).predictions) == []
    assert night.record is not None
    assert [line.partition(":")[0] for line in night.record.differing] == [checked[7]]

    night.reuse = False
    night.run()
    assert len(night.computed) == NUM_ROWS
    assert_as_all_computed(night, tmp_path)
    last = inputs.night(out, TOMORROW)
    last.run()
    assert last.current().carried["sources"][0]["partition"] == TODAY
    assert_as_all_computed(last, tmp_path)


def test_another_environment_is_told_and_raises_the_sample(
    inputs: Inputs, out: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = inputs.night(out, YESTERDAY)
    first.run()
    assert environment_versions().items() <= first.current().versions.items()
    asked: list[bool] = []

    def note(*arguments: Any, is_thorough: bool, **options: Any) -> Numbers:
        asked.append(is_thorough)
        return choose_checked(*arguments, is_thorough=is_thorough, **options)

    monkeypatch.setattr("pipeline.reuse.finding.choose_checked", note)
    other = {**environment_versions(), "pillow": "99.1"}
    monkeypatch.setattr("pipeline.reuse.finding.environment_versions", lambda: other)
    night = inputs.night(out)
    night.run()
    assert night.current().carried["changed_libraries"] == [
        f"pillow {environment_versions()['pillow']} -> 99.1"
    ]
    assert asked == [True]
    assert_as_all_computed(night, tmp_path)


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({}, "nothing carried over: only 6 rows could be, and of so few all are predicted again"),
        ({"model": {"top_k": 2}}, f"nothing carried over: {TODAY} version 1: "),
        ({"run": {"reuse": "off"}}, ""),
    ],
)
def test_a_run_over_few_photos_says_why_nothing_is_carried(
    sections: dict[str, Any], why: str, out: Store, tmp_path: Path
):
    inputs = Inputs(tmp_path)
    inputs.photos.mkdir()
    torch.save(colours_state(), tmp_path / "weights.pt")
    for number in range(6):
        (inputs.photos / f"{number}.jpg").write_bytes(image(number))
    first = inputs.night(out)
    first.run()
    assert "carried over" not in first.summary()
    (inputs.photos / "6.jpg").write_bytes(image(6))
    second = inputs.night(out, **sections)
    second.run()
    assert len(second.computed) == 7
    said = [line for line in second.summary().splitlines() if "carried over" in line]
    assert [line.strip().startswith(why) for line in said] == ([True] if why else [])


def test_what_was_taken_over_from_a_version_that_is_none_any_more_is_computed(
    inputs: Inputs, out: Store, tmp_path: Path
):
    inputs.night(out, YESTERDAY).run()
    night = inputs.night(out)
    stop_at("tiled", night.run)
    other = inputs.night(out, YESTERDAY, transform={**models.TRANSFORM, "size_px": 16})
    other.run()
    night.run()
    assert len(night.computed) >= NUM_ROWS - 20  # the checked ones are staged already
    assert_as_all_computed(night, tmp_path)
    for partition in (YESTERDAY, TODAY):
        layout = Layout(partition)
        age_files(
            Path(out.uri), [file.path for file in out.list_files(layout.control)], age_s=7200.0
        )
        collect_garbage(out, layout, grace_s=3600.0)
        assert out.list_files(f"{layout.control}/staging") == []
        assert verify_output(out.uri, partition, {})["status"] == "ok"


def test_a_run_that_cannot_read_what_it_carries_reports_what_it_did_instead(
    inputs: Inputs, out: Store, tmp_path: Path
):
    first = inputs.night(out, YESTERDAY)
    first.run()
    if inputs.kind == "content":
        touch(inputs)
    out.delete([part.path for part in first.current().parts])
    night = inputs.night(out)
    night.run()
    night.status = "published"
    report = night.report()
    assert "is gone" in report["carried"]["why_not"]
    assert report["carried"]["rows"] == 0
    rows = report["rows"]
    assert (rows["total"], rows["predicted"], rows["quarantined"]) == (
        NUM_ROWS, NUM_ROWS - len(BROKEN), len(BROKEN)
    )  # fmt: skip
    assert rows["computed"] == NUM_ROWS
    assert not rows.get("carried")
    assert report["fingerprint"] == night.current().fingerprint
    carried = [gate for gate in report["gates"] if gate["name"] == "carried"]
    assert [gate["status"] for gate in carried] == ["off"]
    assert night.current().carried == {}
    assert_as_all_computed(night, tmp_path)


def test_an_etag_that_changes_over_equal_bytes_is_another_file_by_inputs_and_none_by_content(
    inputs: Inputs, out: Store, s3: S3Server, tmp_path: Path
):
    source = s3.store()
    for path in inputs.photos.glob("*/*.jpg"):
        source.put(str(path.relative_to(inputs.photos)), path.read_bytes())

    def run(partition: str) -> EarlierPartition:
        night = inputs.night(out, partition)
        night.inputs = source.uri
        night.source = {"format": "images", "storage_options": dict(source.storage_options)}
        night.run()
        return night

    run(YESTERDAY)
    put_in_pieces(s3, source, "a/007.jpg")
    night = run(TODAY)
    changed = "a/007.jpg" in night.computed
    assert changed or inputs.kind == "content"
    assert night.current().carried["rows"] > 0
    assert len(night.content()[0]) == NUM_ROWS - len(BROKEN)


def put_in_pieces(s3: S3Server, source: Store, path: str) -> None:
    """Upload the same bytes as several parts, which gives another ETag."""
    import fsspec

    before = source.stat(path)
    files = fsspec.filesystem("s3", skip_instance_cache=True, **source.storage_options)
    bucket, _, root = source.uri.removeprefix("s3://").partition("/")
    at = {"Bucket": bucket, "Key": f"{root}/{path}"}
    upload = files.call_s3("create_multipart_upload", **at)
    at["UploadId"] = upload["UploadId"]
    data = source.read_bytes(path)
    part = files.call_s3("upload_part", **at, PartNumber=1, Body=data)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    files.call_s3("complete_multipart_upload", **at, MultipartUpload=parts)
    after = source.stat(path)
    assert before is not None
    assert after is not None
    assert (after.size_bytes, source.read_bytes(path)) == (before.size_bytes, data)
    assert after.version != before.version
