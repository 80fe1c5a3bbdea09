"""An executor without Ray: the stages of a run in a loop in this process, in milliseconds."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from unittest.mock import patch

from pipeline.commit.staging import StagedSlice
from pipeline.core.errors import PipelineError, find_cause
from pipeline.core.user_code import SHOW_ALL, describe_user_error
from pipeline.execution import executors
from pipeline.execution.cluster import hardware
from pipeline.execution.cluster.hardware import this_machine
from pipeline.execution.embedded import forkserver
from pipeline.execution.executors import Executor, StreamParts, start_executor
from pipeline.execution.predictor_actor import PredictorActor
from pipeline.execution.tasks import crash_marks_of
from pipeline.planning.allocation import Allocation

T = TypeVar("T")


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Execute the runs of the body that name no cluster in this process, one actor for all work."""
    with (
        patch.object(executors, "start_executor", _start),
        patch.object(hardware, "ask_ray", lambda: (None, 0.0)),
        patch.object(forkserver, "started_ahead", contextlib.nullcontext),
    ):
        yield


@contextlib.contextmanager
def _start(address: str | None, say: Callable[[str], None]) -> Iterator[Executor]:
    if address is not None:
        with start_executor(address, say) as executor:
            yield executor
        return
    yield Executor(this_machine(), 0.0, False, _stream, _run_tasks, this_machine, measures=False)


def _stream(parts: StreamParts, _: Allocation) -> Generator[StagedSlice, None, None]:
    """Read, decode, transform, predict and stage slices, one after the other; yield each one."""
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
            shutil.rmtree(crash_marks_of(parts.actor.predictor.run_id).folder, ignore_errors=True)


def _run_tasks(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T]:
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
