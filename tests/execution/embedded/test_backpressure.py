"""Reading stays close to the actors, however small the slices are, and never blocks."""

from __future__ import annotations

import pytest
from support.runs.cli import run_python

from pipeline.execution.embedded.short_loop import READ_AHEAD_SLICES, READ_AHEAD_SLICES_PER_ACTOR

pytestmark = pytest.mark.ray

NUM_ROWS = 200
SCRIPT = f"""
import json, time
from pipeline.execution.cluster import in_flight
from pipeline.execution.cluster.connect import connect
from pipeline.execution.embedded.short_loop import limit_read_ahead

class Slow:
    def __call__(self, batch):
        time.sleep(0.01)
        return batch

def one_by_one(batch):
    yield from ({{"id": [each]}} for each in batch["id"])

ahead, rows = [0], []
with connect(None):
    import ray

    limit_read_ahead(1)
    # Two tasks put out all of the slices, so that waiting between their outputs counts, too.
    slices = ray.data.range({NUM_ROWS}, override_num_blocks=2).map_batches(one_by_one)
    dataset = slices.map_batches(Slow, batch_size=1, concurrency=1, num_cpus=0.5)
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        rows += batch["id"].tolist()
        found = in_flight._operators()
        outputs = found[0].metrics.num_task_outputs_generated
        ahead.append(outputs - found[1].metrics.num_task_inputs_processed)
print(json.dumps({{"rows": sorted(rows), "ahead": max(ahead), "operators": len(found)}}))
"""


@pytest.mark.slow
def test_a_stage_is_never_far_ahead_of_the_next_and_all_rows_arrive():
    done = run_python(SCRIPT)
    assert done.code == 0, done.stderr
    seen = done.json
    assert seen["operators"] == 2
    assert seen["rows"] == list(range(NUM_ROWS))
    limit = READ_AHEAD_SLICES + READ_AHEAD_SLICES_PER_ACTOR
    assert limit // 2 < seen["ahead"] < NUM_ROWS // 2  # a look takes all that lies ready
