"""Parts whose predictions all stay are copied by the store; small ones do not pile up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs.carried_nights import (
    OWN,
    SCHEMA,
    Content,
    Night,
    Old,
    Shard,
    compactor_of,
    divide,
    publish_shards,
    recompute,
    stage,
)
from support.runs.published import run_here

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Part
from pipeline.commit.parts.carried.parts import compact_carried
from pipeline.commit.parts.carried.version import CarriedVersion, NotReadable, Traffic
from pipeline.commit.parts.compaction import Compacted, Compactor, RunTasks
from pipeline.storage.store import Store

LAYOUT = Layout("date=1")
SHARDS = [
    Shard(f"s{number:02d}", tuple(range(10 * number, 10 * number + 10))) for number in range(12)
]
CUTS = [30, 60, 90]


def publish(store: Store, broken: frozenset[str] = frozenset(), **how: Any) -> Old:
    """Four parts of three shards."""
    return publish_shards(store, LAYOUT, 3, SHARDS, broken, CUTS, **how)


def carry(
    store: Store, night: Night, old: Old, compactor: Compactor, run_tasks: RunTasks = run_here
) -> tuple[Compacted, Traffic]:
    slices = stage(store, compactor.folder.replace("new", "work"), night.work)
    return compact_carried(
        compactor, slices, {}, night.carried, [old.version], OWN, night.unit_rows, run_tasks
    )


def sizes(old: Old) -> list[int]:
    return [part.size_bytes for part in old.version.manifest.parts]


def digests(parts: Sequence[Part]) -> list[str]:
    return [part.sha256 for part in parts]


@pytest.mark.parametrize("is_replaced", [False, True], ids=["published", "history"])
def test_an_unchanged_partition_is_copied_byte_by_byte(is_replaced: bool, tmp_path: Path):
    store = Store(str(tmp_path))
    old = publish(store, is_replaced=is_replaced)
    compactor = compactor_of(store, "new", target_bytes=float(max(sizes(old))))
    calls: list[int] = []

    def run(function, arguments):
        calls.append(len(arguments))
        return run_here(function, arguments)

    done, traffic = carry(store, divide(SHARDS, frozenset(), [old]), old, compactor, run)
    assert calls[-1] == 1, "copies share a task"
    assert digests(done.predictions) == digests(old.version.manifest.parts)
    assert (traffic.parts_copied, traffic.bytes_copied) == (4, sum(sizes(old)))
    assert (
        done.row_id_hash
        == Content.of(*recompute(store, divide(SHARDS, frozenset(), [old]))).row_id_hash
    )


def test_a_small_part_is_copied_if_it_is_all_there_is(tmp_path: Path):
    store, calls = Store(str(tmp_path)), []
    old = publish_shards(store, LAYOUT, 3, SHARDS[:1])

    def run(function, arguments):
        calls.append((function.__name__, len(arguments)))
        return run_here(function, arguments)

    compactor = compactor_of(store, "new", target_bytes=1e6)
    done, traffic = carry(store, divide(SHARDS[:1], frozenset(), [old]), old, compactor, run)
    [part], [was] = done.predictions, old.version.manifest.parts
    assert (part.sha256, part.num_rows, part.row_id_hash) == (was.sha256, 10, was.row_id_hash)
    assert store.read_bytes(f"new/{part.path}") == store.read_bytes(was.path)
    assert ("are_like", 1) in calls
    assert traffic.bytes_read < 2**16
    # With a row that fails behind it, too; with one that does not, both are written together.
    shards = [*SHARDS[:1], Shard("s00b", (1,))]
    for broken, num_copied in ((frozenset(["s00b#0"]), 1), (frozenset[str](), 0)):
        compactor = compactor_of(store, f"new-{num_copied}", target_bytes=1e6)
        done, traffic = carry(store, divide(shards, broken, [old]), old, compactor)
        assert (traffic.parts_copied, len(done.predictions)) == (num_copied, 1)
        assert Content.of(compactor, done) == Content.of(
            *recompute(store, divide(shards, broken, []))
        )


@pytest.mark.parametrize("with_checked", [False, True])
def test_rows_that_fail_or_are_checked_within_a_part_do_not_keep_it_from_being_copied(
    with_checked: bool, tmp_path: Path
):
    """What failed goes to the quarantine at its place; what was checked has its old prediction."""
    store = Store(str(tmp_path))
    broken = frozenset(["s00#0", "s01#4", "s05#9", "s11#9"])
    old = publish(store, broken)
    checked = frozenset(["s00#1", "s04#5", "s08#0"]) if with_checked else frozenset[str]()
    night = divide(SHARDS, broken, [old], checked=checked, unit_rows=1)  # each a slice
    assert sum(map(len, night.work)) == 4 + len(checked)
    compactor = compactor_of(store, "new", target_bytes=float(max(sizes(old))))
    done, traffic = carry(store, night, old, compactor)
    assert digests(done.predictions) == digests(old.version.manifest.parts)
    assert Content.of(compactor, done) == Content.of(*recompute(store, night))
    # A checked row that fails has no prediction any more.
    night = divide(SHARDS, broken | {"s04#5"}, [old], checked=frozenset(["s00#1", "s04#5"]))
    compactor = compactor_of(store, "newer", target_bytes=float(max(sizes(old))))
    done, traffic = carry(store, night, old, compactor)
    assert traffic.parts_copied == 3
    assert Content.of(compactor, done) == Content.of(*recompute(store, night))


def test_one_new_row_has_only_its_part_written_anew(tmp_path: Path):
    store = Store(str(tmp_path))
    old = publish(store)
    shards = sorted([*SHARDS, Shard("s04a", (77,))], key=lambda shard: shard.name)
    night = divide(shards, frozenset(), [old])
    compactor = compactor_of(store, "new", target_bytes=float(max(sizes(old))))
    done, traffic = carry(store, night, old, compactor)
    kept = digests(old.version.manifest.parts)
    assert digests(done.predictions)[:1] + digests(done.predictions)[2:] == kept[:1] + kept[2:]
    assert [part.num_rows for part in done.predictions] == [30, 31, 30, 30]
    assert Content.of(compactor, done) == Content.of(*recompute(store, night))
    footers = 4 * 2**16
    assert traffic.bytes_read < sizes(old)[1] + footers


def test_what_is_written_anew_is_near_its_target_in_all_groups(tmp_path: Path):
    store = Store(str(tmp_path))
    shards = [Shard(f"s{n:02d}", tuple(range(900 * n, 900 * n + 900))) for n in range(40)]
    how = {"compression": "snappy", "row_group_rows": 500}
    old = publish_shards(store, LAYOUT, 3, shards, cuts=[9000, 9001, 11_000], **how)
    night = divide(shards, frozenset(), [old], checked=frozenset(["s07#7", "s30#0"]))
    plain, _ = carry(store, night, old, compactor_of(store, "new"))
    target = plain.predictions[0].size_bytes / 14.5
    calls: list[int] = []

    def run(function, arguments):
        calls.append(len(arguments))
        return run_here(function, arguments)

    compactor = compactor_of(store, "newer", target_bytes=target)
    done, traffic = carry(store, night, old, compactor, run)
    assert traffic.parts_copied == 0
    assert 3 <= calls[-1] <= 6, "a few groups"
    found = [part.size_bytes / target for part in done.predictions]
    assert all(0.88 <= size <= 1.2 for size in found[:-1]), found
    assert sum(part.num_rows for part in done.predictions) == 36_000


@pytest.mark.parametrize("what", ["compression", "column"])
def test_parts_that_new_ones_would_not_be_like_are_written_anew(what: str, tmp_path: Path):
    store = Store(str(tmp_path))
    old = publish(store, compression="snappy" if what == "compression" else "zstd")
    night = divide(SHARDS, frozenset(), [old])
    compactor = compactor_of(store, "new", target_bytes=float(max(sizes(old))))
    if what == "column":
        index = SCHEMA.get_field_index("edition")
        strict = SCHEMA.set(index, SCHEMA.field(index).with_nullable(False))
        compactor = replace(compactor, schema=strict)
    done, traffic = carry(store, night, old, compactor)
    assert traffic.parts_copied == 0
    assert sum(part.num_rows for part in done.predictions) == 120


def test_a_part_that_goes_between_the_choice_and_the_copy_ends_the_run(tmp_path: Path):
    store = Store(str(tmp_path))
    old = publish(store)
    night = divide(SHARDS, frozenset(), [old])
    compactor = compactor_of(store, "new", target_bytes=float(max(sizes(old))))

    def run(function, calls):
        if function.__name__ == "compact":
            store.delete([old.version.manifest.parts[1].path])
        return run_here(function, calls)

    with pytest.raises(NotReadable, match=r"part-00001\S+: is gone, also from the history"):
        carry(store, night, old, compactor, run)


def nightly(
    store: Store, number: int, shards: list[Shard], old: Old, target_bytes: float
) -> tuple[Old, Traffic]:
    """Publish the next version of the partition, and use that."""
    night = divide(shards, frozenset(), [old])
    compactor = compactor_of(store, f"new-{number}", number, target_bytes)
    done, traffic = carry(store, night, old, compactor)
    parts = []
    for part in done.predictions:
        parts.append(replace(part, path=f"{LAYOUT.predictions}/{part.path.rpartition('/')[2]}"))
        store.copy(f"{compactor.folder}/{part.path}", parts[-1].path)
    manifest = replace(old.version.manifest, number=number, parts=tuple(parts))
    return Old(CarriedVersion(LAYOUT, manifest), tuple(shards), frozenset()), traffic


@pytest.mark.parametrize(
    "where",
    [
        "anywhere",
        *(
            pytest.param(where, marks=pytest.mark.slow)
            for where in ("at the end", "at the beginning", "between two parts")
        ),
    ],
)
@pytest.mark.slow
def test_thirty_nights_of_one_new_row_each_leave_parts_near_their_size(where: str, tmp_path: Path):
    store, rng = Store(str(tmp_path)), np.random.default_rng(3)
    shards = [Shard(f"m{n:04d}", tuple(range(200))) for n in range(0, 40)]
    rows = sum(len(shard.values) for shard in shards)
    old = publish_shards(
        store, LAYOUT, 1, shards, frozenset(), list(range(1000, rows, 1000)), row_group_rows=125
    )
    target = float(np.mean(sizes(old)))
    written = []
    for night in range(2, 32):
        name = {
            "at the end": f"z{night:04d}",
            "at the beginning": f"a{night:04d}",
            "anywhere": f"m{rng.integers(0, 40):04d}-{night}",
            "between two parts": f"m0004-{night}",
        }[where]
        shards = sorted([*shards, Shard(name, (night,))], key=lambda shard: shard.name)
        old, traffic = nightly(store, night, shards, old, target)
        written.append(sum(sizes(old)) - traffic.bytes_copied)
        own = [size / target for size in sizes(old)]
        assert all(0.45 <= size <= 1.6 for size in own[:-1]), (night, own)
        assert len(own) <= 10
    assert sum(part.num_rows for part in old.version.manifest.parts) == rows + 30
    assert max(written) < 2.6 * target, "most parts are copied each night"


def test_deletions_that_leave_little_of_parts_have_what_is_left_joined(tmp_path: Path):
    store = Store(str(tmp_path))
    old = publish(store)
    shards = [shard for shard in SHARDS if shard.name not in ("s03", "s04", "s10", "s11")]
    night = divide(shards, frozenset(), [old])
    compactor = compactor_of(store, "new", target_bytes=float(max(sizes(old))))
    done, traffic = carry(store, night, old, compactor)
    assert traffic.parts_copied == 1
    assert [part.num_rows for part in done.predictions] in ([40, 30, 10], [30, 40, 10])
    assert Content.of(compactor, done) == Content.of(*recompute(store, night))
