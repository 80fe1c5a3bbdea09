"""Nodes that have too little for a run are found before its first row, with what would do."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.plan_examples import planned, shard_extents

from pipeline.planning.allocation import Allocation
from pipeline.planning.node_room import FULL_DISK_SHARE, GIB, Held, NodeFacts, find_shortages
from pipeline.preprocessing.images.image_input import ImageInput
from pipeline.preprocessing.images.transform import TransformSpec

MIB = 1 << 20
NODE = NodeFacts("one", 4, 0, 8 * GIB, 16 * GIB, "/spill", 1000 * GIB, 500 * GIB, "2.60.0")
HELD = Held(10 * MIB, 2, 2)


def texts(*nodes: NodeFacts, held: Held | None = HELD) -> list[tuple[bool, str]]:
    return [(each.is_certain, each.text) for each in find_shortages(nodes, held)]


def test_nodes_with_room_are_fine():
    assert texts(NODE, replace(NODE, host="two")) == []


@given(
    store_mib=st.integers(1, 4000),
    slice_mib=st.integers(1, 200),
    tasks=st.integers(1, 40),
    cpus=st.lists(st.integers(1, 64), min_size=1, max_size=5),
)
def test_a_store_is_judged_by_what_lies_on_its_node_at_once(
    store_mib: int, slice_mib: int, tasks: int, cpus: list[int]
):
    nodes = [replace(NODE, host=f"n{i}", cpus=n) for i, n in enumerate(cpus)]
    nodes[0] = replace(nodes[0], store_bytes=store_mib * MIB)
    held = Held(slice_mib * MIB, tasks, 0)
    slots = held.slots(nodes[0], nodes)
    assert math.isclose(slots, tasks * cpus[0] / sum(cpus), abs_tol=1)
    said = [each for each in find_shortages(nodes[:1], held) if "object store has" in each.text]
    alone = held.slots(nodes[0], nodes[:1])
    assert alone == tasks
    least, enough = alone * slice_mib, 4 * alone * slice_mib
    assert [each.is_certain for each in said] == [store_mib < least] * (store_mib < enough)
    for each in said:
        told = re.search(r"--object-store-memory=(\d+)", each.text)
        assert told is not None
        richer = replace(nodes[0], store_bytes=int(told[1]), shared_bytes=None)
        assert texts(richer, held=held) == []


def test_actors_count_where_their_gpus_are():
    poor, rich = replace(NODE, cpus=16, gpus=0), replace(NODE, cpus=4, gpus=2)
    held = Held(MIB, 0, 8)
    assert (held.slots(poor, [poor, rich]), held.slots(rich, [poor, rich])) == (1, 8)


@pytest.mark.parametrize(
    ("free", "certain"), [(0.049, [True]), (0.051, [False]), (0.057, [False]), (0.06, [])]
)
def test_a_disk_that_ray_takes_for_full_is_refused_and_a_small_one_told(
    free: float, certain: list[bool]
):
    node = replace(NODE, free_bytes=int(free * NODE.disk_bytes))
    found = texts(node)
    assert [is_certain for is_certain, _ in found] == certain
    assert all("/spill" in text and "one: " in text for _, text in found)
    assert FULL_DISK_SHARE == 0.05


def test_shared_memory_smaller_than_the_store_is_told_and_none_at_all_is_not():
    [(is_certain, text)] = texts(replace(NODE, shared_bytes=64 * MIB))
    assert not is_certain
    assert "64.0 MiB" in text
    assert "8.0 GiB of it (docker run --shm-size)" in text
    assert texts(replace(NODE, shared_bytes=None)) == []


def test_two_versions_of_ray_are_refused_and_named():
    [(is_certain, text)] = texts(NODE, replace(NODE, host="two", ray_version="2.59.1"))
    assert is_certain
    assert "2.59.1 on two, 2.60.0 on one" in text


def test_without_a_job_the_machines_are_judged_alone():
    assert texts(replace(NODE, store_bytes=MIB), held=None) == []


def test_what_is_held_is_the_largest_slice_as_it_crosses_the_store():
    plan = planned(shard_extents([[100], [30]]), 4, run__slice_rows=40)
    seen = ImageInput(TransformSpec((10, 20), 20, "bilinear", (0.0,) * 3, (1.0,) * 3))
    in_actors = Allocation(2, 2, 1.0, 0.0, 1, 1, 0, 1)
    row_bytes = max(e.row_bytes for unit in plan.units for e in unit.extents)
    assert Held.of(plan, seen, in_actors) == Held(max(1, int(40 * row_bytes)), 1, 2)
    in_tasks = replace(in_actors, num_decoders=3, actor_gpus=1.0)
    assert Held.of(plan, seen, in_tasks) == Held(40 * max(int(row_bytes), 10 * 20 * 3), 4, 4)
