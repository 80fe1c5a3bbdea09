"""Measure what the second run over rows of which 90% are unchanged takes of the first one's time.

    python tests/bench/reuse.py [--kinds photos tables texts] [--reuse inputs content] [--runs 3]

2,000 photos with ResNet-18, 100,000 rows of 100 features with a network of two hidden layers of
2,048 (in 100 files), and 8,000 passages with MiniLM (in 40 files), all in eager fp32, so that no
run chooses otherwise than another. Each round has an output of its own, and in it:

- `first`: all rows are computed, and their keys written.
- `second`: the next partition, after a tenth of the rows was changed (see reuse_inputs.py).
- `full`: the same rows with `--no-reuse`, in another output; before `second` in every other round.
- `late`: photos, `inputs`: five more were added, three changed and two removed after `second`.

Seconds are those of the whole process. What `second` and `late` compute is held to what changed,
and `second` to `full` row for row: ids, order and columns; what the task compares, by its limits.
As many rows as are carried must be exactly as in `first`. Of `first` also: what share of it
publishing took, and the bytes of the keys beside those of the predictions and of the input. What
keys cost beside a commit that wrote none, `commits.py` measures. The last line is JSON.
"""

from __future__ import annotations

import argparse
import datetime as dt
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from machine import machine, today
from reuse_inputs import HIDDEN, Inputs, Photos, make_inputs
from systems import Unusable, run_pipeline
from turns import tell

from pipeline.commit.published.read import read_predictions
from pipeline.core.schema import ROW_ID
from pipeline.gates.carried import differing_rows
from pipeline.job.reading.loader import read_job
from pipeline.models.agreement import AgreementLimits
from pipeline.models.tasks import make_task
from pipeline.runs.preparing.prepare import job_model

KINDS, REUSE = ("photos", "tables", "texts"), ("inputs", "content")
EAGER = {"runtime": "eager", "precision": "fp32"}
PARTITIONS = {"first": "run=1", "second": "run=2", "full": "run=2", "late": "run=3"}
MAX_ROWS_PCT, MAX_SECONDS_PCT = 15.0, 25.0


class Differs(Exception):
    """A run with carried rows published something else than one without; the text says what."""


def main() -> None:
    wanted = parse()
    results, skipped = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for kind in wanted.kinds:
            inputs = make_inputs(kind, Path(name) / kind, vars(wanted))
            rounds: dict[str, list[dict[str, float]]] = {}
            for number in range(wanted.runs):
                for reuse in wanted.reuse:
                    case = f"{kind} {reuse}"
                    if case in skipped:
                        continue
                    try:
                        found = Round(inputs, reuse, number).measure()
                    except (Differs, Unusable) as error:
                        skipped[case] = str(error)
                        print(f"failed {case}: {error}", flush=True)
                        continue
                    rounds.setdefault(case, []).append(found)
                    print(case, told(found), flush=True)
            results |= {case: summary(found) for case, found in rounds.items()}
    for case, found in results.items():
        is_in_time = found["second_s_pct"] <= MAX_SECONDS_PCT
        is_little = found["second_rows_pct"] <= MAX_ROWS_PCT
        verdict = "as wanted" if is_in_time and is_little else "TOO MUCH"
        print(f"{case}: {told(found)}: {verdict}", flush=True)
    document = {"date": today(), "machine": machine(), "runs": wanted.runs, "medians": results}
    tell({**document, "failed": skipped}, wanted.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--reuse", nargs="*", choices=REUSE, default=REUSE)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--photos", type=int, default=2_000)
    parser.add_argument("--model", default="resnet18", help="of photos")
    parser.add_argument("--tables", type=int, default=100_000, help="rows")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="width of the tables' network")
    parser.add_argument("--texts", type=int, default=8_000)
    parser.add_argument("--out", type=Path, help="also write the JSON line to this file")
    return parser.parse_args()


class Round:
    """The runs over one kind of input, each once."""

    def __init__(self, inputs: Inputs, reuse: str, number: int) -> None:
        self._inputs, self._reuse, self._number = inputs, reuse, number
        case = inputs.case
        self._outs = {
            name: case.folder / f"out-{reuse}-{number}-{name}" for name in ("kept", "full")
        }
        self._jobs = {
            name: case.job(
                f"{reuse}-{number}-{name}", out, model={**case.model, **EAGER}, run={"reuse": reuse}
            )
            for name, out in self._outs.items()
        }
        self.found: dict[str, float] = {}

    def measure(self) -> dict[str, float]:
        """Run all of them; return seconds, rows and shares.

        Raises:
            Unusable: One failed.
            Differs: Carried rows made a difference.
        """
        self._inputs.reset()
        first = self._run("first", "kept")
        self._note_keys(first)
        num_changed = self._inputs.change(self._reuse)
        for name in ("second", "full") if self._number % 2 else ("full", "second"):
            found = self._run(name, "full" if name == "full" else "kept")
            if name == "second":
                self._hold_to(found, num_changed)
                num_carried = found["carried"]["rows"]
        self._compare(num_carried)
        if isinstance(self._inputs, Photos) and self._reuse == "inputs":
            added, changed, removed = self._inputs.be_late()
            late = self._run("late", "kept")
            self._hold_to(late, added + changed)
            if (gone := late["carried"]["gone_rows"]) != removed:
                raise Differs(f"late: {gone} rows are gone, expected {removed}")
        for name in ("second", "full", "late"):
            if name in self.found:
                self.found[f"{name}_s_pct"] = 100 * self.found[name] / self.found["first"]
        return self.found

    def _run(self, name: str, out: str) -> dict[str, Any]:
        more = ("--no-reuse",) if name == "full" else ()
        partition = f"sink.partition={PARTITIONS[name]}"
        started = time.perf_counter()
        found = run_pipeline("run", self._jobs[out], "--quiet", "--set", partition, *more)
        self.found[name] = time.perf_counter() - started
        self.found[f"{name}_rows_pct"] = 100 * predicted(found) / found["rows"]["total"]
        return found

    def _hold_to(self, found: dict[str, Any], num_changed: int) -> None:
        carried = found["carried"]
        if predicted(found) != num_changed + carried["checked_rows"]:
            raise Differs(
                f"{predicted(found)} rows were predicted; {num_changed} are new or changed, and "
                f"{carried['checked_rows']} were predicted again ({carried['why_not']})"
            )

    def _note_keys(self, first: dict[str, Any]) -> None:
        published = next(stage for stage in first["stages"] if stage["stage"] == "publish")
        self.found["publish_s"] = published["busy_s"]
        keys = (self._outs["kept"] / "_control").glob("*/keys/*/*")
        size = sum(path.stat().st_size for path in keys)
        files = (path for path in self._inputs.case.inputs.rglob("*") if path.is_file())
        read = sum(path.stat().st_size for path in files)
        self.found["keys_of_output_pct"] = 100 * size / published["bytes_out"]
        self.found["keys_of_input_pct"] = 100 * size / read

    def _compare(self, num_carried: int) -> None:
        """Hold `second` to `full` and to `first`."""
        first, second, full = (
            read_predictions(str(self._outs[out]), PARTITIONS[name])
            for name, out in (("first", "kept"), ("second", "kept"), ("full", "full"))
        )
        if second.schema != full.schema:
            raise Differs(f"columns {second.schema.names}, expected {full.schema.names}")
        job = read_job(self._jobs["full"], date=dt.date.fromisoformat(today()))
        task = make_task(job_model(job, ("tables_model",)).task)
        own = [field.name for field in task.fields()]
        for name in second.column_names:
            if name not in own and second.column(name) != full.column(name):
                raise Differs(f"column {name} differs")
        limits, ids = AgreementLimits.of(job.gates), second.column(ROW_ID).to_pylist()
        differing = differing_rows(task, ids, full.select(own), second.select(own), limits)
        if differing:
            raise Differs(f"{len(differing)} rows differ, the first is {differing[0]}")
        self.found["exactly_as_full_pct"] = 100 * sum(equal_rows(second, full)) / len(ids)
        if (same := sum(equal_rows(second, first))) < num_carried:
            raise Differs(f"{num_carried} rows were carried, {same} are as they were")


def predicted(found: dict[str, Any]) -> int:
    rows: dict[str, int | None] = found["rows"]
    return (rows["total"] or 0) - (rows["carried"] or 0)


def equal_rows(rows: pa.Table, others: pa.Table) -> Iterator[bool]:
    """Tell of each row whether the other table has the same of that id."""
    of_others = dict(zip(others.column(ROW_ID).to_pylist(), others.to_pylist(), strict=True))
    return (of_others.get(row[ROW_ID]) == row for row in rows.to_pylist())


def summary(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: round(float(np.median([found[name] for found in rounds])), 2) for name in rounds[0]
    }


def told(found: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:,.2f}" for name, value in found.items())


if __name__ == "__main__":
    main()
