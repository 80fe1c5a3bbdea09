"""The newest run of the same model is found wherever it is, with few reports read."""

from functools import partial
from pathlib import Path

import pytest
from support.runs.published import put_report
from support.runs.report_examples import FULL, Facts, document_of, report_of

from pipeline.report.document import Report
from pipeline.report.history import find_past_run, is_basis
from pipeline.report.sections import ModelSection
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


def report_with(**changes) -> Report:
    return report_of(FACTS, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": FACTS["model"] | {"name": "other"}},
        {"model": FACTS["model"] | {"weights_sha256": "cd" * 32}},
        {"model": FACTS["model"] | {"runtime": "compile"}},
        {"model": FACTS["model"] | {"precision": "fp32"}},
        {"model": FACTS["model"] | {"batch_size": 32}},
        {"status": "failed", "exit_code": 7},
        {"status": "stopped", "exit_code": 6},
        {"rows": FACTS["rows"] | {"computed": 99}},
        {"streaming_wall_s": None},
    ],
)
def test_another_model_or_an_unfinished_run_is_no_basis(changes):
    assert not is_basis(WANTED, report_with(**changes))


@pytest.mark.parametrize(
    ("changes", "is_one"),
    [
        ({"status": "stopped", "exit_code": 6}, True),
        ({"status": "failed", "exit_code": 7}, True),
        ({"status": "stopped", "exit_code": 6, "rows": FACTS["rows"] | {"computed": 99}}, False),
        ({"status": "stopped", "exit_code": 6, "streaming_wall_s": None}, False),
        ({"status": "nothing_to_do"}, False),
        ({"model": FACTS["model"] | {"precision": "fp32"}}, False),
    ],
)
def test_rows_of_an_unfinished_run_are_a_basis_if_nothing_better_is(changes, is_one: bool):
    assert is_basis(WANTED, report_with(**changes), is_finished=False) == is_one


def test_what_the_job_leaves_open_fits_anything():
    compiled = report_with(model=FACTS["model"] | {"runtime": "compile"})
    assert is_basis(WANTED.but(runtime="auto", precision="auto"), compiled)
    assert not is_basis(WANTED.but(runtime="auto", precision="fp32"), compiled)
    larger = report_with(model=FACTS["model"] | {"batch_size": 128})
    assert is_basis(WANTED.but(batch_size=None), larger)
    refused = report_with(status="refused", exit_code=3)
    assert is_basis(WANTED, refused)


@pytest.mark.parametrize(
    ("batch_tokens", "fits"), [(8192, True), (None, True), (4096, False), (16_384, False)]
)
def test_a_run_with_another_batch_of_tokens_is_no_basis(batch_tokens: int | None, fits: bool):
    used = report_with(model=TEXTS)
    assert is_basis(WANTED.but(batch_tokens=batch_tokens), used) == fits


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


def test_what_is_no_report_is_passed_over(tmp_path: Path):
    store = Store(str(tmp_path))
    keep(store, "all", "1")
    store.put("reports/all/2/report.html", b"killed before report.json")
    store.put("reports/all/3/report.json", b"\xff{")
    put_report(store, "all", "4", {**document_of(FACTS), "version": 2})
    assert past_run_in(store) == "1"
