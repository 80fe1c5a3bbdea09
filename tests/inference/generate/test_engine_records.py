"""Test that each row has a record of its schema or a reason, whatever its neighbours are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest
from support.models.feature_writers import (
    CLIPS,
    SPEECH,
    feature_writing,
    images,
    make_feature_writer,
    prepared_features,
)
from support.models.language_models import TEXTS, make_writer, predicted, prepared, writing
from support.models.record_schemas import REVIEW

from pipeline.core.errors import JobError
from pipeline.inference.generate.generate_engine import GenerateEngine
from pipeline.inference.generate.greedy import Outputs
from pipeline.models.generate.schema import canonical
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.preprocessing.model_input import BatchLimits

NEW = 70
FEW = BatchLimits(3, 300)
MANY = [*TEXTS, '"}]', "<|im_end|>", "{}", "cat " * 20]
RULES = {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "suppress_tokens": [*range(90, 99)],
         "min_new_tokens": 9, "begin_suppress_tokens": [*range(5, 200)]}  # fmt: skip
SHORT: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "named": {"type": "string", "maxLength": 9}},
    "required": ["kind", "named"],
}
OPEN = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_writer(tmp_path_factory.mktemp("writes") / "m", eos_token_id=[2])


def recording(path: Path, schema: Any = REVIEW) -> ModelSpec:
    return writing(path, generate={"max_new_tokens": NEW, "schema": schema})


def ruled(folder: Path, family: str, rules: dict[str, Any]) -> ModelSpec:
    path = make_writer(folder, family, eos_token_id=[2])
    file = path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **rules}))
    return recording(path)


@pytest.mark.parametrize(
    ("family", "rules"),
    [
        pytest.param(family, rules, marks=[pytest.mark.slow] * (number > 0))
        for number, (family, rules) in enumerate(
            (family, rules)
            for family in ("llama", "bart")
            for rules in ({}, RULES, {"forced_bos_token_id": 0, "forced_eos_token_id": 2})
        )
    ],
)
def test_each_row_has_a_record_or_a_reason(family: str, rules: dict[str, Any], tmp_path: Path):
    spec = ruled(tmp_path / "m", family, rules)
    rows = prepared(spec, MANY)
    outputs = predicted(spec, rows, BatchLimits(64, 10_000))
    validator = jsonschema.Draft202012Validator(REVIEW)
    for row in outputs:
        columns = {name: row[name] for name in REVIEW["properties"]}
        if row["error"]:
            assert row["error"] == "output_truncated"
            assert {row["text"], *map(str, columns.values())} == {None, "None"}
            continue
        assert row["finish_reason"] == "stop"
        validator.validate(json.loads(row["text"]))
        assert columns == {**dict.fromkeys(columns), **json.loads(row["text"])}
    assert sum(row["error"] is None for row in outputs) > len(MANY) // 2
    assert len({row["text"] for row in outputs}) > 2
    alone = predicted(spec, rows, FEW)
    assert [row["text"] for row in alone] == [row["text"] for row in outputs]
    engine = engine_of(spec)
    written = [row for row in written_by(engine, rows).values() if row.matcher.is_done]
    assert len(written) == sum(row["error"] is None for row in outputs)
    assert engine._num_agreed(written, engine._input.arrays(rows)) == len(written)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*SPEECH, "trocr", "donut", "blip", "git", "llava", "smolvlm"])
def test_clips_and_images_have_records_too(family: str, tmp_path: Path):
    path = make_feature_writer(tmp_path / "m", family, eos_token_id=[2])
    spec = feature_writing(path, {"max_new_tokens": 50, "schema": SHORT})
    rows = prepared_features(spec, CLIPS if family in SPEECH else images())
    outputs = predicted(spec, rows, BatchLimits(3))
    for row in outputs:
        assert row["error"] in (None, "output_truncated")
        if row["error"] is None:
            assert {name: row[name] for name in SHORT["properties"]} == json.loads(row["text"])
    assert sum(row["error"] is None for row in outputs) > len(outputs) // 2
    engine = engine_of(spec)
    held = written_by(engine, rows)
    written = [held[n] for n, row in enumerate(outputs) if row["error"] is None]
    assert engine._num_agreed(written, engine._input.arrays(rows)) == len(written)


def engine_of(spec: ModelSpec) -> GenerateEngine:
    return GenerateEngine(PredictorConfig(spec, 64, 0.0, 1, pa.schema([]), batch_tokens=10_000))


def written_by(engine: GenerateEngine, table: pa.Table) -> dict[int, Any]:
    """Write the rows of a slice; return them as they have ended."""
    inputs, places = engine._input.arrays(table), np.arange(table.num_rows)
    held = Outputs(inputs, [None] * table.num_rows)
    failure, _ = engine._try(places, held)
    assert failure is None
    return held.written


def test_the_check_knows_which_tokens_may_come(llama: Path):
    engine = engine_of(recording(llama))
    rows = prepared(engine._config.spec, ["a good film"])
    inputs, module = engine._input.arrays(rows), engine._module
    row = written_by(engine, rows)[0]
    assert engine._num_agreed([row], inputs) == 1
    assert module.grammar is not None
    for step in range(0, len(row.tokens), 7):
        matcher = module.grammar.begin()
        matcher.take(row.tokens[:step])
        [mask] = module.grammar.mask([matcher], 300)
        mask[row.tokens[step]] = False
        for other in (mask.argmax(), (~mask).argmax()):  # one that may come, and one that may not
            wrong = replace(row, tokens=[*row.tokens[:step], int(other)])
            assert engine._num_agreed([wrong], inputs) == (int(other) == row.tokens[step])
    module.grammar = None
    assert engine._num_agreed([row], inputs) == 0  # the model alone writes something else


def test_what_has_no_end_or_is_no_record_has_its_reason(llama: Path):
    spec = recording(llama, OPEN)
    long = [row for row in predicted(spec, prepared(spec, MANY[:5])) if row["error"]]
    assert {row["error"] for row in long} == {"output_truncated"}
    assert "generate.max_new_tokens) and no end" in long[0]["message"]
    engine = engine_of(recording(llama))
    rows = prepared(engine._config.spec, MANY[:5])
    before, text = engine.predict(rows, {}).to_pylist(), engine._module.text
    engine._module.text = lambda tokens: text(tokens).replace("stars", "stairs")
    for row, good in zip(engine.predict(rows, {}).to_pylist(), before, strict=True):
        assert row["error"] == (good["error"] or "output_invalid")
        assert good["error"] or "schema: 'stars' is a required property" in row["message"]
        assert row["stars"] is None


def test_columns_and_fingerprint_are_those_of_the_schema(llama: Path, tmp_path: Path):
    file = tmp_path / "review.json"
    file.write_text(json.dumps(REVIEW, indent=2))
    inline, by_path, other, texts = (
        writing(llama, generate={"schema": schema}) for schema in (REVIEW, str(file), OPEN, None)
    )
    assert inline.to_dict() == by_path.to_dict()
    assert len({json.dumps(spec_of_text.to_dict()) for spec_of_text in (inline, other, texts)}) == 3
    assert "schema" not in json.dumps(texts.to_dict())
    names = [field.name for field in inline.output_fields()]
    assert names[: len(texts.output_fields())] == [field.name for field in texts.output_fields()]
    assert names[-len(REVIEW["properties"]) :] == [*REVIEW["properties"]]
    task = make_task(inline.task)
    assert task.measured_columns()[-3:] == ("mood", "stars", "sure")
    assert canonical(REVIEW) == inline.task.generation.schema


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", r"model\.generate\.schema = .*s\.json: is not? JSON"),
        ("[" * 99_999, r"is not? JSON"),
        ("{}", r"s\.json: type is \[\], expected one of"),
        ('{"type": "object", "properties": {"a": {"type": "string", "pattern": "a"}}}',
         r's\.json: properties\.a: "pattern" is not supported'),
        (None, r"s\.json: no such file"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_schema_is_refused_in_a_line(
    content: str | None, problem: str, llama: Path, tmp_path: Path
):
    if content is not None:
        (tmp_path / "s.json").write_text(content)
    with pytest.raises(JobError, match=problem) as refused:
        recording(llama, str(tmp_path / "s.json"))
    assert str(refused.value).isprintable()
