"""Compare what this checkout publishes with an older one: `python tests/bench/equality.py OLD`.

Both run the same commands without Ray over the same small inputs, each in its own worktree with the
installed packages: every source format, every task, a retry, a rollback, a Delta table, a refused
gate and a wrong job. After each command the exit code, the predictions and the quarantine are
compared, row for row and in order; columns that are new are left out. Prints a line per command;
the exit code is the number of differences.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from machine import ROOT
from models import LABELS
from support.inputs.photos import build_images, build_parquet
from support.inputs.tars import Entry, pack
from support.runs.cli import environment, write_job
from support.runs.earlier_partitions import damage

DATE = "2026-11-24"
NUM_PHOTOS, NUM_BAD, NUM_NUMBERS = 60, 5, 500
_OF_MODELS = ("tests/support/toys", "tests", "tests/support")
_COMMAND = "from support.runs.cli import WITHOUT_RAY; exec(WITHOUT_RAY)"
_PER_RUN = ("run_id",)
"""Columns that differ from run to run."""


USUAL = {"gates": {"max_error_pct": 50.0}, "run": {"slice_rows": 16}}


@dataclass(frozen=True)
class Case:
    """A job, and the commands that one checkout after the other runs with it."""

    name: str
    source: dict[str, Any]
    sections: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    commands: Sequence[Sequence[str]] = (("run",),)
    """Arguments; JOB is put after the first. `mend` puts good photos in place of spoiled ones."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", help="a commit")
    parser.add_argument("--only", nargs="*", default=(), help="names of cases")
    wanted = parser.parse_args()
    differences = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = write_inputs(folder / "in")
        checkouts = {"old": folder / "old", "new": ROOT}
        git("worktree", "add", "--detach", str(checkouts["old"]), wanted.old)
        try:
            for case in cases(inputs):
                if not wanted.only or case.name in wanted.only:
                    differences += compare(case, folder, checkouts)
        finally:
            git("worktree", "remove", "--force", str(checkouts["old"]))
    print(f"{differences} differences")
    sys.exit(min(differences, 100))


def git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True)


def write_inputs(folder: Path) -> Path:
    """Write the same photos and numbers in every format."""
    build_images(folder / "images", NUM_PHOTOS, seed=5, num_bad=NUM_BAD)
    build_parquet(folder / "parquet", NUM_PHOTOS, seed=5, num_shards=3, num_bad=NUM_BAD)
    photos = sorted(path for path in (folder / "images").rglob("*") if path.is_file())
    (folder / "uris").mkdir()
    names = [path.relative_to(folder / "images").as_posix() for path in photos]
    uris = pa.table({"id": names, "image": [str(path) for path in photos]})
    pq.write_table(uris, folder / "uris" / "s.parquet", row_group_size=16)
    (folder / "tars").mkdir()
    for shard in range(2):
        chosen = enumerate(photos[shard::2])
        entries = [Entry(f"{number:05d}.jpg", path.read_bytes()) for number, path in chosen]
        (folder / "tars" / f"s{shard}.tar").write_bytes(pack(entries))
    (folder / "numbers").mkdir()
    numbers: dict[str, Any] = {"a": [i * 0.5 for i in range(NUM_NUMBERS)]}
    numbers["b"] = [None if i % 97 == 0 else float(i % 13) for i in range(NUM_NUMBERS)]
    numbers["key"] = [f"k{i}" for i in range(NUM_NUMBERS)]
    pq.write_table(pa.table(numbers), folder / "numbers" / "s.parquet", row_group_size=64)
    return folder


def cases(inputs: Path) -> Iterator[Case]:
    images = {"uri": str(inputs / "images"), "format": "images"}
    parquet = {"uri": str(inputs / "parquet"), "format": "parquet", "id_column": "id"}
    yield Case("images", images)
    yield Case("parquet", parquet | {"pass_through": ["taken_at", "camera"]})
    yield Case("parquet without ids", {k: v for k, v in parquet.items() if k != "id_column"})
    uris = {"uri_column": "image", "uri_roots": [str(inputs / "images")]}
    yield Case("uris", parquet | {"uri": str(inputs / "uris")} | uris)
    yield Case("tars", {"uri": str(inputs / "tars"), "format": "webdataset"})
    sums = {"factory": "models:sums", "task": "regress"}
    numbers = {"uri": str(inputs / "numbers"), "format": "parquet", "id_column": "key"}
    yield Case(
        "features, regress",
        numbers | {"features": ["a", "b"]},
        {"model": sums | {"targets": ["total", "largest"]}, "transform": None},
    )
    channels = {"factory": "models:channels"}
    pooled = {"task": "embed", "embedding_dim": 3, "layer": "pool"}
    yield Case("embed", images, {"model": channels | pooled})
    means, grid = {"name": "means", "shape": [3]}, {"name": "grid", "shape": [2, 3]}
    raw = {"task": "raw", "outputs": [means, grid]}
    yield Case("raw", images, {"model": channels | raw})
    brightest = {"task": "raw", "outputs": [means], "postprocess": "models:brightest"}
    yield Case("postprocess", images, {"model": channels | brightest})
    yield Case("columns as folders", images, {"sink": {"partition_columns": ["label"]}})
    yield Case("delta", images, {"sink": {"table": "delta"}}, (("run",), ("run",)))
    again = ("run", "--set", "model.top_k=2")
    yield Case("replaced and rolled back", images, {}, (("run",), again, ("rollback",), again))
    spoiled = {"uri": str(inputs / "spoiled"), "format": "images"}
    yield Case("retry", spoiled, {}, (("run",), ("mend",), ("retry",), ("run",)))
    yield Case("refused", images, {"gates": {"max_error_pct": 1.0, "min_rows": 1}})
    yield Case("wrong", images, {"model": {"factory": "models:colours", "labels": LABELS[:-1]}})
    yield Case("nothing there", {"uri": str(inputs / "nothing"), "format": "images"})


def compare(case: Case, folder: Path, checkouts: dict[str, Path]) -> int:
    """Run a case's commands in each checkout; return how many of them left something else."""
    by_checkout = {name: list(outcomes(case, folder, name, at)) for name, at in checkouts.items()}
    differences = 0
    for command, old, new in zip(
        case.commands, by_checkout["old"], by_checkout["new"], strict=True
    ):
        what = [key for key in old if old[key] != shared(new[key], old[key])]
        differences += bool(what)
        rows = {key: value.num_rows for key, value in new.items() if isinstance(value, pa.Table)}
        print(f"{case.name}: {command[0]}: exit {new['exit']}, {json.dumps(rows)}", end=" ")
        print(f"DIFFERENT: {', '.join(what)}" if what else "equal", flush=True)
        for key in what:
            print(f"--- old {key}\n{old[key]}\n--- new {key}\n{new[key]}")
    return differences


def shared(new: Any, old: Any) -> Any:
    """Leave out the columns of new rows that old ones did not have yet."""
    if not isinstance(new, pa.Table) or not old.num_rows:
        return new
    return new.select([name for name in new.column_names if name in old.column_names])


def outcomes(case: Case, folder: Path, name: str, checkout: Path) -> Iterator[dict[str, Any]]:
    place = folder / name / "out" if name == "old" else folder / "out"
    sink = place / case.name.replace(" ", "-").replace(",", "")
    job = write_job(folder / "job.yaml", case.source, str(sink), **(USUAL | case.sections))
    if case.name == "retry":
        spoil(folder / "in")
    for command, *arguments in case.commands:
        if command == "mend":
            shutil.copytree(folder / "in/images", folder / "in/spoiled", dirs_exist_ok=True)
            yield {"exit": 0}
            continue
        code = run(checkout, command, job, "--date", DATE, *arguments)
        yield {"exit": code} | {
            subfolder: rows(sink / subfolder) for subfolder in ("predictions", "quarantine")
        }


def spoil(inputs: Path) -> None:
    """Overwrite two photos; their size and time stay, as when a disk goes bad."""
    shutil.rmtree(inputs / "spoiled", ignore_errors=True)
    shutil.copytree(inputs / "images", inputs / "spoiled")
    for path in sorted(path for path in (inputs / "spoiled").rglob("*") if path.is_file())[7:9]:
        damage(path)


def run(checkout: Path, command: str, job: str, *arguments: str) -> int:
    # The models and the loop instead of Ray are those of the checkout, for they import its package.
    folders = (checkout, *(checkout / folder for folder in _OF_MODELS))
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, command, job, *arguments],
        cwd=checkout,
        env=environment({"PYTHONPATH": os.pathsep.join(map(str, folders))}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 2, 3, 8):
        print(done.stderr[-2000:])
    return done.returncode


def rows(folder: Path) -> pa.Table:
    """The rows of a partition's parts in the order of their names, which is the input's."""
    paths = sorted(path for path in folder.rglob("part-*.parquet"))
    tables = []
    for path in paths:
        table = pq.read_table(path, partitioning=None).replace_schema_metadata(None)
        tables.append(table.drop_columns([c for c in _PER_RUN if c in table.column_names]))
    return pa.concat_tables(tables) if tables else pa.table({})


if __name__ == "__main__":
    main()
