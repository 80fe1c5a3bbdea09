"""Ray Data's loop waits for news: while nothing ends it hardly runs, and what ends is seen."""

from __future__ import annotations

import json
import subprocess
import sys

from cli import environment

NUM_ROWS = 6
STEPS_PER_S = 25
"""Without waiting there are some 45."""
SCRIPT = f"""
import json, time
from pipeline.execution.cluster.connect import connect
from pipeline.execution.cluster.backpressure import limit_read_ahead

class Steps:
    count = 0

    def before_execution_starts(self, executor): ...
    def on_execution_step(self, executor): Steps.count += 1
    def after_execution_succeeds(self, executor): ...
    def after_execution_fails(self, executor, error): ...

class Slow:
    def __call__(self, batch):
        time.sleep(0.5)
        return batch

rows, seen = [], []
with connect(None):
    import ray

    limit_read_ahead(1)
    ray.data.DataContext.get_current().custom_execution_callback_classes.append(Steps)
    # What has been read and waits for the actor stays ready all the time.
    dataset = ray.data.range({NUM_ROWS}, override_num_blocks={NUM_ROWS})
    dataset = dataset.map_batches(Slow, batch_size=1, concurrency=1, num_cpus=0.5)
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        rows += batch["id"].tolist()
        seen.append((time.perf_counter(), Steps.count))
(began_s, before), (ended_s, after) = seen[0], seen[-1]
print(json.dumps({{"rows": sorted(rows), "steps_per_s": (after - before) / (ended_s - began_s)}}))
"""


def test_the_loop_waits_while_nothing_ends_and_all_rows_arrive():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == list(range(NUM_ROWS))
    assert 0 < found["steps_per_s"] < STEPS_PER_S
