"""Test that golden rows pass a correct actor, and name a wrong model, transform or row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.inputs.encoded import encode
from support.inputs.photos import build_images
from support.models.tiny_tokenizer import make_tokenizer
from support.runs.cli import pipeline, write_job
from support.runs.jobs import DATE

from pipeline.core.errors import JobError, PipelineError
from pipeline.core.figures import Counters
from pipeline.core.schema import IMAGE_FIELDS, feature_fields, text_fields
from pipeline.execution.stages import Preprocessing
from pipeline.gates.golden import GoldenRefused, GoldenRows
from pipeline.gates.golden_files import MAX_BYTES, MAX_ROWS, read_golden
from pipeline.gates.results import GateResult
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.job.source import Source
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import Limits
from pipeline.sources.rows import Reader, make_rows
from pipeline.storage.store import Store

pytestmark = pytest.mark.no_ray

ALLOWED = ("models",)
NO_COLUMNS = pa.schema([])
COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


SUMS = {"factory": "models:sums", "task": "regress", "targets": ["sum", "most"]}


def png(colour: tuple[int, int, int], size_px: int = 48) -> bytes:
    return encode(Image.new("RGB", (size_px, size_px), colour), "PNG")


def job_with(golden: dict[str, Any], **sections: Any) -> Job:
    document = {
        "source": {"uri": "in", "format": "images"},
        "model": {"factory": "models:colours", "labels": models.LABELS},
        "transform": models.TRANSFORM,
        "sink": {"uri": "out"},
        "gates": {"golden": golden},
        **sections,
    }
    return parse_job(json.loads(json.dumps(document)), date=DATE, origin="job")


def spec_of(job: Job) -> ModelSpec:
    return resolve_model(job, ALLOWED)


def fields_of(job: Job, num_features: int) -> pa.Schema:
    if job.source.text_column:
        return text_fields(has_pair=job.source.text_pair_column is not None)
    return feature_fields(num_features) if num_features else IMAGE_FIELDS


def load_rows(job: Job, num_features: int = 0, *, is_accepted: bool = False) -> GoldenRows:
    reader = Reader(Store("in"), job.source, NO_COLUMNS, fields_of(job, num_features))
    rows = read_golden(job.gates, spec_of(job).task, reader, is_accepted=is_accepted)
    assert rows is not None
    return rows


def check(job: Job, rows: GoldenRows, num_features: int = 0) -> Counters:
    """Do what an actor does when it starts."""
    spec = spec_of(job).fitted(fields_of(job, num_features))
    config = PredictorConfig(spec, 4, 0, 1, NO_COLUMNS)
    preprocess = Preprocessing.of(job.source, spec.input, 1, fields_of(job, num_features))
    counters: Counters = {}
    checked = GoldenRows(**{**vars(rows), "preprocess": preprocess})
    checked.check(spec, TorchEngine(config).reduce, "an actor here", counters)
    return counters


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`<label>/<image file>`, two of each colour."""
    for name, colour in COLOURS.items():
        (tmp_path / "golden" / name).mkdir(parents=True)
        for size_px in (40, 70):
            (tmp_path / "golden" / name / f"{size_px}.png").write_bytes(png(colour, size_px))
    return tmp_path / "golden"


def write_rows(path: Path, **columns: Any) -> str:
    images = [png(colour) for colour in COLOURS.values()]
    base = {"row_id": ["r", "g", "b"], "image": images, "label": list(COLOURS)}
    table = {name: values for name, values in {**base, **columns}.items() if values is not None}
    pq.write_table(pa.table(table), path)
    return str(path)


def test_a_correct_actor_agrees_with_a_folder_of_labels(folder: Path):
    job = job_with({"uri": str(folder)})
    entry = check(job, load_rows(job))["golden"]
    assert (entry["num_rows"], entry["num_agreed"]) == (6, 6)


def test_another_model_is_refused_with_what_was_expected_and_found(folder: Path):
    job = job_with({"uri": str(folder)})
    labels = ["dark", "bright", "blue", "red", "green"]
    wrong = job_with({}, model={"factory": "models:colours", "labels": labels}, gates={})
    with pytest.raises(GoldenRefused) as caught:
        check(wrong, load_rows(job))
    message = str(caught.value)
    assert message.startswith(
        "nothing was published; golden: 6 of 6 golden rows differ on an actor"
    )
    assert "blue/40.png: expected 'blue', found 'green' 0.9" in message
    assert "and 3 more" in message
    assert caught.value.exit_code == 3
    assert caught.value.result() == GateResult("golden", "fail", None, 100.0, message)


def test_another_transform_shows_in_the_score(tmp_path: Path):
    job = job_with({"uri": write_rows(tmp_path / "g.parquet")})
    known = [0.97] * 3
    rows = load_rows(job_with({"uri": write_rows(tmp_path / "g.parquet", score=known)}))
    with pytest.raises(GoldenRefused, match=r"r: expected 'red' 0.9700, found 'red' 0.9\d+"):
        check(job, rows)
    within = {"uri": write_rows(tmp_path / "g.parquet", score=known), "max_score_diff": 0.5}
    check(job, load_rows(job_with(within)))
    uri = write_rows(tmp_path / "g.parquet", score=known, tolerance=[0.5, 0.5, 0.5])
    check(job, load_rows(job_with({"uri": uri})))
    uri = write_rows(tmp_path / "g.parquet", score=known, tolerance=[0.5, 0.0, None])
    with pytest.raises(GoldenRefused, match="2 of 3 golden rows differ") as caught:
        check(job, load_rows(job_with({"uri": uri})))
    assert "g: " in str(caught.value)
    assert "r: " not in str(caught.value)


@pytest.mark.parametrize("way", ["mode", "accepted"])
def test_accepted_differences_are_counted_and_not_refused(way: str, tmp_path: Path):
    labels = ["red", "green", "red"]
    golden = {"uri": write_rows(tmp_path / "g.parquet", label=labels)}
    job = job_with({**golden, "mode": "warn"} if way == "mode" else golden)
    entry = check(job, load_rows(job, is_accepted=way == "accepted"))["golden"]
    assert (entry["num_rows"], entry["num_agreed"]) == (3, 2)


def test_rows_that_fail_differ_and_cost_only_themselves(tmp_path: Path):
    images = [png((0, 0, 0)), b"no image", png(COLOURS["blue"])]
    golden = {"uri": write_rows(tmp_path / "g.parquet", image=images)}
    job = job_with(golden, model={"factory": "models:fussy", "labels": models.LABELS})
    with pytest.raises(GoldenRefused, match="2 of 3 golden rows differ") as caught:
        check(job, load_rows(job))
    assert "r: failed: ValueError: too dark to look at" in str(caught.value)
    assert "g: failed: unidentified" in str(caught.value)


def test_a_batch_that_is_too_large_is_predicted_row_by_row(folder: Path):
    for name in COLOURS:
        for extra in range(3):
            (folder / name / f"more-{extra}.png").write_bytes(png(COLOURS[name]))
    hungry = {"factory": "models:hungry", "labels": models.LABELS}
    job = job_with({"uri": str(folder)}, model=hungry)
    spec = spec_of(job)
    rows = GoldenRows(
        **{
            **vars(load_rows(job)),
            "preprocess": Preprocessing.of(job.source, spec.input, 1, IMAGE_FIELDS),
        }
    )
    reduce = TorchEngine(PredictorConfig(spec, 16, 0, 1, NO_COLUMNS)).reduce
    assert rows.differences(spec, reduce) == []


def test_numbers_are_compared_by_their_error(tmp_path: Path):
    source = {"uri": "in", "format": "parquet", "features": ["x"]}
    features = pa.array([[1.0, 2.0], [3.0, 5.0]], pa.list_(pa.float64()))
    for most, differ in ((5.0, False), (5.2, True)):
        table = {"features": features, "sum": [3.0, 8.0], "most": [2.0, most]}
        path = tmp_path / f"{most}.parquet"
        pq.write_table(pa.table(table), path)
        job = job_with({"uri": str(path)}, source=source, model=SUMS, transform={})
        rows = load_rows(job, 2)
        if not differ:
            assert check(job, rows, 2)["golden"]["num_agreed"] == 2
            continue
        with pytest.raises(GoldenRefused, match=r"#1: expected most 5\.2, found 5"):
            check(job, rows, 2)


def test_rows_of_a_table_may_have_its_columns(tmp_path: Path):
    plan = {"column": "plan", "categories": ["basic", "pro"]}
    source = {"uri": "in", "format": "parquet", "features": ["x", plan]}
    known = {"sum": [4.0, 6.0], "most": [3.0, 5.0]}
    path = tmp_path / "g.parquet"
    job = job_with({"uri": str(path)}, source=source, model=SUMS, transform={})
    pq.write_table(pa.table({"x": [3, 5], "plan": ["pro", "basic"], **known}), path)
    rows = load_rows(job, 3)
    assert rows.rows["features"].to_pylist() == [[3, 0, 1], [5, 1, 0]]
    assert check(job, rows, 3)["golden"]["num_agreed"] == 2
    pq.write_table(pa.table({"x": [3, 5], "plan": ["pro", "gold"], **known}), path)
    with pytest.raises(
        JobError, match=r"g\.parquet: row 1: feature plan is 'gold': no category of it"
    ):
        load_rows(job, 3)


def test_rows_of_a_table_may_have_its_texts(tmp_path: Path):
    """Of a model with an input per column: by their columns, or as the command writes them."""
    plan = {"column": "plan", "read_as": "text"}
    source = {"uri": "in", "format": "parquet", "features": ["x", plan]}
    golden = {"uri": str(tmp_path / "g.parquet")}
    job = job_with(golden, source=source, model=SUMS, transform={})
    fields = feature_fields(1, ["plan"])
    reader = Reader(Store("in"), job.source, NO_COLUMNS, fields)
    outputs = {"sum": [4.0, 6.0], "most": [3.0, 5.0]}
    vectors = pa.array([[3.0], [5.0]], pa.list_(pa.float64()))
    for columns in (
        {"x": [3, 5], "plan": ["a", ""]},
        {"features": vectors, "feature_plan": ["a", ""]},
    ):
        pq.write_table(pa.table({**columns, **outputs}), tmp_path / "g.parquet")
        rows = read_golden(job.gates, spec_of(job).task, reader, is_accepted=False)
        assert rows is not None
        assert rows.rows["features"].to_pylist() == [[3], [5]]
        assert rows.rows["_feature_plan"].to_pylist() == ["a", ""]


def test_vectors_are_compared_by_their_cosine(tmp_path: Path):
    model = {"factory": "models:channels", "task": "embed", "layer": "pool", "embedding_dim": 3}
    vectors = [np.array(colour) / 255 for colour in COLOURS.values()]
    for turned, num_agreed in ((vectors, 3), ([vectors[0], vectors[2], vectors[1]], 1)):
        uri = write_rows(tmp_path / "g.parquet", label=None, embedding=[list(v) for v in turned])
        job = job_with({"uri": uri, "mode": "warn"}, model=model)
        assert check(job, load_rows(job))["golden"]["num_agreed"] == num_agreed
    uri = write_rows(tmp_path / "g.parquet", label=None, embedding=[[1.0], [2.0], [3.0]])
    with pytest.raises(JobError, match="columns embedding do not match task 'embed'"):
        load_rows(job_with({"uri": uri}, model=model))


EMBED_TEXTS = {"factory": "models:mean_of_words", "task": "embed", "embedding_dim": 4}
SENTENCES = ["the cat sat", "a dog ran fast", ""]


def text_sections(folder: Path, **source: Any) -> dict[str, Any]:
    """A job's sections for texts, whose tokenizer is saved below a folder."""
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return {
        "source": {"uri": "in", "format": "parquet", "text_column": "body", **source},
        "model": EMBED_TEXTS,
        "text": {"tokenizer": str(folder / "tokenizer.json"), "max_tokens": 16},
        "transform": {},
    }


def vectors_of(sections: dict[str, Any], texts: list[str]) -> list[list[float]]:
    """What eager fp32 says of texts."""
    job = job_with({"uri": "x"}, **sections)
    spec = spec_of(job).fitted(fields_of(job, 0))
    config = PredictorConfig(spec, 4, 0, 1, NO_COLUMNS)
    reader = Reader(Store("in"), job.source, NO_COLUMNS, fields_of(job, 0))
    names = reader.fields.names
    columns = {name: pa.array(texts, pa.large_string()) for name in names}
    rows = make_rows(reader, texts, texts, columns, [None] * len(texts))
    prepared = spec.input.prepare(rows, {}, Limits(1, 1))
    arrays = TorchEngine(config).reduce(spec.input.arrays(prepared))
    vectors: list[list[float]] = arrays["embedding"].tolist()
    return vectors


def test_texts_are_compared_by_columns_named_text(tmp_path: Path):
    sections = text_sections(tmp_path)
    good = vectors_of(sections, SENTENCES)
    for vectors, num_agreed in ((good, 3), ([good[1], good[0], good[2]], 1)):
        path = tmp_path / f"{num_agreed}.parquet"
        pq.write_table(pa.table({"text": SENTENCES, "embedding": vectors}), path)
        job = job_with({"uri": str(path), "mode": "warn"}, **sections)
        assert check(job, load_rows(job))["golden"]["num_agreed"] == num_agreed
    job = job_with({"uri": str(path)}, **sections)
    with pytest.raises(GoldenRefused, match=r"#0: expected embedding\[\d\] "):
        check(job, load_rows(job))


def test_pairs_of_texts_need_both_columns(tmp_path: Path):
    sections = text_sections(tmp_path, text_pair_column="answer")
    pair = pa.table({"text": SENTENCES, "embedding": [[0.0] * 4] * 3})
    pq.write_table(pair, tmp_path / "one.parquet")
    with pytest.raises(JobError, match="has no column 'text_pair'"):
        load_rows(job_with({"uri": str(tmp_path / "one.parquet")}, **sections))
    pq.write_table(pair.append_column("text_pair", [SENTENCES]), tmp_path / "both.parquet")
    rows = load_rows(job_with({"uri": str(tmp_path / "both.parquet")}, **sections))
    assert rows.rows.num_rows == 3


def test_the_command_writes_texts_that_agree_with_themselves(tmp_path: Path):
    (tmp_path / "in").mkdir()
    texts = [*(f"the cat sat on {'red ' * n}mat" for n in range(8)), None, "x" * 2000]
    pq.write_table(pa.table({"body": texts}), tmp_path / "in" / "s.parquet")
    sections = text_sections(tmp_path, uri=str(tmp_path / "in"), max_text_bytes=1000)
    job_path = write_job(
        tmp_path / "job.yaml",
        sections["source"],
        str(tmp_path / "out"),
        model=sections["model"],
        text=sections["text"],
        transform=None,
    )
    out = str(tmp_path / "golden.parquet")
    done = pipeline("golden", job_path, "--rows", "5", "--out", out, "--json")
    assert done.code == 0, done.stderr
    table = pq.read_table(out)
    assert table.column_names == ["row_id", "text", "embedding"]
    assert set(table["text"].to_pylist()) < set(texts)
    job = job_with({"uri": out}, **sections)
    assert check(job, load_rows(job))["golden"]["num_agreed"] == table.num_rows > 0


@pytest.mark.parametrize(
    ("model", "columns"),
    [
        ({"task": "multilabel", "labels": models.LABELS}, {"labels": [{"label": "red"}] * 3}),
        ({"task": "tokens", "labels": models.LABELS}, {"entities": [["red"]] * 3}),
        ({"task": "tokens", "labels": models.LABELS}, {"entities": [[{"start": "x"}]] * 3}),
        ({"task": "score"}, {"score": ["high"] * 3}),
    ],
)
def test_columns_of_another_type_are_an_error_of_the_job(
    model: dict[str, Any], columns: dict[str, Any], tmp_path: Path
):
    uri = write_rows(tmp_path / "g.parquet", label=None, **columns)
    job = job_with({"uri": uri}, model={"factory": "models:colours", **model})
    with pytest.raises(JobError, match=f"do not match task '{model['task']}'"):
        load_rows(job)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": None}, "no column 'label'"),
        ({"image": None}, "no column 'image'"),
        ({"label": ["red", None, "blue"]}, "a null in column 'label'"),
        ({"image": [1, 2, 3]}, "column 'image' must be large_binary"),
        ({"score": ["high", "low", "low"]}, "do not match task 'classify'"),
        ({"image": [b"x" * MAX_BYTES, b"", b""]}, "must be at most 32"),
    ],
)
def test_an_unusable_file_of_golden_rows_is_an_error_of_the_job(
    columns: dict[str, Any], words: str, tmp_path: Path
):
    uri = write_rows(tmp_path / "g.parquet", **columns)
    with pytest.raises(JobError, match=words) as caught:
        load_rows(job_with({"uri": uri}))
    assert f"gates.golden.uri = {uri}" in str(caught.value)


def test_an_unusable_place_of_golden_rows_is_an_error_of_the_job(tmp_path: Path):
    (tmp_path / "not.parquet").write_bytes(b"not Parquet")
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "a.png").write_bytes(b"")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "none.parquet")
    for name, words in (
        ("absent.parquet", "no such file"),
        ("not.parquet", "not a Parquet file"),
        ("none.parquet", "has 0 rows, must be 1 to 1024"),
        ("absent", "there are 0 files"),
        ("loose", "a.png lies in no folder"),
    ):
        with pytest.raises(JobError, match=words):
            load_rows(job_with({"uri": str(tmp_path / name)}))
    raw = {"factory": "models:channels", "task": "raw", "outputs": [{"name": "grey", "shape": []}]}
    with pytest.raises(PipelineError, match=r"gates\.golden has no effect with task 'raw'"):
        job_with({"uri": "x"}, model=raw)


@pytest.mark.parametrize(
    ("num_rows", "is_fine"), [(1, True), (MAX_ROWS, True), (MAX_ROWS + 1, False)]
)
@pytest.mark.parametrize("is_folder", [True, False])
def test_golden_rows_are_one_to_1024(num_rows: int, is_fine: bool, is_folder: bool, tmp_path: Path):
    uri = str(tmp_path / "g") if is_folder else str(tmp_path / "g.parquet")
    if is_folder:
        (tmp_path / "g" / "red").mkdir(parents=True)
        for row in range(num_rows):
            (tmp_path / "g" / "red" / f"{row}.png").write_bytes(b"png")
        (tmp_path / "g" / "red" / ".hidden").write_bytes(b"no image")
    else:
        table = {"image": [b"png"] * num_rows, "label": ["red"] * num_rows}
        pq.write_table(pa.table(table), uri)
    job = job_with({"uri": uri})
    if not is_fine:
        with pytest.raises(JobError, match=rf"{num_rows}.* 1 to {MAX_ROWS}"):
            load_rows(job)
        return
    rows = load_rows(job)
    assert (rows.rows.num_rows, rows.expected.num_rows) == (num_rows, num_rows)
    assert {*rows.expected["label"].to_pylist()} == {"red"}


def test_only_labels_of_images_can_be_the_names_of_folders(folder: Path, tmp_path: Path):
    with pytest.raises(JobError, match=r"rows of text need a \.parquet file"):
        load_rows(job_with({"uri": str(folder)}, **text_sections(tmp_path)))
    model = {"factory": "models:channels", "task": "embed", "embedding_dim": 3}
    with pytest.raises(JobError, match=r"task 'embed' needs a \.parquet file"):
        load_rows(job_with({"uri": str(folder)}, model=model))


def test_no_golden_rows_are_read_if_none_are_wanted():
    task = spec_of(job_with({"uri": "x"})).task
    for gates in ({}, {"golden": {"uri": "absent.parquet", "mode": "off"}}):
        job = job_with({}, gates=gates)
        reader = Reader(Store("in"), Source(uri="in", format="images"), NO_COLUMNS, IMAGE_FIELDS)
        assert read_golden(job.gates, task, reader, is_accepted=False) is None


def test_the_command_writes_rows_that_agree_with_themselves(tmp_path: Path):
    bad = build_images(tmp_path / "images", 60, seed=21, num_bad=3)
    job_path = write_job(
        tmp_path / "job.yaml",
        {"uri": str(tmp_path / "images"), "format": "images"},
        str(tmp_path / "out"),
        run={"slice_rows": 20},
    )
    out = str(tmp_path / "golden.parquet")
    done = pipeline("golden", job_path, "--rows", "9", "--out", out, "--json")
    assert done.code == 0, done.stderr
    assert done.json["rows"] == 9
    assert not (tmp_path / "out").exists(), "it writes nothing but its file"
    table = pq.read_table(out)
    assert table.column_names == ["row_id", "image", "label", "score"]
    assert not set(table["row_id"].to_pylist()) & set(bad)
    assert done.json["labels"] == len(set(table["label"].to_pylist())) > 1
    job = job_with({"uri": out})
    assert check(job, load_rows(job))["golden"]["num_agreed"] == 9
    refused = pipeline("golden", job_path, "--out", str(tmp_path / "golden.csv"))
    assert refused.code == 2
    assert "write a .parquet file" in refused.stderr
