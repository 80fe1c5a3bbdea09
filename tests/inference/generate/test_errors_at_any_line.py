"""Test that an error at any line of the code that runs a slice loses and changes no row:
each row comes out as without the error, or has failed, or the slice raises."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
import torch
from support.models.language_models import choosing, make_writer, prepared, writing

from pipeline.inference import result_table, slice_run
from pipeline.inference.engines import open_engine, torch_engine
from pipeline.inference.generate import generate_engine, greedy, rules
from pipeline.models.directories.text import choices
from pipeline.models.generate import causal, decoding, grammar
from pipeline.models.spec import ModelSpec, PredictorConfig

TRACED = {
    module.__file__
    for module in (
        *(generate_engine, greedy, rules, torch_engine),
        *(slice_run, result_table, causal, grammar, choices),
        decoding,
    )
}
TEXTS = [f"the cat sat on the mat {'and on ' * (n % 4)}{n}" for n in range(7)]
RULES = {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "suppress_tokens": [90, 91],
         "bad_words_ids": [[60, 61]], "min_new_tokens": 2, "forced_eos_token_id": 2}  # fmt: skip
SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["a", "bc", "dog"]}},
          "required": ["kind"]}  # fmt: skip
ERRORS: dict[str, Callable[[], BaseException]] = {
    "memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much"),
    "value": lambda: ValueError("injected"),
    "panic": lambda: PanicException("injected"),
}
VISITS = (1, 5)
"""Of a line in a slice: an error comes at one of them."""


class PanicException(BaseException):
    """As the libraries in Rust raise it."""


class Place(NamedTuple):
    """Where an error is raised."""

    file: str
    line: int
    visit: int


Visit = Callable[[str, int], None]


@contextmanager
def traced(visit: Visit) -> Iterator[None]:
    """Call a function before each line of TRACED, which may raise there."""

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            visit(frame.f_code.co_filename, frame.f_lineno)
        return local

    def called(frame: FrameType, _: str, __: Any) -> Any:
        return local if frame.f_code.co_filename in TRACED else None

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


class Subject:
    """A model, its rows, and what comes out undisturbed."""

    def __init__(self, spec: ModelSpec) -> None:
        self._config = PredictorConfig(spec, 4, 0.0, 1, pa.schema([]), batch_tokens=400)
        self._rows, self._engine = prepared(spec, TEXTS), open_engine(self._config)
        self.predicted()  # what is imported or made once
        visits = Counter[tuple[str, int]]()
        with traced(lambda *line: visits.update([line])):
            self._expected = self.predicted()
        assert not any(row["error"] for row in self._expected)
        self.places = [
            Place(*line, visit) for line, n in visits.items() for visit in VISITS if visit <= n
        ]

    def predicted(self) -> list[dict[str, Any]]:
        predicted_rows: list[dict[str, Any]] = self._engine.predict(self._rows, {}).to_pylist()
        return [
            {**row, "top_k": None} for row in predicted_rows
        ]  # the label and its score are beside it

    def require_no_silent_difference(self, place: Place, error: BaseException) -> None:
        """Raise an error at a place, and compare each row with the undisturbed one."""
        left = place.visit

        def visit(*line: Any) -> None:
            nonlocal left
            left -= line == place[:2]
            if line == place[:2] and left == 0:
                raise error

        try:
            with traced(visit):
                predicted_rows = self.predicted()
        except (Exception, PanicException):  # noqa: BLE001  # raised, thus not silent
            self._engine = open_engine(self._config)  # a buffer may not have been given back
            return
        assert left <= 0, "the error was raised"
        model: Any = self._engine
        model._model.limits = self._config.limits_of_batch  # smaller after lack of memory
        for row, expected in zip(predicted_rows, self._expected, strict=True):
            if row["error"] is None:
                assert row == pytest.approx(expected, abs=1e-4), place


JOBS = {
    "texts": lambda path: writing(path, generate={"max_new_tokens": 10, "stop": ("zz",)}),
    "records": lambda path: writing(path, generate={"schema": SCHEMA}),
    "answers": lambda path: writing(path, generate={"max_new_tokens": 10}),
    "choices": lambda path: choosing(path, top_k=1),
}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    folder = tmp_path_factory.mktemp("language")

    @cache
    def subject(name: str) -> Subject:
        path = make_writer(folder / name, "bart" if name == "answers" else "llama")
        if name == "texts":
            config = path / "generation_config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), **RULES}))
        return Subject(JOBS[name](path))

    return subject


@pytest.mark.parametrize("job", ["texts", "answers"])
def test_at_some_lines_by_which_rows_enter_and_leave(job: str, subjects: Callable[[str], Subject]):
    subject, errors = subjects(job), itertools.cycle(ERRORS.values())
    files = (greedy.__file__, causal.__file__, decoding.__file__)
    places = [place for place in subject.places if place.file in files]
    for place in random.Random(7).sample(places, 5):
        subject.require_no_silent_difference(place, next(errors)())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("job", JOBS)
def test_at_every_line(job: str, error: str, subjects: Callable[[str], Subject]):
    subject = subjects(job)
    assert len(subject.places) > 150
    for place in subject.places:
        subject.require_no_silent_difference(place, ERRORS[error]())
