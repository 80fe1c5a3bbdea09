"""What a job file cannot be: one line with the field, the value and what would be right.

A case is what it says besides, or in place of, a job over images or, if it names a format, a table.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from support.runs.jobs import DATE

from pipeline.core.errors import JobError
from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.job.reading.yaml_reader import parse_value

MINIMAL = {
    "source": {"uri": "in", "format": "images"},
    "model": {"name": "tiny"},
    "sink": {"uri": "out"},
}
GIVE_ONE = "give one of image_column, audio_column, "
ARGUMENT = "has the name of an argument of the model's forward"
AT_LEAST_1 = "Input should be greater than or equal to 1"
PARTITION = "write key=value, such as date=2026-11-24: letters, digits and _"
SIDES = r"a positive integer, or two: \[height, width\]"
SOURCE = [
    ("source: {format: avro}", "source.format = 'avro': .*'images', "),
    ("source: {format: text}", "for texts, use format parquet"),
    ("source: {uri: ''}", "source.uri = '': String should have at least 1 character"),
    ("source: {max_image_px: 0}", f"source.max_image_px = 0: {AT_LEAST_1}"),
    ("source: {pass_through: [a, b, a]}", "source.pass_through: name each column once"),
    ("source: {pass_through: {x: a, y: a}}", "source.pass_through: name each column once"),
    ("source: {text: text}", "source.text: unknown key; for texts, use format"),
    ("source: {text_column: x}", "text_column has no effect with format 'images'"),
    ("source: {format: webdataset, image_encoding: base64}", "no effect with format 'webdataset'"),
    ("source: {format: jsonl, image_column: x}", "format 'jsonl' holds texts"),
    ("source: {format: csv, text_column: x, image_extensions: [png]}", "no effect with format"),
    ("source: {format: parquet, image_encoding: hex}", "'binary' or 'base64'"),
    ("source: {format: parquet, text_column: x, max_text_bytes: 0}", AT_LEAST_1),
    ("source: {format: parquet, text_column: x, features: [a]}", GIVE_ONE),
    ("source: {format: parquet, text_column: x, uri_column: a}", GIVE_ONE),
    ("source: {format: parquet, text_column: x, image_column: a}", GIVE_ONE),
    ("source: {format: parquet, audio_column: x, uri_column: a}", GIVE_ONE),
    ("source: {format: parquet, features: [x], uri_column: a}", GIVE_ONE),
    ("source: {format: parquet, image_column: x, input: audio}", "needs audio_column or uri_colu"),
    ("source: {format: parquet, text_column: x, input: audio}", "needs audio_column or uri_column"),
    ("source: {format: parquet, audio_encoding: base64}", "has no effect without audio_column"),
    ("source: {format: parquet, text_pair_column: x}", "has no effect without text_column"),
    ("source: {format: parquet, max_text_bytes: 5}", "has no effect without text_column"),
    (
        "source: {format: parquet, text_column: x, image_encoding: base64}",
        "image_encoding has no effect without image_column",
    ),
    (
        "source: {format: parquet, uri_column: x, image_encoding: binary}",
        "image_encoding has no effect without image_column",
    ),
]
INPUTS = [
    ("{a: {}}", f"source.inputs.a: {GIVE_ONE}uri_column, text_column and features"),
    (
        "{a: {image_column: x, text_column: y}}",
        f"source.inputs.a: {GIVE_ONE}uri_column, text_column and features",
    ),
    ("{a: {image_column: x, lossy_features: true}}", "lossy_features has no effect without featu"),
    ("{a: {image_column: x}}, text_column: y", "text_column and inputs"),
    ("{a: {image_column: x}}, input: image", "input has no effect with inputs"),
    ("{a: {image_column: x}}, uri_roots: [r]", "uri_roots has no effect without uri_column"),
    *(
        (f"{{{name!r}: {{image_column: x}}}}", ARGUMENT)
        for name in ("a b", "_a", "a_", "\u00e4", "a__b", "for")
    ),
]
FEATURES = [
    ("3", r"source\.features\.0 = 3: Input should be a valid string"),
    ("{column: p, categorie: [a]}", r"0\.categorie: unknown key, did you mean categories\?"),
    ("{column: p, categories: [1.5]}", r"0\.categories\.0 = 1.5: .* valid string; quote it"),
    ("{column: p, categories: [a, a]}", "name each of categories once"),
    ("{column: p, categories: []}", "categories must name at least one value"),
    ("{column: p, categories: [a], read_as: days}", "give read_as or categories"),
    ("{column: p, unknown: own}", "unknown has no effect without categories"),
    ("{column: p, encoding: index}", "encoding has no effect without categories"),
    (
        "{column: p, categories: [a], encoding: index, unknown: zero}",
        "unknown: zero would mean the first category, an index; give own",
    ),
    (
        "{column: p, categories: [a], encoding: index, null: zero}",
        "null: zero would mean the first category, an index; give unknown",
    ),
    ("{column: p, categories: [a], null: 3}", "null cannot be a number in a column of categories"),
    ("{column: p, read_as: text, null: zero}", "null has no effect with read_as: text"),
    ("{column: p, null: unknown}", "null: unknown has no effect without categories"),
    ("{column: p, null: zer}", r"0\.null = 'zer': .*did you mean zero\?"),
    ("{column: p, null: 1e39}", "null is too large for float32"),
    ("{column: p, read_as: hours}", r"read_as = 'hours': .*did you mean hour\?"),
    ("{column: p, origin: '2026-01-01'}", "origin has no effect without read_as"),
    ("{column: p, read_as: days, origin: soon}", "origin = soon: write 2026-01-31"),
]
TRANSFORM = [
    ("interpolation: cubic", "transform.interpolation = 'cubic': .*'bicubic' or 'lanczos'"),
    ("std: [58.4, 57.1, 57.4]", "std must be between 0 and 1: divide by 255"),
    ("std: [0.2, 0.0, 0.2]", "above 0"),
    ("size_px: [224, 0]", SIDES),
    ("size_px: [224]", SIDES),
    ("size_px: [1, 2, 3]", SIDES),
    ("resize_px: [true, 3]", SIDES),
    ("size_px: 0", f"transform.size_px = 0: expected {SIDES}"),
    ("size_px: '64'", f"transform.size_px = '64': expected {SIDES}"),
    ("letterbox: true", "transform.letterbox: unknown key; for a letterbox, use resize: pad"),
    ("grey: true", "for one channel, use channels: gray"),
    ("channels: grey", r"did you mean gray\?"),
    ("resize: squash", "both sides to size_px, use resize: stretch"),
    ("pad_value: 256", "an integer from 0 to 255, or one per channel"),
    ("pad_value: -1", "an integer from 0 to 255, or one per channel"),
    ("pad_value: [0, 300, 0]", "an integer from 0 to 255, or one per channel"),
    ("args: {a: 1}", "args has no effect without factory"),
]
MODEL = [
    ("name: null", "model: give exactly one of path, name and factory"),
    ("factory: models:colours", "model: give exactly one of path, name and factory"),
    ("batch_size: '64'", "model.batch_size = '64': Input should be a valid integer"),
    ("batch_size: true", "model.batch_size = True: Input should be a valid integer"),
    ("batch_size: 6.5", "model.batch_size = 6.5: Input should be a valid integer"),
    ("labels: 5", "model.labels = 5: Input should be a valid string or a valid array"),
    ("labels: {a: 1}", "model.labels: Input should be a valid string or a valid array"),
    ("labels: [a, true]", "model.labels.1 = True: Input should be a valid string; quote it"),
    ("weights_sha256: abc", "model.weights_sha256 = 'abc': String should match pattern"),
    ("precision: int4", "model.precision = 'int4': .*'fp16' or 'int8'"),
    ("factory_args: {}", "for the arguments of a factory, use model.args"),
    ("args: {depth: 3}", "model: args has no effect without factory"),
    ("hf: bert", "model.hf: unknown key; for a model directory, use model.path"),
    ("prompts: 3", "model.prompts = 3: Input should be a valid array or an object$"),
    ("task: object-detection", "for boxes, use task: detect"),
    ("embedding_dim: 5", "remove it, or --set model.embedding_dim=null"),
    ("min_score: 0.5", "min_score has no effect with task 'classify', only .*: remove it$"),
    ("l2_norm: true", "l2_norm has no effect with task 'classify'"),
    ("targets: [x]", "targets has no effect with task 'classify'"),
    (
        "outputs: [{name: a, shape: []}, {name: b, shape: [], size: 1}]",
        "model.outputs.1.size: unknown key; allowed are name, shape",
    ),
]
GENERATE = [
    ("{schema: s.json, stop: ['}']}", "generate.stop has no effect with generate.schema"),
    ("{schema: s.json, invalid: keep}", "generate.invalid = 'keep' has no effect with"),
    (
        "{schema: {type: object, properties: {a: {type: string, format: date}}}}",
        'generate.schema: properties.a: "format" is not supported',
    ),
    (
        "{schema: {type: object, properties: {a: {type: [string, null]}}}}",
        "write null in quotes there",
    ),
    ("{schema: [a]}", "model.generate.schema: Input should be an object"),
    ("{shema: s.json}", r"model.generate.shema: unknown key, did you mean schema\?"),
    ("{schema_: s.json}", r"model.generate.schema_: unknown key, did you mean schema\?"),
]
ASKS = "source: {format: parquet, text_column: body}\nmodel: {name: null, path: m, %s}"
ANSWERS, ASKED = "task: choices, choices: [a, b]", "prompt: '{text}?'"
MESSAGE = "{role: user, content: '{text}?'}"
CHOICES = [
    (f"task: choices, {ASKED}", "needs choices, .* a text: --set model.task=generate"),
    (f"task: choices, {ASKED}, choices: [a]", "needs choices, at least two answers"),
    (f"task: choices, {ASKED}, choices: [a, a]", "choices: 'a' is there more than once"),
    (f"task: choices, {ASKED}, choices: {{a: b, c: ' '}}", "choices: an answer is empty"),
    (ANSWERS, "needs either prompt or messages"),
    (f"{ANSWERS}, {ASKED}, messages: [{MESSAGE}]", "needs either prompt or messages"),
    (f"{ANSWERS}, prompt: '{{text}} {{text}}'", r"must have \{text\} once"),
    (f"{ANSWERS}, prompt: ' {{text}} '", r"must say something beside \{text\}"),
    (f"{ANSWERS}, messages: [{MESSAGE}, {MESSAGE}]", r"must have \{text\} once"),
    (f"{ANSWERS}, {ASKED}, prompts: [a, b]", "prompts has no effect with task 'choices'"),
    ("task: classify, choices: [a, b]", "choices has no effect with task 'classify', only 'choi"),
    ("task: zero_shot, prompts: []", "needs prompts, at least two"),
    ("task: zero_shot, prompts: [a]", "needs prompts, at least two"),
    ("task: zero_shot, prompts: [a, b, a]", "prompts: 'a' is there more than once"),
    ("task: regress, prompts: [a, b]", "prompts has no effect with task 'regress', only 'detect'"),
]
SINK = [
    *(
        (f"partition: {value}", f"sink.partition = .*: {PARTITION}")
        for value in (
            *("2026-11-24", "date=../x", "date=x/../../y", "date=%00"),
            *('"date=x\\n"', '"date=x\\0"'),
        )
    ),
    ("partition_columns: [label]", "sink: partition_columns needs partition"),
    ("partition: date=1, partition_columns: [date]", "once, and not the key of partition"),
    ("partition: date=1, partition_columns: [a, a]", "name each partition column once"),
    ("partition: date=1, partition_columns: [_a]", "partition_columns.0 = '_a': .* match pattern"),
    ("table: hudi", "sink.table = 'hudi': .*'delta' or 'iceberg'"),
    ("table: iceberg", "sink: table: iceberg needs table_options.catalog"),
    ("table_options: {table: a.b}", "sink: table_options.table has no effect with no table"),
    (
        "table: delta, table_options: {catalog: prod}",
        "sink: table_options.catalog has no effect with table: delta",
    ),
    (
        "table: iceberg, table_options: {catalog: prod, table: labels}",
        "sink.table_options.table = 'labels': .* match pattern",
    ),
    (
        "table: iceberg, table_options: {table: a.b, catalog: {type: sql, uri: 'x://me:se@db/c'}}",
        "sink.table_options.catalog.uri = 'x://...@db/c': a password does not belong",
    ),
    ("compression: lz5", "sink.compression = 'lz5': .*'zstd'"),
    ("keep_versions: -1", "sink.keep_versions = -1: Input should be greater than or equal to 0"),
]
GATES = [
    ("max_error_pct: 100.5", "gates.max_error_pct = 100.5: Input should be less than or equal to"),
    ("max_error_pct: .nan", "gates.max_error_pct = nan: .*finite"),
    ("allow_empty: 'yes, please'", "gates.allow_empty = 'yes, please': .*boolean"),
    ("error_mode: shout", "gates.error_mode = 'shout': .*'off', 'warn' or 'fail'"),
    ("volume: {mode: loud}", "gates.volume.mode = 'loud'"),
    ("volume: 'off'", "gates.volume = 'off': expected fields, such as {mode: off}"),
    ("volume: {weeks: 1}", "gates.volume.weeks: unknown key; allowed are mode, warn_pct"),
    ("golden: {url: x, uri: y}", "gates.golden.url: unknown key, did you mean uri"),
    ("golden: {}", "gates.golden.uri: required but missing"),
    ("golden: {uri: x, rows: 1}", "gates.golden.rows: unknown key; allowed are uri"),
    ("label_drift: {warn_psi: 0.5}", r"warn_psi \(0.5\) must not exceed fail_psi \(0.25\)"),
    ("max_reason_pct: {bad: 1}", "'bad' is not a reason; allowed are unreadable_shard"),
    ("max_reason_pct: {empty: 101}", "gates.max_reason_pct.empty = 101"),
]
OTHERS = [
    ("resources: {num_gpus: -1}", "resources.num_gpus = -1: .*greater than or equal to 0"),
    ("resources: {num_gpus: 2}", "an actor uses at most one GPU, not 2: give 1"),
    ("resources: {num_gpus: 1.5}", "an actor uses at most one GPU, not 1.5"),
    ("resources: {num_cpus: 0}", "resources.num_cpus = 0: Input should be greater than 0"),
    ("resources: {min_actors: 9, max_actors: 2}", r"min_actors \(9\) must not exceed max_actors"),
    ("run: {lease_ttl_s: .inf}", "run.lease_ttl_s = inf: .*finite"),
    ("run: {price_per_node_hour: .inf}", "= inf: Input should be a finite number$"),
    ("run: {price_per_node_hour: {a: -1}}", "hour.a = -1: .*greater than or equal to 0$"),
    ("run: {price_per_node_hour: x}", "= 'x': Input should be a valid number or an object$"),
    ("run: {slice_rows: 0}", f"run.slice_rows = 0: {AT_LEAST_1}"),
    ("run: {batch_size: 4}", "run.batch_size: unknown key; it belongs to model; allowed are"),
    ("nope: 1", "^job: nope: unknown key; allowed are source, transform"),
]
TABLE = "source: {format: parquet, %s}\nmodel: {task: %s, %s}"
WRITES = TABLE % ("text_column: body", "generate", "name: null, path: s3://b/m, generate: %s")
CASES = [
    *SOURCE,
    *((f"source: {{format: parquet, inputs: {text}}}", message) for text, message in INPUTS),
    ("source: {inputs: {a: {image_column: x}}}", "inputs has no effect with format 'images'"),
    ("source: {format: jsonl, inputs: {a: {image_column: x}}}", "'a': format 'jsonl' holds texts"),
    (
        "source: {format: parquet, inputs: {x: {features: [{column: p, encodings: a}]}}}",
        r"source.inputs\.x\.features\.0\.encodings: unknown key, did you mean encoding\?",
    ),
    *((TABLE % (f"features: [{text}]", "regress", ""), message) for text, message in FEATURES),
    *((f"transform: {{{text}}}", message) for text, message in TRANSFORM),
    *((f"model: {{{text}}}", message) for text, message in MODEL),
    *((WRITES % text, message) for text, message in GENERATE),
    *((ASKS % text, message) for text, message in CHOICES),
    *((f"sink: {{{text}}}", message) for text, message in SINK),
    *((f"gates: {{{text}}}", message) for text, message in GATES),
    *OTHERS,
]


@pytest.mark.parametrize(("text", "pattern"), CASES)
def test_an_invalid_job_is_one_line_with_the_field_and_the_remedy(text: str, pattern: str):
    document: dict[str, Any] = copy.deepcopy(MINIMAL)
    for section, value in parse_value(text).items():
        is_section = isinstance(value, dict) and section in document
        document[section] = {**document[section], **value} if is_section else value
    with pytest.raises(JobError) as caught:
        parse_job(document, date=DATE, origin="job")
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert message.startswith("job: ")
    assert "\n" not in message


def test_an_unknown_key_is_reported_with_the_allowed_ones():
    for section, field in Job.model_fields.items():
        assert field.annotation is not None
        document = {**MINIMAL, section: {**MINIMAL.get(section, {}), "no_such_key": 1}}
        with pytest.raises(JobError) as caught:
            parse_job(document, date=DATE, origin="job")
        assert f"{section}.no_such_key: unknown key" in str(caught.value)
        for name in field.annotation.model_fields:  # type: ignore[attr-defined]
            assert name in str(caught.value)
