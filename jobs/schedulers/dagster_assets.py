"""The nightly job as an asset of Dagster, for yesterday: `dagster dev -f dagster_assets.py`.

It has a partition per date. The schedule starts that of the day before, whose input is complete.

Dagster needs neither the pipeline nor Ray: it starts a command and maps its exit code. Set these
where it runs, if the defaults are not right:

    PIPELINE_COMMAND   "pipeline run", or "pipeline submit --address http://HEAD:8265" of a cluster
    PIPELINE_JOB       path of the job file

All state is in the output, so a partition may be materialised again at any time: a published one is
left alone, one that was cut short goes on.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator

import dagster as dg

NO_INPUT = 8
NEEDS_A_PERSON = {1, 2, 3, 5}
"""The same command again would end with the same; after 4, 6, 7 and a kill it goes on."""


@dg.asset(
    partitions_def=dg.DailyPartitionsDefinition(start_date="2026-11-01"),
    output_required=False,  # no input (yet): nothing is materialised, and nothing failed
)
def labels(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    """Predictions of a date."""
    command = shlex.split(os.environ.get("PIPELINE_COMMAND", "pipeline run"))
    job = os.environ.get("PIPELINE_JOB", "/srv/pipeline/jobs/nightly.yaml")
    date = context.partition_key
    done = subprocess.run(
        [*command, job, "--date", date, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode == 0:
        report = json.loads(done.stdout.splitlines()[-1])
        counts = {f"rows_{name}": n for name, n in report["rows"].items() if n is not None}
        yield dg.MaterializeResult(metadata={"status": report["status"], **counts})
    elif done.returncode == NO_INPUT:
        context.log.info("%s: no input", date)
    elif done.returncode in NEEDS_A_PERSON:
        raise dg.Failure(f"{date}: exit code {done.returncode}", allow_retries=False)
    else:
        raise dg.RetryRequested(max_retries=5, seconds_to_wait=600)


nightly = dg.define_asset_job("nightly", selection=[labels])
defs = dg.Definitions(
    assets=[labels],
    jobs=[nightly],
    schedules=[dg.build_schedule_from_partitioned_job(nightly, hour_of_day=2)],
)
