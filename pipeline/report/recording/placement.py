"""Where a run computes: its hardware and how that is divided, as sections of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.figures.slice_figures import SliceFigures
from pipeline.planning.allocation import Allocation, Hardware
from pipeline.report.sections import Hardware as HardwareSection

_ACTOR_START = ("workers", "imports", "model_load")


@dataclass(frozen=True)
class Placement:
    """The cluster of a run and its share of it."""

    hardware: Hardware
    allocation: Allocation
    ray_start_s: float
    on_cluster: bool
    """It is a cluster that was up before, not a Ray of the run's own."""

    def hardware_section(self) -> HardwareSection:
        """Return what the cluster has."""
        hardware = self.hardware
        return HardwareSection(
            nodes=hardware.num_nodes + hardware.num_without_cpus,
            cpus=hardware.cpus,
            gpus=hardware.gpus,
            gpu_name=hardware.gpu_name,
        )

    def cost(self, elapsed_s: float, price_per_node_hour: float) -> float:
        """Return what a run has cost so far, in the currency of the price."""
        return (self.hardware_section().nodes or 0) * elapsed_s / 3600 * price_per_node_hour

    def startup_wall_s(self, figures: SliceFigures) -> dict[str, float]:
        """Return the seconds of each part of the start-up.

        Actors import and load side by side, so that their mean is the wall time.
        """
        busy_s = {part: figures.stage(part).busy_s for part in _ACTOR_START}
        actors = self.allocation.max_actors
        return {
            "ray_start": self.ray_start_s,
            **{part: seconds / actors for part, seconds in busy_s.items() if seconds},
        }

    def slots(self, prepared: Sequence[str]) -> dict[str, float]:
        """Return how many of each stage can run at once; list and publish run on the driver."""
        given = self.allocation
        slots = {"read": float(given.num_readers)}
        decoders = float(given.num_decoders or given.max_actors)
        slots |= dict.fromkeys(prepared, decoders)
        slots |= dict.fromkeys(("transfer", "predict"), float(given.max_actors))
        slots["write"] = float(given.num_writers or given.max_actors)
        return slots
