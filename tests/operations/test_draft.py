"""Jobs made of an input and a model; ambiguity is one line with the choices."""

from __future__ import annotations

import base64
import csv
import json
import re
from pathlib import Path
from typing import Any

import deltalake
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.encoded import base_image, encode
from support.inputs.iceberg_tables import TABLE, catalog_at, without_catalog
from support.inputs.tars import Entry, pack
from support.models.snapshots import make_snapshot

from pipeline.core.errors import InputMissing, JobError
from pipeline.job.reading.yaml_reader import parse
from pipeline.operations.arguments import load_job
from pipeline.operations.draft import Draft, draft_job
from pipeline.operations.draft_input import choose_columns, choose_id, look
from pipeline.operations.init import init
from pipeline.operations.predict import predict

PNG = encode(base_image(1, 8, 8), "PNG")
TEXTS = {"id": ["a", "b"], "text": ["one cat", "two cats"], "n": [1, 2]}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "encoder"
    make_snapshot(folder, "bert", pooling="mean", normalize=True)
    return str(folder)


def write(folder: Path, name: str, columns: dict[str, Any]) -> str:
    """The columns as a file of the format that its name says."""
    path = folder / name
    rows = pa.table(columns).to_pylist()
    if name.endswith(".parquet"):
        pq.write_table(pa.table(columns), path)
    elif name.endswith(".delta"):
        deltalake.write_deltalake(path, pa.table(columns))
        deltalake.write_deltalake(path, pa.table(columns), mode="overwrite")
    elif name.endswith(".iceberg"):
        catalog = catalog_at(path / "metadata")
        schema = pa.table(columns).schema
        table = catalog.create_table(TABLE, schema=schema, location=str(path))
        table.append(pa.table(columns))
        without_catalog(table)
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t" if ".tsv" in name else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def drafted(tmp_path: Path, uri: str, model: str, **overrides: Any) -> Draft:
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return draft_job(uri, model, str(tmp_path / "out"), given)


@pytest.mark.parametrize(
    "name", ["rows.parquet", "rows.delta", "rows.iceberg", "rows.jsonl", "rows.csv", "rows.tsv"]
)
def test_texts_of_every_format_need_no_job_file(tmp_path: Path, encoder: str, name: str):
    draft = drafted(tmp_path, write(tmp_path, name, TEXTS), encoder)
    source = draft.job.source
    assert (source.text_column, source.id_column) == ("text", "id")
    assert source.format == {"tsv": "csv"}.get(name[5:], name[5:])
    assert load_job(parse(draft.text).value) == draft.job, "the file is the job"
    assert [line.partition(":")[0] for line in draft.notes] == ["input", "left out", "model"]
    assert draft.notes[1].startswith("left out: n (int")
    assert re.search(r"task embed, vectors of \d+ numbers$", draft.notes[2])
    assert not any("\n" in line for line in draft.notes)


def test_a_table_that_only_a_catalog_knows_is_refused_before_a_file_is_written(tmp_path: Path):
    uri = write(tmp_path, "rows.iceberg", TEXTS)
    (Path(uri) / "metadata" / "version-hint.text").unlink()
    with pytest.raises(JobError, match=r"source\.format: iceberg and source\.options: {catalog: N"):
        drafted(tmp_path, uri, "efficientnet-lite0")


def test_overrides_are_written_to_the_file(tmp_path: Path, encoder: str):
    uri = write(tmp_path, "rows.jsonl", {**TEXTS, "other": ["x y", "y z"]})
    draft = drafted(
        tmp_path, uri, encoder, source__text_column="other", gates__volume__mode="off",
        run__limit_rows=1,
    )  # fmt: skip
    assert draft.job.source.text_column == "other"
    assert draft.job.gates.volume.mode == "off"
    assert load_job(parse(draft.text).value) == draft.job


def test_files_and_tars_of_images_have_no_columns(tmp_path: Path):
    photos, tars = tmp_path / "photos", tmp_path / "tars"
    for folder in (photos, tars):
        folder.mkdir()
    (photos / "a.png").write_bytes(PNG)
    (photos / ".hidden").write_bytes(b"x")
    (tars / "1.tar").write_bytes(pack([Entry("a.png", PNG)]))
    for folder, form in ((photos, "images"), (tars, "webdataset"), (photos / "a.png", "images")):
        draft = drafted(tmp_path, str(folder), "efficientnet-lite0")
        assert (draft.job.source.format, draft.job.model.name) == (form, "efficientnet-lite0")


def table(**columns: list[Any]) -> pa.Table:
    return pa.table(columns)


B64 = base64.b64encode(PNG).decode()
CLIP = b"RIFF\x04\0\0\0WAVE"
CLIP_B64 = base64.b64encode(CLIP).decode()


@pytest.mark.parametrize(
    ("rows", "takes", "expected"),
    [
        (table(a=[PNG], b=[b"no"]), "image", {"image_column": "a"}),
        (table(a=[{"bytes": PNG, "path": "x"}]), "image", {"image_column": "a"}),
        (table(a=[None, B64], b=["t", "t"]), "image",
         {"image_column": "a", "image_encoding": "base64"}),
        (table(a=["s3://b/1.JPG"], b=["two words"]), "image", {"uri_column": "a"}),
        (table(a=["1.jpg"], b=["two words"]), "text", {"text_column": "b"}),
        (table(body=["x"], title=["y"]), "text", {"text_column": "body"}),
        (table(id=["1"], v=[[1.0, 2.0]]), "features", {"features": ["v"]}),
        (table(v=[[1.0, 2.0]]), None, {"features": ["v"]}),
        (table(a=[PNG]), None, {"image_column": "a"}),
        (table(a=[CLIP], b=[PNG]), "audio", {"audio_column": "a"}),
        (table(a=[CLIP_B64]), None, {"audio_column": "a", "audio_encoding": "base64"}),
        (table(a=["s3://b/1.WAV"], b=["t t"]), "audio", {"uri_column": "a", "input": "audio"}),
        (table(a=["one text"]), None, {"text_column": "a"}),
    ],
)  # fmt: skip
def test_columns_are_chosen_by_their_content(rows: pa.Table, takes: Any, expected: dict[str, Any]):
    chosen = choose_columns(rows, takes)
    assert {name: value for name, (value, _) in chosen.items()} == expected


@pytest.mark.parametrize(
    ("rows", "takes", "words"),
    [
        (table(a=["x"], b=["y"]), "text", "which column has the text.*source.text_column.*a, b"),
        (table(a=[PNG], b=[PNG]), "image", "which column has the image.*a, b"),
        (table(a=["x"]), "image", r"takes images: .* the first rows have none: .* a \("),
        (table(a=["x"]), "features", "takes numbers: .*source.features; the first rows have none"),
        (table(a=["x"], n=[1]), None, "which columns are the model's input"),
        (table(x=[1.5], y=[2]), "features", r"several unnamed inputs.* in order.* --features x,y$"),
        (table(x=[1.5]), "features", r"in order.* --features x$"),
        (table(v=[[1.5]], n=[2]), "features", r"in order.* --features v,n$"),
    ],
)
def test_ambiguity_is_an_error_in_one_line(rows: pa.Table, takes: Any, words: str):
    with pytest.raises(JobError, match=words) as caught:
        choose_columns(rows, takes)
    assert "\n" not in str(caught.value)


def test_pairs_and_columns_by_name():
    rows = table(q=["a b"], d=["c d"], n=[1])
    chosen = choose_columns(rows, "text", is_pair=True)
    assert (chosen["text_column"][0], chosen["text_pair_column"][0]) == ("q", "d")
    assert choose_columns(rows, "features", ["n", "q"])["features"][0] == ["n", "q"]
    with pytest.raises(JobError, match="there is no age; there are q, d, n"):
        choose_columns(rows, "features", ["n", "age"])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (table(id=[1, 2]), "id"),
        (table(customer_id=["a", "b"]), "customer_id"),
        (table(a_id=["a", "b"], b_id=["a", "b"]), None),
        (table(id=[1, 1]), None),
        (table(id=[1.5, 2.5]), None),
        (table(ID=["a", None]), None),
        (table(name=["a", "b"]), None),
        (table(customer=["001", "002"], n=[1, 2]), "customer"),
        (table(customer=[7, 9]), "customer"),
        (table(customer=[7, 7]), None),
        (table(order_no=["a", "b"], user=["a", "b"]), None),
    ],
)
def test_an_id_column_has_a_matching_name_and_distinct_values(rows: pa.Table, expected: str | None):
    assert choose_id(rows).get("id_column", (None,))[0] == expected


def test_the_files_determine_the_format(tmp_path: Path):
    with pytest.raises(InputMissing, match="no such file or folder"):
        look(str(tmp_path / "nowhere"))
    with pytest.raises(InputMissing, match="holds no files"):
        look(str(tmp_path))
    for given in ({}, {"format": "parquet"}):
        with pytest.raises(InputMissing, match="matches no file"):
            look(str(tmp_path / "*.parquet"), given)
    (tmp_path / "notes.docx").write_bytes(b"x")
    (tmp_path / "more.docx").write_bytes(b"x")
    with pytest.raises(JobError, match=r"no supported input files; it has 2 \.docx"):
        look(str(tmp_path))
    write(tmp_path, "rows.jsonl", TEXTS)
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(JobError, match=r"which format\? --set source.format=.*images \(1 file\)"):
        look(str(tmp_path))
    assert look(str(tmp_path / "*.jsonl")).format == "jsonl"
    (tmp_path / "photo.bin").write_bytes(PNG)
    assert look(str(tmp_path / "photo.bin")).format == "images"


def test_a_broken_file_is_an_error_in_one_line(tmp_path: Path, encoder: str):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no footer")
    with pytest.raises(JobError, match=r"rows\.parquet: cannot be read as parquet"):
        drafted(tmp_path, str(tmp_path / "rows.parquet"), encoder)
    with pytest.raises(JobError, match="is for job files; pipeline init"):
        drafted(tmp_path, "in/${date}", encoder)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            "models/smoll",
            r"'models/smoll': no such folder or file.*pipeline pull hf://models/smoll",
        ),
        ("churn/v2/model", "no such folder or file, no installed model .*pipeline pull hf://"),
        ("distilbert-base-uncased", "no such folder or file, no installed model"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "photo.png", "nowhere"])
def test_a_missing_model_is_reported_for_any_input(
    tmp_path: Path, model: str, words: str, name: str
):
    write(tmp_path, "rows.jsonl", TEXTS)
    (tmp_path / "photo.png").write_bytes(PNG)
    with pytest.raises(JobError, match=words):
        drafted(tmp_path, str(tmp_path / name), model)


def test_photos_for_a_model_of_texts_are_no_columns(tmp_path: Path, encoder: str):
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(JobError, match=r"takes texts, and .*a\.png is 1 file of images$"):
        drafted(tmp_path, str(tmp_path / "a.png"), encoder)
    with pytest.raises(JobError, match=r"--set model.prompt: .*'model.prompt=\"...\"'"):
        draft_job(str(tmp_path), encoder, "out", ["model.prompt=Review: {body} Mood:"])


def test_rows_in_memory_are_written_once_below_the_output(tmp_path: Path, encoder: str):
    out, texts = tmp_path / "out", ["one cat", None, ""]

    def source_of(rows: Any) -> Any:
        (tmp_path / "job.yaml").unlink(missing_ok=True)
        job = init(rows, model=encoder, to=out, job=tmp_path / "job.yaml")["job"]
        return load_job(job).source

    source = source_of(pd.DataFrame(TEXTS, index=["first", "second"]))
    assert source_of(pd.DataFrame(TEXTS)).uri == source.uri
    assert [*map(str, (out / "input").iterdir())] == [source.uri]
    assert pq.read_table(source_of(pa.table(TEXTS)).uri).to_pydict() == TEXTS
    assert pq.read_table(source.uri).to_pydict() == TEXTS
    assert source.text_column == "text"
    assert pq.read_table(source_of(texts).uri).to_pydict() == {"text": texts}


@pytest.mark.parametrize("call", [init, predict])
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (3, r"is of type int; expected a path, a table of pyarrow, a DataFrame .* or a list of te"),
        (["one cat", 2], "is of type list; expected"),
        (pd.DataFrame({"a": [1, "x"]}), "no table of Arrow can be made of it"),
    ],
    ids=["a number", "some texts", "a column of two types"],
)
def test_what_is_no_table_is_refused(
    call: Any, rows: Any, words: str, tmp_path: Path, encoder: str
):
    with pytest.raises(JobError, match=words):
        call(rows, model=encoder, to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_init_writes_a_valid_file_and_overwrites_none(tmp_path: Path, encoder: str):
    uri, job = write(tmp_path, "rows.csv", TEXTS), tmp_path / "job.yaml"
    written = init(uri, model=encoder, to=str(tmp_path / "out"), job=job)
    assert written["next"] == f"pipeline run {job}"
    assert load_job(job).source.text_column == "text"
    assert "pipeline run" in str(written)
    comments = [line for line in job.read_text().splitlines() if "  # " in line]
    assert len(comments) >= 6
    with pytest.raises(JobError, match="already exists; pass another --job"):
        init(uri, model=encoder, to=str(tmp_path / "out"), job=job)


def test_a_failed_predict_can_be_repeated_and_leaves_its_input_unchanged(
    tmp_path: Path, encoder: str
):
    uri, out = write(tmp_path, "rows.jsonl", TEXTS), tmp_path / "out"
    for column in ("wrong", "other"):
        with pytest.raises(JobError, match=f"no column '{column}'"):
            predict(uri, model=encoder, to=out, overrides={"source.text_column": column})
        assert load_job(out / "job.yaml").source.text_column == column
    (out / "job.yaml").write_text("source: {}")
    with pytest.raises(JobError, match=r"already holds another job; .*pass a different --to \(in"):
        predict(uri, model=encoder, to=out)
    with pytest.raises(JobError, match=r"inside the input of source\.uri"):
        predict(tmp_path, model=encoder, to=tmp_path, overrides={"source.format": "jsonl"})
    assert not (tmp_path / "job.yaml").exists()
