"""What stays moves no bytes through the machine: the store copies parts, and little is read."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
from support.runs.carried_nights import (
    OWN,
    SCHEMA,
    Old,
    Row,
    Shard,
    compactor_of,
    divide,
    predictions,
    publish_parts,
    stage,
)
from support.runs.published import run_here
from support.servers.faultproxy import DELAY, FaultProxy, Rule
from support.servers.localserver import LocalServer

from pipeline.commit.layout import Layout
from pipeline.commit.parts.carried.parts import compact_carried
from pipeline.commit.parts.carried.version import OldPart, OldReader, OldRows
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


def test_a_part_may_move_to_the_history_before_any_request(server: LocalServer):
    direct, layout = server.store(), Layout("date=1")
    table = predictions([Row(str(n), f"id-{n}", "s", n) for n in range(30)])
    num_moves = 0
    while True:
        version = publish_parts(direct, layout, 1, table, row_group_rows=10)
        [old] = version.parts()
        rule = Rule(f"{DELAY}:0", method=".*", path="predictions.*part-", first=num_moves + 1)
        rule.last = rule.first
        with FaultProxy(server.endpoint_url, rule) as proxy:

            def move(_: str, old: OldPart = old) -> None:
                direct.copy(old.part.path, old.history)
                direct.delete([old.part.path])

            proxy.on_fault = move
            store = Store(direct.uri, server.options_at(proxy.url))
            reader = OldReader(store, OldRows.of([version]), SCHEMA)
            numbers = np.arange(30)
            assert reader.at(numbers).equals(table)
        direct.delete([old.history])
        if not any(action.startswith(DELAY) for _, _, action in proxy.requests):
            break
        num_moves += 1
    assert num_moves > 5
