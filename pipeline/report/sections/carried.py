"""Rows of earlier versions: those that a run carries over, and those that a retry computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.core.printable import num_of
from pipeline.report.sections import Section
from pipeline.report.showing.blocks import Block, facts_of, format_count, table_of

if TYPE_CHECKING:
    from pipeline.report.document import Report
    from pipeline.reuse.dividing import ShardRows, State
    from pipeline.reuse.finding import Reuse

_SHOWN_SHARDS = 8


class CarriedFrom(Section):
    """A version that predictions are taken from."""

    partition: str
    version: int
    rows: int
    """Rows found without reading the input; rows found by content are extra."""


class Carried(Section):
    """The predictions carried over from earlier versions (`run.reuse`), or why there are none."""

    rows: int = 0
    """Rows whose predictions are carried over."""
    why_not: str | None = None
    """Why there are none, or none from the newest version."""
    looked_at: int = 0
    """Number of earlier versions that were considered."""
    sources: list[CarriedFrom] = Field(default_factory=list)
    """The newest first."""
    new_rows: int | None = None
    """Rows of shards that the newest source lacks; null if only reading counts them."""
    changed_rows: int | None = None
    """Rows of shards that changed since; null likewise."""
    failed_rows: int | None = None
    """Rows of unchanged shards that had no prediction and are computed again."""
    gone_rows: int | None = None
    """Rows of shards that are no longer there."""
    checked_rows: int = 0
    """Rows computed although their predictions are known, for the gate `carried`."""
    content_rows: int | None = None
    """Of `rows`, those that were read and known by their content; null if none were looked up."""
    lookup_failed_rows: int | None = None
    """Rows computed because the look-up failed; null likewise."""
    changed_libraries: list[str] = Field(default_factory=list)
    """Libraries that decode, tokenise or compute and have another version now; more rows are
    checked then."""


def carried_section(reuse: Reuse) -> Carried:
    """Return the section as planned; the run corrects it by what it finds and cannot read."""
    division = reuse.division
    if division is None:
        return Carried(why_not=reuse.why_not, looked_at=reuse.looked_at)
    rows = Counter[int]()
    for number, shard in division.known.values():
        rows[number] += shard.num_rows - len(shard.failed)
    sources = [
        CarriedFrom(partition=one.version.layout.name, version=one.version.number, rows=rows[n])
        for n, one in enumerate(reuse.earlier)
    ]
    return Carried(
        rows=division.num_known,
        looked_at=len(sources),
        sources=[source for source in sources if source.rows or reuse.by_content],
        new_rows=_computed(division.shards, "new"),
        changed_rows=_computed(division.shards, "changed"),
        failed_rows=_computed(division.shards, "unchanged"),
        gone_rows=sum(shard.gone for shard in division.shards),
        changed_libraries=[*reuse.environment],
    )


def plan_facts(reuse: Reuse) -> dict[str, Any]:
    """Return the carried rows for `pipeline plan`: the totals, and the rows of each shard."""
    section = carried_section(reuse).model_dump(exclude_none=True)
    shards = reuse.division.shards if reuse.division else ()
    return {**section, "shards": [asdict(shard) for shard in shards]}


def first_shards(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the same for a terminal: only the first shards with rows that are not carried."""
    others = [shard for shard in facts["shards"] if shard["state"] != "unchanged"]
    more = len(others) - _SHOWN_SHARDS
    rest = {"more_shards": f"{more:,}, in --json"} if more > 0 else {}
    return {**facts, "shards": others[:_SHOWN_SHARDS], **rest}


def _computed(shards: Iterable[ShardRows], state: State) -> int | None:
    """Return the computed rows of shards in a state; None if only reading counts them."""
    numbers = [shard.computed for shard in shards if shard.state == state]
    return None if None in numbers else sum(number or 0 for number in numbers)


def carried_block(report: Report) -> Block:
    """Return the rows that were carried over, and their versions."""
    carried = report.carried
    sources = table_of(carried.sources if carried else ())
    return Block("Carried over", facts=facts_of(carried), table=sources)


def carried_lines(report: Report) -> list[str]:
    """Say in one line which rows were carried over, or why none were."""
    carried = report.carried
    if carried is None:
        return []
    if not carried.rows:
        return [f"nothing carried over: {carried.why_not}"] if carried.looked_at else []
    versions = [f"{source.partition} version {source.version}" for source in carried.sources]
    parts = [f"{num_of(carried.rows, 'row')} of {' and '.join(versions)}"]
    others = {
        "new": carried.new_rows,
        "of changed shards": carried.changed_rows,
        "failed then": carried.failed_rows,
        "gone": carried.gone_rows,
        "predicted again to be compared": carried.checked_rows,
        "could not be looked up": carried.lookup_failed_rows,
    }
    parts += [f"{format_count(number)} {what}" for what, number in others.items() if number]
    if carried.changed_libraries:
        parts.append(f"more are compared since libraries changed: {carried.changed_libraries[0]}")
    return [f"carried over: {', '.join(parts)}"]


class Retry(Section):
    """The result of `pipeline retry` for the quarantine of a published version."""

    base_version: int | None = None
    """The version whose quarantine is retried."""
    entries: int | None = None
    """Rows of that quarantine that are retried; an unreadable shard counts as one."""
    recovered: int | None = None
    """Rows that are predicted now."""
    failed_again: int | None = None
    duplicate_ids: int | None = None
    """Rows that stay in the quarantine because other rows have their ids."""
    not_asked: int | None = None
    """Rows that stay because `--reason` names other reasons."""


def retry_lines(report: Report) -> list[str]:
    """Say in one line what became of the retried rows."""
    retry = report.retry
    if not retry or not retry.entries:
        return []
    parts = [f"{format_count(retry.entries)} quarantined rows of version {retry.base_version}"]
    if retry.recovered is not None:
        parts.append(f"{format_count(retry.recovered)} are predicted now")
        parts.append(f"{format_count(retry.failed_again)} failed again")
    others = {
        "for their ids": retry.duplicate_ids,
        "with reasons that were not asked for": retry.not_asked,
    }
    parts += [f"{format_count(number)} stay {why}" for why, number in others.items() if number]
    return [f"retried: {', '.join(parts)}"]
