"""The model that predicted, and the hardware that it ran on."""

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
    """The runtime and precision that were chosen, and why."""

    reason: Literal["job", "measured", "known", "unknown", "begun"]
    """`job`: the job sets them; `measured`: this run measured before it started; `known`: an
    earlier run or `pipeline tune` measured; `unknown`: nothing was measured; `begun`: earlier work
    of this plan used them."""
    text: str
    """The choice and its reason in one line."""
    gain: float | None = None
    """Rows/s as a multiple of those of eager fp32, for one actor and the model alone."""
    num_compared: int | None = None
    """Rows that `agreement_pct` is a share of."""
    measured_by: str | None = None
    """The run that measured, or `tune`."""
    measured_at: str | None = None
    """The date, UTC."""


class ModelSection(Section):
    """The model, and how it was run."""

    name: str | None = None
    weights_sha256: str | None = None
    runtime: str | None = None
    precision: str | None = None
    float32_math: str | None = None
    """How float32 was multiplied: exactly (`ieee`), or as `tf32`; torch's flags are set so."""
    agreement_pct: float | None = None
    """Share of sampled rows that agreed with eager fp32 when `auto` chose."""
    agreement_worst: float | None = None
    """Largest difference of scores, smallest cosine, or largest relative error of that sample."""
    scores: str | None = None
    """A sentence on the outputs, if they are not plain logits."""
    artefact_sha256: str | None = None
    """Precision int8: digest of the calibrated model that ran."""
    choice: Choice | None = None
    """Null until the runtime is chosen."""
    device: str | None = None
    devices: dict[str, int] = Field(default_factory=dict)
    """Processor, or GPU with driver and libraries -> rows of the partition that it predicted."""
    advice: list[str] = Field(default_factory=list)
    """Advice that would make the model faster on them, a sentence each."""
    batch_size: int | None = None
    """The most rows of one model call."""
    batch_tokens: int | None = None
    """The most tokens of one model call, padding included; null if rows have none."""


class Hardware(Section):
    """The resources of the cluster, as a mean over the run."""

    nodes: int | float | None = None
    cpus: float | None = None
    gpus: float | None = None
    gpu_name: str | None = None
    """All names, if there are several kinds."""


@dataclass(frozen=True)
class Placement:
    """The cluster of a run and its share of it."""

    hardware: ClusterHardware
    """At the last look."""
    allocation: Allocation
    ray_start_s: float
    on_cluster: bool
    """The cluster was up before; the run did not start it."""
    looked_s: float = 0.0
    """Seconds from the beginning of the run to that look; 0 before the first one."""
    node_s: float = 0.0
    """Node-seconds up to that look."""
    core_s: float = 0.0

    def looked(self, hardware: ClusterHardware, elapsed_s: float) -> Placement:
        """Return the placement after another look at the cluster, whose nodes come and go."""
        return replace(
            self,
            hardware=hardware,
            looked_s=elapsed_s,
            node_s=self._node_s(elapsed_s),
            core_s=self._core_s(elapsed_s),
        )

    def hardware_section(self, elapsed_s: float) -> Hardware:
        """Return the section: nodes and CPUs as a mean over the run."""
        return Hardware(
            nodes=_mean(self._node_s(elapsed_s), elapsed_s),
            cpus=float(_mean(self._core_s(elapsed_s), elapsed_s)),
            gpus=sum(self.hardware.node_gpus) or self.hardware.gpus,
            gpu_name=self.hardware.gpu_name,
        )

    def cost(self, elapsed_s: float, price_per_node_hour: float) -> float:
        """Return the cost of the run so far, in the currency of the price."""
        return self._node_s(elapsed_s) / 3600 * price_per_node_hour

    def _node_s(self, elapsed_s: float) -> float:
        return self.node_s + self.hardware.all_nodes * (elapsed_s - self.looked_s)

    def _core_s(self, elapsed_s: float) -> float:
        cpus = sum(self.hardware.node_cpus) or self.hardware.cpus
        return self.core_s + cpus * (elapsed_s - self.looked_s)

    def _there(self, number: int, elapsed_s: float) -> float:
        """Return the mean number of actors that ran: fewer before all nodes were up."""
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
        """Return stage -> slots; list and publish, on the driver, are not among them."""
        given = self.allocation
        slots = {"read": given.num_readers}
        slots |= dict.fromkeys(prepared, given.num_decoders or given.max_actors)
        slots |= dict.fromkeys(("transfer", "predict"), given.max_actors)
        slots["write"] = given.num_writers or given.max_actors
        return {stage: self._there(number, elapsed_s) for stage, number in slots.items()}


def _mean(total: float, elapsed_s: float) -> float:
    """Return the mean over the run; an integer if it is whole."""
    mean = round(total / elapsed_s, 2)
    return int(mean) if mean == int(mean) else mean


def model_block(report: Report) -> Block:
    """Return model and hardware."""
    facts = facts_of(report.model) | facts_of(report.hardware)
    return Block("Model and hardware", [*scores_lines(report), *device_lines(report)], facts)


def scores_lines(report: Report) -> list[str]:
    """Describe the model's outputs in one line, if they are not plain logits."""
    return [report.model.scores] if report.model.scores else []


def device_lines(report: Report) -> list[str]:
    """Name the GPUs, or the processors if they differ, and the advice on them."""
    model = report.model
    listed = "; ".join(f"{device}: {num_of(n, 'row')}" for device, n in model.devices.items())
    is_listed = len(model.devices) > 1 or (model.devices and model.device != "cpu")
    return [*([f"computed on {listed}"] if is_listed else []), *model.advice]
