"""The job file: errors are one line each and never show credentials."""

from __future__ import annotations

import copy
import datetime as dt
import json
import os
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pipeline.core.errors import JobError, JobErrors
from pipeline.job.job import Job
from pipeline.job.reading import yaml_reader
from pipeline.job.reading.loader import PATH_FIELDS, parse_job, read_job

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
        read_job(path, date=DATE, overrides=overrides)
    assert caught.value.__cause__ is None, "the cause would show what the message hides"
    assert isinstance(caught.value, JobErrors) == ("\n" in str(caught.value))
    return str(caught.value)


def errors_of(text: str, tmp_path: Path, *overrides: str) -> list[str]:
    """The lines of the errors that loading must end in, without the line that counts them."""
    path = write(tmp_path / "job.yaml", text)
    with pytest.raises(JobErrors) as caught:
        read_job(path, date=DATE, overrides=overrides)
    head, *lines = caught.value.lines
    assert head == f"{path}: {len(lines)} errors"
    return lines


def load(document: object, tmp_path: Path, *overrides: str) -> Job:
    return read_job(write(tmp_path / "job.yaml", document), date=DATE, overrides=overrides)


def test_a_minimal_job_loads_with_defaults(tmp_path: Path):
    job = load(MINIMAL, tmp_path)
    assert (job.source.uri, job.model.name, job.sink.uri) == ("in", "tiny", "out")
    assert job.gates.max_error_pct == 5.0
    assert job.sink.partition is None


@pytest.mark.parametrize("missing", ["source", "model", "sink", "source.uri", "source.format"])
def test_a_missing_field_is_named(missing: str, tmp_path: Path):
    document = copy.deepcopy(MINIMAL)
    section, _, name = missing.partition(".")
    if name:
        del document[section][name]
    else:
        del document[section]
    assert f"{missing}: required but missing" in refusal(document, tmp_path)


SIX_ERRORS = """\
source:
  url: photos  # for uri
  format: image
transform:
  mean: [123, 117, 104]
model: {name: tiny, batch_size: many}
sink:
  uri: ${env:TEST_NOT_SET}
"""


def test_all_errors_are_shown_at_once_each_with_its_line(tmp_path: Path):
    lines = errors_of(SIX_ERRORS, tmp_path)
    assert [line.split(": ")[0] for line in lines] == [f"line {n}" for n in (1, 2, 3, 5, 6, 8)]
    assert lines[0] == "line 1: source.uri: required but missing"
    assert lines[1] == "line 2: source.url: unknown key, did you mean uri?"
    assert "'image'" in lines[2]
    assert lines[2].endswith("did you mean images?")
    assert lines[3] == "line 5: transform.mean: mean must be between 0 and 1: divide by 255"
    assert "model.batch_size = 'many'" in lines[4]
    assert "environment variable TEST_NOT_SET is not set" in lines[5]


def test_an_error_of_an_override_names_it_and_not_a_line(tmp_path: Path):
    text = yaml.safe_dump(MINIMAL)
    problems = errors_of(text, tmp_path, "model.batch_size=many", "modle.top_k=3", "sink.uri=5")
    assert problems == [
        "--set: model.batch_size = 'many': Input should be a valid integer",
        "--set: modle: unknown key, did you mean model?",
        "--set: sink.uri = 5: Input should be a valid string; quote it to make it a string",
    ]


def test_an_error_of_a_section_has_its_line_though_a_field_of_it_is_overridden(tmp_path: Path):
    text = yaml.safe_dump(MINIMAL) + "transform: {args: {a: 1}}\n"
    line = text.count("\n")
    problem = f"line {line}: transform: args has no effect without factory"
    assert problem in refusal(text, tmp_path, "transform.size_px=64")


def test_an_error_behind_an_alias_or_a_merge_has_the_line_where_it_is_written(tmp_path: Path):
    text = """\
source: {uri: in, format: images}
model: {name: tiny}
sink: {uri: out}
gates:
  label_drift: &drift
    mode: loud
  score_drift:
    <<: *drift
    warn_psi: 0.1
"""
    assert [line.split(" = ")[0] for line in errors_of(text, tmp_path)] == [
        "line 6: gates.label_drift.mode",
        "line 6: gates.score_drift.mode",
    ]


@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_key_that_is_written_out_wins_over_a_merged_one(tmp_path: Path, place: str):
    lines = ["<<: [*near, *far]", "warn_psi: 0.3"][:: 1 if place == "before" else -1]
    text = f"""\
source: {{uri: in, format: images}}
model: {{name: tiny}}
sink: {{uri: out}}
gates:
  label_drift: &near {{warn_psi: 0.1, fail_psi: 0.4}}
  volume: &far {{mode: warn, fail_psi: 0.9}}
  score_drift:
    {lines[0]}
    {lines[1]}
"""
    merged = yaml_reader.parse(text).value["gates"]["score_drift"]
    assert merged == {"warn_psi": 0.3, "fail_psi": 0.4, "mode": "warn"}


def test_many_errors_are_counted(tmp_path: Path):
    labels = ", ".join(str(number) for number in range(500))
    text = f"source: {{uri: in, format: images}}\nmodel: {{name: x, labels: [{labels}]}}\n"
    message = refusal(text + "sink: {uri: out}\n", tmp_path)
    assert len(message.splitlines()) == 22
    assert message.splitlines()[0].endswith("500 errors")
    assert message.splitlines()[-1] == "and 480 more"


def test_all_problems_of_a_model_are_reported_at_once(tmp_path: Path):
    document = changed("model.task", "raw")
    document["model"] |= {"labels": ["a"], "factory": "models:colours"}
    message = refusal(document, tmp_path)
    for words in ("labels has no effect with task 'raw'", "exactly one of", "needs outputs"):
        assert words in message


def test_only_true_and_false_are_booleans_and_numbers_are_those_of_yaml_1_2(tmp_path: Path):
    text = """\
source: {uri: in, format: images}
model: {name: x, labels: [yes, no, on, off, y, n, No, 2026-11-24, 16:30, 1_000, 12e, +, .]}
sink: {uri: out, storage_options: {a: [010, 0o10, 0x10, 1e3, -.5, .inf, true, False, null, ~]}}
gates: {error_mode: off}
run: {single_writer: true}
"""
    job = load(text, tmp_path, "gates.reason_mode=off", "gates.volume={mode: off}")
    assert job.model.labels == (
        *("yes", "no", "on", "off", "y", "n", "No", "2026-11-24", "16:30", "1_000", "12e", "+"),
        ".",
    )
    values = [10, 8, 16, 1000.0, -0.5, float("inf"), True, False, None, None]
    assert job.sink.storage_options["a"] == values
    assert [type(value) for value in job.sink.storage_options["a"]] == list(map(type, values))
    gates = job.gates
    assert (gates.error_mode, gates.reason_mode, gates.volume.mode) == ("off", "off", "off")
    assert job.run.single_writer is True
    for wrong in ("yes", "on", "1", "'true'"):
        assert "run.single_writer" in refusal(MINIMAL, tmp_path, f"run.single_writer={wrong}")


def test_json_is_a_job_file_and_its_escapes_are_characters(tmp_path: Path):
    document = changed("model.labels", ["caf\u00e9", "\U0001f600"])
    assert load(json.dumps(document), tmp_path).model.labels == ("caf\u00e9", "\U0001f600")
    marked = "\ufeff" + json.dumps(document, indent=1).replace("\n", "\r\n")
    assert load(marked, tmp_path).model.labels == ("caf\u00e9", "\U0001f600")


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines)


MERGES = "a0: &a0 {x: 1}\n" + "\n".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)
)
LONG_TEXT = "a: &a " + 100_000 * "x" + "\nb: [" + ", ".join(["*a"] * 100) + "]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(9), "more than 5,000 values"),
        (MERGES, "more than 5,000 values"),
        (LONG_TEXT, "4 MiB"),
        ("&a [*a]", "an alias refers to a value that contains it"),
        ("a: &a {b: {c: *a}}", "an alias refers to a value that contains it"),
        ("a: &a {<<: *a}", "an alias refers to a value that contains it"),
        ("a: " + 2000 * "[", "nested more than 32 levels deep"),
        ("- " * 2000, "nested more than 32 levels deep"),
        ("a: 0" + 5000 * "1", "a number of 5001 digits"),
    ],
)
def test_documents_that_expand_without_limit_are_refused_early(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(yaml_reader, "MAX_NODES", 5_000)  # what counts memory is slow
    tracemalloc.start()
    try:
        assert words in refusal(text, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    if "\n" not in text:
        assert words in refusal(MINIMAL, tmp_path, f"sink.storage_options.x={text}")


def test_a_file_is_read_up_to_a_limit(tmp_path: Path):
    write(tmp_path / "long.yaml", "#" * (1 << 20) + "\n")
    for path in ("/dev/zero", str(tmp_path / "long.yaml")):
        with pytest.raises(JobError, match="at most 1 MiB"):
            read_job(path, date=DATE)


def test_a_folder_is_refused_with_a_command_for_it(tmp_path: Path):
    (tmp_path / "my photos").mkdir()
    with pytest.raises(JobError, match=r"is a folder.*--set source.uri='.*my photos' --set sink"):
        read_job(str(tmp_path / "my photos"), date=DATE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a mapping with source, model and sink"),
        ("- a\n- b\n", "a mapping with source, model and sink"),
        ("source: [", "not valid YAML: line 1"),
        ("source: {uri: 1}\nsink: {}\nsource: {uri: 2}\n", "line 3: the key source occurs twice"),
        ("gates: {min_rows: 1, min_rows: 2}", "line 1: the key min_rows occurs twice"),
        ("source: !!python/object/apply:os.getcwd []", "line 1: tags are not supported"),
        ("source: {[uri]: x}", "line 1: a key must be a string"),
        ("source:\n\turi: x", "line 2: found character '\\t'"),
        ("source: {<<: [1]}", "<< accepts only mappings"),
        ("a: 1\n--- \nb: 1\n", "not valid YAML: line 2"),
        ("source: {uri: !!binary aGVsbG8=}", "tags are not supported"),
    ],
)
def test_what_is_not_a_job_document_is_refused(text: str, words: str, tmp_path: Path):
    assert words in refusal(text, tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(JobError, match=r"none\.yaml: cannot read"):
        read_job(str(tmp_path / "none.yaml"), date=DATE)
    (tmp_path / "latin1.yaml").write_bytes("a: 1\nsource: {uri: café}\n\n\n".encode("latin-1"))
    with pytest.raises(JobError, match=r"latin1\.yaml: cannot read.*line 2 is not UTF-8"):
        read_job(str(tmp_path / "latin1.yaml"), date=DATE)


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
        ("transform=3", "--set transform: write section.field=value, such as model.batch_size=64"),
        ("nothing={a: 1}", "--set nothing: write section.field=value, such as model.batch_size=64"),
        ("transform={", "--set transform: write section.field=value, such as model.batch_size=64"),
        (
            "transform={size_px: 64, resize: pad}",
            "set the fields of a section one by one: --set transform.size_px=... --set",
        ),
        ("model.batch_size", "write section.field=value"),
        ("=64", "write section.field=value"),
        ("model..x=64", "write section.field=value"),
        ("model.name.x=64", "name is not a section"),
        ("model.batch_size=[1", "not valid YAML"),
        ("model.batch_size=2026-13-45", "model.batch_size = '2026-13-45'"),
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
    for shown in (repr(job), str(job), f"{job.as_published()}", f"{job.source.as_published()}"):
        assert SECRET not in shown


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
        f"{section}:\n  storage_options: {{key: *{SECRET}}}\n",
        f"{section}:\n  storage_options: {{key: !{SECRET} x}}\n",
        f"{section}:\n  storage_options: {{key: !a!{SECRET} x}}\n",
        f'{section}:\n  storage_options: {{key: "{SECRET}${{x}}\\uD800"}}\n',
        f'{section}:\n  storage_options: {{key: "${{{SECRET}}}"}}\n',
        f'model: {{labels: ["\\uD800"]}}\n{section}: {{storage_options: {{key: {SECRET}}}}}\n',
    ]
    for document in wrong:
        assert SECRET not in refusal(document, tmp_path)
    for override in (f".storage_options.key=[{SECRET}", f".storage_options={SECRET}"):
        assert SECRET not in refusal(MINIMAL, tmp_path, section + override)
    assert SECRET not in refusal(MINIMAL, tmp_path, f"storage_options={SECRET}")


@pytest.mark.parametrize("value", [SECRET, f"{SECRET}\udce9", f"\udcff'{SECRET}\"\x1b[31m"])
def test_no_error_shows_values_of_the_environment(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEST_SECRET", value)
    fields = ("source.format", "model.batch_size", "model.labels", "run.deadline", "sink.partition")
    text = "a ${env:TEST_SECRET}"
    documents = [changed(field, text) for field in fields]
    documents += [changed(f"{name}.storage_options", {"k": text}) for name in ("source", "sink")]
    documents += [
        changed("model.labels", ["a", text]),
        changed("gates.max_reason_pct", {"a": text}),
    ]
    for document in documents:
        document["run"] = {"nope": 1, **document.get("run", {})}
        assert SECRET not in refusal(document, tmp_path)


def test_a_variable_that_is_not_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEST_SECRET", f"{SECRET}\udce9")
    document = changed("sink.storage_options", {"secret": "${env:TEST_SECRET}"})
    message = refusal(document, tmp_path)
    assert message.endswith("sink.storage_options.secret: not UTF-8 text, as ${env:TEST_SECRET} is")


def test_a_password_in_a_uri_is_not_shown(tmp_path: Path):
    message = refusal(changed("source.format", f"s3://me:{SECRET}@bucket/x"), tmp_path)
    assert SECRET not in message


# What looks like YAML: indicators, names of fields, escapes, halves of pairs.
_PIECES = [
    *("source", "model", "sink", "gates", "uri", "storage_options", "labels", "mean", SECRET),
    *(
        ": ",
        "\n",
        "\n  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "<<: ",
        "!",
        "!!int ",
        "'",
        '"',
    ),
    *("|\n ", ">\n ", "? ", "#", "%", "@", "`", "\t", "---\n", "...\n", "~", "off", "0x1f", "1e9"),
    *(
        "${date}",
        "${env:TEST_SECRET}",
        "${",
        '"\\uD800"',
        "\ufeff",
        "\x85",
        "\u2028",
        "\0",
        "9" * 500,
    ),
]


@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.lists(st.sampled_from(_PIECES), max_size=40).map(
            lambda pieces: "".join(pieces).encode()
        ),
    ),
    in_override=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_job_or_a_job_error_without_the_secret(
    data: bytes, in_override: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEST_SECRET", "from-the-environment\udce9")
    path, overrides = tmp_path / "job.yaml", []
    path.write_bytes(yaml.safe_dump(MINIMAL).encode() if in_override else data)
    if in_override:  # as an argument comes from the shell
        overrides = [f"sink.storage_options={os.fsdecode(data)}"]
    try:
        assert isinstance(read_job(str(path), date=DATE, overrides=overrides), Job)
    except JobError as error:
        shown = str(error)
    else:
        shown = ""
    assert "from-the-environment" not in shown
    assert not in_override or SECRET not in shown


_FIELDS = [
    f"{section}.{name}"
    for section, field in Job.model_fields.items()
    for name in field.annotation.model_fields  # type: ignore[union-attr]
]
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**70, 1e400, float("nan"), "", "x" * 10_000, "off", "${env:HOME}"),
    *([], {}, [[]] * 100, {"a": {"b": {"c": 1}}}, "\x00", "${date}", "2026-02-30", "1e5"),
)


@given(field=st.sampled_from(_FIELDS), value=st.sampled_from(_VALUES))
def test_any_value_of_any_field_is_taken_or_refused(field: str, value: object):
    message = ""
    try:
        parse_job(changed(field, value), date=DATE, origin="job.yaml")
    except JobErrors:
        return
    except JobError as error:
        message = str(error)
    assert "\n" not in message


def test_relative_paths_are_refused_for_another_machine(tmp_path: Path):
    document: dict[str, Any] = {
        "source": {
            **{"uri": "in/${date}", "format": "parquet", "uri_column": "u"},
            **{"uri_roots": ["/data", "more"], "uri_base": "~/x", "files": "list.txt"},
        },
        "model": {"name": "x", "weights": "w.safetensors", "labels": "./labels.txt"},
        "sink": {"uri": "results"},
        "gates": {"golden": {"uri": "golden.parquet"}},
    }
    path = write(tmp_path / "job.yaml", document)
    read_job(path, date=DATE)
    with pytest.raises(JobErrors) as caught:
        read_job(path, date=DATE, is_elsewhere=True)
    fields = {re.split(": | =", line)[1] for line in caught.value.lines[1:]}
    assert fields == {
        *("source.uri", "source.uri_roots.1", "source.uri_base", "source.files", "model.weights"),
        *("model.labels", "sink.uri", "gates.golden.uri"),
    }
    assert "source.uri = in/2026-11-24 is relative, but the job runs on another machine" in str(
        caught.value
    )


def test_uris_absolute_paths_and_variables_are_accepted_for_another_machine(
    tmp_path: Path,
):
    document: dict[str, Any] = {
        "source": {"uri": "s3://lake/in", "format": "images", "files": ["a/b.jpg"]},
        "model": {"name": "x", "weights": "${env:TEST_NOT_SET}/w.pt", "labels": ["a", "b"]},
        "sink": {"uri": "file:///data/out"},
    }
    job = read_job(write(tmp_path / "job.yaml", document), date=DATE, is_elsewhere=True)
    assert job.model.weights == "${env:TEST_NOT_SET}/w.pt"


def test_every_field_with_a_path_is_listed():
    """A new field that holds a path joins PATH_FIELDS, or is named here with the reason."""
    names = {"uri", "files", "path", "weights", "labels", "uri_roots", "uri_base", "tokenizer"}
    names |= {"schema"}

    def fields(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, field in model.model_fields.items():
            for field_type in (field.annotation, *get_args(field.annotation)):
                if isinstance(field_type, type) and issubclass(field_type, BaseModel):
                    yield from fields(field_type, (*path, name))
            name = field.alias or name
            if name in names or name.endswith(("_uri", "_path", "file")):
                yield (*path, name)

    assert set(fields(Job, ())) == set(PATH_FIELDS)


def test_a_job_is_frozen():
    job = parse_job(MINIMAL, date=DATE, origin="here")
    with pytest.raises(ValidationError, match="frozen"):
        job.sink = job.sink
    with pytest.raises(ValidationError, match="frozen"):
        job.sink.uri = "elsewhere"


@pytest.mark.parametrize("overrides", [{"model.batch_size": 3}, ["model.batch_size=3"], []])
def test_overrides_do_not_change_the_given_document(overrides: Any):
    document = changed("sink.partition", "date=${date}")
    before = copy.deepcopy(document)
    job = parse_job(document, date=DATE, origin="x", overrides=overrides)
    assert job.model.batch_size == (3 if overrides else None)
    assert job.sink.partition == "date=2026-11-24"
    assert document == before


def test_the_json_schema_describes_every_field_and_refuses_unknown_ones():
    schema = Job.model_json_schema()
    assert set(schema["properties"]) == set(Job.model_fields)
    assert schema["$defs"].pop("JsonValue") == {}  # anything
    for name, definition in schema["$defs"].items():
        assert definition.get("description"), name
        assert definition["additionalProperties"] is False
        for field, entry in definition["properties"].items():
            assert entry.get("description"), f"{name}.{field} has no docstring"
    referenced = {entry["$ref"].rsplit("/", 1)[1] for entry in schema["properties"].values()}
    nested = {"Output", "SourceInput", "Volume", "Constant", "Drift", "Golden"}
    nested |= {"Card", "FeatureColumn", "Message", "Generate", "TableOptions", "IcebergCatalog"}
    nested |= {"Windows"}
    assert referenced | nested == set(schema["$defs"])
