"""The table of injected faults and their effects, a line per kind of fault. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from pipeline.commands.chaos.compare import Difference
from pipeline.commands.chaos.fault_plan import Injected, StoreFault
from pipeline.commands.chaos.kills import Victim
from pipeline.commands.chaos.processes import FinishedRun

_STORE = {
    StoreFault.REFUSE: ("store: refused (503)", "tried again"),
    StoreFault.SLOW: ("store: slow", "waited {:.1f} s"),
    StoreFault.CUT: ("store: broken off", "tried again"),
    StoreFault.LOSE: ("store: answer lost", "recognised, or tried again"),
}
_NOT_INJECTED = "the run was over before"


def fault_rows(
    runs: Sequence[FinishedRun], injected: Sequence[Injected], num_spoilt: int, num_quarantined: int
) -> list[dict[str, Any]]:
    """Return fault, how often it was injected and how it was survived.

    Args:
        runs: The disturbed runs, in order; the last one was not killed.
        injected: What the store did.
        num_spoilt: Rows and shards that were spoilt.
        num_quarantined: Those of them that are quarantined, once each.
    """
    return [
        _row("actor: kill -9", *_killed(runs, "actor")),
        _row("worker: kill -9", *_killed(runs, "worker")),
        *_drivers(runs),
        *_stores(injected),
        _row("inputs: spoilt", num_spoilt, f"quarantined, {num_quarantined:,} of {num_spoilt:,}"),
    ]


def in_all(
    faults: Sequence[dict[str, Any]], difference: Difference, num_runs: int, trouble: str | None
) -> dict[str, Any]:
    """Return the last line: what all faults together have cost."""
    number = sum(row["injected"] for row in faults)
    verified = "verified" if trouble is None else "not verified"
    return {
        **_row("together", number, f"{num_runs} runs, {verified}"),
        "lost": len(difference.lost),
        "doubled": len(difference.doubled),
        "changed": len(difference.changed),
    }


def _row(fault: str, number: int, survived_by: str) -> dict[str, Any]:
    unknown = {"lost": None, "doubled": None, "changed": None}
    return {"fault": fault, "injected": number, "survived_by": survived_by, **unknown}


def _killed(runs: Sequence[FinishedRun], victim: Victim) -> tuple[int, str]:
    killed = [each for run in runs for each in run.killed if each.victim == victim]
    if not killed:
        return 0, _NOT_INJECTED
    at_work = killed[0].title.removeprefix("ray::")
    return len(killed), "started again" if victim == "actor" else f"{at_work} was tried again"


def _drivers(runs: Sequence[FinishedRun]) -> Iterator[dict[str, Any]]:
    """Describe each run that was killed, by the one that came after it."""
    for run, after in pairwise(runs):
        again = f"run again: {after.slices_before} slices kept, {after.seconds:.1f} s"
        if run.code == -9:
            when = "" if run.dies_at is None else f" while publishing ({run.dies_at})"
            yield _row(f"driver: kill -9{when}", 1, again)
        else:
            yield _row(f"run ended with exit {run.code}", 1, again)
    if not any(run.code == -9 for run in runs):
        yield _row("driver: kill -9", 0, _NOT_INJECTED)


def _stores(injected: Sequence[Injected]) -> Iterator[dict[str, Any]]:
    for fault, (name, survived_by) in _STORE.items():
        found = [each for each in injected if each.fault is fault]
        waited_s = sum(each.delay_s for each in found)
        yield _row(name, len(found), survived_by.format(waited_s) if found else "not met")
