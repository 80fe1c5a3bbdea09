"""Promise: the state of a partition follows from its version and its last run."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.commit.lease import Heartbeat
from pipeline.published.state import LastRun, PartitionStatus, status_of

NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
HALF = Heartbeat(run_id="run-2", ttl_s=60.0, rows=200, rows_done=100, host="far", pid=7)


def ago(seconds: float) -> dt.datetime:
    return NOW - dt.timedelta(seconds=seconds)


def looked_at(
    *, published_s: float | None = None, by: str = "run-1", heard_s: float | None = 5, **fields: Any
) -> PartitionStatus:
    """The status of a version that was published, and a run that was heard of, so long ago."""
    manifest: Any = None
    if published_s is not None:
        manifest = SimpleNamespace(
            number=3, run_id=by, created_at="2026-11-24", num_rows=9, num_quarantined=1, carried={}
        )
    has_ended = fields.pop("has_ended", "exit_code" in fields)
    last = None
    if heard_s is not None:
        last = LastRun(Heartbeat(**{**vars(HALF), **fields}), ago(heard_s), has_ended)
    published = None if published_s is None else ago(published_s)
    return status_of("date=2026-11-24", manifest, published, last, NOW)


@pytest.mark.parametrize("published_s", [None, 100.0])
@pytest.mark.parametrize(
    ("fields", "state", "why"),
    [
        ({"phase": "listing", "rows_per_s": 9.5}, "running", "listing at 50% 9.5 rows/s on far"),
        ({"has_ended": True}, "interrupted", "at 50%, its process is gone"),
        ({"heard_s": 61}, "interrupted", "at 50%, its process is gone"),
        ({"heard_s": 59}, "running", "at 50% on far"),
        ({"ttl_s": 600.0, "heard_s": 599}, "running", "at 50% on far"),
        ({"exit_code": 6, "error": "SIGTERM"}, "interrupted", "at 50%, SIGTERM"),
        ({"exit_code": 3, "failed_gates": ["a", "b"]}, "refused", "gate a, b"),
        ({"exit_code": 3, "error": "no"}, "refused", "no"),
        ({"exit_code": 8, "error": "no folder"}, "no_input", "no folder"),
        ({"exit_code": 7, "error": "Ray is gone"}, "failed", "Ray is gone"),
        ({"exit_code": 1}, "failed", "exit 1"),
    ],
)  # fmt: skip
def test_the_state_shows_a_failed_run_whatever_is_published(
    published_s: float | None, fields: dict[str, Any], state: str, why: str
):
    status = looked_at(published_s=published_s, **fields)
    assert (status.state, status.why) == (state, why)
    assert status.version == (None if published_s is None else 3)
    assert status.done_pct == 50


@pytest.mark.parametrize(
    "how",
    [
        {"heard_s": None},
        {"exit_code": 0},
        {"exit_code": 7, "run_id": "run-1"},  # it had published when it failed
        {"has_ended": True, "run_id": "run-1"},
        {"exit_code": 3, "heard_s": 200},  # what was published came later
    ],
)
def test_a_published_partition_without_a_later_run_is_complete(how: dict[str, Any]):
    status = looked_at(published_s=100, **how)
    assert (status.state, status.why, status.version, status.rows) == ("complete", None, 3, 9)
    assert (status.quarantined, status.carried) == (1, 0)


@pytest.mark.parametrize("how", [{"heard_s": None}, {"exit_code": 0}])
def test_a_partition_without_a_version_and_without_a_failure_is_unpublished(how: dict[str, Any]):
    assert looked_at(**how).state == "unpublished"


def test_the_duration_is_unknown_if_a_time_is():
    times = {"started_at": "2026-11-24T10:00:00+00:00", "written_at": "2026-11-24T10:01:30+00:00"}
    assert looked_at(**times).duration_s == 90
    assert looked_at(**{**times, "started_at": "yesterday"}).duration_s is None
    assert looked_at().duration_s is None
