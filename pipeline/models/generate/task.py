"""Task `generate`: the columns of the texts or records that a model writes, greedily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.core.printable import clean_message
from pipeline.core.schema import (
    FINISH_REASON,
    GENERATE_FIELDS,
    MEAN_LOGPROB,
    NUM_INPUT_TOKENS,
    NUM_OUTPUT_TOKENS,
    OUTPUT_TEXT,
    SEGMENTS,
    SEGMENTS_FIELD,
)
from pipeline.models.agreement import Agreement, AgreementLimits
from pipeline.models.generate.records import Record, record_of
from pipeline.models.generate.schema import SchemaError, canonical
from pipeline.models.generate.spec import FINISHES, QUARANTINE
from pipeline.models.outputs import require
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec
from pipeline.models.tasks.classify import prompt_problems

if TYPE_CHECKING:
    import torch

    from pipeline.job.model import Generate as GenerateSection
    from pipeline.job.model import Model

FINISH, RECORD = "finish", "record"
"""Results: index of the reason in FINISHES, and the record of a text if there is a schema."""
_EXPECTED = "expected_text"
"""Column of golden rows, beside their input `text`."""
_SHOWN_CHARS = 40


@dataclass(frozen=True)
class Writes(Task):
    """Base of tasks whose rows have a text and its mean log probability."""

    spec: TaskSpec
    golden_names: ClassVar[Mapping[str, str]] = {OUTPUT_TEXT: _EXPECTED}

    def compare(self, reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare texts; of two about equally likely texts, either may be written."""
        same = reference[OUTPUT_TEXT] == candidate[OUTPUT_TEXT]
        off = np.abs(reference[MEAN_LOGPROB].astype(float) - candidate[MEAN_LOGPROB])
        is_near = off <= limits.max_score_diff
        agrees = is_near & (same | limits.allows_ties)
        return Agreement(agrees, float(off.max(initial=0.0)))

    def differences(self, known: pa.Table, actual: pa.Table, limits: AgreementLimits) -> list[str]:
        pairs = zip(known.to_pylist(), actual.to_pylist(), strict=True)
        return [_difference(a, b, limits) for a, b in pairs]

    def golden_columns(self) -> tuple[str, ...]:
        return (_EXPECTED,)

    def parse_golden(self, golden: pa.Table) -> pa.Table:
        """Return the text, and its mean log probability if the golden rows have it."""
        columns = {OUTPUT_TEXT: golden.column(_EXPECTED).cast(pa.string())}
        if MEAN_LOGPROB in golden.column_names:
            columns[MEAN_LOGPROB] = golden.column(MEAN_LOGPROB).cast(pa.float64())
        return pa.table(columns)


@dataclass(frozen=True)
class Generate(Writes):
    """A text, its numbers of tokens, why it ended, and its mean log probability.

    With a schema a text is a record, whose values are further columns. Texts and records are
    Python objects in the results.
    """

    engine: ClassVar[str] = "generate"
    other_engines: ClassVar[tuple[str, ...]] = ("vllm",)
    runtimes: ClassVar[tuple[str, ...] | None] = ("eager",)
    job_fields: ClassVar[tuple[str, ...]] = ("prompt", "messages", "generate")
    checks_reference: ClassVar[bool] = True
    instead: ClassVar[Mapping[str, str]] = {"transcribe": "which takes the best token of a frame"}

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        if model.prompt is not None and model.messages:
            yield "task 'generate' takes a prompt or messages, not both"
        # A model of images or clips begins with the prompt; whether it is one is resolved later.
        yield from prompt_problems(model)
        if not all(model.generate.stop):
            yield "generate.stop: a text is empty"
        if model.generate.timestamps and (model.generate.stop or model.generate.schema_):
            yield "generate.timestamps: takes neither generate.stop nor generate.schema"
        yield from _sampling_problems(model)
        if model.generate.schema_ is not None:
            yield from _record_problems(model.generate)

    @classmethod
    def new_tokens(cls, model: Model) -> int:
        return model.generate.max_new_tokens

    @property
    def record(self) -> Record | None:
        """The record type; None if outputs are texts."""
        schema = self.spec.generation.schema if self.spec.generation else ""
        return record_of(schema) if schema else None

    def fields(self) -> list[pa.Field]:
        timed = [SEGMENTS_FIELD] if self._has_times else []
        return [*GENERATE_FIELDS, *timed, *(self.record.fields() if self.record else ())]

    @property
    def _has_times(self) -> bool:
        return self.spec.generation is not None and self.spec.generation.timestamps

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        """Return the logits of a batch; the engine chooses tokens by them."""
        shape = tuple(getattr(outputs, "shape", ()))
        return {"logits": require(outputs, (num_rows, *shape[1:]), "", "logits of each row")}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        reasons = np.array(FINISHES, object)[arrays[FINISH]]
        pairs = zip(arrays[RECORD], ok, strict=True)
        records = [record if is_ok else None for record, is_ok in pairs]
        columns = {
            OUTPUT_TEXT: pa.array(arrays[OUTPUT_TEXT], pa.string(), mask=~ok),
            NUM_INPUT_TOKENS: pa.array(arrays[NUM_INPUT_TOKENS], pa.int32(), mask=~ok),
            NUM_OUTPUT_TOKENS: pa.array(arrays[NUM_OUTPUT_TOKENS], pa.int32(), mask=~ok),
            FINISH_REASON: pa.array(reasons, pa.string(), mask=~ok),
            MEAN_LOGPROB: pa.array(arrays[MEAN_LOGPROB], pa.float32(), mask=~ok),
            **(self.record.columns(records) if self.record else {}),
        }
        if self._has_times:
            columns[SEGMENTS] = pa.array(arrays[SEGMENTS], SEGMENTS_FIELD.type, mask=~ok)
        return columns

    def measured_columns(self) -> tuple[str, ...]:
        counted = self.record.measured() if self.record else (FINISH_REASON,)
        return (NUM_OUTPUT_TOKENS, MEAN_LOGPROB, *counted)

    def describe(self, row: Mapping[str, Any]) -> str:
        text, count = shown(row[OUTPUT_TEXT]), row[NUM_OUTPUT_TOKENS]
        return f'text "{text}", {count} tokens, ended by {row[FINISH_REASON]}'


def shown(text: str) -> str:
    """Return the start of a text, printable."""
    text = clean_message(text)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _sampling_problems(model: Model) -> Iterator[str]:
    section = model.generate
    if not section.temperature:
        for name in ("top_p", "seed"):
            if name in section.model_fields_set:
                yield f"generate.{name} has no effect without generate.temperature"
        return
    if model.engine != "vllm":
        yield "generate.temperature needs engine: vllm; other texts are greedy"
    if section.seed is None:
        yield "generate.temperature needs generate.seed, so that a run again gives the same texts"


def _record_problems(section: GenerateSection) -> Iterator[str]:
    """Yield the problems of a job whose outputs are records."""
    if section.stop:
        yield "generate.stop has no effect with generate.schema: a record ends where it is complete"
    if "invalid" in section.model_fields_set and section.invalid != QUARANTINE:
        yield (
            f"generate.invalid = {section.invalid!r} has no effect with generate.schema: a row "
            "without a record is in quarantine"
        )
    if isinstance(section.schema_, dict):
        try:
            canonical(section.schema_)
        except SchemaError as error:
            yield f"generate.schema: {error}"


def _difference(
    known: Mapping[str, Any], actual: Mapping[str, Any], limits: AgreementLimits
) -> str:
    a, b = known.get(MEAN_LOGPROB), actual[MEAN_LOGPROB]
    is_near = a is None or abs(a - b) <= limits.max_score_diff
    if known[OUTPUT_TEXT] == actual[OUTPUT_TEXT]:
        return "" if is_near else f"expected {MEAN_LOGPROB} {a:.4f}, found {b:.4f}"
    if limits.allows_ties and a is not None and is_near:
        return ""  # another batch size may tip the balance between two tokens
    texts = (clean_message(repr(row[OUTPUT_TEXT]))[:_SHOWN_CHARS] for row in (known, actual))
    return "expected {}, found {}".format(*texts)
