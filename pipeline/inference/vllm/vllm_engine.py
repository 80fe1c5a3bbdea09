"""Engine `vllm`: writes the rows of a slice with vLLM.

Each row is a request of its own, so that vLLM fills its batches; rows of two slices may be in one.
A row ends by the rules of engine `generate`, whose class also makes results and the reference
check: eager fp32 of torch reads each row again, on the CPU, as vLLM keeps the GPU's memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import PREDICT, Steps
from pipeline.core.schema import NUM_TOKENS
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.generate.generate_engine import GenerateEngine
from pipeline.inference.generate.greedy import Decode, Outputs, RowWriter, Spent, finish_of
from pipeline.inference.generate.rules import AppliedRules, Row
from pipeline.inference.runtimes.make_runner import exact_math
from pipeline.inference.slice_run import FaultFinder
from pipeline.inference.vllm.vllm_model import VllmModel
from pipeline.models.directories.snapshot import local
from pipeline.models.directories.text.tokens import output_tokenizer
from pipeline.models.generate.build import text_decoder
from pipeline.models.generate.grammar import Grammar
from pipeline.models.generate.spec import Generation
from pipeline.models.spec import PredictorConfig
from pipeline.preprocessing.model_input import Inputs, Rows
from pipeline.preprocessing.texts.prompts import PromptTokenizer
from pipeline.preprocessing.texts.text_settings import IDS
from pipeline.process.liveness import no_limit, still_alive

if TYPE_CHECKING:
    from vllm import SamplingParams


class VllmWriter(RowWriter):
    """Rows of a slice in vLLM."""

    def __init__(
        self,
        model: VllmModel,
        generation: Generation,
        rules: AppliedRules,
        text: Decode,
        rows: Sequence[Row],
        spent: Spent,
    ) -> None:
        """Take rows, with their prompts in `before`."""
        self.active: list[Row] = []
        self._model, self._generation, self._spent = model, generation, spent
        self._rules, self._text = rules, text
        self._left, self._ids, self._ended = [*reversed(rows)], list[str](), list[Row]()
        self._num_running = 0
        self._still_alive = partial(still_alive, threading.get_ident())

    def __bool__(self) -> bool:
        return bool(self._left) or self._num_running > 0

    def advance(self) -> list[Row]:
        began = perf_counter()
        try:
            while self._left:
                self.active = [self._left.pop()]  # it alone is at fault if it is refused
                self._add(self.active[0])
        except Exception:
            self._model.abort(self._ids)
            raise
        before = self._spent.output_tokens
        self._model.step()
        num_tokens = self._spent.output_tokens - before
        self._spent.steps += Steps(1, num_tokens)
        self._still_alive(num_tokens=num_tokens)
        ended, self._ended = self._ended, []
        self._spent.decode_s += perf_counter() - began
        return ended

    def _add(self, row: Row) -> None:
        params = sampling(self._generation, row.num_input)
        self._ids.append(self._model.add([*row.before], params, partial(self._take, row)))
        self._num_running += 1
        self._spent.input_tokens += row.num_input
        self._spent.padded_tokens += row.num_input

    def _take(self, row: Row, tokens: Sequence[int], chances: Sequence[dict[int, float]]) -> bool:
        for token, chance in zip(tokens, chances, strict=True):
            row.tokens.append(token)
            row.logprob += chance[token]
            row.finish = finish_of(row, self._generation, self._rules, self._text)
            self._spent.output_tokens += 1
            if row.finish is not None:
                self._ended.append(row)
                self._num_running -= 1
                return True
        return False


def sampling(generation: Generation, num_input: int) -> SamplingParams:
    """Return what vLLM is asked to write after a prompt.

    Args:
        generation: The settings.
        num_input: Tokens of the prompt.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    rules, most = generation.rules, generation.max_new_tokens
    least = max(rules.min_new_tokens, rules.min_length - num_input, 0)
    return SamplingParams(
        temperature=0,
        max_tokens=most,
        min_tokens=min(least, most),
        repetition_penalty=rules.repetition_penalty,
        stop_token_ids=[*rules.ends],
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


class VllmEngine(GenerateEngine):
    """One language model in vLLM on one device."""

    _model: VllmModel

    def _opened(self, config: PredictorConfig) -> DeviceModel:
        return VllmModel(config)

    @cached_property
    def _tokenizer(self) -> PromptTokenizer:
        spec = self._config.spec
        assert spec.directory is not None, "it is a directory"
        assert spec.facts is not None, "likewise"
        return output_tokenizer(local(spec.directory), spec.facts, spec.input)

    @cached_property
    def _decode(self) -> Decode:
        return text_decoder(self._generation, self._tokenizer)

    @property
    def _text(self) -> Decode:
        return self._decode

    @cached_property
    def _rules(self) -> AppliedRules:
        grammar = Grammar.of(self._generation, self._tokenizer)
        return AppliedRules(self._generation, torch.device("cpu"), grammar)

    def _rows(self, inputs: Inputs, places: Rows) -> list[Row]:
        rows = super()._rows(inputs, places)
        for row in rows:
            row.before = inputs[IDS][row.number, : inputs[NUM_TOKENS][row.number]].tolist()
        return rows

    def _writing(self, rows: Sequence[Row], held: Outputs) -> RowWriter:
        return VllmWriter(self._model, self._generation, self._rules, self._text, rows, held.spent)

    def _write(self, places: Rows, held: Outputs, faults: FaultFinder) -> None:
        for row in self._rows(held.inputs, places):
            faults.failures[row.number] = self._refused(row)
        super()._write(self._left(places, held), held, faults)

    def _refused(self, row: Row) -> Failure | None:
        """Return why vLLM cannot take a row: it would end with an error, or cut the output."""
        needed, most = row.num_input + self._generation.max_new_tokens, self._model.max_tokens
        if needed > most:
            message = f"vLLM has memory for {most} tokens of a row, and it may have {needed}"
            return Failure(Reason.OUT_OF_MEMORY, PREDICT, message)
        if max(row.before) >= self._model.num_tokens:
            message = f"token {max(row.before)} is none of the model's {self._model.num_tokens}"
            return Failure(Reason.MODEL_ERROR, PREDICT, message)
        return None

    def _by_reference(self, exact: PredictorConfig, judge: Callable[[DeviceModel], int]) -> int:
        with no_limit(), exact_math():
            return judge(DeviceModel(replace(exact, num_gpus=0.0)))
