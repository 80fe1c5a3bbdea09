"""Skipped files are counted with their reasons, in little memory, whatever their names."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.earlier_partitions import EarlierPartition

from pipeline.storage.skipped import (
    FIRST_NAMES,
    SkipCounter,
    Skipped,
    SkipReason,
    extension_of,
    is_utf8,
    printable,
    reason_of_name,
)
from pipeline.storage.store import Store

_BAD_KEYS = ("/x.png", "a/", "a/./b.png", "../b.png", "a/..", "\0")


def tally(*entries: tuple[str, SkipReason]) -> Skipped:
    counter = SkipCounter()
    for path, reason in entries:
        counter.add(path, reason)
    return counter.result()


@pytest.mark.parametrize(
    "path",
    [
        *("_DSC0001.JPG", "_MG_0001.jpg", "_x/a.jpg", "a/_b/c.jpg", "_", "__a.jpg", "a//b.jpg"),
        *("_SUCCESSFUL.jpg", "_metadata_of/a.jpg", "_started_late.jpg", "Thumbs.db.jpg", "a.b"),
        *("_deltas/x.png", "date=2026-11-24/a.jpg"),
    ],
)
def test_a_name_that_is_no_known_marker_speaks_for_input(path: str) -> None:
    assert reason_of_name(path) is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".a.jpg", SkipReason.HIDDEN),
        ("a/.cache/b.jpg", SkipReason.HIDDEN),
        ("..data/a.jpg", SkipReason.HIDDEN),
        (f"x/.tmp-{'0' * 32}", SkipReason.HIDDEN),
        *((f"{folder}{name}", SkipReason.MARKER) for folder in ("", "a/") for name in (
            *("_SUCCESS", "_SUCCESS.crc", "_metadata", "_common_metadata", "_metadata.crc"),
            *("_delta_log/00000000000000000010.checkpoint.parquet", "_temporary/0/a.parquet"),
            *("_committed_123", "_started_123", "_committed_vacuum123", "_spark_metadata/0"),
            *("__MACOSX/a.jpg", "Thumbs.db", "desktop.ini"),
        )),
        *((f"{name}/a.jpg", SkipReason.RESERVED) for name in ("_control", "b/_control", "_logs")),
        *((key, SkipReason.BAD_KEY) for key in _BAD_KEYS),
    ],
)  # fmt: skip
def test_hidden_names_markers_and_odd_keys_are_told_by_their_names(
    path: str, reason: SkipReason
) -> None:
    assert reason_of_name(path) == reason


def test_every_reason_is_counted_or_expected_and_the_rest_is_said() -> None:
    skipped = tally(*((f"{reason}-{i}.x", reason) for reason in SkipReason for i in range(2)))
    assert skipped.total == 2 * len(SkipReason)
    assert skipped.judged == 2 * (len(SkipReason) - 3), (
        "hidden, marker and link are as they should be"
    )
    assert not tally(
        ("_SUCCESS", SkipReason.MARKER), (".a", SkipReason.HIDDEN), ("b", SkipReason.LINK)
    ).judged
    heavy = [(f"{i}.heic", SkipReason.EXTENSION) for i in range(15)]
    others = [
        ("a.xmp", SkipReason.EXTENSION),
        ("b", SkipReason.EXTENSION),
        (".c", SkipReason.HIDDEN),
    ]
    description = tally(*others, *heavy).describe()
    assert description == "15 .heic, 1 without extension, 1 .xmp, 1 hidden"


@given(st.permutations(range(12)))
def test_the_first_names_do_not_depend_on_the_order_of_the_listing(order: list[int]) -> None:
    skipped = tally(*((f"{number:02d}.x", SkipReason.EXTENSION) for number in order))
    assert skipped.first["extension"] == tuple(f"{number:02d}.x" for number in range(FIRST_NAMES))


@pytest.mark.slow
def test_a_million_skipped_files_take_no_memory() -> None:
    counter = SkipCounter()
    tracemalloc.start()
    for number in range(200_000):
        counter.add(f"folder/{number:09d}.{number}", SkipReason.EXTENSION)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**20
    result = counter.result()
    assert (result.total, sum(result.extensions.values())) == (200_000, 200_000)
    assert len(json.dumps(result.to_dict())) < 4096


@given(st.text(), st.binary(max_size=20))
def test_any_name_becomes_text_and_an_extension(text: str, data: bytes) -> None:
    for name in (text, os.fsdecode(data), "\ud800.x"):
        printable(name).encode()
        extension_of(name).encode()
        document = tally((name, SkipReason.EXTENSION), (name, SkipReason.NOT_UTF8)).to_dict()
        json.dumps(document, ensure_ascii=False).encode()
    assert is_utf8(os.fsdecode(data)) == (printable(os.fsdecode(data)) == os.fsdecode(data))


def test_a_latin_1_name_is_shown_with_its_bytes() -> None:
    assert printable(os.fsdecode(b"caf\xe9.png")) == r"caf\xe9.png"


def test_what_was_stored_is_read_back_also_what_an_older_version_did_not_know() -> None:
    skipped = tally(("a.x", SkipReason.EXTENSION), ("b", SkipReason.BAD_KEY))
    assert Skipped.from_dict(json.loads(json.dumps(skipped.to_dict()))) == skipped
    assert Skipped.from_dict({}) == Skipped()
    newer = {"reasons": [{"reason": "of tomorrow", "files": 2, "first": ["x"]}]}
    assert Skipped.from_dict(newer).describe() == "2 of tomorrow"


def partition_of(folder: Path, **gates: Any) -> EarlierPartition:
    """Photos of which two can be decoded, links among them, and much that is no input."""
    inputs, blobs = folder / "in", folder / "blobs"
    for made in (inputs, blobs):
        made.mkdir()
    for number in range(4):
        (blobs / f"{number}").write_bytes(bytes([number]) * 9)
        (inputs / f"_DSC{number}.jpg").symlink_to(f"../blobs/{number}")
    for name in ("a.cr2", "b.cr2", "c.txt", ".hidden", "_SUCCESS", os.fsdecode(b"\xff.jpg")):
        (inputs / name).write_bytes(b"x")
    (inputs / "folder").symlink_to(blobs)
    sections = {"gates": {"max_error_pct": 100.0, **gates}}
    out = Store(str(folder / "out"))
    return EarlierPartition(str(inputs), out, {"format": "images"}, {"_DSC0.jpg"}, sections)


def test_every_file_is_a_row_or_counted_in_report_and_manifest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    partition = partition_of(tmp_path)
    manifest = partition.run()
    skipped = Skipped.from_dict(manifest.skipped)
    assert manifest.num_rows == manifest.num_predicted + manifest.num_quarantined == 4
    assert manifest.num_rows + skipped.total == len([*Path(partition.inputs).iterdir()])
    assert skipped.files == {
        "extension": 3, "hidden": 1, "marker": 1, "link_to_folder": 1, "not_utf8": 1
    }  # fmt: skip
    assert partition.report()["skipped"] == manifest.skipped
    assert "7 of 11 files below the source are not read: 2 .cr2, 1 .txt, 1 hidden" in caplog.text
    (verdict,) = [gate for gate in manifest.gates if gate["name"] == "max_skipped_pct"]
    assert (verdict["status"], verdict["message"]) == (
        "warn", "5 of 9 files are not read, 55.56%; limit 0%"
    )  # fmt: skip
    partition.broken.clear()
    assert partition.retry() == "published"
    assert partition.current().number == 2
    assert partition.current().skipped == manifest.skipped, "what is kept is said again"
    assert partition.report()["skipped"] == manifest.skipped
