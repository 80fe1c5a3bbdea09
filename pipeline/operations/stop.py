"""`pipeline stop`: ask a run, or a submitted job, to stop."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from typing import Any

from pipeline.commit.layout import WHOLE_OUTPUT, Layout
from pipeline.commit.lease import ask_to_stop, latest_epoch, read_heartbeat
from pipeline.commit.manifest import locate
from pipeline.core.errors import JobError
from pipeline.execution.submit.attempts import find_job, find_newest
from pipeline.execution.submit.job import (
    stop_job,
)
from pipeline.published.status import survey_output
from pipeline.report.showing.printed import printed


@printed
def stop(
    sink: str, *, partition: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Ask the run of a partition to stop; it drains, and ends with 6 and a report.

    The run notices when it next renews its lease. Later runs are not affected.

    Args:
        sink: Root of the output, or folder of a partition.
        partition: The partition; None: the only one with a run.
        storage_options: fsspec options.

    Returns:
        The partition, and the run that was asked; None if there is no run.

    Raises:
        JobError: No run has worked there, or several partitions have runs and none is named.
        InfraError: The output cannot be read or written.
    """
    store, uri_layout = locate(sink, dict(storage_options or {}))
    if partition is None and uri_layout is not None and uri_layout.partition:
        partition = uri_layout.name
    rows = survey_output(store, partition)
    running = [row for row in rows if row.state == "running"]
    if len(running) > 1:
        names = ", ".join(row.partition for row in running)
        raise JobError(f"{store.url('')}: name a partition; runs are working on {names}")
    if not running:
        return {"partition": partition, "asked": None, "said": "no run is working there"}
    one = running[0]
    layout = Layout(None if one.partition == WHOLE_OUTPUT else one.partition)
    epoch = latest_epoch(store, layout)
    heartbeat = read_heartbeat(store, layout, epoch)
    if heartbeat.run_id != one.run_id:
        return {"partition": one.partition, "asked": None, "said": f"{one.run_id} has just ended"}
    is_new = ask_to_stop(store, layout, epoch, _user_at_host())
    asked = "it stops within" if is_new else "it was asked before; it stops within"
    end = f"pipeline status {store.url('')} shows when it has ended"
    return {
        "partition": one.partition,
        "asked": heartbeat.run_id,
        "host": heartbeat.host,
        "pid": heartbeat.pid,
        "said": f"{asked} {heartbeat.ttl_s / 4:.0f} s; {end}",
    }


def _user_at_host() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may know no name for its user
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def stop_submitted(target: str, address: str, date: str | None = None) -> dict[str, Any]:
    """Stop a job, and wait until it has ended, with exit code 6; finished slices are kept.

    Returns:
        Its state afterwards; a job that has already ended is not changed.

    Raises:
        JobError: There is no such job.
        InfraError: The cluster does not answer, or the job does not end.
    """
    client, job_id = find_job(target, address, date)
    stop_job(client, job_id)
    return find_newest(client, job_id).to_dict()
