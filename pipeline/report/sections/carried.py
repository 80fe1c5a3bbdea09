"""What is said of the rows that are taken over, before anything is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from pipeline.report.sections.outcome import Carried, CarriedFrom
from pipeline.reuse.dividing import ShardRows, State
from pipeline.reuse.finding import Reuse

_SHOWN_SHARDS = 8


def carried_section(reuse: Reuse) -> Carried:
    """Return what a run takes over; a run adds what it finds, and takes off what it cannot read."""
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
    """Return what `pipeline plan` says of carried rows: the totals, and the rows of each shard."""
    section = carried_section(reuse).model_dump(exclude_none=True)
    shards = reuse.division.shards if reuse.division else ()
    return {**section, "shards": [asdict(shard) for shard in shards]}


def first_shards(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the same for a terminal: the first shards of which not all rows are carried."""
    others = [shard for shard in facts["shards"] if shard["state"] != "unchanged"]
    more = len(others) - _SHOWN_SHARDS
    rest = {"more_shards": f"{more:,}, in --json"} if more > 0 else {}
    return {**facts, "shards": others[:_SHOWN_SHARDS], **rest}


def _computed(shards: Iterable[ShardRows], state: State) -> int | None:
    """Return how many rows of shards of a state are computed; None if only reading counts them."""
    numbers = [shard.computed for shard in shards if shard.state == state]
    return None if None in numbers else sum(number or 0 for number in numbers)
