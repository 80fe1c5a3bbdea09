"""What stays moves no bytes through the machine: the store copies parts, and little is read."""

from __future__ import annotations

import os

import pyarrow as pa
from support.runs.carried_nights import (
    OWN,
    Old,
    Shard,
    compactor_of,
    divide,
    predictions,
    publish_parts,
    stage,
)
from support.runs.published import run_here
from support.servers.faultproxy import FaultProxy
from support.servers.localserver import LocalServer

from pipeline.commit.layout import Layout
from pipeline.commit.parts.carried_parts import compact_carried
from pipeline.storage.store import Store

ROWS = 240
SHARDS = [Shard(f"s{number}", tuple(range(ROWS))) for number in range(5)]


def large_predictions() -> pa.Table:
    """Rows of 8 KB that no compression makes smaller."""
    rows = [row for unit in divide(SHARDS, frozenset(), ()).whole for row in unit]
    table = predictions(rows)
    texts = pa.array([os.urandom(8000).hex() for _ in rows])
    return table.set_column(1, table.schema.field("uri"), texts)


def test_only_parts_with_new_rows_pass_through_the_machine(server: LocalServer):
    direct, yesterday = server.store(), Layout("date=1")
    cuts = [ROWS * number for number in range(1, 5)]
    version = publish_parts(direct, yesterday, 3, large_predictions(), cuts, row_group_rows=24)
    old = Old(version, tuple(SHARDS), frozenset())
    sizes = [part.size_bytes for part in version.manifest.parts]
    new = [*SHARDS[:3], Shard("s2a", (1, 2)), *SHARDS[3:]]
    nights = {
        4: divide(new, frozenset(["s2a#0"]), [old]),
        5: divide(SHARDS, frozenset(), [old], checked=frozenset(["s1#7", "s3#0"])),
    }
    for num_copied, night in nights.items():
        slices = stage(direct, f"work-{num_copied}", night.work)
        with FaultProxy(server.endpoint_url) as proxy:
            store = Store(direct.uri, server.options_at(proxy.url))
            compactor = compactor_of(store, f"new-{num_copied}", target_bytes=float(max(sizes)))
            done, traffic = compact_carried(
                compactor, slices, {}, night.carried, [version], OWN, night.unit_rows, run_here
            )
            assert traffic.parts_copied == num_copied
            rewritten = sum(sizes) - traffic.bytes_copied
            assert rewritten in ([0] if num_copied == 5 else sizes)
            # Beside what is written anew: footers, slices, and what it takes to look for parts.
            assert proxy.bytes_moved < 2 * rewritten + 0.3 * min(sizes)
            assert traffic.bytes_read < rewritten + 0.2 * min(sizes)
            assert len(proxy.requests) < 20 * len(sizes)
        moved = [f"{compactor.folder}/{part.path}" for part in done.predictions]
        assert [len(direct.read_bytes(path)) for path in moved] == [
            part.size_bytes for part in done.predictions
        ]
        digests = {part.sha256 for part in version.manifest.parts}
        assert sum(part.sha256 in digests for part in done.predictions) == num_copied


def test_one_row_group_of_a_large_part_is_read_alone(server: LocalServer):
    direct = server.store()
    version = publish_parts(direct, Layout("date=1"), 3, large_predictions(), row_group_rows=24)
    old = Old(version, tuple(SHARDS), frozenset())
    night = divide([Shard("s1", SHARDS[1].values)], frozenset(), [old])
    few = night.carried.runs[:4]
    carried = night.carried.__class__(night.carried.sources, few, night.carried.checked)
    with FaultProxy(server.endpoint_url) as proxy:
        store = Store(direct.uri, server.options_at(proxy.url))
        compactor = compactor_of(store, "new")
        compact_carried(compactor, [], {}, carried, [version], OWN, None, run_here)
        [part] = version.manifest.parts
        assert proxy.bytes_moved < 2 * 24 * part.size_bytes / part.num_rows + 150_000
