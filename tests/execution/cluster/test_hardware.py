"""The hardware of a cluster: computing nodes, kinds of GPUs, limits of an autoscaler."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import InfraError
from pipeline.execution.cluster.hardware import (
    embedded_store_bytes,
    hardware_from,
    require_one_version,
)
from pipeline.job.job import Resources
from pipeline.planning.allocation import allocate
from pipeline.process import memory
from pipeline.report.sections.model import Placement

HEAD = {"memory": 1e9, "node:__internal_head__": 1.0}
L4 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}
T4 = {"CPU": 4.0, "GPU": 1.0, "accelerator_type:T4": 1.0}
TOTAL = {"CPU": 12.0, "GPU": 2.0, "accelerator_type:T4": 1.0, "accelerator_type:L4": 1.0}


def test_a_head_without_cpus_only_costs_and_all_kinds_of_gpus_are_named():
    hardware = hardware_from(TOTAL, [HEAD, L4, T4], {})
    assert (hardware.num_nodes, hardware.node_cpus, hardware.node_gpus) == (
        2,
        (8.0, 4.0),
        (1.0, 1.0),
    )
    assert (hardware.gpu_names, hardware.gpu_name) == (("L4", "T4"), "L4, T4")
    assert not hardware.is_one_machine
    placed = Placement(
        hardware, allocate(Resources(), hardware, cost="image"), 0.0, on_cluster=True
    )
    assert placed.hardware_section(60.0).nodes == 3


def test_a_cluster_that_grows_is_reported_and_paid_for_as_it_was():
    limits = {"CPU": 160.0}
    small, large = (hardware_from(L4, [HEAD, *[L4] * number], limits) for number in (1, 11))
    allocation = allocate(Resources(), small, cost="image")
    placed = Placement(small, allocation, 0.0, on_cluster=True)
    at_first = placed.hardware_section(100.0)
    assert (at_first.nodes, at_first.cpus, at_first.gpus) == (2, 8.0, 1.0), "not what may come"
    assert placed.slots((), 100.0)["predict"] == allocation.max_actors * 8 / 160 == 8.0
    grown = placed.looked(large, 100.0)
    assert grown.hardware_section(100.0) == at_first.but(gpus=11.0)
    assert (grown.hardware_section(200.0).nodes, grown.hardware_section(200.0).cpus) == (7, 48.0)
    assert grown.cost(200.0, 36.0) == pytest.approx((2 * 100 + 12 * 100) * 36 / 3600)
    assert placed.cost(200.0, 36.0) == pytest.approx(2 * 200 * 36 / 3600)


def test_a_node_beside_a_head_is_one_machine_until_others_may_be_added():
    alone = hardware_from(L4, [HEAD, L4], {})
    assert alone.is_one_machine
    growing = hardware_from(L4, [HEAD, L4], {"CPU": 160.0, "GPU": 4.0})
    assert (growing.num_nodes, growing.cpus, growing.gpus) == (1, 160.0, 4.0)
    assert not growing.is_one_machine


def test_a_cluster_whose_nodes_are_all_to_come_has_one():
    hardware = hardware_from({}, [HEAD], {"CPU": 160.0})
    assert (hardware.num_nodes, hardware.cpus, hardware.node_cpus) == (1, 160.0, ())


def test_an_embedded_store_is_sized_by_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (limit := tmp_path / "memory.max").write_text(str(2 << 30))
    monkeypatch.setattr(memory, "_CGROUPS", (str(limit),))
    assert embedded_store_bytes() <= 512 << 20


def test_nodes_of_several_versions_of_ray_are_refused_and_named() -> None:
    nodes = [("one", "2.60.0"), ("three", "2.60.0")]
    require_one_version(nodes)
    with pytest.raises(InfraError, match=r"2\.59\.1 on two, 2\.60\.0 on one three\): install one"):
        require_one_version([*nodes, ("two", "2.59.1")])
