"""Engine `generate`: a model of torch writes a text for each row, greedily.

A row may be a text, a clip or an image. The same code runs on CPU and GPU. Rows at fault are found
as in engine `torch`: the rows of a failed batch are written again in halves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, cast

import numpy as np

from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import (
    PREDICT,
    PREFILL,
    Counters,
    Generated,
    SliceFigures,
    StageCounters,
    Tokens,
)
from pipeline.core.schema import (
    MEAN_LOGPROB,
    NUM_INPUT_TOKENS,
    NUM_OUTPUT_TOKENS,
    OUTPUT_TEXT,
    SEGMENTS,
)
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.engines.torch_engine import ModelEngine, Predicted, Slice
from pipeline.inference.first_rows import SystematicFailureDetector
from pipeline.inference.generate.greedy import (
    LENGTH,
    Decode,
    Outputs,
    RowWriter,
    Writing,
    is_repeating,
    text_of,
)
from pipeline.inference.generate.rules import Row, num_agreed
from pipeline.inference.slice_run import FaultFinder, failure_of, not_finite
from pipeline.models.generate.causal import CausalDecoding
from pipeline.models.generate.decoding import Decoding
from pipeline.models.generate.spec import QUARANTINE
from pipeline.models.generate.task import FINISH, RECORD, Generate
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks.base import Arrays
from pipeline.preprocessing.images.reference_pixels import NUM_REFERENCE_ROWS
from pipeline.preprocessing.model_input import Inputs, Rows, num_rows
from pipeline.preprocessing.texts.tokenizer import is_of_library
from pipeline.process.liveness import no_limit, still_alive

_PREFILL_TOKENS = 4_096
"""Most tokens of prompts, padding included, that are read at once."""
_LENGTH_BITS = 6
"""Bits that are kept of a length, in the histogram of lengths."""
_NUMBERS: dict[str, tuple[type[np.number[Any]], Callable[[Row], float]]] = {
    NUM_INPUT_TOKENS: (np.int32, lambda row: row.num_input),
    NUM_OUTPUT_TOKENS: (np.int32, lambda row: len(row.tokens)),
    FINISH: (np.int32, lambda row: cast(int, row.finish)),
    MEAN_LOGPROB: (np.float32, lambda row: row.logprob / len(row.tokens)),
}
"""Result -> its dtype, and its value for a row that has ended."""


class GenerateEngine(ModelEngine):
    """One language model on one device."""

    def __init__(
        self,
        config: PredictorConfig,
        first: SystematicFailureDetector | None = None,
        *,
        ends_process: bool = False,
    ) -> None:
        super().__init__(config, first, ends_process=ends_process)
        assert config.spec.task.generation is not None, "the task writes"
        self._input, self._generation = config.spec.input, config.spec.task.generation

    def _predicted(self, part: Slice, counters: Counters) -> Predicted:
        held = Outputs(part.inputs, part.faults.failures)
        started = perf_counter()
        self._write(part.todo, held, part.faults)
        results = self._results(held)
        predict_s = perf_counter() - started
        self._count(held, counters)
        compared = self._compared(held)
        count_agreeing = partial(self._num_agreed, compared, part.inputs)
        self._check_once(len(compared), count_agreeing, counters)
        is_done = np.zeros(part.rows.num_rows, np.bool_)
        is_done[[*held.written]] = True
        return Predicted(results, is_done, 0.0, predict_s)

    def reduce(self, inputs: Inputs) -> Arrays:
        count = num_rows(inputs)
        held = Outputs(inputs, [None] * count)
        writing = self._writing(self._rows(inputs, np.arange(count)), held)
        while writing:
            self._keep(self._model.call(writing.advance), held)
        assert len(held.written) == count, "every row is written"
        return self._results(held)

    @property
    def _module(self) -> Decoding:
        return cast(Decoding, self._model.module)

    @property
    def _text(self) -> Decode:
        return self._module.text

    def _rows(self, inputs: Inputs, places: Rows) -> list[Row]:
        counts = self._input.lengths(inputs, places)
        lengths = [0] * len(places) if counts is None else counts.tolist()
        return [Row(*pair) for pair in zip(places.tolist(), lengths, strict=True)]

    def _writing(self, rows: Sequence[Row], held: Outputs) -> RowWriter:
        model, at = self._model, {row.number: row for row in rows}
        module, limits = self._module, model.limits
        if module.most_rows is not None:
            limits = limits._replace(rows=module.most_rows)
        at_once = limits
        if isinstance(module, CausalDecoding):
            tokens = min(limits.tokens or _PREFILL_TOKENS, _PREFILL_TOKENS)
            at_once = limits._replace(tokens=tokens)
        batches = self._input.batches(held.inputs, np.array([*at], np.intp), at_once)
        groups = [[at[place] for place in batch.tolist()] for batch in batches]
        read = partial(model.on_device, held.inputs)
        return Writing(module, self._generation, read, groups, limits, held.spent)

    def _write(self, places: Rows, held: Outputs, faults: FaultFinder) -> None:
        """Write rows; rows at fault get a failure.

        Raises:
            SystematicFailure: All rows of the first batches failed for one cause.
            InfraError: The GPU has failed.
        """
        write = partial(self._write, held=held, faults=faults)
        failure, at_fault = self._try(places, held)
        while failure is not None:
            faults.split(at_fault, failure, write, lambda some: self._try(some, held)[0])
            if self._first is not None:
                self._first.check()
            places = self._left(places, held)
            failure, at_fault = self._try(places, held)  # the limits may be smaller now

    def _try(self, places: Rows, held: Outputs) -> tuple[Failure | None, Rows]:
        """Write rows until all have ended or one fails; return the failure and rows at fault."""
        writing = self._writing(self._rows(held.inputs, places), held)
        while writing:
            try:
                ended = self._model.call(writing.advance)
            except BaseException as error:  # any error of a model fails its row
                if not is_of_library(error):
                    raise
                failure = failure_of(error, self._model)
                break
            self._keep(ended, held)
        else:
            return None, places[:0]
        # Outside `except`: the frames of the exception hold the tensors of the batch.
        left = self._left(places, held)
        is_active = np.isin(left, [row.number for row in writing.active])
        return failure, left[is_active] if is_active.any() else left

    def _left(self, places: Rows, held: Outputs) -> Rows:
        """Return the rows that are neither written nor failed.

        It relies on nothing else, so no row is lost whatever state an error has left.
        """
        is_left = [row not in held.written and held.failures[row] is None for row in places]
        return places[np.array(is_left, np.bool_)]

    def _keep(self, ended: Sequence[Row], held: Outputs) -> None:
        still_alive(num_rows=len(ended))
        if ended and self._first is not None:
            self._first.predicted()
        held.written |= {row.number: row for row in ended}

    def _results(self, held: Outputs) -> Arrays:
        """Return the results of a slice; those of rows that have none, or are refused, say nothing.

        Rows that are refused have failed.
        """
        count, rows = len(held.failures), held.written
        texts, records, segments = np.full((3, count), None, object)
        for place, row in rows.items():
            try:
                texts[place] = text_of(row, self._generation, self._text)
            except BaseException as error:  # a panic of the tokenizer is no Exception
                if not is_of_library(error):
                    raise
                held.failures[place] = failure_of(error, self._model)
                continue
            records[place], held.failures[place] = self._judged(row, texts[place])
            segments[place] = [part._asdict() for part in row.segments or ()]
        results: Arrays = {OUTPUT_TEXT: texts, RECORD: records, SEGMENTS: segments}
        for name, (dtype, number_of) in _NUMBERS.items():
            results[name] = np.zeros(count, dtype)
            results[name][[*rows]] = [number_of(row) for row in rows.values()]
        return results

    def _judged(self, row: Row, text: str) -> tuple[Any, Failure | None]:
        """Return the record of a text, and the failure of its row if it fails.

        A row fails if its log probability is not finite, or if the job refuses its output.
        """
        refuses, most = self._generation.invalid == QUARANTINE, self._generation.max_new_tokens
        record = cast(Generate, self._model.task).record
        if not np.isfinite(row.logprob):
            return None, not_finite(self._config.spec.precision)
        if (refuses or record) and row.finish == LENGTH:
            message = f"the output has {most} tokens (generate.max_new_tokens) and no end"
            return None, Failure(Reason.OUTPUT_TRUNCATED, PREDICT, message)
        if record is not None:
            try:
                if row.matcher is not None and row.matcher.problem:
                    raise ValueError(row.matcher.problem)
                return record.read(text), None
            except ValueError as error:
                message = f"the output is not a record of generate.schema: {error}"
                return None, Failure(Reason.OUTPUT_INVALID, PREDICT, message)
        if refuses and not text:
            return None, Failure(Reason.EMPTY_OUTPUT, PREDICT, "the output has no text")
        return None, None

    def _count(self, held: Outputs, counters: Counters) -> None:
        spent, rows = held.spent, held.written.values()
        long = [row for row in rows if row.finish == LENGTH]
        SliceFigures(
            tokens=Tokens(spent.input_tokens, spent.padded_tokens),
            generated=Generated(
                len(rows),
                len(long),
                sum(is_repeating(row.tokens) for row in long),
                spent.output_tokens,
                spent.decode_s,
            ),
            steps=spent.steps,
            output_lengths=Counter(_length_bin(len(row.tokens)) for row in rows),
            stages={PREFILL: StageCounters(len(rows), len(rows), busy_s=spent.prefill_s)},
        ).add_to(counters)

    def _compared(self, held: Outputs) -> list[Row]:
        """Return the rows for the reference check."""
        rows = [row for place, row in held.written.items() if held.failures[place] is None]
        rows = sorted(rows, key=lambda row: row.number)[:NUM_REFERENCE_ROWS]
        return [row.first or row for row in rows]

    def _num_agreed(self, rows: Sequence[Row], inputs: Inputs) -> int:
        spec = self._config.spec

        def judge(model: DeviceModel) -> int:
            module, read = cast(Decoding, model.module), partial(model.on_device, inputs)
            return num_agreed(module, self._generation, rows, spec.precision, read)

        if spec.is_reference:
            with no_limit():
                return self._model.call(judge, self._model)
        exact = replace(self._config, spec=spec.as_reference(), limits=None)
        return self._by_reference(exact, judge)


def _length_bin(length: int) -> str:
    shift = max(0, length.bit_length() - _LENGTH_BITS)
    return str(length >> shift << shift)
