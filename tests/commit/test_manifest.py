"""Promise: a manifest reads back exactly; a damaged or missing one is an error of one line."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.runs.published import DAY, Rows, publish_rows, put_report

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import (
    MANIFEST_VERSION,
    Manifest,
    NotAManifest,
    Part,
    locate,
    log_numbers,
    not_published,
    read_manifest,
    unexpected_files_in_log,
)
from pipeline.core.documents import sealed, unsealed
from pipeline.core.errors import InfraError, JobError
from pipeline.storage.store import Store

PART = Part("predictions/p", 2, 10, "ab", "7")
MANIFEST = Manifest(
    number=1,
    kind="publish",
    partition=DAY,
    fingerprint="f",
    run_id="r",
    token="t",
    created_at="2026-11-24T02:00:00+00:00",
    num_rows=3,
    num_predicted=2,
    num_quarantined=1,
    num_unreadable_shards=0,
    row_id_hash="7",
    parts=(PART,),
    quarantine_parts=(replace(PART, path="quarantine/p"),),
    model={"name": "m"},
    gates=({"name": "volume"},),
    partition_columns={"a": "string", "b": "int64"},
)
OTHER_DAY = "date=2026-11-25"


def changed(**fields: Any) -> bytes:
    return sealed({**unsealed(MANIFEST.to_json()), **fields})


def test_a_manifest_reads_back_exactly(tmp_path: Path):
    assert Manifest.from_json(MANIFEST.to_json(), "here") == MANIFEST
    assert [part.path for part in MANIFEST.all_parts] == ["predictions/p", "quarantine/p"]
    store, layout = Store(str(tmp_path)), Layout(DAY)
    store.put(layout.log_entry(1), MANIFEST.to_json())
    assert read_manifest(store, layout, 1) == MANIFEST


def test_newer_fields_are_ignored_and_missing_fields_are_empty():
    part = {"path": "p", "num_rows": 2, "size_bytes": 10, "sha256": "ab", "mood": "good"}
    document = unsealed(changed(parts=[part], mood="good"))
    del document["skipped"]
    older = json.dumps(document).encode()  # without a digest of itself
    manifest = Manifest.from_json(older, "here")
    assert manifest == replace(MANIFEST, parts=(Part("p", 2, 10, "ab"),))


@pytest.mark.parametrize(
    "data",
    [
        b"no json",
        b"[]",
        b"{}",
        changed(parts=None),
        changed(parts=[{"path": "p"}]),
        changed(gates=1),
    ],
)
def test_bytes_that_are_not_a_manifest_are_refused(data: bytes, tmp_path: Path):
    with pytest.raises(InfraError, match=r"^here: not a manifest: "):
        Manifest.from_json(data, "here")
    store, layout = Store(str(tmp_path)), Layout(DAY)
    store.put(layout.log_entry(1), data)
    with pytest.raises(InfraError, match=f"^{store.url(layout.log_entry(1))}: not a manifest: "):
        read_manifest(store, layout, 1)


def test_a_flipped_bit_in_a_manifest_is_found_or_changes_nothing():
    whole = MANIFEST.to_json()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(NotAManifest):  # it is the same where the digest's name is another
            assert Manifest.from_json(bytes(data), "here") == MANIFEST


def test_a_manifest_of_a_newer_version_is_refused():
    with pytest.raises(JobError, match=r"^here: written by a newer version; upgrade this one$"):
        Manifest.from_json(changed(version=MANIFEST_VERSION + 1), "here")


@pytest.mark.parametrize(
    ("fingerprint", "columns", "is_of"),
    [
        ("f", ["a", "b"], True),
        ("f", ("a", "b"), True),
        ("g", ["a", "b"], False),
        ("f", ["b", "a"], False),
        ("f", [], False),
    ],
)
def test_a_version_is_that_of_a_run_with_equal_rows_and_folders(
    fingerprint: str, columns: list[str], is_of: bool
):
    assert MANIFEST.is_of(fingerprint, columns) is is_of


def test_only_numbered_files_are_log_entries(tmp_path: Path):
    store, layout = Store(str(tmp_path)), Layout(DAY)
    for name in ("0000000010.json", "0000000009.json", "9.json", "0000000001.json.bak", "notes"):
        store.put(f"{layout.log}/{name}", b"{}")
    assert log_numbers(store, layout) == [9, 10]
    strange = [Path(path).name for path in unexpected_files_in_log(store, layout)]
    assert sorted(strange) == ["0000000001.json.bak", "9.json", "notes"]


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"status": "failed", "gates": []}, "its last run, 2-b, failed; pipeline report"),
        ({"status": "refused", "gates": []}, "its last run, 2-b, was refused; pipeline report"),
        (
            {
                "status": "refused",
                "gates": [
                    {"name": "volume", "status": "fail"},
                    {"name": "mean", "status": "warn"},
                    {"name": "error", "status": "fail"},
                ],
            },
            "its last run, 2-b, was refused: volume, error; pipeline report",
        ),
    ],
)
def test_the_error_of_an_unpublished_partition_names_its_last_run(
    report: dict[str, Any], message: str, tmp_path: Path
):
    store = Store(str(tmp_path))
    put_report(store, OTHER_DAY, "1-a", {"status": "stopped", "gates": []})
    put_report(store, OTHER_DAY, "2-b", report)
    store.put(Layout(OTHER_DAY).report("3-c", "report.html"), b"of a run without the other file")
    assert str(not_published(store, Layout(OTHER_DAY))) == (
        f"{store.uri}: partition {OTHER_DAY} is not published; {message} {store.uri} "
        f"--partition {OTHER_DAY}"
    )


@pytest.mark.parametrize("report", [{}, {"status": "failed", "gates": [{}]}, []])
def test_an_unreadable_report_is_ignored(report: Any, tmp_path: Path):
    store = Store(str(tmp_path))
    publish_rows(store, rows=Rows(num_slices=0))
    put_report(store, OTHER_DAY, "1-a", report)
    assert str(not_published(store, Layout(OTHER_DAY))) == (
        f"{store.uri}: partition {OTHER_DAY} is not published; 1 are, name one of them: {DAY}"
    )


@pytest.mark.parametrize(
    ("uri", "root", "layout"),
    [
        ("/out", "/out", None),
        ("/out/", "/out", None),
        ("/out/predictions", "/out", Layout(None)),
        ("/out/predictions/", "/out", Layout(None)),
        ("/out/predictions/date=1", "/out", Layout("date=1")),
        ("/out/predictions/date=1/", "/out", Layout("date=1")),
        ("/out/predictions/date=1/label=a", "/out/predictions/date=1/label=a", None),
        ("/out/predictions_of_mine", "/out/predictions_of_mine", None),
        ("/predictions/a/predictions/b", "/predictions/a", Layout("b")),
    ],
)
def test_a_uri_is_an_output_or_one_of_its_partitions(uri: str, root: str, layout: Layout | None):
    options = {"auto_mkdir": False}
    assert locate(uri, options) == (Store(root, options), layout)
    assert locate(uri) == (Store(root, {}), layout)


def test_an_output_may_be_called_predictions(tmp_path: Path):
    store = Store(str(tmp_path / "predictions"))
    publish_rows(store)
    assert locate(store.uri)[0] == store
    assert locate(f"{store.uri}/predictions")[0] == store
    assert locate(f"{store.uri}/predictions/{DAY}") == (store, Layout(DAY))
