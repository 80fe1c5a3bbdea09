"""Test that earlier partitions have the same key, come before this one, and are not its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support.runs.published import Rows, publish_rows

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.core.histograms import Distribution
from pipeline.gates.earlier_partitions import Past, look_back
from pipeline.storage.store import Store


def past_of(store: Store, partition: str, num_partitions: int = 7) -> Past:
    layout = Layout(partition)
    return look_back(store, layout, current_manifest(store, layout), num_partitions)


def publish(store: Store, partition: str, rows: Rows) -> Manifest:
    return publish_rows(store, partition, rows)


def test_the_last_partitions_are_found_newest_first(usual_store: Store):
    for day in range(1, 6):
        publish(usual_store, f"date=2026-11-0{day}", Rows(num_slices=day))
    usual_store.put("_control/date=2026-11-05x/log/0000000001.json", b"never read")
    usual_store.put("_control/date=2026-11-06/plan/x.json", b"planned, never published")
    assert past_of(usual_store, "date=2026-11-07").rows == (30, 24, 18, 12, 6)
    assert past_of(usual_store, "date=2026-11-07", 2).rows == (30, 24)
    assert past_of(usual_store, "date=2026-11-03").rows == (12, 6)
    assert past_of(usual_store, "date=2026-11-01") == Past()


@pytest.mark.parametrize("entry", [b"null", b"{", b'{"version": 1}', b"[" * 100_000])
def test_a_partition_whose_manifest_is_damaged_is_unknown(
    entry: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    store = Store(str(tmp_path))
    for day in (1, 2):
        publish(store, f"date=2026-11-0{day}", Rows(num_slices=day))
    store.put("_control/date=2026-11-02/log/0000000001.json", entry)
    assert past_of(store, "date=2026-11-03").rows == (6,)
    assert "earlier partition date=2026-11-02 is skipped" in caplog.text


def with_distribution(store: Store, partition: str, **labels: int) -> None:
    """Give what is published now a distribution, as a run of today writes it."""
    layout = Layout(partition)
    manifest = current_manifest(store, layout)
    assert manifest is not None
    changed = dataclasses.replace(manifest, distribution=Distribution(labels).to_dict())
    store.put(layout.log_entry(manifest.number), changed.to_json())


def test_the_last_night_that_has_a_distribution_is_the_basis(usual_store: Store):
    for day in (1, 2, 3):
        publish(usual_store, f"date=2026-11-0{day}", Rows())
    publish(usual_store, "date=2026-11-04", Rows())
    publish(usual_store, "date=2026-11-04", Rows(edition=2))
    assert past_of(usual_store, "date=2026-11-04").basis == ""
    with_distribution(usual_store, "date=2026-11-04", own=1)
    assert past_of(usual_store, "date=2026-11-04").basis == "version 2"
    assert past_of(usual_store, "date=2026-11-04").rows == (24, 24, 24), (
        "not a partition of its own"
    )
    with_distribution(usual_store, "date=2026-11-01", first=1)
    with_distribution(usual_store, "date=2026-11-02", second=1)
    past = past_of(usual_store, "date=2026-11-04")
    assert (past.basis, dict(past.distribution.labels)) == ("date=2026-11-02", {"second": 1})
