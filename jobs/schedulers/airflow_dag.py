"""The nightly job as a DAG of Airflow 3, for yesterday: a date whose input is complete.

A run of Airflow 3 has the date on which it starts (`ds`), so the DAG takes the day before that. A
backfill from 2 to 5 November therefore makes the partitions of 1 to 4 November.

Copy it to the DAGs folder. The scheduler needs neither the pipeline nor Ray: a worker starts a
command and maps its exit code. Set on the workers, if the defaults are not right:

    PIPELINE_COMMAND   "pipeline run", or "pipeline submit --address http://HEAD:8265" of a cluster
    PIPELINE_JOB       path of the job file

All state is in the output, so every button is safe: retry, clear, backfill. A worker that is killed
leaves either a run that goes on, which the retry waits for (exit 4), or one that it resumes.
"""

from __future__ import annotations

import datetime as dt
import os
import shlex
import subprocess
from typing import Any

from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

NO_INPUT = 8
NEEDS_A_PERSON = {1, 2, 3, 5}
"""The same command again would end with the same; after 4, 6, 7 and a kill it goes on."""


class PipelineOperator(BaseOperator):
    """Runs a job for a date, and follows what it says."""

    template_fields = ("date",)

    def __init__(self, *, date: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.date = date
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Any) -> None:
        command = shlex.split(os.environ.get("PIPELINE_COMMAND", "pipeline run"))
        job = os.environ.get("PIPELINE_JOB", "/srv/pipeline/jobs/nightly.yaml")
        self._process = subprocess.Popen(
            [*command, job, "--date", self.date],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.info("%s", line.rstrip())
        code = self._process.wait()
        if code == NO_INPUT:
            raise AirflowSkipException(f"{self.date}: no input")
        if code in NEEDS_A_PERSON:
            raise AirflowFailException(f"{self.date}: exit code {code}, which no retry changes")
        if code:
            raise AirflowException(f"{self.date}: exit code {code}, to be tried again")

    def on_kill(self) -> None:
        """Let the run finish its slices."""
        if self._process is not None:
            self._process.terminate()


with DAG(
    "nightly",
    schedule="0 2 * * *",
    start_date=dt.datetime(2026, 11, 1, tzinfo=dt.UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
):
    PipelineOperator(
        task_id="predict",
        date="{{ macros.ds_add(ds, -1) }}",
        retries=5,
        retry_delay=dt.timedelta(minutes=10),
    )
