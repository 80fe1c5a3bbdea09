"""Test engine generate: rows at fault, counters, the reference check, and lack of memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from support.faults.fake_device import FakeGpu, installed
from support.models.language_models import NEW_TOKENS, make_writer, prepared, writing

from pipeline.core.failures import SystematicFailure
from pipeline.core.figures import PREFILL, Counters, SliceFigures
from pipeline.inference.devices import device_errors
from pipeline.inference.devices.accelerator import PAUSES_S
from pipeline.inference.first_rows import SystematicFailureDetector
from pipeline.inference.generate.generate_engine import GenerateEngine
from pipeline.inference.generate.greedy import is_repeating
from pipeline.inference.generate.rules import Row, num_agreed
from pipeline.models.agreement import AgreementLimits
from pipeline.models.generate.build import tensors_of
from pipeline.models.generate.decoding import Decoding
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.process.liveness import tell_parent

TEXTS = [f"the cat sat on the mat {'and on ' * (n % 4)}{n}" for n in range(12)]
BAD = 7


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return writing(make_writer(tmp_path_factory.mktemp("language") / "m"))


def config_of(spec: ModelSpec, **options: Any) -> PredictorConfig:
    run_id = uuid.uuid4().hex  # one process of a node compares for a run
    return PredictorConfig(
        spec, 5, 0.0, 1, pa.schema([]), batch_tokens=1_000, run_id=run_id, **options
    )


def meeting(engine: GenerateEngine, spec: ModelSpec, rows: pa.Table, places: list[int],
            meet: Callable[[Any, int], object]) -> None:  # fmt: skip
    """Call a function with outputs and a place in the batch where the first token of some rows is
    looked for."""
    inputs = spec.input.arrays(rows)
    last = {(inputs["input_ids"][n, c - 1], c - 1) for n, c in enumerate(inputs["num_tokens"])
            if n in places}  # fmt: skip

    def check(_: Any, __: Any, given: dict[str, Any], outputs: Any) -> None:
        ids, at = given["input_ids"], given["position_ids"]
        pairs = [*zip(ids.flatten().tolist(), at.flatten().tolist(), strict=True)]
        for place, pair in enumerate(pairs if ids.shape[1] == 1 else ()):
            if pair in last:
                meet(outputs, place)

    module = engine._model.module
    assert isinstance(module, Decoding)
    module.model.register_forward_hook(check, with_kwargs=True)


def failing(engine: GenerateEngine, spec: ModelSpec, rows: pa.Table, places: list[int]) -> None:
    """Let the model raise over batches with the first token of some rows."""

    def fail(_: Any, __: int) -> None:
        raise ValueError("what the text says")

    meeting(engine, spec, rows, places, fail)


def test_rows_over_which_the_model_raises_cost_only_themselves(spec: ModelSpec):
    rows = prepared(spec, [*TEXTS[:BAD], "a film " * 9, *TEXTS[BAD:]])
    plain = GenerateEngine(config_of(spec)).predict(rows, {}).to_pylist()
    engine = GenerateEngine(config_of(spec), SystematicFailureDetector(rows.num_rows))
    failing(engine, spec, rows, [BAD])
    outputs = engine.predict(rows, {}).to_pylist()
    assert [n for n, row in enumerate(outputs) if row["error"]] == [BAD]
    assert (outputs[BAD]["error"], outputs[BAD]["text"]) == ("model_error", None)
    assert "ValueError: what the text says" in outputs[BAD]["message"]
    expected = [row["text"] for n, row in enumerate(plain) if n != BAD]
    assert [row["text"] for n, row in enumerate(outputs) if n != BAD] == expected


def test_a_model_that_raises_over_every_row_is_no_rows_fault(spec: ModelSpec):
    rows = prepared(spec, TEXTS)
    engine = GenerateEngine(config_of(spec), SystematicFailureDetector(rows.num_rows))
    failing(engine, spec, rows, [*range(len(TEXTS))])
    with pytest.raises(SystematicFailure, match="12 rows of the first batches failed alike"):
        engine.predict(rows, {})


def test_tokens_and_lengths_are_counted(spec: ModelSpec):
    counters: Counters = {}
    rows = prepared(spec, TEXTS)
    outputs = GenerateEngine(config_of(spec)).predict(rows, counters).to_pylist()
    figures = SliceFigures.from_json(counters)
    assert figures.generated is not None
    assert figures.tokens is not None
    assert figures.generated.num_rows == len(TEXTS)
    assert figures.generated.num_tokens == sum(row["num_output_tokens"] for row in outputs)
    assert figures.tokens.num_tokens == sum(row["num_input_tokens"] for row in outputs)
    assert figures.tokens.num_padded >= figures.tokens.num_tokens
    assert sum(figures.output_lengths.values()) == len(TEXTS)
    assert {int(length) for length in figures.output_lengths} == {
        r["num_output_tokens"] for r in outputs
    }
    long = [row for row in outputs if row["finish_reason"] == "length"]
    assert figures.generated.num_long == len(long)
    assert figures.stage(PREFILL).rows_in == len(TEXTS)


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_each_step_of_an_output_says_that_the_process_gets_on(family: str, tmp_path: Path):
    """As limits count from one sign of life to the next, a long output is no hang."""
    spec = writing(make_writer(tmp_path / "m", family))
    rows, signs = prepared(spec, TEXTS), list[tuple[int, int]]()
    engine = GenerateEngine(config_of(spec))
    tell_parent(of_life=lambda num_rows, num_tokens: signs.append((num_rows, num_tokens)))
    try:
        lengths = engine.predict(rows, {}).column("num_output_tokens").to_pylist()
    finally:
        tell_parent()
    assert len(signs) >= max(lengths) > 5
    assert [sum(numbers) for numbers in zip(*signs, strict=True)] == [len(TEXTS), sum(lengths)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_slice_is_checked_by_one_pass_of_eager_fp32(spec: ModelSpec, precision: str):
    limits = AgreementLimits(max_score_diff=0.01, min_cosine=0.999, max_relative_error=0.01)
    config = config_of(replace(spec, precision=precision), limits=limits)
    engine = GenerateEngine(config)
    assert engine.awaits_reference_check
    checked = []
    for _ in range(2):
        counters: Counters = {}
        engine.predict(prepared(spec, TEXTS), counters)
        checked.append(SliceFigures.from_json(counters).reference_check)
        assert not engine.awaits_reference_check
    assert checked[0] is not None
    assert checked[0].num_rows == checked[0].num_agreed == len(TEXTS)
    assert checked[1] is None


def test_a_check_that_fails_is_made_with_the_next_slice(spec: ModelSpec):
    limits = AgreementLimits(max_score_diff=0.01, min_cosine=0.999, max_relative_error=0.01)
    engine = GenerateEngine(config_of(spec, limits=limits))
    module = engine._model.module
    assert isinstance(module, Decoding)
    rows, plain = prepared(spec, TEXTS), module.plain

    def lack_memory(*_: object) -> torch.Tensor:
        module.plain = plain  # type: ignore[method-assign]
        raise torch.OutOfMemoryError("CUDA out of memory")

    module.plain = lack_memory  # type: ignore[assignment, method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        engine.predict(rows, {})
    counters: Counters = {}
    assert engine.awaits_reference_check
    engine.predict(rows, counters)
    assert SliceFigures.from_json(counters).reference_check


class PanicException(BaseException):
    """As tokenizers raises it."""


def test_a_row_whose_tokens_are_no_text_costs_itself_alone(spec: ModelSpec):
    engine, rows = GenerateEngine(config_of(spec)), prepared(spec, TEXTS)
    expected = engine.predict(rows, {}).to_pylist()
    bad = max(range(len(TEXTS)), key=lambda n: len(expected[n]["text"]))
    module = engine._model.module
    assert isinstance(module, Decoding)
    text = module.text

    def decode(tokens: Sequence[int]) -> str:
        if text(tokens) == expected[bad]["text"]:
            raise PanicException("no text")
        return text(tokens)

    module.text = decode
    outputs = engine.predict(rows, {}).to_pylist()
    assert outputs[bad]["error"] == "model_error"
    assert "PanicException: no text" in outputs[bad]["message"]
    assert outputs[:bad] + outputs[bad + 1 :] == expected[:bad] + expected[bad + 1 :]


def test_a_token_that_is_not_the_best_does_not_agree(spec: ModelSpec):
    engine = GenerateEngine(config_of(spec))
    module, generation = engine._model.module, spec.task.generation
    assert isinstance(module, Decoding)
    assert generation is not None
    prompt = [1, 40, 50, 60]
    row, tensors = Row(0, before=prompt), tensors_of([prompt])
    with torch.inference_mode():
        while len(row.tokens) < NEW_TOKENS:
            row.tokens.append(int(module.plain(tensors, prompt, [*row.tokens, 0])[-1].argmax()))

    def agreed() -> int:
        return num_agreed(module, generation, [row], "fp32", lambda _: nullcontext(tensors))

    assert agreed() == 1
    row.tokens[3] = (row.tokens[3] + 1) % 300
    assert agreed() == 0


def test_what_repeats_itself_is_told_from_what_does_not():
    assert is_repeating([5, *[7] * 24])
    assert is_repeating([5, *[1, 2, 3] * 9])
    assert not is_repeating([*range(100)])
    assert not is_repeating([7] * 10)
    assert not is_repeating([*range(20)] * 2)


AT_FAULT, ROOM = 3, 3
COLUMNS = ["row_id", "text", "num_output_tokens", "finish_reason", "error"]


@pytest.fixture(scope="module")
def rows(spec: ModelSpec) -> pa.Table:
    return prepared(spec, [*TEXTS[:AT_FAULT], "a film " * 9, *TEXTS[AT_FAULT:6]])


@pytest.fixture(scope="module")
def expected(spec: ModelSpec, rows: pa.Table) -> list[dict[str, Any]]:
    return written(GenerateEngine(config_of(spec)), rows)


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with installed(FakeGpu()) as made:
        yield made


def written(engine: GenerateEngine, rows: pa.Table) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = engine.predict(rows, {}).select(COLUMNS).to_pylist()
    return outputs


def no_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")


def before_passes(engine: GenerateEngine, hook: Callable[[int], object]) -> None:
    """Call a function with the number of rows before each pass of the model."""
    module = engine._model.module
    assert isinstance(module, Decoding)
    module.model.register_forward_pre_hook(
        lambda _, __, given: hook(len(given["input_ids"])), with_kwargs=True
    )


def test_lack_of_memory_in_a_step_halves_the_batch_and_loses_no_row(
    gpu: FakeGpu, spec: ModelSpec, rows: pa.Table, expected: list[dict[str, Any]]
):
    engine = GenerateEngine(replace(config_of(spec), num_gpus=1.0))
    sizes = list[int]()

    def run(num_rows: int) -> None:
        sizes.append(num_rows)
        if num_rows > ROOM:
            no_memory()

    before_passes(engine, run)
    assert written(engine, rows) == expected
    assert max(sizes) > ROOM
    sizes.clear()
    assert written(engine, rows) == expected  # later slices begin within what there is room for
    assert max(sizes) <= ROOM
    assert gpu.pauses_s == []


def test_a_row_for_which_there_is_no_memory_alone_costs_itself_alone(
    gpu: FakeGpu, spec: ModelSpec, rows: pa.Table, expected: list[dict[str, Any]]
):
    engine = GenerateEngine(replace(config_of(spec), num_gpus=1.0))
    meeting(engine, spec, rows, [AT_FAULT], no_memory)
    outputs = written(engine, rows)
    assert [n for n, row in enumerate(outputs) if row["error"]] == [AT_FAULT]
    assert (outputs[AT_FAULT]["error"], outputs[AT_FAULT]["text"]) == ("out_of_memory", None)
    others = [n for n in range(len(expected)) if n != AT_FAULT]
    assert [outputs[n] for n in others] == [expected[n] for n in others]
    assert gpu.pauses_s == [*PAUSES_S]  # others may have held it


@pytest.mark.slow
def test_a_row_that_lacks_memory_and_then_fails_otherwise_costs_itself_alone(
    gpu: FakeGpu, spec: ModelSpec, rows: pa.Table, expected: list[dict[str, Any]]
):
    engine = GenerateEngine(replace(config_of(spec), num_gpus=1.0))

    def fail(*_: object) -> None:
        if gpu.pauses_s:
            raise ValueError("what the text says")
        no_memory()

    meeting(engine, spec, rows, [AT_FAULT], fail)
    outputs = written(engine, rows)
    assert [n for n, row in enumerate(outputs) if row["error"]] == [AT_FAULT]
    assert outputs[AT_FAULT]["error"] == "model_error"
    assert len(gpu.pauses_s) == 1


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_a_row_whose_logits_are_not_finite_fails_alone(
    gpu: FakeGpu, spec: ModelSpec, rows: pa.Table, precision: str
):
    engine = GenerateEngine(replace(config_of(replace(spec, precision=precision)), num_gpus=1.0))
    meeting(engine, spec, rows, [AT_FAULT], lambda out, place: out.logits[place].fill_(torch.inf))
    outputs = engine.predict(rows, {}).to_pylist()
    assert [n for n, row in enumerate(outputs) if row["error"]] == [AT_FAULT]
    assert outputs[AT_FAULT]["error"] == "non_finite"
    assert ("model.precision fp32" in outputs[AT_FAULT]["message"]) == (precision == "bf16")


@pytest.mark.parametrize("share", [pytest.param(0.95, marks=pytest.mark.slow), 0.6])
def test_keys_and_values_that_do_not_fit_make_batches_smaller_and_lose_no_row(
    spec: ModelSpec, rows: pa.Table, expected: list[dict[str, Any]], share: float
):
    with installed(FakeGpu(watches_calls=True)) as gpu:
        engine = GenerateEngine(replace(config_of(spec), num_gpus=1.0))
        assert written(engine, rows) == expected
        assert gpu.pauses_s == []
        limits = engine._model.limits
        gpu.total_bytes = int(share * gpu.most_bytes)
        assert written(engine, rows) == expected
        assert engine._model.limits.rows < limits.rows


def test_a_token_beyond_the_table_loses_the_context_and_ends_the_process(
    spec: ModelSpec, rows: pa.Table, monkeypatch: pytest.MonkeyPatch
):
    class Ended(BaseException):
        pass

    def end(why: str) -> None:
        raise Ended(why)

    monkeypatch.setattr(device_errors, "end_process", end)
    with installed(FakeGpu(watches_calls=True)):
        engine = GenerateEngine(replace(config_of(spec), num_gpus=1.0))
        table, beyond = torch.zeros(4, 2), torch.tensor([4])
        meeting(engine, spec, rows, [AT_FAULT], lambda *_: torch.embedding(table, beyond))
        with pytest.raises(
            Ended, match=r"its CUDA context is lost \(RuntimeError: CUDA error: devi"
        ):
            written(engine, rows)
