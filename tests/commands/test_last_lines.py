"""`--ok-exit`, and the command that resumes an interrupted one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.runs.cli import Result, photos_job, pipeline

from pipeline.commands.operation import _exit_codes, prepare_end, same_command
from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.core.errors import JobError
from pipeline.storage.store import Store

pytestmark = pytest.mark.no_ray

DATE = "2026-11-24"
AGAIN = "finished work is kept; to continue, run: "


def run_until_leased(job: str, how: str, *options: str) -> Result:
    env = {"PIPELINE_FAILPOINT": f"leased:{how}"} if how else None
    return pipeline("run", job, "--json", *options, env=env)


def test_a_stopped_run_prints_the_command_that_resumes_it(tmp_path: Path):
    job = photos_job(tmp_path, 8)
    done = run_until_leased(job, "term", "--set", "model.batch_size=4")
    assert done.code == done.json["exit_code"] == 6
    error, last = done.stderr.splitlines()[-2:]
    assert error == f"error: {done.json['error']}"
    assert last.startswith(AGAIN)
    day = re.search(r"date=(\d{4}-\d\d-\d\d)", done.json["report"])
    assert day is not None
    arguments = shlex.split(last.removeprefix(AGAIN))
    assert arguments == [
        *("pipeline", "run", job, "--json", "--set", "model.batch_size=4", "--date", day[1])
    ]


@pytest.mark.slow
def test_ok_exit_changes_the_exit_code_but_not_the_document(tmp_path: Path):
    job = photos_job(tmp_path, 8)
    busy = ("--date", DATE)
    with hold_lease(Store(str(tmp_path / "out")), Layout(f"date={DATE}"), "another", 60.0):
        assert run_until_leased(job, "", *busy).code == 4
        assert run_until_leased(job, "", *busy, "--ok-exit", "3,6").code == 4
        fine = run_until_leased(job, "", *busy, "--ok-exit", "3,4")
    assert (fine.code, fine.json["exit_code"]) == (0, 4)
    assert fine.stderr.splitlines()[-1] == "exiting 0 instead of 4 (--ok-exit)"
    stopped = run_until_leased(job, "term", *busy, "--ok-exit", "6")
    assert (stopped.code, stopped.json["exit_code"]) == (0, 6)
    assert stopped.stderr.splitlines()[-1].startswith(AGAIN)


@pytest.mark.parametrize("text", ["", "3,", "0", "1", "2", "9", "3;4", "-3", "three"])
def test_ok_exit_refuses_other_codes(text: str):
    with pytest.raises(JobError, match="write exit codes from 3 to 8, such as 3,4"):
        prepare_end(DATE, text)


def test_ok_exit_accepts_codes_3_to_8():
    assert _exit_codes("3, 4,5,6,7,8") == {3, 4, 5, 6, 7, 8}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["run", "a b.yaml"], "run 'a b.yaml' --date 2026-11-24"),
        (["run", "job.yaml", "--date", "2026-01-01"], "run job.yaml --date 2026-01-01"),
        (["run", "job.yaml", "--date=2026-01-01"], "run job.yaml --date=2026-01-01"),
        (["retry", "\x1b[2J.yaml"], r"retry '\x1b[2J.yaml' --date 2026-11-24"),
        (
            ["run", "j.yaml", "--set", "sink.storage_options={key: me, secret: hush}"],
            "run j.yaml --set sink.storage_options=... --date 2026-11-24",
        ),
        (
            ["run", "j.yaml", "--set=source.storage_options.secret=hush"],
            "run j.yaml --set=source.storage_options.secret=... --date 2026-11-24",
        ),
        (
            ["run", "j.yaml", "--set", "sink={uri: out, storage_options: {secret: hush}}"],
            "run j.yaml --set sink=... --date 2026-11-24",
        ),
        (
            ["run", "j.yaml", "--set", "source.uri=https://me:hush@host/x?sig=hush"],
            "run j.yaml --set 'source.uri=https://***@host/x?sig=***' --date 2026-11-24",
        ),
    ],
)
def test_the_resuming_command_has_a_date_and_no_secrets(words: list[str], shown: str):
    assert same_command(["/usr/bin/pipeline", *words], DATE) == f"pipeline {shown}"
    assert same_command(["pipeline/__main__.py", *words], DATE) == f"python -m pipeline {shown}"
    assert "hush" not in shown
