"""Prove a published partition: nothing lost, nothing doubled, nothing changed.

Parts are streamed: only the 64-bit hash of each row id stays in memory. The ids themselves are read
again only where hashes differ from what they should be.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.commit.layout import Layout, part_target
from pipeline.commit.manifest import (
    Manifest,
    Part,
    current_manifest,
    locate,
    log_numbers,
    require_current,
    unexpected_files_in_log,
)
from pipeline.commit.parts.part_file import DamagedPart, open_part, read_batches
from pipeline.commit.parts.row_ids import hash_ids, sum_hashes
from pipeline.commit.plan_store import plan_from_json
from pipeline.commit.shard_table import KnownShard, NoKeys, read_shard_table
from pipeline.commit.tables import published_table
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.hive_paths import values_of, without
from pipeline.core.schema import INPUT_HASH, INPUT_HASH_FIELD, QUARANTINE_SCHEMA, ROW_ID
from pipeline.planning.plan import Plan
from pipeline.published.describe import choose_partition
from pipeline.sources.source_format import planned_ids
from pipeline.storage.store import Store

_PART_THREADS = 4
_TRIES = 3
BATCH_ROWS = 65_536
_CHUNK_BYTES = 8 * 2**20
_MARKED = "the marker is there, the list equals the manifest"
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    status: Literal["pass", "fail", "skipped"]
    message: str


@dataclass(frozen=True)
class AuditedPart:
    """The real content of one part; `problem`: why its rows cannot be read."""

    part: Part
    size_bytes: int = 0
    sha256: str = ""
    schema: pa.Schema | None = None
    hashes: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    problem: str = ""


def verify_output(
    uri: str, partition: str | None, storage_options: dict[str, Any]
) -> dict[str, Any]:
    """Prove the current version of one partition, or of all.

    Args:
        uri: The sink's root, or a partition's folder.
        partition: Its name; None: all partitions.
        storage_options: fsspec options.

    Returns:
        Partition, version, status `ok` and all checks; for several only the number of checks.

    Raises:
        JobError: Nothing is published there.
        PipelineError: A check failed: something was lost, doubled or changed.
    """
    store, uri_layout = locate(uri, storage_options)
    documents, problems = list[dict[str, Any]](), list[str]()
    for layout in choose_partition(store, uri_layout, partition):
        manifest, checks = _check_current(store, layout)
        if failed := [check for check in checks if check.status == "fail"]:
            also = f"; also failed: {', '.join(check.name for check in failed[1:])}"
            problems.append(
                f"{len(failed)} of {len(checks)} checks: {failed[0].name}: {failed[0].message}"
                f"{also if len(failed) > 1 else ''}"
            )
        documents.append(
            {
                "partition": layout.name,
                "version": manifest.number,
                "status": "fail" if failed else "ok",
                "checks": [asdict(check) for check in checks],
            }
        )
    if problems:
        names = [document["partition"] for document in documents if document["status"] == "fail"]
        others = f"; failed partitions: {', '.join(names)}" if len(documents) > 1 else ""
        raise PipelineError(f"verify failed: {problems[0]}{others}")
    if len(documents) == 1:
        return documents[0]
    return {
        "status": "ok",
        "partitions": [{**one, "checks": len(one["checks"])} for one in documents],
    }


def _check_current(store: Store, layout: Layout) -> tuple[Manifest, list[Check]]:
    """Check the current version; start again if it was replaced while it was read."""
    for _ in range(_TRIES):
        manifest = require_current(store, layout)
        try:
            checks = _check_version(store, layout, manifest)
        except FileNotFoundError:
            continue  # the next round tells whether the version was replaced
        latest = current_manifest(store, layout)
        if latest is not None and latest.number == manifest.number:
            return manifest, checks
    raise InfraError(f"partition {layout.name}: replaced {_TRIES} times while it was read")


def _check_version(store: Store, layout: Layout, manifest: Manifest) -> list[Check]:
    """Check one version; if a part cannot be read, without the checks that need all parts."""
    with ThreadPoolExecutor(_PART_THREADS) as pool:
        good = list(pool.map(lambda part: _audit_part(store, part), manifest.parts))
        bad = list(pool.map(lambda part: _audit_part(store, part), manifest.quarantine_parts))
    plan, plan_check = _read_plan(store, layout, manifest)
    parts = good + bad
    checks = [
        _check_parts(parts),
        _check_folder(store, layout, manifest),
        verdict("success", marker_problems(store, layout), _MARKED),
        _check_log(store, layout, manifest),
        plan_check,
        check_keys(store, layout, manifest),
        *_check_table(store, layout, manifest),
    ]
    if any(audited.problem for audited in parts):
        return checks
    return [
        *checks,
        _check_rows(parts),
        _check_schema(good, bad, manifest, plan),
        _check_counts(good, bad, manifest, plan),
        _check_unique(store, good),
        _check_hash(parts, manifest),
        _check_planned(parts, plan),
    ]


def _check_parts(parts: Sequence[AuditedPart]) -> Check:
    problems = []
    for audited in parts:
        wanted = audited.part
        if audited.size_bytes == 0:
            problem = audited.problem or "is empty"
        elif audited.size_bytes != wanted.size_bytes:
            problem = f"has {audited.size_bytes} bytes, the manifest says {wanted.size_bytes}"
        elif audited.sha256 != wanted.sha256:
            problem = f"sha256 is {audited.sha256}, the manifest says {wanted.sha256}"
        else:
            problem = audited.problem
        if problem:
            problems.append(f"{wanted.path} {problem}")
    size_bytes = sum(audited.size_bytes for audited in parts)
    return verdict("parts", problems, f"{len(parts)} parts, {size_bytes} bytes as published")


def _check_folder(store: Store, layout: Layout, manifest: Manifest) -> Check:
    named = {part.path for part in manifest.all_parts}
    present: set[str] = set()
    for folder in (layout.predictions, layout.quarantine):
        for file in store.list_files(folder):
            below = file.path.removeprefix(folder + "/").split("/")
            is_foreign = layout.partition is None and len(below) > 1  # another partition's
            if not is_foreign and not below[-1].startswith(("_", ".")):
                present.add(file.path)
    problems = [
        f"{path} is not a part of version {manifest.number}; a publish is under way, or run the "
        "job again to tidy up"
        if part_target(path) is not None
        else f"{path} was not written by this package, and readers of the folder take it for rows: "
        f"remove {store.url(path)}"
        for path in present - named
    ]
    problems += [f"{path} is missing" for path in named - present]
    problems += [f"{path} is a link, which readers follow" for path in _linked_files(store, layout)]
    return verdict("folder", sorted(problems), f"exactly the {len(named)} parts of the manifest")


def marker_problems(store: Store, layout: Layout) -> list[str]:
    """Return why the success marker or the copy of the manifest is not that of the last entry."""
    problems = []
    # Compared as bytes: another version of this package may have written them.
    entry = store.read_bytes(layout.log_entry(log_numbers(store, layout)[-1]))
    for path, expected in ((layout.current, entry), (layout.success, b"")):
        try:
            if store.read_bytes(path) != expected:
                problems.append(f"{path} is not as published; run the job again")
        except FileNotFoundError:
            problems.append(f"{path} is missing; run the job again")
    return problems


def _check_table(store: Store, layout: Layout, manifest: Manifest) -> list[Check]:
    """Check that the table, if there is one, names the parts."""
    table = published_table(store, manifest)
    if table is None:
        return []
    try:
        problems = table.differences(layout, manifest)
    except JobError as error:  # the library is not installed, or does not know the catalog
        return [Check("table", "skipped", str(error))]
    fine = f"the {table.title} names the {len(table.parts_of(manifest))} parts"
    return [verdict("table", problems, fine)]


def _read_plan(store: Store, layout: Layout, manifest: Manifest) -> tuple[Plan | None, Check]:
    path = layout.plan(manifest.plan_name)
    try:
        plan = plan_from_json(store.read_bytes(path), manifest.plan_name)
    except FileNotFoundError:
        return None, Check("plan", "fail", f"{path} is missing: rows in cannot be proved")
    except InfraError as error:
        return None, Check("plan", "fail", str(error))
    rows = "rows unknown until read" if plan.num_rows is None else f"{plan.num_rows} rows"
    return plan, Check("plan", "pass", f"{rows}, of {plan.num_shards} shards")


def _check_rows(parts: Sequence[AuditedPart]) -> Check:
    problems = [
        f"{audited.part.path} has {len(audited.hashes)} rows, "
        f"the manifest says {audited.part.num_rows}"
        for audited in parts
        if len(audited.hashes) != audited.part.num_rows
    ]
    return verdict("rows", problems, "every part has the rows that the manifest says")


def _check_schema(
    good: Sequence[AuditedPart], bad: Sequence[AuditedPart], manifest: Manifest, plan: Plan | None
) -> Check:
    if plan is None:
        return Check("schema", "skipped", "there is no plan")
    expected, hive = plan.prediction_schema(), manifest.partition_columns
    if any(audited.schema and INPUT_HASH in audited.schema.names for audited in good):
        expected = expected.append(INPUT_HASH_FIELD)  # decided by the job, not by the plan
    wanted = [
        (audited, without(expected, list(values_of(audited.part.path, hive)))) for audited in good
    ]
    problems = [
        f"{audited.part.path} has other columns or types than were declared"
        for audited, schema in [*wanted, *((audited, QUARANTINE_SCHEMA) for audited in bad)]
        if audited.schema is None or not audited.schema.equals(schema, check_metadata=False)
    ]
    return verdict("schema", problems, f"{len(expected)} columns in every part, as declared")


def _check_counts(
    good: Sequence[AuditedPart], bad: Sequence[AuditedPart], manifest: Manifest, plan: Plan | None
) -> Check:
    predicted, quarantined = (
        sum(len(audited.hashes) for audited in parts) for parts in (good, bad)
    )
    shown = f"{predicted} predicted + {quarantined} quarantined"
    problems = []
    planned = None if plan is None else plan.num_rows
    if planned is not None and predicted + quarantined != planned:
        problems.append(f"{shown} = {predicted + quarantined} rows, planned {planned}")
    declared = (manifest.num_predicted, manifest.num_quarantined)
    if declared != (predicted, quarantined) or sum(declared) != manifest.num_rows:
        problems.append(
            f"{shown}, the manifest says {declared[0]} + {declared[1]} = {manifest.num_rows} rows"
        )
    return verdict("counts", problems, f"{shown} = {manifest.num_rows} rows")


def _check_unique(store: Store, good: Sequence[AuditedPart]) -> Check:
    """Find ids with two predictions: equal hashes tell which ids to compare."""
    values, counts = np.unique(_join([audited.hashes for audited in good]), return_counts=True)
    suspects = values[counts > 1]
    seen: set[str] = set()
    problems = []
    for audited in good if len(suspects) else ():
        for value in _ids_of(store, audited, suspects):
            if value in seen:
                problems.append(f"{value!r} has two predictions, again in {audited.part.path}")
            seen.add(value)
    return verdict("unique_ids", problems, f"{len(values)} ids, each predicted once")


def _check_hash(parts: Sequence[AuditedPart], manifest: Manifest) -> Check:
    total = _sum(_join([audited.hashes for audited in parts]))
    problems = [
        f"the row ids of {audited.part.path} add up to {part_sum}, the manifest says "
        f"{audited.part.row_id_hash}"
        for audited in parts
        if audited.part.row_id_hash not in ("", part_sum := _sum(audited.hashes))
    ]
    if total != manifest.row_id_hash:
        problems.append(f"the row ids add up to {total}, the manifest says {manifest.row_id_hash}")
    return verdict("row_id_hash", problems, f"the row ids add up to {total}")


def _sum(hashes: Hashes) -> str:
    return sum_hashes([int(hashes.sum(dtype=np.uint64))])


def _check_planned(parts: Sequence[AuditedPart], plan: Plan | None) -> Check:
    if plan is None:
        return Check("planned_ids", "skipped", "there is no plan")
    if plan.row_ids == "column":
        return Check("planned_ids", "skipped", "the ids come from a column, not from the plan")
    if plan.row_ids == "key" or plan.counts_by_reading:
        return Check("planned_ids", "skipped", "the ids come from the shards, not from the plan")
    planned = _join([hash_ids(pa.array(ids)) for ids in _chunks(_planned_ids(plan))])
    present = _join([audited.hashes for audited in parts])
    if _sum(planned) == _sum(present):
        return Check("planned_ids", "pass", f"{len(planned)} planned rows are there, no other")
    lost, others = np.setdiff1d(planned, present), np.setdiff1d(present, planned)
    names = [value for ids in _chunks(_planned_ids(plan)) for value in _select(ids, lost[:1])]
    first = f"; first: {names[0]!r}" if names else ""
    message = (
        f"the rows are not the planned ones: lost {len(lost)}, unexpected {len(others)}{first}"
    )
    return Check("planned_ids", "fail", message)


def _planned_ids(plan: Plan) -> Iterator[str]:
    """Yield the row ids of a plan, in input order."""
    for unit in plan.units:
        for extent in unit.extents:
            yield from planned_ids(plan.row_ids, extent)


def _chunks(ids: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(islice(ids, BATCH_ROWS)):
        yield chunk


def _select(ids: list[str], wanted: Hashes) -> list[str]:
    mask = np.isin(hash_ids(pa.array(ids)), wanted)
    return [value for value, is_wanted in zip(ids, mask.tolist(), strict=True) if is_wanted]


def verdict(name: str, problems: Sequence[str], fine: str) -> Check:
    """Return a check, which fails if there are problems."""
    if not problems:
        return Check(name, "pass", fine)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Check(name, "fail", problems[0] + more)


def _check_log(store: Store, layout: Layout, manifest: Manifest) -> Check:
    """Check that the entries of the log are 1, 2, 3, ... and that the last one has its number."""
    numbers = log_numbers(store, layout)
    problems = []
    if numbers != list(range(1, len(numbers) + 1)):
        problems.append(f"{layout.log}: the entries are not 1 to {len(numbers)}")
    if numbers and manifest.number != numbers[-1]:
        problems.append(f"{layout.log_entry(numbers[-1])} says that it is {manifest.number}")
    if manifest.partition != layout.name:
        problems.append(f"the manifest says partition {manifest.partition}, not {layout.name}")
    problems += [f"{path} is not a log entry" for path in unexpected_files_in_log(store, layout)]
    return verdict("log", problems, f"entries 1 to {len(numbers)}, of {layout.name}")


def check_keys(store: Store, layout: Layout, manifest: Manifest) -> Check:
    """Check the keys of a version; a version without keys is valid, too."""
    if not manifest.keys:
        return Check("keys", "skipped", "this version has no table of its shards")
    try:
        table = read_shard_table(store, layout, manifest)
    except NoKeys as error:
        return Check("keys", "fail", str(error))
    problems = [*_problems_of_shards(table.shards, manifest)]
    return verdict("keys", problems, f"{len(table.shards)} shards, as written")


def _problems_of_shards(shards: Sequence[KnownShard], manifest: Manifest) -> Iterator[str]:
    for shard in shards:
        if any(not 0 <= row <= shard.num_rows for row in shard.failed.bounds):
            yield f"{shard.uri} has {shard.num_rows} rows, and failed rows beyond them"
    ends = [shard.first + shard.num_rows - len(shard.failed) for shard in shards]
    for (shard, end), (other, _) in pairwise(zip(shards, ends, strict=True)):
        if end > other.first:
            yield f"{shard.uri} and {other.uri} have the same predictions"
    predicted = sum(shard.num_rows - len(shard.failed) for shard in shards)
    written = sum(part.num_rows for part in manifest.parts)
    if max(ends, default=0) > written:
        yield f"the shards have predictions beyond the {written} of the version"
    if shards and not manifest.num_unreadable_shards and predicted != written:
        yield f"the shards have {predicted} predictions, the version {written}"


def _linked_files(store: Store, layout: Layout) -> list[str]:
    """List links in the folders of a local sink: readers follow them, listings skip them."""
    if store.is_object_store:
        return []
    root = Path(store.url(""))
    return sorted(
        str(Path(folder, name).relative_to(root))
        for top in (layout.predictions, layout.quarantine)
        for folder, folders, names in os.walk(root / top)
        for name in (*folders, *names)
        if Path(folder, name).is_symlink() and not name.startswith((".", "_"))
    )


def _audit_part(store: Store, part: Part) -> AuditedPart:
    """Read a part, also a damaged one.

    Raises:
        PipelineError: The store failed, which proves nothing about the part.
    """
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with store.open(part.path) as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
        with open_part(store, part.path) as parquet:
            batches = parquet.iter_batches(batch_size=BATCH_ROWS, columns=[ROW_ID])
            hashes = [hash_ids(batch.column(0)) for batch in batches]
            schema = parquet.schema_arrow
    except FileNotFoundError:
        return AuditedPart(part, problem="is missing")
    except Exception as error:
        if isinstance(error, PipelineError) and not isinstance(error, DamagedPart):
            raise  # damage can raise any other error
        return AuditedPart(part, size_bytes, digest.hexdigest(), problem=f"cannot be read: {error}")
    return AuditedPart(part, size_bytes, digest.hexdigest(), schema, _join(hashes))


def _join(hashes: Sequence[Hashes]) -> Hashes:
    """Concatenate the hashes of several parts, uint64 (N,)."""
    return np.concatenate([np.zeros(0, np.uint64), *hashes])


def _ids_of(store: Store, audited: AuditedPart, wanted: Hashes) -> Iterator[str]:
    """Yield the row ids of a part with one of M hashes, uint64 (M,), in its order."""
    if not np.isin(audited.hashes, wanted).any():
        return
    for batch in read_batches(store, audited.part.path, [ROW_ID], BATCH_ROWS):
        ids = batch.column(0)
        yield from ids.filter(pa.array(np.isin(hash_ids(ids), wanted))).to_pylist()
