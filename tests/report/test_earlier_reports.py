"""Test that the newest run of the same model is found in any partition, with few reports read."""

from functools import partial
from pathlib import Path

import pytest
from support.runs.published import put_report
from support.runs.report_examples import FULL, Facts, document_of, report_of

from pipeline.report.earlier_reports import find_past_run, is_basis
from pipeline.report.sections.model import ModelSection
from pipeline.storage.store import Store

FACTS = FULL | dict(model=FULL["model"] | {"runtime": "eager"})
WANTED = ModelSection(
    name="efficientnet-lite0",
    weights_sha256="ab" * 32,
    runtime="eager",
    precision="bf16",
    batch_size=64,
)
TEXTS = FACTS["model"] | {"batch_tokens": 8192}


def keep(store: Store, partition: str, run_id: str, facts: Facts = FACTS) -> None:
    put_report(store, partition, run_id, document_of(facts, run_id=run_id, partition=partition))


def past_run_in(store: Store, partition: str = "all", wanted: ModelSection = WANTED) -> str | None:
    past = find_past_run(store, partition, partial(is_basis, wanted))
    return past.run_id if past else None


def test_the_newest_run_of_any_partition_is_found(usual_store: Store):
    assert past_run_in(usual_store) is None
    for partition, run_id in (("date=2026-11-24", "3"), ("date=2026-11-25", "2"), ("all", "1")):
        keep(usual_store, partition, run_id)
    assert past_run_in(usual_store) == "3"


def test_the_newest_partitions_are_those_of_the_highest_numbers(tmp_path: Path):
    store = Store(str(tmp_path))
    for number in range(90, 110):
        keep(store, f"batch={number}", f"{number:03d}")
    assert past_run_in(store) == "109"
    store.delete(
        [file.path for n in range(104, 110) for file in store.list_files(f"reports/batch={n}")]
    )
    assert past_run_in(store) == "103"


def model(**changes: object) -> dict[str, object]:
    return {"model": FACTS["model"] | changes}


STOPPED, FAILED = {"status": "stopped", "exit_code": 6}, {"status": "failed", "exit_code": 7}
FEW, NO_STREAM = {"rows": FACTS["rows"] | {"computed": 99}}, {"streaming_wall_s": None}
OPEN = WANTED.but(runtime="auto", precision="auto")


@pytest.mark.parametrize(
    ("wanted", "changes", "is_one", "is_one_unfinished"),
    [
        (WANTED, {}, True, True),
        (WANTED, model(name="other"), False, False),
        (WANTED, model(weights_sha256="cd" * 32), False, False),
        (WANTED, model(runtime="compile"), False, False),
        (WANTED, model(precision="fp32"), False, False),
        (WANTED, model(batch_size=32), False, False),
        (WANTED, FEW, False, False),
        (WANTED, NO_STREAM, False, False),
        (WANTED, {"status": "refused", "exit_code": 3}, True, True),
        (WANTED, {"status": "nothing_to_do"}, False, False),
        # Rows of an unfinished run are a basis if nothing better is.
        (WANTED, STOPPED, False, True),
        (WANTED, FAILED, False, True),
        (WANTED, STOPPED | FEW, False, False),
        (WANTED, STOPPED | NO_STREAM, False, False),
        # What the job leaves open fits anything.
        (OPEN, model(runtime="compile"), True, True),
        (OPEN.but(precision="fp32"), model(runtime="compile"), False, False),
        (WANTED.but(batch_size=None), model(batch_size=128), True, True),
        (WANTED.but(batch_tokens=8192), {"model": TEXTS}, True, True),
        (WANTED, {"model": TEXTS}, True, True),
        (WANTED.but(batch_tokens=4096), {"model": TEXTS}, False, False),
        (WANTED.but(batch_tokens=16_384), {"model": TEXTS}, False, False),
    ],
)
def test_a_run_is_a_basis_if_it_did_what_is_wanted(
    wanted: ModelSection, changes: Facts, is_one: bool, is_one_unfinished: bool
):
    past = report_of(FACTS, **changes)
    assert is_basis(wanted, past) == is_one
    assert is_basis(wanted, past, is_finished=False) == is_one_unfinished


def test_few_reports_are_read_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = Store(str(tmp_path))
    for day in range(1, 31):
        for run in range(2):
            keep(store, f"date=2026-11-{day:02d}", f"202611{day:02d}-{run}")
    keep(store, "all", "20261201-0")
    read: list[str] = []
    read_many = Store.read_many

    def counting(self, paths, versions=None):
        read.extend(paths)
        return read_many(self, paths, versions)

    monkeypatch.setattr(Store, "read_many", counting)
    assert past_run_in(store, "date=2026-11-30") == "20261130-1"
    assert len(read) <= 16
    assert past_run_in(store, "all") == "20261201-0"  # its own partition counts, whatever its name


def test_files_that_are_not_reports_are_skipped(tmp_path: Path):
    store = Store(str(tmp_path))
    keep(store, "all", "1")
    store.put("reports/all/2/report.html", b"killed before report.json")
    store.put("reports/all/3/report.json", b"\xff{")
    put_report(store, "all", "4", {**document_of(FACTS), "version": 2})
    assert past_run_in(store) == "1"
