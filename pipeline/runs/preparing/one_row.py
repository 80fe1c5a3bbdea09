"""Try one row of a job before a run: read it, decode it, and apply the model and the task.

It happens in a child process, on the CPU and in eager fp32; a crash or a hang there is a result,
too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from pipeline.core.errors import JobError, PipelineError
from pipeline.core.failures import TRANSFORM_FACTORY, Failure
from pipeline.core.figures import PREDICT, Counters, SliceFigures
from pipeline.core.node_cache import tensors_digest
from pipeline.core.printable import clean_message
from pipeline.core.schema import ERROR, MESSAGE, NUM_TOKENS, ROW_ID
from pipeline.execution.isolation.child_process import Child, ChildExit, ChildResult, Step
from pipeline.execution.stages import Preprocessing, SliceWork
from pipeline.inference.engines import open_engine
from pipeline.inference.first_rows import RaisedFailure, SystematicFailureDetector
from pipeline.job.job import Job
from pipeline.models.spec import ModelSpec, PredictorConfig, load_module
from pipeline.models.tasks import make_task
from pipeline.models.tasks.scores import describe_scores
from pipeline.planning.plan import Plan
from pipeline.preprocessing.images.own_transform import transform_with_factory, try_step
from pipeline.runs.builders import make_reader, plain_predictor_config, trial_bytes
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit, only_rows

_READ, _BUILD, _TRANSFORM = "read", "build", "transform an image"
_MAX_UNITS, _ROWS_PER_UNIT = 3, 3
_MAX_DEATHS = 2
"""The most processes that may end on rows: a hang takes its whole time limit."""
_MAX_START_S, _START_LIMITS = 600.0, 10
_RANDOM = (
    "its parameters are random, although the same in every run; set model.weights unless that is "
    "intended"
)


Status = Literal["ok", "warn", "unknown"]


@dataclass(frozen=True)
class Preview:
    """The result of trying a row, unless that raised an error."""

    status: Status
    message: str
    transform: str | None = None
    """The result of the user's own transform for a generated image; None without one."""
    scores: str | None = None
    """A sentence on the model's outputs, if they are not plain logits."""
    predicted: pa.Table | None = None
    """The row with its prediction; None if no row could be read."""

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


@dataclass(frozen=True)
class _RowWork:
    """The work of the child process."""

    reader: Reader
    units: tuple[Unit, ...]
    preprocessing: Preprocessing | None
    config: PredictorConfig

    def open(self) -> Mapping[str, Step]:
        """Load the model."""
        os.dup2(2, 1)  # the prints of a user's code are no result of the command
        steps = SliceWork(self.preprocessing, None).open()
        places = _Places()
        predictor = open_engine(self.config, places)
        trial_steps = {_READ: self._read, _BUILD: self._build, _TRANSFORM: self._transform}
        return {
            **trial_steps,
            **steps,
            PREDICT: lambda rows, counters: places.with_place(predictor.predict(rows, counters)),
        }

    def _read(self, wanted: pa.Table, counters: Counters) -> pa.Table:
        """Read the first rows of a unit."""
        unit = self.units[wanted.column("unit")[0].as_py()]
        if unit.cut is not None:
            unit = replace(unit, cut=replace(unit.cut, slice_rows=_ROWS_PER_UNIT))
        else:
            unit = only_rows(unit, range(min(_ROWS_PER_UNIT, unit.bounds[-1])))
        slices = read_slices(self.reader, unit, frozenset([0]))
        with contextlib.closing(slices):  # type: ignore[type-var]  # a generator
            return next(slices)[2]

    def _transform(self, wanted: pa.Table, counters: Counters) -> pa.Table:
        """Apply the user's own transform to a generated image."""
        transform = transform_with_factory(self.config.spec.input)
        assert transform is not None, "the caller has asked"
        return pa.table({"result": [try_step(transform)]})

    def _build(self, wanted: pa.Table, counters: Counters) -> pa.Table:
        """Find out whether the model's tensors are random, and whether they are reproducible."""
        spec = self.config.spec
        first, other = (tensors_digest(load_module(spec, salt)) for salt in ("", "another seed"))
        is_random = first != other
        is_same = not is_random or tensors_digest(load_module(spec)) == first
        return pa.table({"is_random": [is_random], "is_same": [is_same]})


class _Places(SystematicFailureDetector):
    """Notes where in the user's code the last row failed; it ends no run."""

    def __init__(self) -> None:
        super().__init__(None)
        self._where = ""

    def predicted(self) -> None:
        self._where = ""

    def failed(self, row_id: str, failure: Failure) -> None:
        self._where = failure.where if isinstance(failure, RaisedFailure) else ""

    def check(self) -> None:
        """Do nothing: every failure belongs to its row."""

    def with_place(self, rows: pa.Table) -> pa.Table:
        """Return one row with that place appended to its message."""
        message = rows.column(MESSAGE)[0].as_py()
        if not self._where or message is None:
            return rows
        messages = pa.array([f"{message} ({self._where})"], pa.string())
        return rows.set_column(rows.column_names.index(MESSAGE), MESSAGE, messages)


def preview_row(job: Job, plan: Plan, model: ModelSpec) -> Preview:
    """Try one row from source to prediction; if the first ones fail, a few others.

    Raises:
        JobError: The model cannot be built, or its outputs do not fit the task.
        PipelineError: The store failed.
    """
    last = len(plan.units) - 1
    spread = sorted(
        {last * i // max(1, _MAX_UNITS - 1) for i in range(_MAX_UNITS)} if last >= 0 else ()
    )
    units = tuple(plan.units[index] for index in spread)
    child = Child(
        _work(job, plan, model, units),
        job.run.row_timeout_s,
        min(_MAX_START_S, _START_LIMITS * job.run.row_timeout_s),
        max_bytes=trial_bytes(job, model),
        is_silent=True,
    )
    with contextlib.closing(child):
        ended = child.start()
        if ended is not None:
            raise JobError(f"model {model.name}: cannot be loaded: {_why(ended)}")
        transform = _try_transform(child, model)
        is_random = not model.has_weights and _is_random(child, model)
        preview = replace(_first_good(child, model, len(units)), transform=transform)
    if not is_random:
        return preview
    status: Status = "unknown" if preview.status == "unknown" else "warn"
    return replace(preview, status=status, message=f"{preview.message}; {_RANDOM}")


def _work(job: Job, plan: Plan, model: ModelSpec, units: tuple[Unit, ...]) -> _RowWork:
    spec = model.as_reference()
    return _RowWork(
        make_reader(job, plan),
        units,
        Preprocessing.of(job.source, spec.input, 1, plan.fields),
        plain_predictor_config(plan, spec, 1, len(os.sched_getaffinity(0))),
    )


def _try_transform(child: Child, model: ModelSpec) -> str | None:
    """Return the result of the user's own transform for a generated image; None without one.

    Raises:
        JobError: The transform cannot be made.
    """
    if transform_with_factory(model.input) is None:
        return None
    answer = child.call(_TRANSFORM, pa.table({"unit": [0]}))
    if isinstance(answer, ChildExit):
        return f"warn: of a generated image: {_why(answer)}"
    return str(answer.rows.column("result")[0])


def _is_random(child: Child, model: ModelSpec) -> bool:
    """Tell whether the model's parameters are random.

    Raises:
        JobError: They differ each time, whatever the seed.
    """
    answer = child.call(_BUILD, pa.table({"unit": [0]}), is_load=True)
    if isinstance(answer, ChildExit):
        raise JobError(f"model {model.name}: cannot be loaded again: {_why(answer)}")
    if not answer.rows.column("is_same")[0].as_py():
        raise JobError(
            f"model {model.name}: its tensors differ each time that it is built, so two actors "
            "would predict with different models; give model.weights"
        )
    return bool(answer.rows.column("is_random")[0].as_py())


def _first_good(child: Child, model: ModelSpec, num_units: int) -> Preview:
    """Return the preview of the first row that can be predicted.

    Raises:
        JobError: Rows can be read, but none of those tried gets past the user's own transform or
            can be predicted.
    """
    unread = failed = ""
    num_exits = 0
    for row in _rows(child, num_units):
        if isinstance(row, str):
            unread = unread or row
            continue
        row_id = clean_message(row.column(ROW_ID)[0].as_py())
        prepares = model.input.stage_names[:1]
        decoded = _step(child, prepares[0], row) if prepares else row
        problem = decoded if isinstance(decoded, str) else _problem(decoded)
        if problem:
            if TRANSFORM_FACTORY in problem:
                failed = failed or f"row {row_id}: {problem}"
            unread = unread or f"{row_id}: {problem}"
            continue
        assert not isinstance(decoded, str), "has no problem"
        counters: Counters = {}
        predicted = _step(child, PREDICT, decoded, counters)
        problem = predicted if isinstance(predicted, str) else _problem(predicted)
        if not problem:
            assert not isinstance(predicted, str), "has no problem"
            figures = SliceFigures.from_json(counters)
            scores = describe_scores(model.task, model.shown_name)
            described = f"1 row ({row_id}) -> {_describe(predicted, model)}"
            message = "; ".join([described, *figures.advice_lines])
            return Preview("ok", message, scores=scores, predicted=predicted)
        failed = failed or f"row {row_id}: {problem}"
        num_exits += isinstance(predicted, str)
        if num_exits == _MAX_DEATHS:
            break
    if TRANSFORM_FACTORY in failed:
        raise JobError(f"the first rows of the source fail in the transform: {failed}")
    if failed:
        raise JobError(f"model {model.name}: fails on the first rows of the source: {failed}")
    return Preview(
        "unknown", f"no row could be read{unread and f' ({unread})'}; the model was built"
    )


def _rows(child: Child, num_units: int) -> Iterator[pa.Table | str]:
    """Yield rows one by one; for a unit that cannot be read, the reason."""
    for index in range(num_units):
        rows = _step(child, _READ, pa.table({"unit": [index]}))
        if isinstance(rows, str):
            yield rows
        else:
            yield from (rows.slice(position, 1) for position in range(rows.num_rows))


def _step(
    child: Child, stage: str, rows: pa.Table, counters: Counters | None = None
) -> pa.Table | str:
    """Return the result of a stage, or why it has none; its counts are added to `counters`."""
    try:
        done = child.call(stage, rows)
    except PipelineError as error:
        if type(error) is not PipelineError:
            raise
        return str(error)  # raised by a library or the user's own code
    if not isinstance(done, ChildResult):
        return _why(done)
    if counters is not None:
        counters |= done.counters
    return done.rows


def _why(ended: ChildExit) -> str:
    """Say how a child ended; if it took too much memory, with the field that allows more."""
    return f"{ended.message}{' (run.trial_mib)' if ended.max_bytes else ''}"


def _problem(rows: pa.Table) -> str:
    error = rows.column(ERROR)[0].as_py()
    return f"{error}: {rows.column(MESSAGE)[0].as_py()}" if error else ""


def _describe(predicted: pa.Table, model: ModelSpec) -> str:
    """Say in a few words what was predicted."""
    [row] = predicted.to_pylist()
    description, num_tokens = make_task(model.task).describe(row), row.get(NUM_TOKENS)
    return description if num_tokens is None else f"{description}, of {num_tokens} tokens"
