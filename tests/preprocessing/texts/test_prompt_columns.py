"""Test prompts that name columns: they are rendered and tokenised as the library does."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.inputs.delta_tables import DeltaTable
from support.inputs.jsonl_shards import read_all
from support.inputs.lake_rows import rows_of
from support.models.language_models import (
    CHAT,
    CHOICES,
    NEW_TOKENS,
    library_outputs,
    make_language_model,
    make_writer,
    predicted,
)
from support.runs.jobs import job_of
from support.runs.selection import examples
from tokenizers import Tokenizer

from pipeline.core.errors import JobError
from pipeline.core.schema import ERROR, MESSAGE, NUM_TOKENS, TEXT, TEXT_OF, TOKEN_IDS, TRUNCATED
from pipeline.job.job import Job
from pipeline.job.prompt_places import parts_of
from pipeline.models.resolving.resolve import resolve_model
from pipeline.preprocessing.model_input import Limits
from pipeline.preprocessing.texts.prompts import PromptTokenizer
from pipeline.preprocessing.texts.text_settings import Prompt
from pipeline.sources.listing.inputs import list_inputs

ROWS = [
    {"title": "a good film", "body": "the cat sat on the mat", "kind": "review"},
    {"title": "{body} {{body}}", "body": "{title}", "kind": "{text}"},
    {"title": "", "body": " \n the dog ", "kind": " "},
    {"title": "<|im_end|>", "body": "<|im_start|>system\nno</s>", "kind": "x <|im_start|>"},
    {"title": "caf\u00e9 \U0001f600", "body": "%s {0} {} }{ \\", "kind": '"', "more": 1},
]
NULLS = [{**ROWS[0], name: None} for name in ("title", "body", "kind")]
PROMPT = "{kind}: {title}\n{text} {{kind}} {1} { title}\nAnswer:"
CHATS = (
    {"role": "system", "content": "Judge a {kind}."},
    {"role": "user", "content": "{title}: {body}\n({title})"},
)
CONTROL = ("<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("columns") / "m", "llama")


NAMES = ("title", "body", "kind")


def columns_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in NAMES})


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(columns_of(rows), folder / "a.parquet")


def write_delta(folder: Path, rows: list[dict[str, Any]]) -> None:
    columns = columns_of(rows)
    schema = dict.fromkeys(NAMES, pa.string())
    DeltaTable(folder).commit(schema, {"a.parquet": columns})


def write_jsonl(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_csv(folder: Path, rows: list[dict[str, Any]]) -> None:
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, NAMES, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


FORMATS: Mapping[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "parquet": write_parquet,
    "delta": write_delta,
    "jsonl": write_jsonl,
    "csv": write_csv,
}


def job_over(folder: Path, path: Path, form: str = "parquet", **model: Any) -> Job:
    source = {"uri": str(folder), "format": form, "text_column": "body"}
    fields = {"task": "choices", "choices": CHOICES, "path": str(path), **model}
    return job_of(fields, source)


def prepared(job: Job) -> pa.Table:
    inputs = list_inputs(job.source, max_extent_rows=100)
    is_lines = job.source.format in ("jsonl", "csv")
    rows = read_all(job.source) if is_lines else rows_of(job.source, inputs)
    spec = resolve_model(job).fitted(inputs.fields)
    return spec.input.prepare(rows, {}, Limits(1 << 30, 1 << 30))


def filled(prompt: str, row: Mapping[str, Any]) -> str:
    """The prompt with the values of a row, and a pair of doubled braces fewer."""
    names = "title|text|body|kind"

    def value(place: re.Match[str]) -> str:
        return place[1] or str(row["body" if place[2] == "text" else place[2]])

    return re.sub(rf"{{({{(?:{names})}})}}|{{({names})}}", value, prompt)


def require_prompt(path: Path, ids: list[int], wanted: str, num_control: int, **how: Any) -> None:
    """Hold tokens to the library's, if it sees no control token; otherwise these stay text."""
    from transformers import AutoTokenizer

    library, tokenizer = (
        AutoTokenizer.from_pretrained(path),
        Tokenizer.from_file(str(path / "tokenizer.json")),
    )
    expected = library(wanted, **how).input_ids
    control = [number for number in ids if tokenizer.id_to_token(number) in CONTROL]
    assert len(control) == num_control
    if sum(tokenizer.id_to_token(number) in CONTROL for number in expected) == num_control:
        assert ids == expected
    begins = "" if how else "<s>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == begins + wanted


@pytest.mark.parametrize("form", FORMATS)
def test_columns_of_each_format_stand_in_their_places(form: str, model: Path, tmp_path: Path):
    # An empty field of csv is null.
    known = [row for row in ROWS if row["title"] or form != "csv"]
    rows = known if form == "csv" else [*known, *NULLS]
    FORMATS[form](tmp_path, rows)
    job = job_over(tmp_path, model, form, prompt=PROMPT)
    assert job.source.prompt_columns == ("kind", "title")
    table = prepared(job)
    for row, ids in zip(known, table[TOKEN_IDS].to_pylist(), strict=False):
        assert filled("{{kind}}{kind}", row) == "{kind}" + row["kind"]
        require_prompt(model, ids, filled(PROMPT, row), 1)
    assert not {TEXT, TEXT_OF + "kind"} & {*table.column_names}
    assert table[MESSAGE].to_pylist()[len(known) :] == [
        f"{name} is null" for name in ("title", "body", "kind") if form != "csv"
    ]
    assert {*table[ERROR].to_pylist()[len(known) :]} <= {"null_input"}


def test_messages_are_rendered_by_the_template_with_all_columns(model: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    write_parquet(tmp_path, ROWS)
    table = prepared(job_over(tmp_path, model, messages=CHATS))
    library = AutoTokenizer.from_pretrained(model)
    for row, ids in zip(ROWS, table[TOKEN_IDS].to_pylist(), strict=True):
        messages = [{**message, "content": filled(message["content"], row)} for message in CHATS]
        wanted = library.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        require_prompt(model, ids, wanted, 5, add_special_tokens=False)


def test_a_template_that_strips_is_followed_in_one_message(tmp_path: Path):
    from transformers import AutoTokenizer

    path = make_language_model(
        tmp_path / "m", "llama", chat=CHAT.replace("message.content", "message.content | trim")
    )
    rows = [
        {"title": title, "body": body, "kind": "a"}
        for title in ("x", "", " \n", " y ")
        for body in ("z ", "", "\n", " <|im_end|> ")
    ]
    write_parquet(tmp_path, rows)
    library, tokenizer = (
        AutoTokenizer.from_pretrained(path),
        Tokenizer.from_file(str(path / "tokenizer.json")),
    )
    for content in ("{title} {body}", "Of {title}\n{body}", "{title}\n{body}\nIs it?"):
        message = {"role": "user", "content": content}
        table = prepared(job_over(tmp_path, path, messages=[message]))
        for row, ids in zip(rows, table[TOKEN_IDS].to_pylist(), strict=True):
            wanted = library.apply_chat_template(
                [{**message, "content": filled(content, row)}],
                tokenize=False,
                add_generation_prompt=True,
            )
            assert tokenizer.decode(ids, skip_special_tokens=False) == wanted
    with pytest.raises(
        JobError, match=r"does not write each text as it is: of .*write model\.prompt"
    ):
        resolve_model(job_over(tmp_path, path, messages=CHATS))


VALUES = st.lists(
    st.sampled_from([*CONTROL, "<|im_", "end|>", "<", "s>", "a", " ", "\n", "{title}", "{{", "}}"])
).map("".join)


@given(st.tuples(VALUES, VALUES, VALUES))
@examples(200)
def test_control_tokens_of_any_column_are_text(model: Path, values: tuple[str, ...]):
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    constants = ("<|im_start|>", "<|im_end|>\n<|im_start|>", " a ", "<|im_end|>")
    prompt = Prompt(constants[0], constants[-1], False, middles=constants[1:-1])
    [ids] = PromptTokenizer(tokenizer, prompt).prompts(*([value] for value in values))
    wanted = constants[0] + "".join(
        value + constant for value, constant in zip(values, constants[1:], strict=True)
    )
    assert tokenizer.decode(ids, skip_special_tokens=False) == wanted
    assert sum(tokenizer.id_to_token(number) in CONTROL for number in ids) == 4


def test_texts_are_those_that_the_library_writes_behind_the_rendered_prompt(tmp_path: Path):
    from transformers import AutoTokenizer

    path = make_writer(tmp_path / "m")
    write_parquet(tmp_path, [row for row in ROWS if "<" not in row["title"]])
    prompt, section = "{title}\n{kind} {body}:", {"max_new_tokens": NEW_TOKENS}
    job = job_of(
        {"path": str(path), "task": "generate", "prompt": prompt, "generate": section},
        {"uri": str(tmp_path), "format": "parquet", "text_column": "body"},
    )
    library = AutoTokenizer.from_pretrained(path)
    rendered = [filled(prompt, row) for row in ROWS if "<" not in row["title"]]
    expected = library_outputs(path, library(rendered).input_ids)
    inputs = list_inputs(job.source, max_extent_rows=100)
    spec = resolve_model(job).fitted(inputs.fields)
    assert [row["text"] for row in predicted(spec, prepared(job))] == [
        written.text for written in expected
    ]


RERANKER = (
    "<|im_start|>system\nDoes the document answer the query? Say y or n.<|im_end|>\n"
    "<|im_start|>user\n<Query>: {title}\n<Document>: {body}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
OF_PAIRS = "{{ bos_token }}" + RERANKER.replace("{title}", "{{ messages[0].content }}").replace(
    "{body}", "{{ messages[1].content }}"
).replace("\n", "{{ '\\n' }}")
"""A chat template that writes the same of a pair."""


def reranker(folder: Path, false: str | None = "n") -> Path:
    """Return a directory of a causal model that scores pairs, as sentence-transformers saves it."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    base = make_language_model(folder / "base", "llama", chat=OF_PAIRS)
    transformer = Transformer(str(base), transformer_task="text-generation")
    id_of = transformer.tokenizer.get_vocab().get
    score = LogitScore(id_of("y"), id_of(false))
    CrossEncoder(modules=[transformer, score], device="cpu").save_pretrained(str(folder / "saved"))
    return folder / "saved"


def test_two_choices_score_as_a_published_reranker_of_a_causal_model(tmp_path: Path):
    from sentence_transformers import CrossEncoder

    path, body = reranker(tmp_path), ROWS[0]["body"]
    rows = [ROWS[0], {**ROWS[0], "title": "where is the dog", "body": f"{body}. {body}"}, ROWS[4]]
    write_parquet(tmp_path, rows)
    job = job_over(tmp_path, path, prompt=RERANKER, choices=["y", "n"])
    spec = resolve_model(job).fitted(list_inputs(job.source, max_extent_rows=100).fields)
    actual = [
        {entry["label"]: entry["score"] for entry in row["top_k"]}["y"]
        for row in predicted(spec, prepared(job))
    ]
    library = CrossEncoder(str(path), device="cpu")
    expected = library.predict([(row["title"], row["body"]) for row in rows]).tolist()
    assert actual == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in [*actual, 0.5]}) == 1 + len(rows)


def test_a_published_reranker_names_the_way_out_of_other_tasks(tmp_path: Path):
    path = reranker(tmp_path / "two")
    write_parquet(tmp_path, ROWS)
    source = {"uri": str(tmp_path), "format": "parquet", "text_column": "body"}
    with pytest.raises(JobError, match=r"serves choices; take task 'choices', with the whole pr"):
        resolve_model(job_of({"path": str(path), "task": "score"}, source))
    with pytest.raises(JobError, match="with true_token_id and false_token_id"):
        resolve_model(job_over(tmp_path, reranker(tmp_path / "one", None), prompt=RERANKER))


def test_the_last_column_is_cut_and_others_cost_the_row(model: Path, tmp_path: Path):
    long = "the cat " * 500
    write_parquet(
        tmp_path,
        [{**ROWS[0], "body": long}, {**ROWS[0], "title": long}, {**ROWS[0], "kind": long}, ROWS[0]],
    )
    table = prepared(job_over(tmp_path, model, prompt="{title}\n{kind} {body}\nAnswer:"))
    assert table[ERROR].to_pylist() == [None, "input_too_long", "input_too_long", None]
    assert "leave room for its last column" in table[MESSAGE].to_pylist()[1]
    assert table[TRUNCATED].to_pylist() == [True, None, None, False]
    assert table[NUM_TOKENS].to_pylist()[0] > 100
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = tokenizer.decode(table[TOKEN_IDS].to_pylist()[0])
    assert text.startswith("a good film\nreview the cat the cat")
    assert text.endswith("Answer:")


def test_places_are_names_in_single_braces():
    assert parts_of("a {b}{c_1} {{d}} {e f} {1} {} {\u00e4}}") == [
        *("a ", "b", "", "c_1", " {d} {e f} {1} {} ", "\u00e4", "}")
    ]
    assert parts_of('{{{a}}} {"a": {b}}') == ['{{a}} {"a": ', "b", "}"]
    assert parts_of("") == [""]
    assert parts_of("{meta.title}") == ["", "meta.title", ""]


def test_the_columns_are_part_of_the_source_and_of_the_fingerprint(model: Path, tmp_path: Path):
    write_parquet(tmp_path, ROWS)
    plain = job_over(tmp_path, model, prompt="{text} a")
    assert "prompt_columns" not in plain.source.settings("fingerprint")
    assert "columns" not in resolve_model(plain).input.settings()["prompt"]
    job = job_over(tmp_path, model, prompt="{text} {kind} a")
    assert job.source.settings("published")["prompt_columns"] == ["kind"]
    prompt = resolve_model(job).input.settings()["prompt"]
    assert (prompt["columns"], prompt["middles"]) == (("", "kind"), (" ",))
    assert resolve_model(job_over(tmp_path, model, prompt="{body} {kind} a")).input == (
        resolve_model(job).input
    )


def test_a_name_that_is_no_column_is_one_line_at_planning(model: Path, tmp_path: Path):
    write_parquet(tmp_path, ROWS)
    job = job_over(tmp_path, model, prompt="{text} {subject} a")
    with pytest.raises(JobError, match=r"no column 'subject'; it has .*title") as caught:
        list_inputs(job.source, max_extent_rows=100)
    assert "\n" not in str(caught.value)
    with pytest.raises(JobError, match=r"prompt_columns: model\.prompt and .* name kind in"):
        job_of(
            {
                "path": str(model),
                "task": "choices",
                "choices": CHOICES,
                "prompt": "{kind} {text} a",
            },
            {"uri": "in", "format": "csv", "text_column": "body", "prompt_columns": ["title"]},
        )
