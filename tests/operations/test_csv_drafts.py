"""Jobs made for CSV files: columns are never guessed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from onnx import helper
from support.models.onnx_files import FLOAT, make_model, value, weights
from support.models.snapshots import make_snapshot
from typer.main import get_command

from pipeline.commands.app import app
from pipeline.core.errors import JobError
from pipeline.job.reading.loader import parse_overrides
from pipeline.operations.arguments import load_job
from pipeline.operations.draft import draft_job
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare

PREDICT = get_command(app).commands["predict"]  # type: ignore[attr-defined]
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


def drafted(
    folder: Path,
    data: bytes,
    model: Path,
    name: str = "in.csv",
    features: Sequence[str] = (),
    **given: Any,
) -> Any:
    (folder / name).write_bytes(data)
    overrides = {f"source.{field}": value for field, value in given.items()}
    if model.suffix == ".onnx":
        overrides["model.labels"] = ["stay", "churn"]
    to = str(folder / "out")
    return draft_job(str(folder / name), str(model), to, overrides, features=features)


def features_of(error: object) -> list[str]:
    """The columns that the command in a message gives, as the command line parses it."""
    words = shlex.split(str(error).partition("in order: ")[2].partition("; not in this list")[0])
    assert words[:2] == ["pipeline", "predict"]
    return list(PREDICT.make_context("predict", words[2:]).params["features"])


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
def test_features_keep_the_given_order(
    data: bytes, given: dict[str, Any], id_column: str | None, tmp_path: Path, models: Path
):
    names = ("spent", "age", "visits")
    draft = drafted(tmp_path, data, models / "churn.onnx", features=names, **given)
    assert draft.notes[-1] == "model: churn.onnx, task classify, 2 labels"
    assert draft.job.source.input_columns.names == names
    assert draft.job.source.id_column == id_column
    is_ragged = data.endswith(b"x")
    notes = [line for line in draft.notes if line.startswith("cannot be read: 1 of its first 21")]
    assert bool(notes) == is_ragged


@pytest.mark.parametrize(
    ("columns", "header", "left_out"),
    [
        (NUMBERS, HEADER, ""),
        (("#", *NUMBERS), f",{HEADER}", '"" (int64)'),
        (("7", *NUMBERS), f"Unnamed: 0,{HEADER}", "Unnamed: 0 (int64)"),
        (("7", *NUMBERS), f"__index_level_0__,{HEADER}", "__index_level_0__ (int64)"),
        (("7", *NUMBERS), f"index,{HEADER}", "index (int64)"),
        (("#", *NUMBERS, "x"), f"id,{HEADER},name", "id (int64), name (text)"),
        (("7", *NUMBERS), f"customer_no,{HEADER}", "customer_no (int64)"),
    ],
)
def test_a_model_with_unnamed_inputs_asks_for_columns_with_a_complete_command(
    columns: tuple[str, ...], header: str, left_out: str, tmp_path: Path, models: Path
):
    with pytest.raises(JobError, match="unnamed inputs; list the columns in order") as caught:
        drafted(tmp_path, rows(*columns, header=header), models / "churn.onnx")
    assert features_of(caught.value) == HEADER.split(",")
    assert str(caught.value).partition("; not in this list: ")[2] == left_out


def test_only_a_count_of_all_rows_is_a_row_number(tmp_path: Path, models: Path):
    counted = b"n,age,visits,spent\n" + b"".join(b"%d,3,4,5\n" % row for row in range(1, 9))
    for data, names in (
        (counted, "age,visits,spent"),
        (counted.replace(b"8,3", b"9,3"), "n,age,visits,spent (4 numbers, not 3)"),
        (b"a,index\n1,2\n", "a (1 number, not 3); not in this list: index (int64)"),
    ):
        with pytest.raises(JobError, match=f"--features {re.escape(names)}"):
            drafted(tmp_path, data, models / "churn.onnx")


def test_column_names_with_commas_and_blanks_are_quoted(tmp_path: Path, models: Path):
    with pytest.raises(JobError, match="list the columns in order") as caught:
        drafted(tmp_path, b'"a,b", c,"d ""e"""\n1,2,3\n', models / "churn.onnx")
    assert features_of(caught.value) == ["a,b", " c", 'd "e"']


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("age;visits;spent\n1;2;16536,83\n2;3;1,5\n", "16536,83"),
        ("age;visits;spent\n1;2;16.536,83\n2;3;1,5\n", "16.536,83"),
        ("age;visits;spent\n1;2;1 536\n2;3;-7\n", "1 536"),
        ("age;visits;spent\n1;2;1,234.5\n", "1,234.5"),
        ("sep=;\nage;visits;spent\n1;2;3\n", "(sep=;) names the delimiter"),
        ("Customers 2026;;\nage;visits;spent\n1;2;3\n", "(Customers 2026, ,) looks like a title"),
        ("Customers\nage;visits;spent\n1;2;3\n", "line 2 has 3 fields, expected 1"),
        ("# of a report\nage;visits;spent\n1;2;3\n", "line 2 has 3 fields, expected 1"),
    ],
)
def test_other_dialects_of_csv_are_reported_with_the_options_that_read_them(
    data: str, told: str, tmp_path: Path, models: Path
):
    options: dict[str, Any] = {} if data.startswith("sep") else {"delimiter": ";"}
    with pytest.raises(JobError) as caught:
        drafted(tmp_path, data.encode(), models / "churn.onnx", options=options)
    assert told in str(caught.value)
    cures = re.findall(r"--set ('[^']+'|[^ ')]+)", str(caught.value).partition(told)[2])
    given = parse_overrides([shlex.split(cure)[0] for cure in cures])
    assert given
    options |= {name.removeprefix("source.options."): value for name, value in given.items()}
    draft = drafted(
        tmp_path, data.encode(), models / "churn.onnx", features=HEADER.split(","), options=options
    )
    assert "left out" not in " ".join(draft.notes)
    with pytest.raises(JobError, match=r"--features age,visits,spent$"):
        drafted(tmp_path, data.encode(), models / "churn.onnx", options=options)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (rows(*NUMBERS, header=HEADER) + b"\nage,visits,spent\n", "header is there again among"),
        (b"age, visits, spent\n1, 2, 3\n", r"blanks behind the delimiter: pandas\.read_csv"),
        (b"age,visits,spent\n1,2,12 %\n", r'spent \(text among numbers, "12 %"\)'),
        (b"age,visits,spent,notes\n1,2,3,\n", r"spent; not in this list: notes \(null\)"),
    ],
)  # fmt: skip
def test_a_dialect_that_no_option_reads_is_reported(
    data: bytes, words: str, tmp_path: Path, models: Path
):
    with pytest.raises(JobError, match=words):
        drafted(tmp_path, data, models / "churn.onnx")


def test_features_are_given_once(tmp_path: Path, models: Path):
    with pytest.raises(JobError, match=r"source.features is given twice"):
        draft_job("in.csv", "m.onnx", "out", {"source.features": ["age"]}, features=["age"])


@pytest.mark.parametrize(
    ("data", "given", "words"),
    [
        (rows("00#", "30", "4.5", '"1,100.50"', header=f"customer,{HEADER}"), {},
         r'takes 3 unnamed .* age,visits .* not in this list.*, spent \(text .*"1,100.50"; --set '),
        (rows("#", "4", '"4,5"', header=HEADER), {}, r'\(text .*"4,5"; --set '),
        (rows("30", "4", "12 %", header=HEADER), {}, r'spent \(text .*"12 %"\)'),
        (rows(*NUMBERS, "7", header=f"{HEADER},more"), {}, r"more \(4 numbers, not 3\)"),
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
def test_ambiguous_columns_are_an_error_with_the_remedy(
    data: bytes, given: dict[str, Any], words: str, tmp_path: Path, models: Path
):
    with pytest.raises(JobError, match=words) as caught:
        drafted(tmp_path, data, models / "churn.onnx", **given)
    assert "\n" not in str(caught.value)


def test_the_chosen_text_column_and_the_others_are_reported(tmp_path: Path, models: Path):
    data = rows("00#", "one cat", "two cats", header="customer,title,body")
    draft = drafted(tmp_path, data, models / "encoder")
    assert (draft.job.source.text_column, draft.job.source.id_column) == ("body", "customer")
    assert "text of body; fits as well: title; the id is customer" in draft.notes[0]
    assert draft.notes[1] == "left out: title (text)"
    with pytest.raises(JobError, match="looks like delimiter"):
        drafted(tmp_path, rows("00#", "soup", header="id;body", sep=";"), models / "encoder")
    latin = rows("00#", "caf\u00e9", header="id,body").decode().encode("latin-1")
    with pytest.raises(JobError, match=r"20 of its first 20 .* not UTF-8 \(Latin-1 is .* --set s"):
        drafted(tmp_path, latin, models / "encoder")


def test_a_table_of_another_width_is_refused_before_anything_runs(tmp_path: Path, models: Path):
    (tmp_path / "in.csv").write_bytes(rows(*NUMBERS, header=HEADER))
    job = load_job(
        source={"uri": str(tmp_path / "*.csv"), "format": "csv", "features": ["age", "visits"]},
        model={"path": str(models / "churn.onnx"), "labels": ["stay", "churn"]},
        sink={"uri": str(tmp_path / "out")},
    )
    with pytest.raises(JobError, match="the columns have 2 numbers per row, the model takes 3"):
        prepare(RunContext.of(job, RunOptions()))
