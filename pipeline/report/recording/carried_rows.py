"""What a division of a plan says of the rows that are carried over, before anything is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.commit.layout import Layout
from pipeline.planning.carrying import Division, ShardRows, State
from pipeline.report.sections import Carried, CarriedFrom

_SHOWN_SHARDS = 8


def carried_section(division: Division, changed_libraries: Sequence[str] = ()) -> Carried:
    """Return what a run of this division carries over; a run adds what it moves and finds."""
    carried, shards = division.carried, division.shards
    runs = carried.runs
    sources = [
        CarriedFrom(
            partition=Layout(source.partition).name,
            version=source.number,
            rows=int(runs[runs[:, 2] == number, 4].sum()),
        )
        for number, source in enumerate(carried.sources)
    ]
    num_checked = len(carried.checked)
    again = sum(shard.computed or 0 for shard in shards if shard.state == "unchanged")
    return Carried(
        rows=carried.num_rows,
        looked_at=len(sources),
        sources=[source for source in sources if source.rows or carried.by_content],
        new_rows=_computed(shards, "new"),
        changed_rows=_computed(shards, "changed"),
        failed_rows=again - num_checked,
        gone_rows=sum(shard.gone for shard in shards),
        checked_rows=num_checked,
        changed_libraries=[*changed_libraries],
    )


def plan_facts(carried: Carried, shards: Iterable[ShardRows] = ()) -> dict[str, Any]:
    """Return what `pipeline plan` says of carried rows: the totals, and the rows of each shard."""
    found = carried.model_dump(exclude_none=True)
    return {**found, "shards": [asdict(shard) for shard in shards]}


def first_shards(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the same for a terminal: the first shards of which not all rows are carried."""
    others = [shard for shard in facts["shards"] if shard["state"] != "unchanged"]
    more = len(others) - _SHOWN_SHARDS
    told = {"more_shards": f"{more:,}, in --json"} if more > 0 else {}
    return {**facts, "shards": others[:_SHOWN_SHARDS], **told}


def _computed(shards: Iterable[ShardRows], state: State) -> int | None:
    """Return how many rows of shards of a state are computed; None if only reading counts them."""
    numbers = [shard.computed for shard in shards if shard.state == state]
    return None if None in numbers else sum(number or 0 for number in numbers)
