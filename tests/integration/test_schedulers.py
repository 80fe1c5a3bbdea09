"""The files for schedulers: each is as its scheduler reads it, and does what the table says."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs.checkout import ROOT
from support.runs.command_lines import parsed

from pipeline.core.errors import PipelineError

FOLDER = ROOT / "jobs" / "schedulers"
NEEDS_A_PERSON, AGAIN, NO_INPUT = {1, 2, 3, 5}, {4, 6, 7}, 8


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(FOLDER / name)
    return parser


def skypilot() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "skypilot.yaml").read_text())


def command_lines() -> dict[str, str]:
    """What each file starts, by its name; cron's first, its second is `status`."""
    lines = (FOLDER / "crontab").read_text().splitlines()
    cron = [line.split(None, 5)[5] for line in lines if re.match(r"[*0-9]", line)]
    service = unit("pipeline-nightly.service")["Service"]["ExecStart"].replace("%%", "%")
    return {
        "crontab": cron[0].replace(r"\%", "%"),
        "status": cron[1],
        "service": service.removeprefix("/bin/sh -c '").removesuffix("'"),
        "skypilot": skypilot()["run"].replace("\\\n", ""),
    }


def test_every_exit_code_has_its_place():
    codes = {error.exit_code for error in PipelineError.__subclasses__()} | {1}
    assert NEEDS_A_PERSON | AGAIN | {NO_INPUT} == codes


@pytest.mark.parametrize("name", ["crontab", "service", "skypilot"])
def test_what_is_started_is_a_run_of_a_job_that_is_there_for_a_date(name: str):
    run = parsed(
        command_lines()[name]
        .replace("$(date -u -d yesterday +%F)", "2026-11-24")
        .replace("$D", "D")
    )
    assert run["command"] == "run"
    assert (ROOT / run["job"]).is_file()
    assert run["date"]


def _dates_of_shells() -> dict[str, str]:
    dagster = (FOLDER / "dagster_assets.py").read_text()
    assert "DailyPartitionsDefinition" in dagster, "whose schedule starts the day before"
    cron_job = yaml.safe_load((FOLDER / "kubernetes/cron_job.yaml").read_text())
    pod = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return {
        "crontab": command_lines()["crontab"],
        "service": command_lines()["service"],
        "cron_job": pod["containers"][0]["command"][-1],
        "skypilot": (FOLDER / "skypilot.yaml").read_text().replace("--env DATE=", "--date "),
        "nightly": (ROOT / "jobs/nightly.yaml").read_text(),
    }


def test_every_file_runs_a_date_that_is_complete_and_says_so_first():
    for name, text in _dates_of_shells().items():
        given = re.findall(
            r"--date (\S+)", text.replace("$(date -u -d yesterday +%F)", "YESTERDAY")
        )
        assert given[0].strip('"') == "YESTERDAY", name
    assert 'date="{{ macros.ds_add(ds, -1) }}"' in (FOLDER / "airflow_dag.py").read_text()
    files = [path for path in FOLDER.rglob("*") if path.suffix not in (".timer", "", ".pyc")]
    for path in [*files, FOLDER / "crontab", ROOT / "jobs" / "nightly.yaml"]:
        head = " ".join(path.read_text().split())[:300]
        assert re.search("yesterday", head, re.I), path.name


def test_cron_writes_what_a_scrape_reads_whole_or_not_at_all():
    line = command_lines()["status"]
    status = parsed(line)
    assert (status["command"], status["prometheus"]) == ("status", True)
    assert '>"$METRICS.new" && mv "$METRICS.new" "$METRICS"' in line


def test_a_percent_sign_of_a_crontab_is_escaped_and_no_secret_is_in_it():
    for line in (FOLDER / "crontab").read_text().splitlines():
        if re.match(r"[*0-9]", line):
            assert not re.search(r"(?<!\\)%", line)
            assert len(line.split(None, 5)) == 6
    assert not re.search("SECRET|PASSWORD|TOKEN", (FOLDER / "crontab").read_text(), re.I)


def test_systemd_starts_again_what_goes_on_and_nothing_else():
    service = unit("pipeline-nightly.service")["Service"]
    assert set(map(int, service["RestartPreventExitStatus"].split())) == NEEDS_A_PERSON
    assert set(map(int, service["SuccessExitStatus"].split())) == {NO_INPUT}
    assert (service["Restart"], service["KillMode"]) == ("on-failure", "mixed")
    assert unit("pipeline-nightly.timer")["Timer"]["Persistent"] == "true"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_its_units(tmp_path: Path):
    units = [shutil.copy(path, tmp_path) for path in FOLDER.glob("pipeline-nightly.*")]
    command = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "pipeline-nightly" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_skypilot_recovers_what_goes_on_and_nothing_else():
    recovery = skypilot()["resources"]["job_recovery"]
    assert set(recovery["recover_on_exit_codes"]) == AGAIN
    assert recovery["max_restarts_on_errors"] == 0
    assert not any(skypilot()["secrets"].values())


@pytest.mark.parametrize("name", ["airflow_dag.py", "dagster_assets.py"])
def test_a_scheduler_needs_no_package_of_ours_and_knows_the_codes(name: str):
    tree = ast.parse((FOLDER / name).read_text())
    values: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not any(module.split(".")[0] in ("pipeline", "ray") for module in names)
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
            values[target.id] = node.value
    assert ast.literal_eval(values["NEEDS_A_PERSON"]) == NEEDS_A_PERSON
    assert ast.literal_eval(values["NO_INPUT"]) == NO_INPUT


def test_the_table_says_what_the_files_do():
    text = (FOLDER / "README.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \d", line)]
    table = {int(row[0]): row[3:7] for row in rows}
    assert set(table) == NEEDS_A_PERSON | AGAIN | {0, NO_INPUT}
    for code in NEEDS_A_PERSON:
        assert table[code] == ["failed"] * 4
    for code in AGAIN:
        assert table[code] == ["again"] * 4
    assert table[NO_INPUT] == ["success", "skipped", "skipped", "success"]
