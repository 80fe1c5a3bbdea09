"""Engine `vllm`: writes the rows of a slice, or scores their answers, with vLLM.

Each row is a request of its own, so that vLLM fills its batches. Texts end by the rules of engine
`generate`, whose class also makes results. The reference check is that of the other engines: eager
fp32 of torch, on the CPU, as vLLM keeps the GPU's memory.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from statistics import fmean
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import PREDICT, Steps
from pipeline.core.schema import NUM_TOKENS
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.engines.torch_engine import ModelEngine, Slice, TorchEngine
from pipeline.inference.generate.generate_engine import GenerateEngine
from pipeline.inference.generate.greedy import Decode, Outputs, RowWriter, Spent, finish_of
from pipeline.inference.generate.rules import AppliedRules, Row
from pipeline.inference.reference_model import Work
from pipeline.inference.runtimes.make_runner import exact_math
from pipeline.inference.slice_run import FaultFinder, SliceRun
from pipeline.inference.vllm.vllm_model import VllmModel
from pipeline.models.directories.snapshot import local
from pipeline.models.directories.text.tokens import output_tokenizer
from pipeline.models.generate.build import text_decoder
from pipeline.models.generate.grammar import SPACES, Grammar
from pipeline.models.generate.spec import Generation
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks.base import Arrays
from pipeline.preprocessing.model_input import Inputs, Rows, num_rows
from pipeline.preprocessing.texts.prompts import PromptTokenizer, prompt_tokenizer
from pipeline.preprocessing.texts.text_settings import IDS
from pipeline.process.liveness import no_limit, still_alive

if TYPE_CHECKING:
    from vllm import SamplingParams

T = TypeVar("T")
_NEVER = -100.0
"""Added to a logit so that its token never comes: the lowest number that vLLM takes."""
_MOST_SCORED = 128
"""Most tokens of which vLLM gives the log probability in one request."""


class VllmEngine(ModelEngine):
    """One language model in vLLM on one device."""

    _model: VllmModel

    def __new__(cls, config: PredictorConfig, *_: Any, **__: Any) -> Self:
        """Choose the class by the task, as both are one engine of the job."""
        return object.__new__(_Writing if config.spec.task.generation else _Choosing)  # type: ignore[return-value]

    def _opened(self, config: PredictorConfig) -> DeviceModel:
        return VllmModel(config)

    def _by_reference(self, exact: PredictorConfig, work: Work[T]) -> T:
        with no_limit(), exact_math():
            return work(DeviceModel(replace(exact, num_gpus=0.0)))

    def _prompt(self, inputs: Inputs, row: int) -> list[int]:
        prompt: list[int] = inputs[IDS][row, : inputs[NUM_TOKENS][row]].tolist()
        return prompt

    def _refused(self, prompt: Sequence[int], num_new: int) -> Failure | None:
        """Return why vLLM cannot take a row: it would end with an error, or cut the output."""
        needed, most = len(prompt) + num_new, self._model.max_tokens
        if needed > most:
            message = f"vLLM has memory for {most} tokens of a row, and it may have {needed}"
            return Failure(Reason.OUT_OF_MEMORY, PREDICT, message)
        if max(prompt) >= self._model.num_tokens:
            message = f"token {max(prompt)} is none of the model's {self._model.num_tokens}"
            return Failure(Reason.MODEL_ERROR, PREDICT, message)
        return None


class _Writing(VllmEngine, GenerateEngine):
    """Task `generate`."""

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
        is_text = self._input.text is not None
        prompts = [
            self._prompt(inputs, place) if is_text else [*self._generation.rules.start]
            for place in places.tolist()
        ]
        return [Row(*row) for row in zip(places.tolist(), map(len, prompts), prompts, strict=True)]

    def _writing(self, rows: Sequence[Row], held: Outputs) -> RowWriter:
        image = None if self._input.text is not None else partial(self._image, held.inputs)
        return _RowWriter(
            self._model, self._generation, self._rules, self._text, rows, held.spent, image
        )

    def _image(self, inputs: Inputs, row: int) -> torch.Tensor:
        """Return the image of a row as the library's class takes it, float32 (1, 3, H, W)."""
        image: torch.Tensor
        [pixels] = inputs.values()
        [image] = self._input.normaliser(torch.float32)(torch.from_numpy(pixels[row].copy()[None]))
        return image

    def _write(self, places: Rows, held: Outputs, faults: FaultFinder) -> None:
        most = self._generation.max_new_tokens
        for row in self._rows(held.inputs, places):
            faults.failures[row.number] = self._refused(row.before, most)
        super()._write(self._left(places, held), held, faults)


class _RowWriter(RowWriter):
    """Rows of a slice in vLLM."""

    def __init__(
        self,
        model: VllmModel,
        generation: Generation,
        rules: AppliedRules,
        text: Decode,
        rows: Sequence[Row],
        spent: Spent,
        image: Callable[[int], torch.Tensor] | None,
    ) -> None:
        """Take rows, with their prompts in `before`, and what returns the image of a row."""
        self.active: list[Row] = []
        self._model, self._generation, self._spent = model, generation, spent
        self._rules, self._text, self._image = rules, text, image
        self._left, self._ids, self._ended = [*reversed(rows)], list[str](), list[Row]()
        self._num_running = 0
        # vLLM holds the pixels of all rows that it has; tokens are few bytes.
        self._most = len(rows) if image is None else 2 * model.config.batch_size
        self._still_alive = partial(still_alive, threading.get_ident())

    def __bool__(self) -> bool:
        return bool(self._left) or self._num_running > 0

    def advance(self) -> list[Row]:
        began = perf_counter()
        try:
            while self._left and self._num_running < self._most:
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
        image = None if self._image is None else self._image(row.number)
        take = partial(self._take, row)
        self._ids.append(self._model.add([*row.before], params, take, image))
        self._num_running += 1
        self._spent.input_tokens += row.num_input
        self._spent.padded_tokens += row.num_input

    def _take(
        self, row: Row, tokens: Sequence[int], chances: Sequence[Mapping[int, float]]
    ) -> bool:
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
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    rules, most = generation.rules, generation.max_new_tokens
    least = max(rules.min_new_tokens, rules.min_length - num_input, 0)
    record = None
    if generation.schema:
        # llguidance takes the options of a schema from this key.
        schema = {**json.loads(generation.schema), "x-guidance": SPACES}
        record = StructuredOutputsParams(json=schema)
    return SamplingParams(
        temperature=generation.temperature,
        top_p=generation.top_p,
        seed=generation.seed,
        max_tokens=most,
        min_tokens=min(least, most),
        repetition_penalty=rules.repetition_penalty,
        stop_token_ids=None if record else [*rules.ends],
        ignore_eos=True,
        structured_outputs=record,
        # No token that ends a text is part of a record.
        logit_bias=dict.fromkeys(rules.ends, _NEVER) if record else None,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


class _Choosing(VllmEngine, TorchEngine):
    """Task `choices`: asks for the log probability of the next token of each answer.

    Answers with the same beginning share requests, and requests of a row share the keys and values
    of its prompt.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        ModelEngine.__init__(self, *arguments, **options)
        self._has_independent_rows, self._advice = True, None  # each row is its own request

    @cached_property
    def _answers(self) -> list[list[int]]:
        text = self._config.spec.input.text
        assert text is not None, "the job's rows are texts"
        return prompt_tokenizer(text).answers(self._config.spec.task.prompts)

    @cached_property
    def _asked(self) -> list[tuple[list[int], list[int]]]:
        """Beginnings of answers, and tokens that may follow."""
        follow: dict[tuple[int, ...], dict[int, None]] = {}
        for answer in self._answers:
            for place, token in enumerate(answer):
                follow.setdefault((*answer[:place],), {})[token] = None
        return [
            ([*begun], [*tokens][first : first + _MOST_SCORED])
            for begun, tokens in follow.items()
            for first in range(0, len(tokens), _MOST_SCORED)
        ]

    @cached_property
    def _prior(self) -> npt.NDArray[np.float64]:
        """What is taken off the mean log-likelihood of each answer, float64 (K,)."""
        text = self._config.spec.input.text
        assert text is not None, "the job's rows are texts"
        if not self._config.spec.task.prior_corrected:
            return np.zeros(len(self._answers))
        prior: npt.NDArray[np.float64] = self._means(prompt_tokenizer(text).prompts([""]))[0]
        return prior

    def reduce(self, inputs: Inputs) -> Arrays:
        return self._scores([self._prompt(inputs, row) for row in range(num_rows(inputs))])

    def _run(self, part: Slice) -> SliceRun:
        run, longest = SliceRun(self._model, part.inputs, part.faults), max(map(len, self._answers))
        failures, started = part.faults.failures, perf_counter()
        prompts = {row: self._prompt(part.inputs, row) for row in part.todo.tolist()}
        for row, prompt in prompts.items():
            failures[row] = self._refused(prompt, longest)
        ok = np.array([row for row in prompts if failures[row] is None], np.intp)
        if len(ok):
            for name, values in self._scores([prompts[row] for row in ok]).items():
                run.results[name] = np.zeros((len(failures), *values.shape[1:]), values.dtype)
                run.results[name][ok] = values
            run.keep(ok)
        run.timer.num_tokens = run.timer.num_padded = sum(len(prompts[row]) for row in ok)
        run.timer.add(0.0, perf_counter() - started, 0.0)
        return run

    def _scores(self, prompts: Sequence[Sequence[int]]) -> Arrays:
        """Return the results of rows as `Choices.reduce` names them, each (N, ...)."""
        outputs = torch.from_numpy(self._means(prompts) - self._prior).float()
        reduced_rows = self._model.task.reduce(outputs, len(prompts))
        return {name: values.numpy() for name, values in reduced_rows.items()}

    def _means(self, prompts: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Return the mean log-likelihood of each answer after prompts, float64 (N, K)."""
        from vllm import SamplingParams

        model = self._model
        known: list[dict[tuple[int, ...], float]] = [{} for _ in prompts]

        def take(
            of_row: dict[tuple[int, ...], float],
            begun: Sequence[int],
            _: Sequence[int],
            chances: Sequence[Mapping[int, float]],
        ) -> bool:
            of_row |= {(*begun, token): chance for token, chance in chances[0].items()}
            return True

        def begin() -> None:
            for of_row, prompt in zip(known, prompts, strict=True):
                for begun, asked in self._asked:
                    params = SamplingParams(
                        temperature=0, max_tokens=1, logprob_token_ids=asked, detokenize=False
                    )
                    model.add([*prompt, *begun], params, partial(take, of_row, begun))

        model.call(begin)
        while model.is_busy:
            model.call(model.step)
            still_alive()
        ends = [[(*answer[: n + 1],) for n in range(len(answer))] for answer in self._answers]
        means = [
            [fmean(of_row[end] for end in of_answer) for of_answer in ends] for of_row in known
        ]
        return np.array(means, np.float64)
