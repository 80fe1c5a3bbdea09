"""Runs leave the process of their caller as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runs.cli import photos_job, run_python
from support.runs.published_rows import read_predictions

pytestmark = pytest.mark.ray

CALLER = """
import datetime as dt, gc, json, logging, os, signal, sys, threading, time, warnings

gc.disable()  # what a run does not collect, stays
os.environ["MINE"] = "1"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "0"
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGALRM, lambda *_: None)
warnings.filterwarnings("error", message="mine")
logging.basicConfig(level=logging.INFO)
logging.getLogger("ray.data").setLevel(logging.DEBUG)
logging.getLogger("pipeline").setLevel(logging.ERROR)

import ray
from ray.data import DataContext

if sys.argv[2] == "initialised":
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=256 << 20)
context = DataContext.get_current()
context.max_errored_blocks = 3
context.target_max_block_size = 12345678
context.set_config("mine", [1])

from pipeline.core.errors import JobError
from pipeline.job.reading.loader import read_job
from pipeline.runs.progress import Silent
from pipeline.dataflow import run_job
from pipeline.published.output import open_output
from pipeline.runs.context import RunOptions

def state():
    values = {k: repr(v) for k, v in vars(DataContext.get_current()).items()}
    names = ("", "ray", "ray.data", "ray.serve", "pipeline")
    loggers = [logging.getLogger(name) for name in names]
    return {
        "environment": dict(os.environ),
        "context": [DataContext.get_current() is context, values],
        "levels": [logger.level for logger in loggers],
        "handlers": [handler.level for logger in loggers for handler in logger.handlers],
        "filters": [repr(each) for each in warnings.filters],
        "signals": [repr(signal.getsignal(n)) for n in (2, 14, 15)],
    }

def is_free():
    return ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]

before, published, after = state(), [], []
options = RunOptions(allow_import=("models",))

def run(overrides, day):
    job = read_job(sys.argv[1], date=dt.date(2026, 11, day), overrides=overrides)
    return run_job(job, options, Silent())

def wait_for_processors():
    waits_until = time.monotonic() + 60
    while ray.is_initialized() and not is_free():
        assert time.monotonic() < waits_until, "actors of a run that is over hold processors"
        time.sleep(0.05)

kept = []
try:
    run(["model.labels=[a, b]"], 3)
except JobError as error:
    kept.append(error)  # as a notebook keeps the last one
wait_for_processors()
for day in (1, 2):
    job = read_job(sys.argv[1], date=dt.date(2026, 11, day))
    published.append(run_job(job, options, Silent()).status)
    after.append(state())
    wait_for_processors()
changed = [key for seen in after for key in before if seen[key] != before[key]]

rows = open_output(sys.argv[3]).predictions(["row_id", "date"])
in_ray = []
if ray.is_initialized():
    from_ray = [[*row.values()] for row in rows.to_ray().take_all()]
    in_ray = [from_ray, rows.to_pandas().values.tolist()]
ticking = [each.name for each in threading.enumerate() if "tick" in each.name]
alive = ray.is_initialized() and ray.get(ray.remote(lambda: 7).remote())
print(json.dumps({
    "published": published, "changed": changed, "alive": alive,
    "ticking": ticking, "in_ray": in_ray,
    "seen": [{k: [before[k], after[-1][k]] for k in changed}],
}))
"""


@pytest.mark.any_ray
@pytest.mark.parametrize(
    "how",
    [
        pytest.param("initialised", marks=[pytest.mark.any_ray_short, pytest.mark.slow]),
        pytest.param("not initialised", marks=pytest.mark.slow),
    ],
)
def test_a_process_is_as_it_was_after_two_runs_and_both_are_published(how: str, tmp_path: Path):
    job = photos_job(tmp_path, 12, num_bad=1)
    done = run_python(CALLER, job, how, str(tmp_path / "out"))
    assert done.code == 0, done.stderr
    seen = done.json
    assert seen["published"] == ["published"] * 2
    assert seen["changed"] == [], seen["seen"]
    assert seen["alive"] == (7 if how == "initialised" else False)
    assert seen["ticking"] == []  # threads of Ray Data's coordinators, one of each run
    if how == "initialised":  # the rows of an output as a Ray Dataset, on that Ray
        in_ray, expected = map(sorted, seen["in_ray"])
        assert in_ray == expected
        assert len(in_ray) == 22
    for day in (1, 2):
        table = read_predictions(str(tmp_path / "out"), f"date=2026-11-{day:02}")
        assert table.num_rows == 11
