"""Dashboard and alert rules beside a real Prometheus, which reads real runs.

Debian's packages `prometheus` and `-node-exporter` have the programs.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.inputs.photos import build_images
from support.runs.cli import start, write_job
from support.runs.exposition import expected
from support.servers.ports import free_ports

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "jobs" / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
EXPRESSIONS = [
    (panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]
]
DID_NOT_RUN = 'ALERTS{alertname="PipelineDidNotRun",alertstate="firing"}'
LAST_SUCCESS = 'pipeline_last_success_timestamp_seconds{job="nightly"'
NUM_ROWS, TIMEOUT_S = 400, 120.0


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; Debian: prometheus, prometheus-node-exporter")
    return found


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found
    return found


class Prometheus:
    """A server that scrapes these ports every quarter of a second."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.program, self._folder = program("prometheus"), folder
        folder.mkdir()
        jobs = [
            {
                "job_name": name,
                "honor_labels": True,
                "scrape_interval": "250ms",
                "scrape_timeout": "250ms",
                "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
            }
            for name, port in ports.items()
        ]
        settings = {
            "global": {"evaluation_interval": "250ms"},
            "rule_files": [str(FOLDER / "alerts.yaml")],
            "scrape_configs": jobs,
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
        self.port = free_ports(1)[0]

    @contextmanager
    def running(self) -> Iterator[Prometheus]:
        options = [
            f"--config.file={self._folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with served([self.program, *options]):
            wait_for(lambda: self.asked("vector(1)"))
            yield self

    def asked(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression now; none while the server is not there."""
        query = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{self.port}/api/v1/query?{query}"
        try:
            with urllib.request.urlopen(url) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except OSError:
            return []
        return found

    def value(self, series: str) -> float:
        """The value of one series; NaN if it is not there."""
        found = self.asked(series)
        return float(found[0]["value"][1]) if found else math.nan


@contextmanager
def served(command: list[str]) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def filled(expression: str) -> str:
    """An expression as Grafana asks it."""
    return expression.replace("$job", ".*").replace("$__rate_interval", "1m")


def test_the_rules_fire_when_they_should_and_only_then():
    done = subprocess.run(
        [program("promtool"), "test", "rules", "alerts_test.yaml"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
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


def test_a_real_prometheus_sees_a_run_and_what_it_has_left(tmp_path: Path):
    build_images(tmp_path / "in", NUM_ROWS, seed=5, num_bad=3)
    exporter = program("prometheus-node-exporter")
    run_port, node_port = free_ports(2)
    textfile = tmp_path / "textfiles" / "nightly.prom"
    textfile.parent.mkdir()
    job = write_job(
        tmp_path / "nightly.yaml",
        {"uri": str(tmp_path / "in"), "format": "images"},
        str(tmp_path / "out"),
        run={"slice_rows": 8},
        metrics={"port": run_port, "textfile": str(textfile)},
    )
    with ExitStack() as stack:
        collect = ["--collector.disable-defaults", "--collector.textfile"]
        where = f"--collector.textfile.directory={textfile.parent}"
        listen = f"--web.listen-address=127.0.0.1:{node_port}"
        stack.enter_context(served([exporter, *collect, where, listen]))
        ports = {"run": run_port, "node": node_port}
        prometheus = stack.enter_context(Prometheus(tmp_path / "prometheus", ports).running())
        words = ("run", job, "--date", "2026-11-24", "--json", "--log-format", "json")
        process = start(*words)
        seen: set[str] = set()

        def see() -> bool:
            seen.update(t for t, each in EXPRESSIONS if prometheus.asked(filled(each)))
            return process.poll() is not None

        wait_for(see)
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stderr
        assert {json.loads(line)["level"] for line in stderr.splitlines()} == {"INFO", "WARNING"}
        assert "the run goes on without" not in stderr
        report = json.loads(stdout.splitlines()[-1])
        wanted = expected(report, "nightly")
        of_node = f',instance="127.0.0.1:{node_port}"}}'
        ended = f'pipeline_run_status{{job="nightly",status="published"{of_node}'
        wait_for(lambda: prometheus.value(ended) == 1)
        see()
        assert seen == {title for title, _ in EXPRESSIONS}
        found = {series: prometheus.value(series[:-1] + of_node) for series in wanted}
        assert found == wanted

        # What another job left 27 hours ago; nothing of it runs.
        line = re.compile(rf"^({re.escape(LAST_SUCCESS)}}}) .*$", re.MULTILINE)
        older, changed = line.subn(rf"\1 {time.time() - 27 * 3600}", textfile.read_text())
        assert changed == 1
        older = older.replace('job="nightly"', 'job="weekly"')
        textfile.with_name("weekly.prom").write_text(older)
        fired = wait_for(lambda: prometheus.asked(DID_NOT_RUN))
        assert [each["metric"]["job"] for each in fired] == ["weekly"]
