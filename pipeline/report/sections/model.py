"""Where a run computes: its hardware and how that is divided, as sections of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.core.figures.slice_figures import SliceFigures
from pipeline.planning.allocation import Allocation, Hardware
from pipeline.report.sections.outcome import Hardware as HardwareSection

_ACTOR_START = ("workers", "imports", "model_load")


@dataclass(frozen=True)
class Placement:
    """The cluster of a run and its share of it."""

    hardware: Hardware
    """As it was at the last look."""
    allocation: Allocation
    ray_start_s: float
    on_cluster: bool
    """It is a cluster that was up before, not a Ray of the run's own."""
    looked_s: float = 0.0
    """Seconds from the begin of the run to that look; before the first one all was as it is."""
    node_s: float = 0.0
    """Seconds of all nodes up to then, summed up."""
    core_s: float = 0.0

    def looked(self, hardware: Hardware, elapsed_s: float) -> Placement:
        """Return this with another look at the cluster, whose nodes come and go."""
        return replace(
            self,
            hardware=hardware,
            looked_s=elapsed_s,
            node_s=self._node_s(elapsed_s),
            core_s=self._core_s(elapsed_s),
        )

    def hardware_section(self, elapsed_s: float) -> HardwareSection:
        """Return what the cluster had: nodes and CPUs in the mean."""
        return HardwareSection(
            nodes=_mean(self._node_s(elapsed_s), elapsed_s),
            cpus=float(_mean(self._core_s(elapsed_s), elapsed_s)),
            gpus=sum(self.hardware.node_gpus) or self.hardware.gpus,
            gpu_name=self.hardware.gpu_name,
        )

    def cost(self, elapsed_s: float, price_per_node_hour: float) -> float:
        """Return what a run has cost so far, in the currency of the price."""
        return self._node_s(elapsed_s) / 3600 * price_per_node_hour

    def _node_s(self, elapsed_s: float) -> float:
        return self.node_s + self.hardware.all_nodes * (elapsed_s - self.looked_s)

    def _core_s(self, elapsed_s: float) -> float:
        cpus = sum(self.hardware.node_cpus) or self.hardware.cpus
        return self.core_s + cpus * (elapsed_s - self.looked_s)

    def _there(self, number: int, elapsed_s: float) -> float:
        """Return how many of some actors ran in the mean: fewer while nodes were still to come."""
        share = _mean(self._core_s(elapsed_s), elapsed_s) / self.hardware.cpus
        return max(1.0, round(number * min(1.0, share), 2)) if number else 0.0

    def startup_wall_s(self, figures: SliceFigures, elapsed_s: float) -> dict[str, float]:
        """Return the seconds of each part of the start-up.

        Actors import and load side by side, so that their mean is the wall time.
        """
        busy_s = {part: figures.stage(part).busy_s for part in _ACTOR_START}
        actors = self._there(self.allocation.max_actors, elapsed_s)
        return {
            "ray_start": self.ray_start_s,
            **{part: seconds / actors for part, seconds in busy_s.items() if seconds},
        }

    def slots(self, prepared: Sequence[str], elapsed_s: float) -> dict[str, float]:
        """Return how many of each stage can run at once; list and publish run on the driver."""
        given = self.allocation
        slots = {"read": given.num_readers}
        slots |= dict.fromkeys(prepared, given.num_decoders or given.max_actors)
        slots |= dict.fromkeys(("transfer", "predict"), given.max_actors)
        slots["write"] = given.num_writers or given.max_actors
        return {stage: self._there(number, elapsed_s) for stage, number in slots.items()}


def _mean(total: float, elapsed_s: float) -> float:
    """Return the mean over the run; whole if it was always the same."""
    mean = round(total / elapsed_s, 2)
    return int(mean) if mean == int(mean) else mean
