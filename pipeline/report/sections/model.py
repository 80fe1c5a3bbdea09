"""What predicted, and the cluster that it ran on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.core.figures import SliceFigures
from pipeline.core.printable import num_of
from pipeline.planning.allocation import Allocation
from pipeline.planning.allocation import Hardware as ClusterHardware
from pipeline.report.sections import Section
from pipeline.report.showing.blocks import Block, facts_of

if TYPE_CHECKING:
    from pipeline.report.document import Report

_ACTOR_START = ("workers", "imports", "model_load")


class Choice(Section):
    """What runs the model, and why."""

    reason: Literal["job", "measured", "known", "unknown", "begun"]
    """`job`: the job says it; `measured`: this run did so before it started; `known`: an earlier
    run did, or `pipeline tune`; `unknown`: nothing did; `begun`: the work was begun so."""
    text: str
    """The choice and its reason in one line."""
    gain: float | None = None
    """Rows/s beside those of eager fp32, of one actor and the model alone."""
    num_compared: int | None = None
    """Rows of which `agreement_pct` is a share."""
    measured_by: str | None = None
    """The run that measured, or `tune`."""
    measured_at: str | None = None
    """The date, UTC."""


class ModelSection(Section):
    """What predicted."""

    name: str | None = None
    weights_sha256: str | None = None
    runtime: str | None = None
    precision: str | None = None
    float32_math: str | None = None
    """How float32 was multiplied: `ieee`, exactly, or `tf32`. All of torch's flags are set so."""
    agreement_pct: float | None = None
    """Share of sampled rows that agreed with eager fp32 when `auto` chose."""
    agreement_worst: float | None = None
    """Largest difference of scores, smallest cosine, or largest relative error of that sample."""
    scores: str | None = None
    """What the outputs are, in a sentence, if they are not plainly logits."""
    artefact_sha256: str | None = None
    """Precision int8: digest of the calibrated model that ran."""
    choice: Choice | None = None
    """Null until it is known what runs the model."""
    device: str | None = None
    devices: dict[str, int] = Field(default_factory=dict)
    """Processor, or GPU with driver and libraries -> rows of the partition that it predicted."""
    advice: list[str] = Field(default_factory=list)
    """What would make the model faster on them, in a sentence each."""
    batch_size: int | None = None
    """The most rows of one model call."""
    batch_tokens: int | None = None
    """The most tokens of one model call, padding included; null if rows have none."""


class Hardware(Section):
    """What the cluster had in the mean, while the run went on."""

    nodes: int | float | None = None
    cpus: float | None = None
    gpus: float | None = None
    gpu_name: str | None = None
    """Of several kinds all names."""


@dataclass(frozen=True)
class Placement:
    """The cluster of a run and its share of it."""

    hardware: ClusterHardware
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

    def looked(self, hardware: ClusterHardware, elapsed_s: float) -> Placement:
        """Return this with another look at the cluster, whose nodes come and go."""
        return replace(
            self,
            hardware=hardware,
            looked_s=elapsed_s,
            node_s=self._node_s(elapsed_s),
            core_s=self._core_s(elapsed_s),
        )

    def hardware_section(self, elapsed_s: float) -> Hardware:
        """Return what the cluster had: nodes and CPUs in the mean."""
        return Hardware(
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


def model_block(report: Report) -> Block:
    """Return model and hardware."""
    facts = facts_of(report.model) | facts_of(report.hardware)
    return Block("Model and hardware", [*scores_lines(report), *device_lines(report)], facts)


def scores_lines(report: Report) -> list[str]:
    """Say in one line what the model's outputs are, if they are not plainly logits."""
    return [report.model.scores] if report.model.scores else []


def device_lines(report: Report) -> list[str]:
    """Say which GPUs, or different processors, predicted, and what would make them faster."""
    model = report.model
    listed = "; ".join(f"{device}: {num_of(n, 'row')}" for device, n in model.devices.items())
    is_listed = len(model.devices) > 1 or (model.devices and model.device != "cpu")
    return [*([f"computed on {listed}"] if is_listed else []), *model.advice]
