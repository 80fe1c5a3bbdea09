"""Test that allocations fit the cluster, and that impossible ones are refused with both numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.core.errors import JobError
from pipeline.execution.cluster.hardware import hardware_from
from pipeline.job.job import Resources
from pipeline.planning.allocation import (
    CLUSTER_READER_CPUS,
    TASK_CPUS,
    Allocation,
    Hardware,
    allocate,
)
from pipeline.preprocessing.model_input import Cost

ACTORS = st.none() | st.integers(1, 40)


def divide(
    cpus: float, gpus: float = 0.0, *, cost: Cost = "image", **fields: float | None
) -> Allocation:
    return on(Hardware(1, cpus, gpus), cost, **fields)


def on(hardware: Hardware, cost: Cost = "image", **fields: Any) -> Allocation:
    return allocate(Resources.model_validate(fields), hardware, cost=cost)


def assert_room(allocation: Allocation, left: list[float]) -> None:
    """Beside actors all readers and writers can run, so that decoders never starve them.

    On one machine all decoders as well.
    """
    readers, room = allocation.num_readers, 0
    for cpus in left:
        number = min(readers, math.floor(cpus / allocation.reader_cpus + 1e-6))
        readers -= number
        room += math.floor((cpus - number * allocation.reader_cpus) / TASK_CPUS + 1e-6)
    assert readers == 0
    are_small = allocation.decoder_cpus == TASK_CPUS
    assert room >= allocation.num_writers + (allocation.num_decoders if are_small else 0)


def gpus_used(actors: int, share: float) -> float:
    """Whole cards that are taken: an actor does not spread over two."""
    return math.ceil(actors / math.floor(1 / share + 1e-9))


@given(
    cpus=st.integers(1, 128),
    gpus=st.integers(0, 8),
    num_gpus=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 1.0]),
    num_cpus=st.none() | st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 8.0, 64.0]),
    actors=st.tuples(ACTORS, ACTORS).filter(lambda pair: None in pair or pair[0] <= pair[1]),
    cost=st.sampled_from(["image", "text", "row"]),
)
def test_an_allocation_fits_its_machine(
    cpus: int,
    gpus: int,
    num_gpus: float,
    num_cpus: float | None,
    actors: tuple[int | None, int | None],
    cost: Cost,
):
    least, most = actors
    fields = {"num_gpus": num_gpus, "num_cpus": num_cpus, "min_actors": least, "max_actors": most}
    needed = least or most or 1
    fits = not num_gpus or gpus_used(needed, num_gpus) <= gpus
    if num_cpus or not num_gpus:
        fits = fits and needed * (num_cpus or 1.0) <= cpus
    if not fits:
        with pytest.raises(JobError):
            divide(cpus, gpus, cost=cost, **fields)
        return
    allocation = divide(cpus, gpus, cost=cost, **fields)
    assert 1 <= allocation.min_actors <= allocation.max_actors
    assert allocation.min_actors >= (least or 1)
    assert most is None or allocation.max_actors <= most
    assert allocation.num_readers >= 1
    assert allocation.num_decoders >= (1 if num_gpus else 0)
    # No core is unused: if actors do not have all of them, decoders run beside them.
    idle = cpus - allocation.max_actors * (num_cpus or 1.0)
    assert allocation.decodes_in_actors == (not num_gpus and idle < 1)
    assert allocation.num_writers >= 1
    assert 0 < allocation.actor_cpus <= (num_cpus or 1.0)
    tasks = allocation.num_readers + allocation.num_decoders + allocation.num_writers
    # All at once: tasks that wait for the next stage must not keep it from starting.
    assert allocation.max_actors * allocation.actor_cpus + tasks * TASK_CPUS <= cpus + 1e-9
    assert allocation.actor_gpus == num_gpus
    if num_gpus:
        assert gpus_used(allocation.max_actors, num_gpus) <= gpus
    if num_cpus or not num_gpus:
        assert allocation.max_actors * (num_cpus or 1.0) <= cpus
    assert allocation.actor_threads == max(1, int(num_cpus or 1))


@given(
    nodes=st.integers(1, 8),
    cpus=st.integers(1, 32),
    num_cpus=st.none() | st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0, 8.0]),
    actors=ACTORS,
    decode_in=st.sampled_from(["auto", "actors", "tasks"]),
)
def test_readers_and_writers_fit_beside_the_actors_of_the_nodes(
    nodes: int, cpus: int, num_cpus: float | None, actors: int | None, decode_in: str
):
    """A task runs on one node: the sum of what several nodes have left does not help."""
    fields = {"num_cpus": num_cpus, "max_actors": actors, "decode_in": decode_in}
    assume(nodes * math.floor(cpus / (num_cpus or 1)) >= (actors or 1))
    hardware = Hardware(nodes, nodes * cpus, 0, node_cpus=(float(cpus),) * nodes)
    allocation = on(hardware, **fields)
    packed = math.floor(cpus / allocation.actor_cpus)
    for most in (packed, math.ceil(allocation.max_actors / nodes)):
        placed = [min(most, max(0, allocation.max_actors - most * node)) for node in range(nodes)]
        assert sum(placed) == allocation.max_actors
        left = [cpus - number * allocation.actor_cpus for number in placed]
        assert_room(allocation, left)


@given(nodes=st.integers(2, 8), cpus=st.integers(1, 32), actors=ACTORS)
def test_an_actor_of_a_lost_node_fits_beside_the_tasks_of_another(
    nodes: int, cpus: int, actors: int | None
):
    """These keep their shares: an actor that reserves a whole node would wait for ever."""
    assume(nodes * cpus >= (actors or 1))
    hardware = Hardware(nodes, nodes * cpus, 0, node_cpus=(float(cpus),) * nodes)
    allocation = on(hardware, max_actors=actors, decode_in="actors")
    left = nodes - 1
    readers = math.ceil(allocation.num_readers / left) * allocation.reader_cpus
    writers = math.ceil(allocation.num_writers / left) * TASK_CPUS
    assert allocation.actor_cpus + readers + writers <= cpus + 1e-9


@given(nodes=st.lists(st.integers(0, 16), min_size=1, max_size=6), backwards=st.booleans())
def test_nodes_of_different_sizes_have_room_for_tasks_however_actors_are_placed(
    nodes: list[int], backwards: bool
):
    assume(any(nodes))
    hardware = Hardware(len(nodes), sum(nodes), 0, node_cpus=tuple(map(float, nodes)))
    allocation = on(hardware)
    left, waiting = [], allocation.max_actors
    for cpus in sorted(nodes, reverse=backwards):
        number = min(waiting, math.floor(cpus / allocation.actor_cpus))
        waiting -= number
        left.append(cpus - number * allocation.actor_cpus)
    assert waiting == 0
    assert_room(allocation, left)


@given(
    nodes=st.lists(st.integers(1, 64), min_size=1, max_size=6),
    to_come=st.sampled_from([0, 8, 152, 1000]),
    num_gpus=st.booleans(),
    decode_in=st.sampled_from(["auto", "tasks"]),
)
def test_no_node_of_several_gets_more_decoders_than_it_has_cores(
    nodes: list[int], to_come: int, num_gpus: bool, decode_in: str
):
    """The number of decoders is for all nodes, also for those that are still to come."""
    cpus = float(sum(nodes) + to_come)
    assume(len(nodes) > 1 or to_come)
    cards = (1.0, *(0.0 for _ in nodes[1:])) if num_gpus else ()
    hardware = Hardware(len(nodes), cpus, sum(cards), (), tuple(map(float, nodes)), cards)
    fields = {"num_gpus": float(num_gpus), "decode_in": decode_in}
    allocation = on(hardware, **fields)
    if allocation.num_decoders:
        for cores in nodes:
            # Where actors have all cores, they share them with the decoders.
            most = cores if num_gpus and cores < 16 else 2 * cores
            room = math.floor(cores / allocation.decoder_cpus + 1e-9)
            assert min(room, allocation.num_decoders) <= most
    # All together, beside all actors, they have what is there.
    taken = (
        allocation.max_actors * allocation.actor_cpus
        + allocation.num_decoders * allocation.decoder_cpus
    )
    taken += allocation.num_readers * allocation.reader_cpus + allocation.num_writers * TASK_CPUS
    assert taken <= cpus + 1e-9


@given(cpus=st.integers(1, 64), gpus=st.integers(0, 2))
def test_on_one_machine_tasks_reserve_next_to_nothing(cpus: int, gpus: int):
    """A head without CPUs beside it is none."""
    alone = Hardware(1, cpus, gpus, (), (float(cpus),), (float(gpus),))
    node = {"CPU": float(cpus), "GPU": float(gpus)}
    headed = hardware_from(node, [{"memory": 1.0}, node], {})
    for hardware in (alone, headed):
        allocation = on(hardware, num_gpus=float(gpus > 0))
        assert allocation.reader_cpus == allocation.decoder_cpus == TASK_CPUS


@pytest.mark.parametrize(("cpus", "gpus", "share"), [(1, 2, 0.1), (1, 8, 0.05), (2, 1, 1 / 64)])
def test_many_actors_may_share_the_cards_of_a_node_with_few_cores(
    cpus: int, gpus: int, share: float
):
    allocation = divide(cpus, gpus, num_gpus=share)
    assert allocation.max_actors == gpus * math.floor(1 / share + 1e-9)
    tasks = allocation.num_readers + allocation.num_decoders + allocation.num_writers
    assert allocation.max_actors * allocation.actor_cpus + tasks * TASK_CPUS <= cpus


@pytest.mark.parametrize(
    ("share", "on_one"), [(0.5, 2), (0.3, 3), (0.25, 4), (0.1, 10), (0.7, 1), (1 / 99, 99)]
)
def test_fractions_share_a_card_and_do_not_span_two(share: float, on_one: int):
    assert divide(64, 1, num_gpus=share).max_actors == on_one
    assert divide(64, 4, num_gpus=share).max_actors == 4 * on_one
    with pytest.raises(JobError, match=f"the cluster has 4 GPUs for {4 * on_one} such"):
        divide(64, 4, num_gpus=share, min_actors=4 * on_one + 1)


def test_an_actor_that_no_node_can_hold_is_refused_and_the_nodes_are_named():
    hardware = Hardware(2, 6, 2, node_cpus=(2.0, 4.0), node_gpus=(1.0, 1.0))
    with pytest.raises(JobError, match="6 CPUs for 0 such actors, on nodes of 2, 4"):
        on(hardware, num_cpus=5.0)
    with pytest.raises(JobError, match="2 GPUs for 2 such actors, on nodes of 1, 1"):
        on(hardware, num_gpus=1.0, max_actors=3)


@pytest.mark.parametrize(
    ("cpus", "gpus", "fields", "words"),
    [
        (2, 0, {"num_gpus": 1.0}, ["num_gpus = 1", "has 0 GPUs"]),
        (9, 4, {"num_gpus": 1.0, "min_actors": 5}, ["5 actors x 1 GPUs", "has 4 GPUs"]),
        (9, 4, {"num_gpus": 0.5, "max_actors": 9}, ["9 actors x 0.5 GPUs", "has 4 GPUs"]),
        (2, 0, {"num_cpus": 4.0}, ["1 actors x 4 CPUs do not fit", "has 2 CPUs for 0"]),
        (2, 0, {"min_actors": 3}, ["3 actors x 1 CPUs do not fit", "has 2 CPUs for 2"]),
        (8, 2, {"num_gpus": 1.0, "num_cpus": 8.0, "min_actors": 2}, ["8 CPUs for 1", "has 8"]),
    ],
)
def test_a_refusal_names_the_wanted_and_the_available_number(
    cpus: int, gpus: int, fields: dict[str, float], words: list[str]
):
    with pytest.raises(JobError) as caught:
        divide(cpus, gpus, **fields)
    for word in words:
        assert word in str(caught.value)


TASKS = {"decode_in": "tasks"}
CARD = {"num_gpus": 1.0}
SOME: list[tuple[Hardware, dict[str, Any], dict[str, float]]] = [
    # No actor lies on two nodes; those that may still be added are taken for one node.
    (Hardware(2, 6, 0, node_cpus=(3.0, 3.0)), {"num_cpus": 2.0}, {"max_actors": 2}),
    (Hardware(3, 2, 0, node_cpus=(0.0, 1.0, 1.0)), {}, {"max_actors": 2}),
    (Hardware(1, 10, 0, node_cpus=(2.0,)), {"num_cpus": 4.0}, {"max_actors": 2}),
    (Hardware(0, 6, 0), {"num_cpus": 2.0}, {"max_actors": 3}),
    # Small machines work.
    (Hardware(1, 1, 0), {}, {"max_actors": 1, "num_readers": 1}),
    (Hardware(1, 2, 0), {}, {"max_actors": 2, "num_readers": 1}),
    (Hardware(1, 4, 0), {"num_cpus": 2.0}, {"max_actors": 2, "num_readers": 1}),
    (Hardware(1, 2, 0), {"num_cpus": 2.0}, {"max_actors": 1, "num_readers": 1}),
    (Hardware(1, 1, 0), {"num_cpus": 0.5}, {"max_actors": 2, "num_readers": 1}),
    # CPUs that are asked for limit the actors on GPUs, and no pool outgrows its cluster.
    (Hardware(1, 16, 8), {**CARD, "num_cpus": 4.0}, {"max_actors": 4}),
    (Hardware(1, 8, 0), {"min_actors": 2, "max_actors": 100}, {"max_actors": 8}),
    (Hardware(1, 64, 4), {**CARD, "min_actors": 2, "max_actors": 100}, {"max_actors": 4}),
    # Left alone there is an actor a GPU, even with few CPUs.
    (Hardware(1, 1, 8), CARD, {"min_actors": 8, "max_actors": 8}),
    # Beside GPUs the cores decode; the job may say who does.
    (Hardware(1, 16, 1), CARD, {"max_actors": 1, "num_decoders": 15}),
    (Hardware(1, 4, 0), {}, {"num_decoders": 0}),
    (Hardware(1, 4, 0), {"max_actors": 1}, {"num_decoders": 3}),
    (Hardware(1, 4, 0), {"decode_in": "actors", "max_actors": 1}, {"num_decoders": 0}),
    (Hardware(1, 4, 0), TASKS, {"num_decoders": 2}),
    (Hardware(1, 4, 0), {**TASKS, "max_actors": 3}, {"num_decoders": 1}),
    (Hardware(1, 5, 0), TASKS, {"num_decoders": 2}),
    # A card that decodes in its actor has no decoders, and otherwise at least one.
    (Hardware(1, 4, 1), {**CARD, "num_cpus": 4.0, "decode_in": "actors"}, {"num_decoders": 0}),
    (Hardware(1, 4, 1), {**CARD, "num_cpus": 4.0}, {"num_decoders": 1}),
    (Hardware(1, 4, 1), {**CARD, "num_cpus": 4.0, **TASKS}, {"num_decoders": 1}),
]


@pytest.mark.parametrize(("hardware", "fields", "numbers"), SOME)
def test_a_cluster_is_divided_as_in_the_job(
    hardware: Hardware, fields: dict[str, Any], numbers: dict[str, float]
):
    allocation = on(hardware, **fields)
    assert {name: getattr(allocation, name) for name in numbers} == numbers


@pytest.mark.parametrize(
    ("cpus", "gpus", "fields", "writers"),
    [
        (4, 0, {}, 0),
        (4, 0, {"num_cpus": 4.0}, 0),
        (4, 0, {"max_actors": 3, "decode_in": "actors"}, 1),  # one core is unused
        (4, 0, {"decode_in": "tasks"}, 1),
        (4, 1, {"num_gpus": 1.0, "num_cpus": 4.0, "decode_in": "actors"}, 1),
    ],
)
def test_on_local_disk_actors_that_have_all_cores_write_themselves(
    cpus: int, gpus: int, fields: dict[str, object], writers: int
):
    hardware = Hardware(1, cpus, gpus)
    usual = on(hardware, **fields)
    writing = usual.for_local_disk(hardware)
    assert (usual.num_writers, writing.num_writers) == (1, writers)
    assert writing.writes_in_actors == ("writer" in writing.in_actors) == (writers == 0)
    assert ("decoder" in writing.in_actors) == writing.decodes_in_actors


@given(cpus=st.integers(1, 64), slices=st.integers(0, 99), least=st.integers(1, 64))
def test_there_are_no_more_actors_than_slices_and_nothing_else_changes(
    cpus: int, slices: int, least: int
):
    usual = divide(cpus, min_actors=min(least, cpus))
    limited = usual.for_slices(slices)
    assert limited.max_actors == min(usual.max_actors, max(1, slices))
    assert 1 <= limited.min_actors == min(usual.min_actors, limited.max_actors)
    for name in ("num_decoders", "num_writers"):
        assert getattr(limited, name) == min(getattr(usual, name), max(1, slices))
    assert limited.writes_in_actors == usual.writes_in_actors
    names = ("max_actors", "min_actors", "num_decoders", "num_writers")
    again = replace(limited, **{name: getattr(usual, name) for name in names})
    assert again == usual == usual.for_slices(None)


@pytest.mark.parametrize(("sharing", "actors"), [(None, 2), (1, 2), (2, 4), (3, 6), (7, 14)])
def test_actors_share_each_gpu_and_fill_it(sharing: int | None, actors: int):
    allocation = divide(32, 2, num_gpus=1.0, actors_per_gpu=sharing)
    assert allocation.max_actors == actors
    assert allocation.actor_gpus * (sharing or 1) == pytest.approx(1, abs=1e-3)
    assert allocation.actor_gpus * (sharing or 1) <= 1


@pytest.mark.parametrize("num_gpus", [0.0, 0.5])
def test_a_share_is_one_of_a_whole_gpu(num_gpus: float):
    with pytest.raises(ValueError, match="actors_per_gpu needs num_gpus: 1"):
        Resources.model_validate({"num_gpus": num_gpus, "actors_per_gpu": 2})


ONE = Hardware(1, 4, 0)
THREE = Hardware(3, 24, 0, node_cpus=(8.0, 8.0, 8.0))
GROWS = Hardware(1, 40, 2, ("L4",), (8.0,), (1.0,))
CARD_ON_SMALL = Hardware(2, 34, 1, node_cpus=(2.0, 32.0), node_gpus=(1.0, 0.0))
TWO_CARDS = Hardware(2, 12, 4, node_cpus=(4.0, 8.0), node_gpus=(2.0, 2.0))
NUMBERS: list[tuple[Hardware, dict[str, Any], tuple[float, ...]]] = [
    (Hardware(1, 1, 0), {}, (1, 1, 0.9, 0, 1, 1, 0, 1, TASK_CPUS)),
    (ONE, {}, (4, 4, 0.975, 0, 1, 1, 0, 1, TASK_CPUS)),
    (Hardware(1, 8, 0), {"num_cpus": 2.5, "min_actors": 2}, (2, 3, 2.5, 0, 2, 2, 0, 2, TASK_CPUS)),
    (Hardware(1, 128, 0), {"max_actors": 1}, (1, 1, 1.0, 0, 1, 32, 127, 16, TASK_CPUS)),
    (THREE, {}, (24, 24, 0.916, 0, 1, 6, 0, 6, 0.916)),
    (THREE, {"max_actors": 5, "decode_in": "tasks"}, (5, 5, 0.919, 0, 1, 6, 19, 6, 0.916)),
    (GROWS, {"num_gpus": 1.0}, (2, 2, 0.946, 1, 1, 10, 38, 10, 0.937)),
    (CARD_ON_SMALL, {"num_gpus": 0.25}, (4, 4, 0.5, 0.25, 1, 8, 30, 8, 0.933)),
    (TWO_CARDS, {"num_gpus": 1.0, "actors_per_gpu": 3}, (12, 12, 0.666, 0.3333, 1, 3, 1, 3, 0.846)),
]
"""A cluster, a job, and all that they give: a share changes only if somebody means it to."""


@pytest.mark.parametrize(("hardware", "fields", "numbers"), NUMBERS, ids=range(len(NUMBERS)))
def test_a_cluster_is_divided_into_just_these_shares(
    hardware: Hardware, fields: dict[str, Any], numbers: tuple[float, ...]
):
    reader_cpus = TASK_CPUS if hardware.is_one_machine else CLUSTER_READER_CPUS
    *counts, decoder_cpus = numbers
    expected = Allocation(*counts, hardware.num_nodes, decoder_cpus, reader_cpus)  # type: ignore[arg-type]
    assert on(hardware, **fields) == expected


@pytest.mark.parametrize(("cpus", "readers"), [(1, 1), (2, 2), (3, 2), (7, 3), (16, 8)])
def test_a_table_has_a_reader_for_every_second_core(cpus: int, readers: int):
    assert divide(cpus, cost="row").num_readers == readers
    assert divide(cpus).num_readers == max(1, cpus // 4)


def test_more_actors_than_cores_can_hold_beside_the_tasks_are_refused():
    crowded = Hardware(9, 2, 0, node_cpus=(0.25,) * 8)
    with pytest.raises(JobError, match="8 actors beside readers, decoders and writers do not fit"):
        on(crowded, num_cpus=0.25)
