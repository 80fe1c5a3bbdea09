"""`--log-format json`: every line of stderr is one JSON object, however a command ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.runs.cli import Result, photos_job, pipeline

from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.process.screen import is_json_log
from pipeline.storage.store import Store

BUSY = "2026-11-24"
KEYS = ["time", "level", "logger", "message", "exception"]


def records(done: Result) -> list[dict[str, Any]]:
    parsed = [json.loads(line) for line in done.stderr.splitlines()]
    assert [list(record) for record in parsed] == [KEYS] * len(parsed)
    return parsed


@pytest.mark.no_ray
def test_every_line_of_stderr_is_a_record_and_stdout_is_unchanged(tmp_path: Path):
    words = ["run", photos_job(tmp_path, 8, num_bad=1), "--json", "--log-format"]
    wrong = pipeline("--debug", *words, "json", "--set", "model.top_q=3")
    unknown = pipeline(*words, "xml")
    with hold_lease(Store(str(tmp_path / "out")), Layout(f"date={BUSY}"), "another", 600.0):
        busy = pipeline(*words, "json", "--date", BUSY, "--ok-exit", "4")

    assert wrong.code == 2
    assert any("Traceback" in (record["exception"] or "") for record in records(wrong))
    assert "top_q" in records(wrong)[-1]["message"]
    assert unknown.code == 2
    assert "error: --log-format xml: write text or json" in unknown.stderr

    assert (busy.code, busy.json["exit_code"]) == (0, 4)
    *before, error, last = records(busy)
    assert {record["level"] for record in before} <= {"INFO", "WARNING"}
    assert (error["level"], error["message"]) == ("ERROR", f"error: {busy.json['error']}")
    assert last["message"] == "exiting 0 instead of 4 (--ok-exit)"


@pytest.mark.parametrize(
    ("words", "is_json"),
    [
        (["run", "j.yaml", "--log-format", "json"], True),
        (["run", "--log-format=json", "j.yaml"], True),
        (["run", "json", "--log-format", "text"], False),
        (["run", "j.yaml", "--json"], False),
    ],
)
def test_the_command_line_is_read_before_it_is_parsed(
    words: list[str], is_json: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["pipeline", *words])
    assert is_json_log() is is_json
