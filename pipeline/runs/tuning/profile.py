"""The profile of a model: all its trials, kept on this machine and with the output for later runs.

Its key is a digest of everything that the figures depend on: the model and its input, batches,
limits of agreement, machine and versions. So the next run of the model finds it whatever its sink.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import InfraError
from pipeline.core.output_folders import calibrated_model, measured_profile
from pipeline.core.private_files import PROFILES, cache_folder, first_of
from pipeline.core.semantics import package_versions
from pipeline.execution.cluster.hardware import start_on_workers
from pipeline.execution.tasks import TaskLost, are_done, value_if_kept
from pipeline.inference.hardware_facts import describe_processor
from pipeline.inference.runtimes import runtime_versions
from pipeline.models.spec import EAGER, FP32
from pipeline.planning.allocation import Hardware
from pipeline.runs.tuning.selection import Trial
from pipeline.runs.tuning.trial_context import TuningContext

_ANSWER_S = 60.0
log = logging.getLogger(__name__)
_VERSION = 6


def describe_machine() -> str:
    """Return the processor of this machine and the versions of its runtimes, as JSON."""
    versions = {**package_versions(), **runtime_versions()}
    return json.dumps({"cpu": describe_processor(), "versions": versions}, sort_keys=True)


def machines_of(*, on_cluster: bool) -> tuple[str, ...]:
    """Return the types of machines of the Ray in use; none if one of them does not answer.

    Args:
        on_cluster: This process did not start that Ray.
    """
    if not on_cluster:
        return (describe_machine(),)
    asked = start_on_workers(describe_machine)
    done, late = are_done(asked, _ANSWER_S) if asked else ([], [])
    try:
        return () if late else tuple(sorted(set(value_if_kept(done))))
    except TaskLost:  # a node is gone, or has other versions
        return ()


def sizes_of(hardware: Hardware) -> Sequence[float]:
    """Return the different numbers of CPUs of the nodes."""
    return sorted({cpus for cpus in hardware.node_cpus if cpus})


@dataclass(frozen=True)
class Profile:
    """All trials of a model, in their order."""

    ways: tuple[Trial, ...] = ()
    """One trial per runtime and precision: one actor alone, the model only."""

    def of(self, runtime: str, precision: str) -> Trial | None:
        """Return the trial of a runtime and precision; None if there is none."""
        trials = (w for w in self.ways if (w.runtime, w.precision) == (runtime, precision))
        return next(trials, None)

    def those(self, wanted: Sequence[tuple[str, str]]) -> list[Trial]:
        """Return the trials of some runtimes and precisions, in their order."""
        return [trial for way in wanted if (trial := self.of(*way))]

    @property
    def eager(self) -> Trial | None:
        """Return the trial of eager fp32."""
        return self.of(EAGER, FP32)

    def gain(self, way: Trial) -> float | None:
        """Return rows/s as a multiple of those of eager fp32; None if unknown."""
        eager = self.eager
        if eager is None or not eager.rows_per_s or not way.rows_per_s:
            return None
        return round(way.rows_per_s / eager.rows_per_s, 2)

    def with_way(self, trial: Trial) -> Profile:
        """Return the profile with a trial in place of the earlier one of this way."""
        way = (trial.runtime, trial.precision)
        kept = [old for old in self.ways if (old.runtime, old.precision) != way]
        return Profile((*kept, trial))

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return {"version": _VERSION, "ways": [trial.to_dict() for trial in self.ways]}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Profile:
        """Undo `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        if document["version"] != _VERSION:
            raise ValueError("another version wrote it")
        return cls(tuple(map(Trial.from_dict, document["ways"])))


def load_profile(tuning: TuningContext) -> Profile:
    """Return the profile of this model on these machines; an empty one if there is none."""
    key = key_of(tuning)
    for read in (_read_here, _read_stored) if key else ():
        try:
            profile = Profile.from_dict(json.loads(read(tuning, key)))
        except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError):
            continue  # measured anew
        return replace(profile, ways=tuple(w for w in profile.ways if _is_there(tuning, w)))
    return Profile()


def keep_profile(tuning: TuningContext, profile: Profile) -> None:
    """Keep a profile for other runs."""
    key = key_of(tuning)
    if not key:
        return
    data = json.dumps(profile.to_dict()).encode()
    try:
        folder = first_of([cache_folder() / PROFILES])
        unfinished = folder / f".{uuid.uuid4().hex}"
        unfinished.write_bytes(data)
        unfinished.rename(folder / f"{key}.json")
    except (OSError, InfraError) as error:  # the output has it all the same
        log.debug("not kept on this machine: %s", error)
    tuning.store.put(measured_profile(key), data)


def _read_here(_: TuningContext, key: str) -> bytes:
    try:
        return Path(first_of([cache_folder() / PROFILES]), f"{key}.json").read_bytes()
    except (OSError, InfraError):  # there is no folder that only this user can write to
        raise FileNotFoundError(key) from None


def _read_stored(tuning: TuningContext, key: str) -> bytes:
    return tuning.store.read_bytes(measured_profile(key))


def _is_there(tuning: TuningContext, way: Trial) -> bool:
    """Tell whether this output has the calibrated model of a way, if the way has one."""
    return not way.artefact_sha256 or tuning.store.exists(calibrated_model(way.artefact_sha256))


def key_of(tuning: TuningContext) -> str:
    """Return the key of a profile; '' if the machines are unknown."""
    if not tuning.machines:
        return ""
    allocation, model = tuning.allocation, tuning.model.to_dict()
    facts = {
        "model": {name: model[name] for name in model if name not in ("runtime", "precision")},
        "batch_size": tuning.config.batch_size,
        "batch_tokens": tuning.config.batch_tokens,
        "machines": tuning.machines,
        "node_cpus": sizes_of(tuning.hardware),
        "gpu": tuning.hardware.gpu_name if allocation.actor_gpus else None,
        "threads": allocation.actor_threads,
        "gpus": allocation.actor_gpus,
        "limits": asdict(tuning.limits),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
