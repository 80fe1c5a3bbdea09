"""Dashboard and alert rules: they ask for what there is, and rules fire as their tests say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.report.metric_families import MEANINGS

FOLDER = Path(__file__).parents[2] / "jobs" / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian: prometheus")
def test_the_rules_fire_when_they_should_and_only_then():
    command = ["promtool", "test", "rules", "alerts_test.yaml"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_has_a_test_and_the_dashboard_is_one_screen_for_any_grafana():
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    tests = (FOLDER / "alerts_test.yaml").read_text()
    alerts = [rule["alert"] for rule in group["rules"]]
    assert len(alerts) == 5
    assert [
        name for name in alerts if not re.search(rf"alertname: {name}\n +exp_alerts:\n", tests)
    ] == []
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) <= 21
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels)


def test_what_rules_and_dashboard_ask_for_are_metrics_of_a_run():
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    asked += [str(rule["expr"]) for rule in group["rules"]]
    names = {name for text in asked for name in re.findall(r"\bpipeline_\w+", text)}
    assert {re.sub(r"pipeline_|_total$", "", name) for name in names} <= set(MEANINGS)
