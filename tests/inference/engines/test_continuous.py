"""The library's continuous batching: taken only where it writes what own batches write, and a row
that it does not write is written all the same.

It runs on the CPU here, by SDPA: no test has seen it on a card, where an actor tries it first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
import torch
from inference.engines.test_generate_engine import TEXTS, config_of
from support.faults.fake_device import FakeGpu, installed
from support.models.choosing import prepared
from support.models.generating import NEW_TOKENS, make_writer, writing

from pipeline.core.figures.counters import Counters
from pipeline.core.figures.slice_figures import SliceFigures
from pipeline.inference.engines.continuous import AGAIN, NOT_TAKEN, TAKEN, Continuous
from pipeline.inference.engines.generate_engine import GenerateEngine
from pipeline.inference.engines.library_batches import Prompted, rows_at_once, write_rows
from pipeline.inference.engines.rules import Row
from pipeline.models.directories.text.writing.decoding import Decoding
from pipeline.models.spec import ModelSpec
from pipeline.preprocessing.model_input import BatchLimits

TRIED = 8
"""Rows of the first batch here."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return writing(make_writer(tmp_path_factory.mktemp("language") / "m"))


def asking(
    spec: ModelSpec, attention: str = "sdpa", most_share: float = math.inf, **options: Any
) -> GenerateEngine:
    """Return the engine of an actor that asks the library on a CPU, however long it takes."""
    engine = GenerateEngine(replace(config_of(spec), **options), ends_process=True)
    own = engine._write, engine._keep
    parts = engine._model, engine._generation, own
    engine._continuous = Continuous(*parts, attention, most_share)
    return engine


def predicted(engine: GenerateEngine, rows: pa.Table) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a slice, and what the report says."""
    counters: Counters = {}
    found = engine.predict(rows, counters).to_pylist()
    return found, SliceFigures.from_json(counters).advice_told


def require_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        likelihood = pytest.approx(theirs["mean_logprob"], abs=1e-4)
        assert mine == {**theirs, "mean_logprob": likelihood}


def before_each_pass(engine: GenerateEngine, number: int, act: Callable[[], object]) -> None:
    """Call a function before a pass of the model, counted from now on."""
    module, passes = engine._model.module, [0]
    assert isinstance(module, Decoding)

    def count(*_: object) -> None:
        passes[0] += 1
        if passes[0] == number:
            act()

    module.model.register_forward_pre_hook(count)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(each, marks=SLOW) for each in ("gpt2", "mistral", "qwen2"))]
)
def test_texts_and_likelihoods_are_those_of_own_batches(family: str, tmp_path: Path):
    spec = writing(make_writer(tmp_path / "m", family))
    rows, engine = prepared(spec, TEXTS), asking(spec)
    expected = GenerateEngine(config_of(spec)).predict(rows, {}).to_pylist()
    for by_library in (len(TEXTS) - TRIED, len(TEXTS)):
        found, told = predicted(engine, rows)
        require_same(found, expected)
        assert told == [f"{TAKEN}: {by_library} rows"]


@SLOW
def test_two_slices_of_an_actor_share_its_gpu_and_neither_disturbs_the_other(spec: ModelSpec):
    expected = GenerateEngine(config_of(spec)).predict(prepared(spec, TEXTS), {}).to_pylist()
    with installed(FakeGpu()):
        engine = asking(spec, num_gpus=1.0)
        with ThreadPoolExecutor(2) as threads:
            slices = [prepared(spec, TEXTS)] * 4
            for found, told in threads.map(lambda rows: predicted(engine, rows), slices):
                require_same(found, expected)
                assert [line.startswith(TAKEN) for line in told] == [True]


@SLOW
@pytest.mark.parametrize(
    ("family", "attention", "reason"),
    [
        ("opt", "sdpa", "get_seq_length"),
        ("gpt_neox", "sdpa", "missing 1 required positional argument"),
        ("llama", "flex_attention", "is not supported for continuous batching"),
        ("gemma2", "paged|eager", "log-probabilities of the same tokens differ"),  # drops its caps
    ],
)
def test_a_model_that_the_library_cannot_write_with_is_written_by_own_batches(
    family: str, attention: str, reason: str, tmp_path: Path
):
    spec = writing(make_writer(tmp_path / "m", family))
    rows, engine = prepared(spec, TEXTS), asking(spec, attention)
    expected = GenerateEngine(config_of(spec)).predict(rows, {}).to_pylist()
    found, [told] = predicted(engine, rows)
    require_same(found, expected)
    assert told.startswith(NOT_TAKEN.format(""))
    assert reason in told


def test_a_way_that_is_not_faster_is_not_taken(spec: ModelSpec):
    rows, engine = prepared(spec, TEXTS), asking(spec, most_share=0.0)
    assert predicted(engine, rows)[1] == [
        NOT_TAKEN.format("it takes more than 0% of their time for the first batch")
    ]


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")


def end_thread() -> None:
    raise SystemExit


@SLOW
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("act", "reason"),
    [(out_of_memory, "CUDA out of memory"), (end_thread, "its thread ended before the rows did")],
)
def test_rows_that_the_library_does_not_write_are_written_by_own_batches_and_counted(
    spec: ModelSpec, act: Callable[[], None], reason: str
):
    rows, engine = prepared(spec, TEXTS), asking(spec)
    expected, _ = predicted(engine, rows)
    before_each_pass(engine, 12, act)
    found, told = predicted(engine, rows)
    require_same(found, expected)
    [line] = [each for each in told if each.startswith(AGAIN.split("{}")[0])]
    assert reason in line
    again = int(line.split(": ")[-1].split()[0])
    assert 0 < again < len(TEXTS)  # some had ended
    assert f"{TAKEN}: {len(TEXTS) - again} rows" in told
    _, [later] = predicted(engine, rows)
    assert later.startswith(NOT_TAKEN.format(""))


@pytest.mark.parametrize(
    ("is_lost", "reason"), [(True, "it stood still"), (False, "no row ended in 120 passes")]
)
def test_a_request_that_never_ends_ends_the_session_and_costs_no_other_row(
    spec: ModelSpec, is_lost: bool, reason: str
):
    engine = asking(spec)
    model: Any = cast(Decoding, engine._model.module).model
    begin = model.init_continuous_batching

    def begin_with_faults(*args: Any) -> Any:
        manager = begin(*args)
        add = manager.add_request

        def add_request(ids: list[int], name: str, most: int, eos_token_id: list[int]) -> None:
            is_bad = name == "1"
            if is_bad and not is_lost:
                most, eos_token_id = 1_000_000, [-1]
            add(ids, name, most, eos_token_id=eos_token_id)
            if is_bad and is_lost:
                manager.cancel_request(name)  # no result tells of it

        manager.add_request = add_request
        return manager

    model.init_continuous_batching = begin_with_faults
    rows = [Prompted(Row(n), [5 + n, 40, 50]) for n in range(3)]
    problem = write_rows(model, engine._generation, rows, BatchLimits(3), "sdpa", still_s=0.5)
    assert problem.startswith(reason)
    assert [each.row.finish is None for each in rows] == [False, True, False]


def test_a_device_whose_process_ended_in_a_session_is_not_tried_again(spec: ModelSpec):
    engine, rows = asking(spec), prepared(spec, TEXTS)
    assert engine._continuous is not None
    mark = engine._continuous._mark()
    assert mark is not None
    found, [told] = predicted(engine, rows)
    require_same(found, GenerateEngine(config_of(spec)).predict(rows, {}).to_pylist())
    assert "has ended, or still does" in told
    mark.unlink()


def test_what_the_library_would_drop_is_not_asked_of_it(spec: ModelSpec):
    def told(**changes: Any) -> list[str]:
        engine = asking(spec)
        generation = replace(engine._generation, **changes)
        own = engine._write, engine._keep
        engine._continuous = Continuous(engine._model, generation, own, "sdpa")
        return predicted(engine, prepared(spec, TEXTS[:3]))[1]

    assert told() == []  # too few to try
    assert "generate.stop" in told(stop=("x",))[0]
    rules = replace(spec.task.generation.rules, min_new_tokens=4) if spec.task.generation else None
    assert "all rules" in told(rules=rules)[0]


def test_an_actor_on_a_cpu_asks_nothing_and_says_nothing(spec: ModelSpec):
    engine = GenerateEngine(config_of(spec), ends_process=True)
    rows = prepared(spec, TEXTS)
    found, told = predicted(engine, rows)
    assert told == []
    assert found == GenerateEngine(config_of(spec)).predict(rows, {}).to_pylist()


def test_rows_at_once_are_within_both_limits():
    rows = [Prompted(Row(n), [1] * (n + 1)) for n in range(10)]
    assert rows_at_once(rows, 6, BatchLimits(4)) == (4, 16)
    assert rows_at_once(rows, 6, BatchLimits(64, 100)) == (6, 16)
    assert rows_at_once(rows, 6, BatchLimits(64, 10)) == (1, 16)
    assert rows_at_once(rows, 6, BatchLimits(64, 1_000)) == (10, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_an_actor_says_which_way_it_took_and_writes_the_same(
    spec: ModelSpec, precision: str
):
    spec = replace(spec, precision=precision)
    config = replace(config_of(spec), num_gpus=1.0)
    rows = prepared(spec, TEXTS)
    expected = GenerateEngine(config).predict(rows, {}).to_pylist()
    engine = GenerateEngine(config, ends_process=True)
    predicted(engine, rows)
    found, [told] = predicted(engine, rows)
    assert told.startswith((TAKEN, NOT_TAKEN.format("")))
    same = sum(mine["text"] == own["text"] for mine, own in zip(found, expected, strict=True))
    assert same >= (len(TEXTS) if precision == "fp32" else len(TEXTS) // 2)
    assert all(row["num_output_tokens"] <= NEW_TOKENS for row in found)
