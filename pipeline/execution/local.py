"""Runs the stages of a job in a loop in this process, without Ray (`without_ray`)."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pipeline.commit.staging import StagedSlice
from pipeline.core.errors import PipelineError, find_cause
from pipeline.core.user_code.user_errors import SHOW_ALL, describe_user_error
from pipeline.execution.predictor_actor import PredictorActor
from pipeline.execution.stream_parts import StreamParts
from pipeline.execution.tasks import attempts_of
from pipeline.planning.allocation import Allocation

T = TypeVar("T")


def stream(
    parts: StreamParts, allocation: Allocation | None = None
) -> Generator[StagedSlice, None, None]:
    """Read, decode, transform, predict and stage slices, one after the other; yield each one.

    Args:
        allocation: Is not used: there is one process.

    Raises:
        PipelineError: As that of Ray.
    """
    with _stage_errors():
        actor = PredictorActor(replace(parts.actor, asked_at_s=None, deadline_at_s=None))
        try:
            stages = [
                stage for stage in (parts.preprocess, actor, parts.write) if stage is not None
            ]
            for unit in parts.units:
                for block in parts.read(unit):
                    for stage in stages:
                        block = stage(block)
                    for text in block.column("staged").to_pylist():
                        yield StagedSlice.from_json(text)
        finally:
            actor.close()
            shutil.rmtree(attempts_of(parts.actor.predictor.run_id).folder, ignore_errors=True)


def run_tasks(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T]:
    """Call a function with every tuple of arguments; results in the order of calls."""
    with _stage_errors():
        return [function(*arguments) for arguments in calls]


@contextlib.contextmanager
def _stage_errors() -> Iterator[None]:
    """Translate what a stage raises as what a Ray task raises is."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if (ours := find_cause(error)) is not None:
            raise ours from error
        raise PipelineError(f"{describe_user_error(error)}{SHOW_ALL}") from error
