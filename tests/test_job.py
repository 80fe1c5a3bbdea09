"""The job file: what is wrong is named in one line, and credentials are never shown."""

from __future__ import annotations

import copy
import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipeline.allocation import Hardware, allocate
from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.job_file import load_job, parse_job

DATE = dt.date(2026, 11, 24)
SECRET = "hunter2-hunter2"
MINIMAL: dict[str, Any] = {
    "source": {"uri": "in", "format": "images"},
    "model": {"name": "tiny"},
    "sink": {"uri": "out"},
}


def write(path: Path, document: object) -> str:
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return str(path)


def changed(field: str, value: object) -> dict[str, Any]:
    """The minimal document with one field set."""
    section, _, name = field.partition(".")
    document = copy.deepcopy(MINIMAL)
    document.setdefault(section, {})[name] = value
    return document


def refusal(document: object, tmp_path: Path, *overrides: str) -> str:
    """The message of the JobError that loading must end in."""
    path = write(tmp_path / "job.yaml", document)
    with pytest.raises(JobError) as caught:
        load_job(path, date=DATE, overrides=overrides)
    assert caught.value.__cause__ is None, "the cause would show what the message hides"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(document: object, tmp_path: Path, *overrides: str) -> Job:
    return load_job(write(tmp_path / "job.yaml", document), date=DATE, overrides=overrides)


def test_a_minimal_job_loads_with_defaults(tmp_path: Path):
    job = load(MINIMAL, tmp_path)
    assert (job.source.uri, job.model.name, job.sink.uri) == ("in", "tiny", "out")
    assert job.gates.max_error_pct == 5.0
    assert job.sink.partition is None


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("source.format", "csv", "'images', "),
        ("source.uri", "", "at least 1 character"),
        ("source.max_image_px", 0, "greater than or equal to 1"),
        ("model.batch_size", "64", "valid integer"),
        ("model.batch_size", True, "valid integer"),
        ("model.batch_size", 6.5, "valid integer"),
        ("model.labels", 5, "valid string"),
        ("model.weights_sha256", "abc", "match pattern"),
        ("model.precision", "int4", "'fp16' or 'int8'"),
        ("transform.interpolation", "nearest", "'bilinear' or 'bicubic'"),
        ("resources.num_gpus", -1, "greater than or equal to 0"),
        ("resources.num_cpus", 0, "greater than 0"),
        ("sink.partition", "2026-11-24", "match pattern"),
        ("sink.partition", "date=../x", "match pattern"),
        ("sink.partition", "date=x/../../y", "match pattern"),
        ("sink.partition", "date=x\n", "match pattern"),
        ("sink.partition", "date=%00", "match pattern"),
        ("sink.partition", "date=x\0", "match pattern"),
        ("sink.compression", "lz5", "'zstd'"),
        ("sink.keep_versions", -1, "greater than or equal to 0"),
        ("gates.max_error_pct", 100.5, "less than or equal to 100"),
        ("gates.max_error_pct", float("nan"), "finite"),
        ("gates.allow_empty", "yes, please", "boolean"),
        ("gates.error_mode", "shout", "'off', 'warn' or 'fail'"),
        ("run.lease_ttl_s", float("inf"), "finite"),
        ("run.price_per_node_hour", float("inf"), "finite"),
        ("run.slice_rows", 0, "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_named_with_file_field_value_and_what_is_allowed(
    field: str, value: object, allowed: str, tmp_path: Path
):
    message = refusal(changed(field, value), tmp_path)
    assert str(tmp_path / "job.yaml") in message
    assert field in message
    assert repr(value) in message
    assert allowed in message


def test_an_unknown_key_of_any_section_is_named_beside_the_allowed_ones(tmp_path: Path):
    for section, field in Job.model_fields.items():
        assert field.annotation is not None
        message = refusal(changed(f"{section}.no_such_key", 1), tmp_path)
        assert f"{section}.no_such_key: unknown key" in message
        for name in field.annotation.model_fields:  # type: ignore[attr-defined]
            assert name in message
    assert "nope: unknown key; allowed are source, transform" in refusal(
        {**MINIMAL, "nope": 1}, tmp_path
    )


@pytest.mark.parametrize("missing", ["source", "model", "sink", "source.uri", "source.format"])
def test_what_is_missing_is_named(missing: str, tmp_path: Path):
    document = copy.deepcopy(MINIMAL)
    section, _, name = missing.partition(".")
    if name:
        del document[section][name]
    else:
        del document[section]
    assert f"{missing}: required but missing" in refusal(document, tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model.factory", "models:colours", "exactly one of name and factory"),
        ("model.name", None, "exactly one of name and factory"),
        ("resources.min_actors", 9, "min_actors (9) must not exceed max_actors (2)"),
        ("source.pass_through", ["a", "b", "a"], "once"),
        ("transform.mean", [0.5, 0.5], "transform.mean"),
        ("transform.mean", [0.5, 0.5, 0.5, 0.5], "transform.mean"),
    ],
)
def test_fields_must_fit_together(field: str, value: object, words: str, tmp_path: Path):
    document = changed(field, value)
    document.setdefault("resources", {})["max_actors"] = 2
    assert words in refusal(document, tmp_path)


ON_GPU = {"transform": {"jpeg_decoder": "gpu"}, "resources": {"num_gpus": 1}}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"resources": {}}, "decodes on the model's GPU; give resources.num_gpus"),
        ({"resources": {"num_gpus": 1, "decode_in": "tasks"}}, "has to be 'actors' or left out"),
        ({"transform": {"jpeg_decoder": "gpu", "shrink_on_load": True}}, "give one of them"),
        ({"transform": {"jpeg_decoder": "cuda"}}, "transform.jpeg_decoder = 'cuda'"),
    ],
)
def test_a_gpu_decoder_that_cannot_be_is_refused(
    sections: dict[str, Any], words: str, tmp_path: Path
):
    message = refusal({**MINIMAL, **ON_GPU, **sections}, tmp_path)
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("decode_in", ["auto", "actors"])
def test_who_decodes_on_a_gpu_is_the_actor_that_holds_it(decode_in: str, tmp_path: Path):
    resources = {"num_gpus": 0.5, "decode_in": decode_in}
    job = load({**MINIMAL, **ON_GPU, "resources": resources}, tmp_path)
    assert job.shares == job.resources.model_copy(update={"decode_in": "actors"})
    assert load(MINIMAL, tmp_path).shares.decode_in == "auto"
    found = allocate(job.shares, Hardware(1, 16, 1))
    assert found.decodes_in_actors
    assert not allocate(job.resources, Hardware(1, 16, 1)).decodes_in_actors or decode_in != "auto"


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ({"volume": {"mode": "loud"}}, "gates.volume.mode = 'loud'"),
        ({"volume": {"weeks": 1}}, "gates.volume.weeks: unknown key; allowed are mode, warn_pct"),
        ({"golden": {"url": "x"}}, "gates.golden.uri: required but missing"),
        ({"golden": {"uri": "x", "rows": 1}}, "gates.golden.rows: unknown key; allowed are uri"),
        ({"label_drift": {"warn_psi": 0.5}}, "warn_psi (0.5) must not exceed fail_psi (0.25)"),
        ({"max_reason_pct": {"bad": 1}}, "'bad' is no reason; allowed are unreadable_shard"),
        ({"max_reason_pct": {"empty": 101}}, "gates.max_reason_pct.empty = 101"),
    ],
)
def test_a_wrong_gate_is_named(gates: dict[str, Any], words: str, tmp_path: Path):
    assert words in refusal({**MINIMAL, "gates": gates}, tmp_path)


def test_an_unknown_key_in_a_list_of_sections_is_named(tmp_path: Path):
    outputs = [{"name": "a", "shape": []}, {"name": "b", "shape": [], "size": 1}]
    message = refusal(changed("model.outputs", outputs), tmp_path)
    assert "model.outputs.1.size: unknown key; allowed are name, shape" in message


def test_several_errors_are_counted(tmp_path: Path):
    document = changed("model.batch_size", 0)
    document["sink"]["compression"] = "lz5"
    assert "(and 1 more)" in refusal(document, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a mapping with source, model and sink"),
        ("- a\n- b\n", "a mapping with source, model and sink"),
        ("source: [", "not valid YAML: line 1"),
        ("source: {uri: 1}\nsink: {}\nsource: {uri: 2}\n", "line 3: the key source is there twice"),
        ("gates: {min_rows: 1, min_rows: 2}", "line 1: the key min_rows is there twice"),
        ("source: !!python/object/apply:os.getcwd []", "not valid YAML: line 1"),
        ("source: {uri: 2026-13-45}", "not valid YAML"),
        ("source: {uri: !!binary aGVsbG8=}", "only text, numbers, lists and mappings"),
    ],
)
def test_what_is_not_a_job_document_is_refused(text: str, words: str, tmp_path: Path):
    assert words in refusal(text, tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(JobError, match=r"none\.yaml: cannot read"):
        load_job(str(tmp_path / "none.yaml"), date=DATE)
    (tmp_path / "latin1.yaml").write_bytes("source: {uri: café}".encode("latin-1"))
    with pytest.raises(JobError, match=r"latin1\.yaml: cannot read"):
        load_job(str(tmp_path / "latin1.yaml"), date=DATE)


def test_date_and_environment_are_substituted_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEST_BUCKET", "lake")
    document = changed("source.uri", "s3://${env:TEST_BUCKET}/in/${date}/*.jpg")
    document["sink"]["partition"] = "date=${date}"
    document["model"]["labels"] = ["${env:TEST_BUCKET}", "b"]
    document["sink"]["storage_options"] = {"client_kwargs": {"name": "${env:TEST_BUCKET}"}}
    job = load(document, tmp_path)
    assert job.source.uri == "s3://lake/in/2026-11-24/*.jpg"
    assert job.sink.partition == "date=2026-11-24"
    assert job.model.labels == ("lake", "b")
    assert job.sink.storage_options == {"client_kwargs": {"name": "lake"}}


def test_an_unset_variable_and_any_other_substitution_are_refused(tmp_path: Path):
    message = refusal(changed("source.uri", "${env:TEST_NOT_SET}"), tmp_path)
    assert "environment variable TEST_NOT_SET is not set" in message
    message = refusal(changed("source.uri", "in/${today}"), tmp_path)
    assert "${today}: only ${date} and ${env:NAME}" in message


def test_substituted_text_is_not_substituted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEST_NESTED", "${date}")
    assert load(changed("source.uri", "${env:TEST_NESTED}"), tmp_path).source.uri == "${date}"


def test_an_unquoted_date_means_its_text(tmp_path: Path):
    text = "source: {uri: 2026-11-24, format: images}\nmodel: {name: x}\nsink: {uri: o}\n"
    assert load(text, tmp_path).source.uri == "2026-11-24"


def test_overrides_are_yaml_and_win_in_order(tmp_path: Path):
    job = load(
        MINIMAL,
        tmp_path,
        "model.batch_size=64",
        "model.batch_size=16",
        "model.labels=[cat, dog]",
        "gates.allow_empty=true",
        "run.limit_rows=null",
        "sink.partition=date=${date}",
        "source.storage_options.client_kwargs.region_name=eu",
        "transform.mean=[0.1, 0.2, 0.3]",
    )
    assert job.model.batch_size == 16
    assert job.model.labels == ("cat", "dog")
    assert job.gates.allow_empty is True
    assert job.run.limit_rows is None
    assert job.sink.partition == "date=2026-11-24"
    assert job.source.storage_options == {"client_kwargs": {"region_name": "eu"}}
    assert job.transform.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batch_size=64", "write section.field=value"),
        ("model.batch_size", "write section.field=value"),
        ("=64", "write section.field=value"),
        ("model..x=64", "write section.field=value"),
        ("model.name.x=64", "name is not a section"),
        ("model.batch_size=[1", "not valid YAML"),
        ("model.batch_size=2026-13-45", "not valid YAML"),
        ("model.batch_size=many", "model.batch_size = 'many': Input should be a valid integer"),
        ("modle.batch_size=64", "modle: unknown key"),
    ],
)
def test_a_wrong_override_is_refused(override: str, words: str, tmp_path: Path):
    assert words in refusal(MINIMAL, tmp_path, override)


def test_credentials_are_never_shown(tmp_path: Path):
    options = {"key": SECRET, "client_kwargs": {"secret": SECRET}}
    document = copy.deepcopy(MINIMAL)
    for section in ("source", "model", "sink"):
        document[section]["storage_options"] = options
    job = load(document, tmp_path)
    assert job.source.storage_options == options
    assert SECRET not in repr(job)
    assert SECRET not in str(job)


@pytest.mark.parametrize("section", ["source", "model", "sink"])
def test_no_error_shows_credentials(section: str, tmp_path: Path):
    wrong: list[object] = [
        changed(f"{section}.storage_options", SECRET),
        changed(f"{section}.storage_options", [SECRET]),
        changed(f"{section}.storage_option", {"key": SECRET}),
        {**MINIMAL, section: [{"storage_options": {"key": SECRET}}]},
        {**MINIMAL, section: {"storage_options": {"key": SECRET}}},
        f'{section}:\n  storage_options: {{key: "{SECRET}}}\n',
        f"{section}:\n  storage_options: {{key: {SECRET}: x}}\n",
        f"{section}:\n  storage_options: {{key: {SECRET}, key: {SECRET}}}\n",
    ]
    for document in wrong:
        assert SECRET not in refusal(document, tmp_path)
    for override in (f".storage_options.key=[{SECRET}", f".storage_options={SECRET}"):
        assert SECRET not in refusal(MINIMAL, tmp_path, section + override)
    assert SECRET not in refusal(MINIMAL, tmp_path, f"storage_options={SECRET}")


def test_a_job_is_frozen():
    job = parse_job(MINIMAL, date=DATE, origin="here")
    with pytest.raises(ValidationError, match="frozen"):
        job.sink = job.sink
    with pytest.raises(ValidationError, match="frozen"):
        job.sink.uri = "elsewhere"


def test_parsing_does_not_change_the_document():
    document = changed("sink.partition", "date=${date}")
    before = copy.deepcopy(document)
    parse_job(document, date=DATE, origin="here")
    assert document == before


def test_the_json_schema_describes_every_field_and_refuses_unknown_ones():
    schema = Job.model_json_schema()
    assert set(schema["properties"]) == set(Job.model_fields)
    for name, definition in schema["$defs"].items():
        assert definition.get("description"), name
        assert definition["additionalProperties"] is False
        for field, entry in definition["properties"].items():
            assert entry.get("description"), f"{name}.{field} has no docstring"
    referenced = {entry["$ref"].rsplit("/", 1)[1] for entry in schema["properties"].values()}
    nested = {"Output", "Volume", "Constant", "Drift", "Golden"}
    assert referenced | nested == set(schema["$defs"])
