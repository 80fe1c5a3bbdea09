"""Promise: `verify` finds and names whatever is lost, doubled or changed."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.runs.published import (
    DAY,
    Rows,
    encode,
    make_manifest,
    make_plan,
    publish_rows,
    read_part_table,
)

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, Part
from pipeline.commit.parts.compaction import Compacted
from pipeline.commit.parts.row_ids import hash_ids, sum_hashes
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.publish import repair
from pipeline.commit.shard_table import About, KnownShard, write_shard_table
from pipeline.core.documents import sealed, unsealed
from pipeline.core.errors import InfraError, PipelineError
from pipeline.core.ranges import EMPTY, Ranges
from pipeline.published import verify as verify_module
from pipeline.published.verify import Check, check_keys, verdict, verify_output
from pipeline.sources.units import UncountedPlan
from pipeline.storage.store import Store

LAYOUT = Layout(DAY)
CHECKS = [
    *("parts", "folder", "success", "log", "plan", "keys", "rows", "schema"),
    *("counts", "unique_ids", "row_id_hash", "planned_ids"),
]
ABOUT = About("predictor", "settings", "content")
SOUND = (
    KnownShard("a", 10, "1", 3, 0, Ranges.of([1])),
    KnownShard("b", 10, "1", 2, 2, Ranges.of([0, 1])),
    KnownShard("c", 10, "1", 5, 2),
)
"""Seven predictions in two parts."""
BEYOND = "the shards have predictions beyond the 7 of the version"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def verify(store: Store, partition: str | None = None) -> dict[str, str]:
    """Status of each check; the message is that of a failure."""
    document = verify_output(store.uri, partition, dict(store.storage_options))
    assert document["status"] == "ok"
    return {check["name"]: check["status"] for check in document["checks"]}


def failures(store: Store) -> tuple[list[str], str]:
    """Names of the checks that fail, and the message."""
    with pytest.raises(PipelineError) as caught:
        verify(store)
    assert type(caught.value) is PipelineError
    assert caught.value.exit_code == 1
    message = str(caught.value)
    match = re.fullmatch(
        r"verify failed: (\d+) of \d+ checks: (\w+): (.*?)(?:; also failed: (.*))?", message
    )
    assert match
    names = [match[2], *(match[4].split(", ") if match[4] else [])]
    assert len(names) == int(match[1])
    return names, message


@pytest.mark.parametrize(
    "rows",
    [
        Rows(),
        Rows(fail_every=0),
        Rows(fail_every=1),
        Rows(num_slices=0),
        Rows(unreadable_shards=2),
        Rows(row_ids="column", same_id_every=7),
        Rows(row_ids="key"),
        Rows(row_ids="path", rows_per_slice=1),
    ],
    ids=["some_fail", "none_fails", "all_fail", "empty", "unreadable", "same_ids", "keys", "files"],
)
@pytest.mark.parametrize("partition", [DAY, None])
def test_a_published_version_passes_all_checks(store: Store, rows: Rows, partition: str | None):
    publish_rows(store, partition, rows)
    statuses = verify(store)
    assert verify(store, partition or "all") == statuses
    assert [*statuses] == CHECKS
    skipped = {"planned_ids"} if rows.row_ids in ("column", "key") else set()
    assert {name for name, status in statuses.items() if status == "skipped"} == skipped
    assert set(statuses.values()) <= {"pass", "skipped"}


def test_a_version_without_keys_passes_without_their_check(store: Store):
    edit(store, publish_rows(store), keys={})
    assert verify(store) == {**dict.fromkeys(CHECKS, "pass"), "keys": "skipped"}


def test_uncounted_rows_pass_without_the_check_of_their_number(store: Store):
    """Rows of a tar are uncounted; here only the stored plan is changed to such rows."""
    rows = Rows(unreadable_shards=1)
    manifest, plan = publish_rows(store, rows=rows), make_plan(rows)
    unit = dataclasses.replace(plan.units[0], bounds=(), cut=UncountedPlan(10, 1000))
    uncounted = adopt_plan(store, LAYOUT, dataclasses.replace(plan, units=(unit,)))
    edit(store, manifest, plan=uncounted.work)
    checks = verify_output(store.uri, DAY, {})["checks"]
    results = {check["name"]: (check["status"], check["message"]) for check in checks}
    assert results["plan"] == ("pass", "rows unknown until read, of 5 shards")
    assert results["planned_ids"][0] == "skipped"
    assert {status for status, _ in results.values()} == {"pass", "skipped"}


def test_an_entry_of_another_version_of_the_package_passes_and_stays_unchanged(store: Store):
    manifest = publish_rows(store)
    document = unsealed(manifest.to_json())
    del document["ctimes_sha256"]
    entry = sealed({**document, "of_later": 1})
    for path in (LAYOUT.log_entry(1), LAYOUT.current):
        store.put(path, entry)
    assert "fail" not in verify(store).values()
    repair(store, LAYOUT, keep_versions=3)
    assert store.read_bytes(LAYOUT.current) == entry


def test_hidden_files_beside_the_parts_are_ignored(store: Store):
    part = publish_rows(store).parts[0]
    path = Path(store.uri) / part.path
    path.with_name(f".{path.name}.crc").write_bytes(b"of another program")
    assert verify(store)["folder"] == "pass"


def test_a_gap_in_the_log_is_found(store: Store):
    for edition in (1, 2):
        publish_rows(store, rows=Rows(edition))
    store.delete([LAYOUT.log_entry(1)])
    names, message = failures(store)
    assert names == ["log"]
    assert "the entries are not 1 to 1" in message


def test_a_version_replaced_while_it_is_read_is_not_judged(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    publish_rows(store, rows=Rows(1))
    read = verify_module._check_version

    def replace_meanwhile(store: Store, layout: Layout, manifest: Manifest) -> list[Check]:
        checks = read(store, layout, manifest)
        if manifest.number < num_versions:
            publish_rows(store, rows=Rows(manifest.number + 1))
        return checks

    monkeypatch.setattr(verify_module, "_check_version", replace_meanwhile)
    num_versions = 2
    assert verify_output(store.uri, DAY, {})["version"] == 2
    num_versions = 99
    with pytest.raises(InfraError, match="replaced 3 times while it was read"):
        verify_output(store.uri, DAY, {})


def delete(store: Store, manifest: Manifest, path_of: Callable[[Manifest], str]) -> None:
    store.delete([path_of(manifest)])


def write_manifest(store: Store, manifest: Manifest, path: str) -> None:
    store.put(path, manifest.to_json())


def damage_the_plan(store: Store, manifest: Manifest) -> None:
    store.put(LAYOUT.plan(manifest.plan_name), b"no plan")


def remove_a_row(store: Store, manifest: Manifest) -> None:
    part = manifest.parts[1]
    store.put(part.path, encode(read_part_table(store, part).slice(1)))


def double_a_row(store: Store, manifest: Manifest) -> None:
    part = manifest.parts[1]
    table = read_part_table(store, part)
    store.put(part.path, encode(pa.concat_tables([table, table.slice(0, 1)])))


def drop_a_column(store: Store, manifest: Manifest) -> None:
    part = manifest.parts[0]
    store.put(part.path, encode(read_part_table(store, part).drop_columns(["score"])))


def add_a_stray_part(store: Store, manifest: Manifest) -> None:
    part = manifest.parts[0]
    store.copy(part.path, f"{LAYOUT.predictions}/part-00009-000001-0123456789ab.parquet")


def change_the_list(store: Store, manifest: Manifest) -> None:
    other = dataclasses.replace(manifest, num_rows=manifest.num_rows + 1)
    store.put(LAYOUT.current, other.to_json())


def add_a_link(store: Store, manifest: Manifest) -> None:
    part = Path(store.uri) / manifest.parts[0].path
    part.with_name("more.parquet").symlink_to(part)


def edit(store: Store, manifest: Manifest, **changes: Any) -> None:
    """Change log entry and `current.json`."""
    data = dataclasses.replace(manifest, **changes).to_json()
    store.put(LAYOUT.log_entry(manifest.number), data)
    store.put(LAYOUT.current, data)


def edit_counts(store: Store, manifest: Manifest) -> None:
    more = {"num_predicted": manifest.num_predicted + 1}
    edit(store, manifest, **more, num_quarantined=manifest.num_quarantined - 1)


def edit_a_hash(store: Store, manifest: Manifest) -> None:
    first, *rest = manifest.parts
    edit(store, manifest, parts=(dataclasses.replace(first, row_id_hash="0" * 16), *rest))


@pytest.mark.parametrize(
    ("damage", "expected", "text"),
    [
        (partial(delete, path_of=lambda m: m.parts[1].path), ["parts", "folder"], "is missing"),
        (
            partial(delete, path_of=lambda m: m.quarantine_parts[0].path),
            ["parts", "folder"],
            "quarantine/",
        ),
        (
            remove_a_row,
            ["parts", "rows", "counts", "row_id_hash", "planned_ids"],
            "the manifest says",
        ),
        (
            double_a_row,
            ["parts", "rows", "counts", "unique_ids", "row_id_hash", "planned_ids"],
            "the manifest says",
        ),
        (drop_a_column, ["parts", "schema"], "the manifest says"),
        (add_a_stray_part, ["folder"], "part-00009-000001-0123456789ab.parquet is not a part"),
        (change_the_list, ["success"], "current.json is not as published"),
        # As versions before wrote it; Polars would take it for a part.
        (partial(write_manifest, path=LAYOUT.success), ["success"], "_SUCCESS is not as published"),
        (add_a_link, ["folder"], "more.parquet is a link"),
        (partial(edit, number=7), ["log"], "0000000001.json says that it is 7"),
        (partial(edit, partition="date=2020-01-01"), ["log"], "says partition date=2020-01-01"),
        (edit_a_hash, ["row_id_hash"], "add up to"),
        (partial(edit, row_id_hash="0" * 16), ["row_id_hash"], "the row ids add up to"),
        (
            edit_counts,
            ["counts"],
            "counts: 20 predicted + 4 quarantined, the manifest says 21 + 3 = 24 rows",
        ),
        (
            partial(write_manifest, path=f"{LAYOUT.log}/abc.json"),
            ["log"],
            "abc.json is not a log entry",
        ),
        (partial(delete, path_of=lambda _: LAYOUT.success), ["success"], "_SUCCESS is missing"),
        (partial(delete, path_of=lambda _: LAYOUT.current), ["success"], "current.json is missing"),
        (
            partial(delete, path_of=lambda m: LAYOUT.plan(m.plan_name)),
            ["plan"],
            "rows in cannot be proved",
        ),
        (damage_the_plan, ["plan"], "the stored plan is damaged"),
    ],
)
def test_damage_is_found_by_its_own_check(
    store: Store, damage: Callable[[Store, Manifest], None], expected: list[str], text: str
):
    manifest = publish_rows(store)
    damage(store, manifest)
    names, message = failures(store)
    assert names[0] == expected[0]
    assert set(names) == set(expected)
    assert text in message


def test_a_flipped_byte_anywhere_in_a_part_is_found(store: Store):
    part = publish_rows(store).parts[0]
    data = store.read_bytes(part.path)
    for position in range(0, len(data), 97):
        changed = bytearray(data)
        changed[position] ^= 0x40
        store.put(part.path, bytes(changed))
        names, message = failures(store)
        assert names[0] == "parts"
        assert "sha256 is" in message
    store.put(part.path, data)
    assert verify(store)["parts"] == "pass"


@pytest.mark.parametrize(
    ("problems", "status", "message"),
    [
        ([], "pass", "fine"),
        (["a"], "fail", "a"),
        (["a", "b"], "fail", "a (and 1 more)"),
        (["a", "b", "c"], "fail", "a (and 2 more)"),
    ],
)
def test_one_of_several_problems_is_named(problems: list[str], status: str, message: str):
    result = verdict("rows", problems, "fine")
    assert (result.name, result.status, result.message) == ("rows", status, message)


def test_without_a_name_all_partitions_are_checked(store: Store):
    days = [DAY, "date=2026-11-25", "date=2026-11-26"]
    for day in days:
        manifest = publish_rows(store, day)
    document = verify_output(store.uri, None, {})
    assert document["status"] == "ok"
    assert [(one["partition"], one["status"]) for one in document["partitions"]] == [
        (day, "ok") for day in days
    ]
    store.delete([manifest.parts[0].path])
    with pytest.raises(PipelineError, match=f"checks: parts: .*failed partitions: {days[2]}$"):
        verify_output(store.uri, None, {})
    assert verify(store, days[1])["parts"] == "pass"
    assert verify_output(f"{store.uri}/{DAY}", None, {})["partition"] == DAY


def publish_wrong(store: Store, wrong: str) -> None:
    """Publish with wrong rows in the second part, which the manifest describes truthfully."""
    manifest = publish_rows(store)
    first, part = manifest.parts
    rows = read_part_table(store, part)
    pieces = [rows.slice(0, 3), rows.slice(4 if "lose" in wrong else 3)]
    if "double" in wrong:
        pieces.append(rows.slice(7, 1))
    if "add" in wrong:
        stranger = pa.array(["stranger"], rows.schema.field(0).type)
        pieces.append(rows.slice(3, 1).set_column(0, rows.schema.field(0), stranger))
    rows = pa.concat_tables(pieces)
    data = encode(rows)
    store.put(part.path, data)
    tables = [read_part_table(store, part) for part in manifest.all_parts]
    edit(
        store,
        manifest,
        parts=(first, Part(part.path, len(rows), len(data), hashlib.sha256(data).hexdigest())),
        num_rows=manifest.num_rows + len(rows) - part.num_rows,
        num_predicted=manifest.num_predicted + len(rows) - part.num_rows,
        row_id_hash=sum_hashes([int(hash_ids(table["row_id"]).sum()) for table in tables]),
        keys={},
    )


@pytest.mark.parametrize(
    ("wrong", "expected", "text"),
    [
        ("lose", ["counts", "planned_ids"], "23 rows, planned 24"),
        ("double", ["counts", "unique_ids", "planned_ids"], "25 rows, planned 24"),
        (
            "lose double",
            ["unique_ids", "planned_ids"],
            "'shard-3.parquet#2' has two predictions, again in predictions/",
        ),
        ("add", ["counts", "planned_ids"], "25 rows, planned 24"),
        ("lose add", ["planned_ids"], "lost 1, unexpected 1; first: 'shard-2.parquet#3'"),
    ],
)
def test_one_wrong_row_is_found_and_named(
    store: Store, wrong: str, expected: list[str], text: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verify_module, "BATCH_ROWS", 7)  # planned ids are looked at in several
    publish_wrong(store, wrong)
    names, message = failures(store)
    assert names == expected
    assert text in message


def check(
    folder: Path, shards: tuple[KnownShard, ...] = SOUND, unreadable_shards: int = 0
) -> Check:
    """Write a table of shards, and check it."""
    store, parts = Store(str(folder)), (Part("part-0", 3, 1, ""), Part("part-1", 4, 1, ""))
    keys = write_shard_table(store, LAYOUT.keys("1"), ABOUT, shards, Compacted(parts, ()))
    manifest = replace(
        make_manifest(LAYOUT, make_plan(Rows()), 1, "run", parts, ()),
        keys=keys,
        num_predicted=7,
        num_unreadable_shards=unreadable_shards,
    )
    return check_keys(store, LAYOUT, manifest)


def changed(number: int, **how: object) -> tuple[KnownShard, ...]:
    return tuple(replace(s, **how) if n == number else s for n, s in enumerate(SOUND))


def test_a_sound_table_of_shards_passes_and_unreadable_shards_may_be_missing(tmp_path: Path):
    result = check(tmp_path)
    assert (result.status, result.message) == ("pass", "3 shards, as written")
    assert check(tmp_path, ()).status == "pass"
    assert check(tmp_path, SOUND[:2]).status == "fail"
    assert check(tmp_path, SOUND[:2], unreadable_shards=1).status == "pass"


@pytest.mark.parametrize(
    ("shards", "unreadable", "message"),
    [
        (changed(0, failed=Ranges.of([3])), 0, "a has 3 rows, and failed rows beyond them"),
        (changed(0, failed=Ranges.of([-1])), 0, "a has 3 rows, and failed rows beyond them"),
        (changed(2, first=1), 0, "b and c have the same predictions"),
        (changed(0, failed=EMPTY), 0, "a and b have the same predictions (and 1 more)"),
        (changed(2, num_rows=4), 0, "the shards have 6 predictions, the version 7"),
        (changed(2, first=3), 0, BEYOND),
        (changed(2, num_rows=6), 1, BEYOND),
    ],
)
def test_shards_with_impossible_rows_are_named(
    tmp_path: Path, shards: tuple[KnownShard, ...], unreadable: int, message: str
):
    result = check(tmp_path, shards, unreadable)
    assert (result.status, result.message) == ("fail", message)
