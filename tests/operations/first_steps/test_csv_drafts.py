"""A job for CSV is made as a run reads it, and never by a guess which columns the model sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import helper
from support.models.onnx_files import FLOAT, make_model, value, weights
from support.models.snapshots import make_snapshot

from pipeline.core.errors import JobError
from pipeline.operations.first_steps.draft import draft_job
from pipeline.operations.jobs import load_job
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare

WIDTH, NUM_ROWS = 3, 20


def rows(*columns: str, header: str = "", sep: str = ",") -> bytes:
    """20 records; `#` in a column is the number of the record, `00#` with zeros before it."""
    lines = [
        sep.join(
            column.replace("00#", f"{row:05}").replace("#", str(row + 2)) for column in columns
        )
        for row in range(NUM_ROWS)
    ]
    return "\n".join([header, *lines] if header else lines).encode()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_snapshot(folder / "encoder", "bert", pooling="mean", normalize=True)
    made = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        [value("x", FLOAT, ["batch", WIDTH])],
        [value("logits", FLOAT, ["batch", 2])],
        [weights("w", WIDTH, 2)],
    )
    (folder / "churn.onnx").write_bytes(made.SerializeToString())
    return folder


def drafted(folder: Path, data: bytes, model: Path, name: str = "in.csv", **given: Any) -> Any:
    (folder / name).write_bytes(data)
    overrides = {f"source.{field}": value for field, value in given.items()}
    if model.suffix == ".onnx":
        overrides["model.labels"] = ["stay", "churn"]
    return draft_job(str(folder / name), str(model), str(folder / "out"), overrides)


NUMBERS = ("30", "#", "4.5")
HEADER = "age,visits,spent"


@pytest.mark.parametrize(
    ("data", "given", "id_column"),
    [
        (rows(*NUMBERS, header=HEADER), {}, None),
        (rows("00#", *NUMBERS, header=f"customer,{HEADER}"), {}, "customer"),
        (rows("1#", *NUMBERS, header=f"customer,{HEADER}"), {}, "customer"),
        (rows(*NUMBERS, header=HEADER) + b"\n1,2,3,x", {}, None),
        (
            rows(*NUMBERS, header="age;visits;spent", sep=";"),
            {"options": {"delimiter": ";"}},
            None,
        ),
        (rows(*NUMBERS), {"options": {"columns": HEADER.split(",")}}, None),
        (b"\xef\xbb\xbf" + rows(*NUMBERS, header=HEADER).replace(b"\n", b"\r\n"), {}, None),
    ],
    ids=["plain", "digits-id", "number-id", "ragged", "semicolons", "no-header", "bom"],
)
def test_numbers_are_taken_where_nothing_is_left_to_guess(
    data: bytes, given: dict[str, Any], id_column: str | None, tmp_path: Path, models: Path
):
    draft = drafted(tmp_path, data, models / "churn.onnx", **given)
    assert draft.job.source.input_columns.names == tuple(HEADER.split(","))
    assert draft.job.source.id_column == id_column
    is_ragged = data.endswith(b"x")
    notes = [line for line in draft.notes if line.startswith("cannot be read: 1 of its first 21")]
    assert bool(notes) == is_ragged


@pytest.mark.parametrize(
    ("data", "given", "words"),
    [
        (rows("00#", "30", "4.5", '"1,100.50"', header=f"customer,{HEADER}"), {},
         r'takes 3 numbers .* of age, visits; no numbers are spent \(text .*"1,100.50"\)'),
        (rows("00#", "30", "4", '"4,5"', header=f"customer,{HEADER}"), {}, r'\(text .*"4,5"\)'),
        (rows("30", "4", "12 %", header=HEADER), {}, r'spent \(text .*"12 %"\)'),
        (rows(*NUMBERS, "7", header=f"{HEADER},more"), {}, "takes 3 numbers .* spent, more"),
        (rows("30", "7", "4.5", header="age,customer_no,spent"), {}, "customer_no may be an id"),
        (rows(*NUMBERS, "x", header=f"{HEADER},name"), {}, r"no numbers are name \(text\)"),
        (rows(*NUMBERS, header=HEADER) + b"\nage,visits,spent\n", {}, r'age \(text .*"age"\)'),
        (rows(*NUMBERS), {}, r"its header \(30, 2, 4.5\) looks like a row: .*options.columns="),
        (rows("00#", *NUMBERS), {}, "looks like a row"),
        (rows(*NUMBERS, header="age;visits;spent", sep=";"), {},
         r"one column 'age;visits;spent' looks like delimiter \";\": --set 'source.options.del"),
        (rows(*NUMBERS, header="a\tb\tc", sep="\t"), {}, r'delimiter "\\t"'),
        (rows(*NUMBERS, header="a|b|c", sep="|"), {}, r'delimiter "\|"'),
        (rows(*NUMBERS, header=HEADER).decode().encode("utf-16"), {}, "iconv -f utf-16 -t utf-8"),
        (b"", {}, r"in\.csv: is empty$"),
        (HEADER.encode() + b"\n", {}, r"in\.csv: has no rows but a header$"),
        (b"a,b\n1\n2\n", {}, r"2 of its first 2 rows: line 2 has 1 fields, expected 2"),
        (rows(*NUMBERS), {"options": {"sep": ";"}}, "sep: unknown key, did you mean delimiter"),
        (rows(*NUMBERS), {"options": {"delimiter": ";;"}}, "delimiter: .* at most 1 character"),
    ],
)  # fmt: skip
def test_what_could_only_be_guessed_is_one_line_with_the_cure(
    data: bytes, given: dict[str, Any], words: str, tmp_path: Path, models: Path
):
    with pytest.raises(JobError, match=words) as caught:
        drafted(tmp_path, data, models / "churn.onnx", **given)
    assert "\n" not in str(caught.value)


def test_texts_say_which_column_is_taken_and_what_else_there_is(tmp_path: Path, models: Path):
    data = rows("00#", "one cat", "two cats", header="customer,title,body")
    draft = drafted(tmp_path, data, models / "encoder")
    assert (draft.job.source.text_column, draft.job.source.id_column) == ("body", "customer")
    assert "text of body; fits as well: title; the id is customer" in draft.notes[0]
    assert draft.notes[1] == "left out: title (text)"
    with pytest.raises(JobError, match="looks like delimiter"):
        drafted(tmp_path, rows("00#", "soup", header="id;body", sep=";"), models / "encoder")
    latin = rows("00#", "caf\u00e9", header="id,body").decode().encode("latin-1")
    with pytest.raises(JobError, match=r"20 of its first 20 .* not UTF-8 \(`iconv -f latin1"):
        drafted(tmp_path, latin, models / "encoder")


def test_a_table_of_another_width_is_refused_before_anything_runs(tmp_path: Path, models: Path):
    (tmp_path / "in.csv").write_bytes(rows(*NUMBERS, header=HEADER))
    job = load_job(
        source={"uri": str(tmp_path / "*.csv"), "format": "csv", "features": ["age", "visits"]},
        model={"path": str(models / "churn.onnx"), "labels": ["stay", "churn"]},
        sink={"uri": str(tmp_path / "out")},
    )
    with pytest.raises(JobError, match="the columns make 2 numbers a row, the model takes 3"):
        prepare(RunContext.of(job, RunOptions()))
