"""`pipeline retry` as a user runs it: killed, of some reasons, of all, and of none."""

from __future__ import annotations

import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.photos import build_images
from support.runs.cli import pipeline, write_job
from support.runs.earlier_partitions import LAYOUT, damage, write_same_time
from support.runs.published import DAY
from support.runs.published_rows import read_predictions
from support.servers.httpserver import WebServer, answer, ok

from pipeline.commit.manifest import current_manifest
from pipeline.commit.published.verify import verify_output
from pipeline.storage.store import Store

DATE = DAY.partition("=")[2]
NOWHERE = ("--address", "127.0.0.1:1")
"""What needs no Ray does not mind."""


def quarantine_of(out: Path) -> dict[str, str]:
    store = Store(str(out))
    manifest = current_manifest(store, LAYOUT)
    assert manifest is not None
    tables = [pq.read_table(out / part.path) for part in manifest.quarantine_parts]
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["row_id"]: row["reason"] for row in rows}


@pytest.mark.slow
@pytest.mark.no_ray
def test_rows_behind_a_server_that_was_down_come_in_when_it_is_up(tmp_path: Path) -> None:
    folder, out = tmp_path / "table", tmp_path / "out"
    folder.mkdir()
    build_images(tmp_path / "photos", 24, seed=9, num_bad=0)
    photos = [path.read_bytes() for path in sorted((tmp_path / "photos").rglob("*.*"))]
    with WebServer() as web:
        paths = [f"/{row}.jpg" for row in range(24)]
        for row, path in enumerate(paths):
            web.scripts[path] = [answer(403) if row % 4 == 1 else ok(photos[row])]
        for shard in range(3):
            rows = range(8 * shard, 8 * shard + 8)
            table = {"link": [web.url(paths[r]) for r in rows], "id": [f"photo-{r}" for r in rows]}
            pq.write_table(pa.table(table), folder / f"s{shard}.parquet")
        unread = damage(folder / "s1.parquet")
        source = {
            "uri": str(folder), "format": "parquet", "uri_column": "link", "id_column": "id",
            "private_hosts": [web.authority], "allow_http": True,
        }  # fmt: skip
        sink = {"partition_columns": ["label"]}
        job = write_job(
            tmp_path / "job.yaml", source, str(out), sink=sink, gates={"max_error_pct": 50.0}
        )
        assert pipeline("retry", job, "--date", DATE).code == 2, "there is no version"
        first = pipeline("run", job, "--date", DATE, "--json")
        assert first.code == 0, first.stderr
        assert first.json["reasons"] == {"unreachable": 4, "unreadable_shard": 1}

        for row, path in enumerate(paths):
            web.scripts[path] = [ok(photos[row])]
        killed = pipeline(
            *("retry", job, "--date", DATE, "--reason", "unreachable"),
            env={"PIPELINE_FAILPOINT": "before_log:kill"},
        )
        assert killed.code == -signal.SIGKILL, killed.stderr
        again = pipeline("retry", job, "--date", DATE, "--reason", "unreachable", "--json")
        assert again.code == 0, again.stderr
        assert (again.json["retry"]["recovered"], again.json["rows"]["predicted"]) == (4, 16)
        num_requests = len(web.paths)
        assert quarantine_of(out) == {"s1.parquet": "unreadable_shard"}
        none = pipeline("retry", job, "--date", DATE, "--reason", "unreachable", "--json", *NOWHERE)
        assert (none.code, none.json["status"]) == (0, "nothing_to_do"), none.stderr
        assert "nothing to retry: quarantined stay 1 with other reasons" in none.stderr
        write_same_time(folder / "s1.parquet", unread)
        rest = pipeline("retry", job, "--date", DATE, "--json")
        assert rest.code == 0, rest.stderr
        assert (rest.json["retry"]["entries"], rest.json["retry"]["recovered"]) == (1, 8)
        assert len(web.paths) == num_requests + 8
    assert quarantine_of(out) == {}
    table = read_predictions(str(out), DAY)
    by_label: dict[str, list[int]] = {}
    for row in table.to_pylist():
        by_label.setdefault(row["label"], []).append(int(row["row_id"].partition("-")[2]))
    assert all(rows == sorted(rows) for rows in by_label.values())
    assert sorted(row for rows in by_label.values() for row in rows) == list(range(24))
    verify_output(str(out), DAY, {})
    same = pipeline("run", job, "--date", DATE, "--json")
    assert (same.code, same.json["status"]) == (0, "nothing_to_do"), same.stderr
