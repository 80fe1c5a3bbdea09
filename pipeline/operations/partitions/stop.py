"""`pipeline stop`: ask the run that works on a partition to stop, wherever it is."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from typing import Any

from pipeline.commit.layout import WHOLE_OUTPUT, Layout
from pipeline.commit.lease import ask_to_stop, latest_epoch, read_heartbeat
from pipeline.commit.published.read import locate
from pipeline.core.errors import JobError
from pipeline.report.showing.printed import printed
from pipeline.runs.partitions.survey import survey_output


@printed
def stop(
    sink: str, *, partition: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Ask the run of a partition to stop; it drains, and ends with 6 and a report.

    It hears it when it renews its lease the next time. A run that begins later is not meant.

    Args:
        sink: The sink's root, or a partition's folder.
        partition: Which partition; None takes the only one that something runs on.
        storage_options: fsspec options.

    Returns:
        The partition, and the run that was asked, None if nothing runs.

    Raises:
        JobError: No run has worked there, or runs work on several partitions and none is named.
        InfraError: The output cannot be read or written.
    """
    store, found = locate(sink, dict(storage_options or {}))
    if partition is None and found is not None and found.partition:
        partition = found.name
    rows = survey_output(store, partition)
    running = [each for each in rows if each.state == "running"]
    if len(running) > 1:
        names = ", ".join(each.partition for each in running)
        raise JobError(f"{store.url('')}: name the partition, runs work on {names}")
    if not running:
        return {"partition": partition, "asked": None, "said": "nothing runs there"}
    one = running[0]
    layout = Layout(None if one.partition == WHOLE_OUTPUT else one.partition)
    epoch = latest_epoch(store, layout)
    said = read_heartbeat(store, layout, epoch)
    if said.run_id != one.run_id:
        return {"partition": one.partition, "asked": None, "said": f"{one.run_id} has just ended"}
    is_new = ask_to_stop(store, layout, epoch, _own_name())
    asked = "it hears it within" if is_new else "it was asked before; it hears it within"
    return {
        "partition": one.partition,
        "asked": said.run_id,
        "host": said.host,
        "pid": said.pid,
        "said": f"{asked} {said.ttl_s / 4:.0f} s; pipeline status {store.url('')} shows its end",
    }


def _own_name() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may know no name for its user
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
