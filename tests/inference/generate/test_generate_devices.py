"""The engine that writes where memory or numbers run out, on a stand-in for a GPU: no good row is
lost, and a row at fault costs itself alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch
from inference.generate.test_generate_engine import TEXTS, config_of, meeting
from support.faults.fake_device import FakeGpu, installed
from support.models.language_models import make_writer, prepared, writing

from pipeline.inference.devices import device_errors
from pipeline.inference.devices.accelerator import PAUSES_S
from pipeline.inference.generate.generate_engine import GenerateEngine
from pipeline.models.generate.decoding import Decoding
from pipeline.models.spec import ModelSpec

BAD, ROOM = 3, 3
COLUMNS = ["row_id", "text", "num_output_tokens", "finish_reason", "error"]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return writing(make_writer(tmp_path_factory.mktemp("language") / "m"))


@pytest.fixture(scope="module")
def rows(spec: ModelSpec) -> pa.Table:
    return prepared(spec, [*TEXTS[:BAD], "a film " * 9, *TEXTS[BAD:6]])


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
    meeting(engine, spec, rows, [BAD], no_memory)
    outputs = written(engine, rows)
    assert [n for n, row in enumerate(outputs) if row["error"]] == [BAD]
    assert (outputs[BAD]["error"], outputs[BAD]["text"]) == ("out_of_memory", None)
    assert outputs[:BAD] + outputs[BAD + 1 :] == expected[:BAD] + expected[BAD + 1 :]
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

    meeting(engine, spec, rows, [BAD], fail)
    outputs = written(engine, rows)
    assert [n for n, row in enumerate(outputs) if row["error"]] == [BAD]
    assert outputs[BAD]["error"] == "model_error"
    assert len(gpu.pauses_s) == 1


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_a_row_whose_logits_are_not_finite_fails_alone(
    gpu: FakeGpu, spec: ModelSpec, rows: pa.Table, precision: str
):
    engine = GenerateEngine(replace(config_of(replace(spec, precision=precision)), num_gpus=1.0))
    meeting(engine, spec, rows, [BAD], lambda out, place: out.logits[place].fill_(torch.inf))
    outputs = engine.predict(rows, {}).to_pylist()
    assert [n for n, row in enumerate(outputs) if row["error"]] == [BAD]
    assert outputs[BAD]["error"] == "non_finite"
    assert ("model.precision fp32" in outputs[BAD]["message"]) == (precision == "bf16")


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
        meeting(engine, spec, rows, [BAD], lambda *_: torch.embedding(table, beyond))
        with pytest.raises(
            Ended, match=r"its CUDA context is lost \(RuntimeError: CUDA error: devi"
        ):
            written(engine, rows)
