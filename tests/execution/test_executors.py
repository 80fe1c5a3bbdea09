"""The options that Ray gets for each stage."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from pipeline.execution import executors
from pipeline.execution.stages import Read
from pipeline.execution.tasks import MAX_TASK_RETRIES
from pipeline.planning.allocation import TASK_CPUS, Allocation


def test_every_stage_asks_ray_for_its_own_share_and_as_many_retries():
    allocation = Allocation(2, 3, 0.5, 0.25, 1, 5, 6, 7, decoder_cpus=0.4, reader_cpus=0.3)
    stages = [
        (executors.read_options(allocation, 9), 5, 0.3),
        (executors.read_options(allocation, 3), 3, 0.3),  # no process without a unit
        (executors.preprocess_options(allocation), 6, 0.4),
        (executors.write_options(allocation), 7, TASK_CPUS),
    ]
    for options, number, cpus in stages:
        pool = options.pop("compute")
        assert (pool.min_size, pool.max_size) == (number, number)
        assert options == {
            "batch_size": 1,
            "batch_format": "pyarrow",
            "num_cpus": cpus,
            "max_restarts": -1,
            "max_task_retries": MAX_TASK_RETRIES,
        }
    assert executors.predict_options(allocation)["num_gpus"] == 0.25
    options = executors.predict_options(replace(allocation, actor_gpus=0.0))
    pool = options.pop("compute")
    assert (pool.min_size, pool.max_size) == (2, 3)
    assert getattr(pool, "initial_size", 3) == 3  # not one by one, behind the readers
    assert options == {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "num_cpus": 0.5,
        "num_gpus": None,
        "max_restarts": executors.MAX_ACTOR_RESTARTS,
        "max_task_retries": MAX_TASK_RETRIES,
    }


def test_of_long_slices_an_actor_gets_no_more_than_it_can_begin():
    on_cpu = Allocation(2, 3, 0.5, 0.0, 1, 5, 6, 7)
    for allocation, given in [
        (on_cpu, 1),
        (replace(on_cpu, actor_gpus=1.0), executors.CALLS_AT_ONCE),
    ]:
        pool = executors.predict_options(allocation, are_long=True)["compute"]
        assert pool.max_tasks_in_flight_per_actor == given


def test_a_reader_gets_the_units_that_it_reads_and_no_others():
    units = {f"reference {index}": pa.table({"unit": [index]}) for index in range(3)}
    asked = list[str]()
    read = Read(lambda unit: [unit], list(units), lambda ref: asked.append(ref) or units[ref])
    assert list(read(pa.table({"item": [1]}))) == [units["reference 1"]]
    assert asked == ["reference 1"]
