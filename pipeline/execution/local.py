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
from pipeline.execution.progress_channel import ProgressListener
from pipeline.execution.stream_parts import StreamParts
from pipeline.execution.tasks import attempts_of
from pipeline.inference.slice_progress import Send, Slice
from pipeline.planning.allocation import Allocation
from pipeline.process.liveness import note_progress

T = TypeVar("T")


def stream(
    parts: StreamParts, allocation: Allocation | None = None
) -> Generator[StagedSlice, None, None]:
    """Read, decode, transform, predict and stage slices, one after the other; yield each one.

    Args:
        allocation: Is not used: there is one process.

    Raises:
        PipelineError: As `ray_stream.stream`.
    """
    with _stage_errors():
        actor = PredictorActor(replace(parts.actor, asked_at_s=None))
        try:
            stages = [each for each in (parts.preprocess, actor, parts.write) if each is not None]
            for unit in parts.reads:
                for block in unit.read():
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


class LocalListener(ProgressListener):
    """Hears of the actor, which is in this process, by a call."""

    def __init__(self, run_id: str, num_actors: int) -> None:
        """Be the channel, too."""
        super().__init__(run_id, num_actors)
        self.channel = self

    def __enter__(self) -> LocalListener:
        """Start nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def open(self) -> Send:
        """Return what the actor calls."""
        return self._note

    def _note(self, key: Slice, num_rows: int) -> None:
        self.rows = {key: num_rows}
        note_progress("rows or tokens within slices")


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
