"""No row is lost, in any format, task and store, clean, with bad rows or resumed after kill -9.

The runs are real ones, each with Ray and without, and both must agree in rows, footers, report and
manifest. They share one Ray; the run that is killed is a process of its own.
"""

from __future__ import annotations

import datetime as dt
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import LABELS, WORDS_OF_LABELS
from PIL import Image
from support.inputs.badfiles import encode
from support.inputs.jsonl_shards import CODECS
from support.inputs.photos import build_images
from support.inputs.tars import Entry, pack
from support.models.tiny_tokenizer import make_tokenizer
from support.runs.checkout import PYTHONPATH
from support.runs.cli import environment, pipeline, write_job
from support.runs.published_rows import read_part, read_predictions
from support.runs.without_ray import without_ray
from support.servers.commandserver import CommandServer
from support.servers.object_stores import LocalServer

from pipeline.commit.layout import parse_staged_name
from pipeline.commit.manifest import current_manifest
from pipeline.commit.staging import StagedSlice
from pipeline.core.failures import SystematicFailure
from pipeline.core.figures import STARTUP_PARTS
from pipeline.dataflow import run_job
from pipeline.execution.caller import share_ray
from pipeline.execution.tasks import run_tasks
from pipeline.job.reading.loader import read_job
from pipeline.published.verify import verify_output
from pipeline.report.document import Report
from pipeline.report.recorder import RunRecorder
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.progress import Silent
from pipeline.storage.store import Store

pytestmark = pytest.mark.early


OF_TIMES = {
    *("bottleneck", "finished_at", "limits", "over_time", "predictions", "slower_than_before"),
    *("started_at", "startup", "utilisation_pct"),
}
"""What depends on times, beside fields in seconds and rates."""
OF_RUNS = {"created_at", "parts", "quarantine_parts", "output", "run_id", "token"}


@dataclass(frozen=True)
class Executed:
    """What a run has computed, published and reported."""

    report: Report
    slices: dict[Any, dict[str, Any]]
    """What each footer says, by the slice."""
    predictions: pa.Table
    quarantine: list[dict[str, Any]]
    manifest: dict[str, Any]

    @property
    def figures(self) -> dict[str, Any]:
        """The report without times."""
        report: dict[str, Any] = _without(self.report.model_dump(mode="json"), OF_TIMES | OF_RUNS)
        for stage in report["stages"]:
            if stage["stage"] in ("write", "publish"):
                del stage["bytes_in"]  # of a file whose footer has times
            if stage["stage"] == "publish":
                del stage["bytes_out"]  # the quarantine has names of runs, compressed
        report["bytes_per_row"].pop("published")
        return report


def execute(job_path: str, date: str, monkeypatch: pytest.MonkeyPatch) -> Executed:
    job = read_job(job_path, date=dt.date.fromisoformat(date))
    options = RunOptions(allow_import=("models",))
    slices = {}
    count = RunRecorder.computed

    def note(record: RunRecorder, staged: StagedSlice) -> None:
        slices[parse_staged_name(staged.name)] = _facts(staged)
        count(record, staged)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "computed", note)
        report = run_job(job, options, Silent())
    run = RunContext.of(job, options)
    manifest = current_manifest(run.store, run.layout)
    assert manifest is not None
    bad = [row for p in manifest.quarantine_parts for row in read_part(run.store, p).to_pylist()]
    return Executed(
        report,
        slices,
        pa.concat_tables([read_part(run.store, part) for part in manifest.parts]),
        [{name: value for name, value in row.items() if name != "run_id"} for row in bad],
        _without(asdict(manifest), OF_RUNS | {"keys"}),
    )


def _facts(staged: StagedSlice) -> dict[str, Any]:
    facts = _without(asdict(staged), OF_TIMES | {"run_id", "name"})
    for part in STARTUP_PARTS:  # of the first slice of an actor
        facts["counters"].pop(part, None)
    del facts["counters"]["write"]["bytes_in"]  # a process that gets an array may have it shorter
    return facts


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: _without(entry, names)
            for key, entry in value.items()
            if not (key in names or key.endswith("_s"))
        }
    return [_without(entry, names) for entry in value] if isinstance(value, list) else value


DATE = "2026-11-24"
PARTITION = f"date={DATE}"
FORMATS = (
    *("images", "parquet", "uris", "features", "tables", "webdataset", "texts", "jsonl"),
    *("detections", "inputs"),
)
STORES = ("local", "s3", "gcs", "azure")
CASES = ("clean", "bad rows", "kill -9")
ALWAYS = {
    *(("images", "s3", "bad rows"), ("uris", "local", "bad rows"), ("tables", "local", "bad rows")),
    *(("webdataset", "local", "bad rows"), ("jsonl", "local", "bad rows")),
    ("detections", "local", "clean"),
}
"""Cells that `make test` runs; `make long` runs the others, all that are killed among them: in
`make test` test_end_to_end kills a run, and test_protocol one at each of its steps."""
ORIGINAL_SIZES = "own sizes"
"""Image files that the model sees in their own sizes."""
TABLE = [
    pytest.param(*cell, marks=[] if cell in ALWAYS else [pytest.mark.slow])
    for cell in (*product(FORMATS, STORES, CASES), *product([ORIGINAL_SIZES], ["local"], CASES))
]
COLOURS = {
    "dark": (10, 12, 9),
    "bright": (245, 250, 240),
    "red": (250, 20, 30),
    "green": (10, 240, 20),
    "blue": (5, 30, 250),
}
NUM_ROWS, SLICE_ROWS = 20, 4
MAX_TEXT_BYTES = 1000
NUMBERS = ("features", "tables")
SATURDAY = ("2026-01-03T12:00:00", 5)
"""A moment, and its weekday."""
BAD_DAYS = {"unidentified": SATURDAY[0], "truncated": "soon"}
BAD_PLANS = {"empty": None, "unidentified": "gold"}
"""Reason of a bad image -> what is in the place of its date, or of its category."""
TEXT_FORMATS, JSONL_SUFFIXES = ("texts", "jsonl"), (".jsonl.gz", ".jsonl.zst")
BAD_TEXTS: dict[str, tuple[bytes | None, str]] = {
    "empty": (None, "null_input"),
    "unidentified": (b"the \xff cat", "decode_error"),
    "truncated": (b"the red cat " * 100, "too_large"),
}
"""Reason of a bad image -> the text in its place, and its reason."""
BAD_INPUTS = {
    "empty": ("empty", "input 'photo'", ": "),
    "unidentified": ("null_input", "input 'caption'", ": "),
    "truncated": ("null_input", "input 'weight'", ": "),
}
"""Reason of a bad image -> the reason of a row of which one input is bad, and how its message
begins."""
Row = tuple[str, bytes, str]
"""Name, encoded image, and the label or the reason that it must get."""


def good_rows() -> list[Row]:
    rows = []
    for index in range(NUM_ROWS):
        label = LABELS[index % len(LABELS)]
        data = encode(Image.new("RGB", (40, 40 + index), COLOURS[label]), "PNG")
        rows.append((f"p{index:02d}.png", data, label))
    return rows


def rows_of(case: str) -> list[Row]:
    rows = good_rows()
    if case != "clean":
        rows[3] = ("p03.png", b"", "empty")
        rows[9] = ("p09.png", b"no image", "unidentified")
        rows[18] = ("p18.png", rows[18][1][:60], "truncated")
    return rows


def write_input(
    store: Store, content: str, rows: list[Row]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put the rows into a store; return the job's source, and the label or reason of each id."""
    form = "images" if content == "detections" else content
    source: dict[str, Any] = {"uri": store.url("in"), "format": form}
    ids = [name for name, _, _ in rows]
    if content in ("images", "detections", "uris"):
        folder = "photos" if content == "uris" else "in"
        for name, data, _ in rows:
            store.put(f"{folder}/{name}", data)
    shards = [rows[: NUM_ROWS // 2], rows[NUM_ROWS // 2 :]]
    if content == "webdataset":
        for number, part in enumerate(shards):
            store.put(f"in/{number}.tar", pack(Entry(name, data) for name, data, _ in part))
        ids = [
            f"{i // len(shards[0])}.tar/{name.removesuffix('.png')}" for i, name in enumerate(ids)
        ]
    if content in ("parquet", "uris", "texts", "inputs", *NUMBERS):
        source |= {"format": "parquet", "id_column": "name"}
        for number, part in enumerate(shards):
            store.put(f"in/{number}.parquet", to_parquet(store, content, part))
    if content == "jsonl":
        ids = write_lines(store, shards)
    texts = {"text_column": "body", "max_text_bytes": MAX_TEXT_BYTES}
    source |= {
        "uris": {"uri_column": "link", "uri_roots": [store.url("photos")]},
        "features": {"features": ["size", "half"]},
        "tables": {"features": table_features(store)},
        **dict.fromkeys(TEXT_FORMATS, texts),
        "inputs": {
            "inputs": {
                "photo": {"image_column": "of.image"},
                "caption": {"text_column": "of.body"},
                "weight": {"features": ["half"]},
            }
        },
    }.get(content, {})
    return source, dict(zip(ids, (outcome_of(content, row) for row in rows), strict=True))


def table_features(store: Store) -> list[Any]:
    """A number, categories of the job and of a file, and a part of a date."""
    store.put("kept/tier.json", b"[0, 1, 2]")
    return [
        "size",
        {"column": "plan", "categories": LABELS},
        {"column": "tier", "categories": store.url("kept/tier.json")},
        {"column": "day", "read_as": "weekday"},
    ]


def outcome_of(content: str, row: Row) -> Any:
    """The label, number or reason that a row must get where its input is of some kind."""
    _, data, outcome = row
    if content == "features":
        return len(data) + 0.5 if outcome in LABELS else "null_input"
    if content == "tables":
        total = len(data) + 1 + 1 + SATURDAY[1]
        return {"empty": "null_input", **dict.fromkeys(BAD_DAYS, "bad_schema")}.get(outcome, total)
    if content == "inputs":
        return BAD_INPUTS.get(outcome, outcome)
    return BAD_TEXTS[outcome][1] if content in TEXT_FORMATS and outcome in BAD_TEXTS else outcome


def write_lines(store: Store, shards: list[list[Row]]) -> list[str]:
    """Put shards of texts as JSON lines into a store, and return the ids of their rows."""
    ids: list[str] = []
    for number, (suffix, part) in enumerate(zip(JSONL_SUFFIXES, shards, strict=True)):
        path = f"{number}{suffix}"
        store.put(f"in/{path}", CODECS[suffix](to_lines(len(ids), part)))
        ids += [f"{path}#{row}" for row in range(len(part))]
    return ids


def text_of(number: int, outcome: str) -> bytes | None:
    """The text of a row: one that gives it its label, or a bad one."""
    if outcome in BAD_TEXTS:
        return BAD_TEXTS[outcome][0]
    return f"the {WORDS_OF_LABELS[outcome]} cat sat {'on ' * number}mat".encode()


def to_lines(first: int, rows: list[Row]) -> bytes:
    """One shard of texts as JSON lines; bytes that are not UTF-8 stand in them as they are."""
    texts = [text_of(first + index, outcome) for index, (_, _, outcome) in enumerate(rows)]
    values = [b"null" if text is None else b'"%s"' % text for text in texts]
    return b"".join(b'{"body": %s}\n' % value for value in values)


def to_parquet(store: Store, content: str, rows: list[Row]) -> bytes:
    """One shard of what the job needs to know of the rows."""
    columns: dict[str, Any] = {"name": [name for name, _, _ in rows]}
    if content == "parquet":
        columns["image"] = [data for _, data, _ in rows]
    if content == "uris":
        columns["link"] = [store.url(f"photos/{name}") for name, _, _ in rows]
    if content == "features":
        columns["size"] = [len(data) for _, data, _ in rows]
        columns["half"] = [0.5 if outcome in LABELS else None for _, _, outcome in rows]
    if content == "tables":
        plans = [BAD_PLANS.get(outcome, outcome) for _, _, outcome in rows]
        plans = ["dark" if plan in BAD_DAYS else plan for plan in plans]
        columns["plan"] = pa.array(plans, pa.string()).dictionary_encode()
        columns["tier"] = [len(data) % 3 for _, data, _ in rows]
        columns["size"] = [len(data) for _, data, _ in rows]
        columns["day"] = [BAD_DAYS.get(outcome, SATURDAY[0]) for _, _, outcome in rows]
    if content == "texts":
        columns["body"] = [text_of(row, outcome) for row, (_, _, outcome) in enumerate(rows)]
    if content == "inputs":
        images = [b"" if outcome == "empty" else data for _, data, outcome in rows]
        mentioned = [outcome if outcome in LABELS else LABELS[0] for _, _, outcome in rows]
        texts = [text_of(row, outcome) for row, outcome in enumerate(mentioned)]
        columns["of"] = [
            {
                "image": encode(Image.new("RGB", (40, 40), COLOURS[LABELS[0]]), "PNG")
                if outcome in ("unidentified", "truncated")
                else image,
                "body": None if outcome == "unidentified" else text,
            }
            for (_, _, outcome), image, text in zip(rows, images, texts, strict=True)
        ]
        columns["half"] = [None if outcome == "truncated" else 0.5 for _, _, outcome in rows]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=6)
    return bytes(sink.getvalue().to_pybytes())


def outcomes_of(store: Store, content: str) -> dict[str, Any]:
    """The published label (or number) or reason of every row."""
    options = dict(store.storage_options)
    manifest = verify_output(store.url("out"), PARTITION, options)
    assert manifest["status"] == "ok"
    out = Store(store.url("out"), options)
    table = read_predictions(out.uri, PARTITION, storage_options=options)
    assert table.num_rows == len(set(table["row_id"].to_pylist()))
    if content == "detections":
        values = [seen[0]["label"] for seen in table["detections"].to_pylist()]
    else:
        values = table["total" if content in NUMBERS else "label"].to_pylist()
    outcomes = dict(zip(table["row_id"].to_pylist(), values, strict=True))
    for file in out.list_files(f"quarantine/{PARTITION}"):
        with out.open(file.path) as handle:
            bad = pq.ParquetFile(handle).read(columns=["row_id", "reason", "message"]).to_pylist()
        outcomes |= {
            row["row_id"]: (row["reason"], *row["message"].partition(": ")[:2])
            if content == "inputs"
            else row["reason"]
            for row in bad
        }
    return outcomes


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """One Ray for all runs of this file, whose workers find the tests' models."""
    import ray

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = PYTHONPATH
    with share_ray():
        from pipeline.execution.cluster.connect import connect

        with connect(None):
            yield ray.get_runtime_context().gcs_address
    os.environ.pop("PYTHONPATH")
    os.environ.update({"PYTHONPATH": before} if before else {})


def require_no_secret(store: Store, options: dict[str, Any], report: Report) -> None:
    """None of the keys to the store is in a file of the output, or in the report."""
    keys = [value for name, value in options.items() if name in ("key", "secret")]
    out = Store(store.url("out"), options)
    texts = [out.read_bytes(file.path) for file in out.list_files()] if keys else []
    assert bool(texts) == bool(keys)
    texts.append(report.model_dump_json().encode())
    assert not any(key.encode() in text for key in keys for text in texts)


@pytest.mark.ray
@pytest.mark.parametrize(("content", "where", "case"), TABLE)
def test_every_row_is_predicted_or_quarantined_once(
    content: str,
    where: str,
    case: str,
    ray_address: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With Ray, and without: a footer, a figure of the report and a row are the same by both."""
    store = Store(str(tmp_path / "data"))
    if where != "local":
        server: LocalServer = request.getfixturevalue(where)
        store = server.store()
    options = dict(store.storage_options)
    stored = "images" if content == ORIGINAL_SIZES else content
    source, expected = write_input(store, stored, rows_of(case))
    sections: dict[str, Any] = {
        "sink": {"storage_options": options},
        "run": {"slice_rows": SLICE_ROWS},
        "gates": {"max_error_pct": 20},
    }
    if content == ORIGINAL_SIZES:
        unset = {"size_px": None, "resize_px": None, "interpolation": None}
        sections |= {"transform": {"resize": "none", **unset}}
    if content in NUMBERS:
        targets = {"task": "regress", "targets": ["total", "largest"]}
        sections |= {"model": {"factory": "models:sums", **targets}, "transform": None}
    if content == "detections":
        detector = {"task": "detect", "factory": "models:spots", "labels": LABELS}
        sections |= {"model": detector}
    if content in (*TEXT_FORMATS, "inputs"):
        store.put("model/tokenizer.json", make_tokenizer().to_str().encode())
        factory = "models:several" if content == "inputs" else "models:mentions"
        model = {"factory": factory, "labels": LABELS, "storage_options": options}
        text = {"tokenizer": store.url("model/tokenizer.json"), "max_tokens": 16}
        sections |= {"model": model, "text": text}
        if content != "inputs":
            sections["transform"] = None
    with_ray, without = (
        write_job(
            tmp_path / f"{name}.yaml",
            {**source, "storage_options": options},
            store.url(name),
            **sections,
        )
        for name in ("out", "out-without-ray")
    )
    if case == "kill -9":
        failpoint = {"PIPELINE_FAILPOINT": "slice_done:kill:2"}
        # Commands get no token of the environment; the Ray of this process asks for its own.
        secret = {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH")}
        killed = pipeline(
            *("run", with_ray, "--date", DATE, "--address", ray_address),
            env={**failpoint, **secret},
        )
        assert killed.code == -signal.SIGKILL, killed.stderr
        forked: CommandServer = request.getfixturevalue("forked_commands")()
        ended = forked.run("run", without, "--date", DATE, environment=environment(failpoint))
        assert ended.code == -signal.SIGKILL, ended.stderr
    done = execute(with_ray, DATE, monkeypatch)
    assert done.report.rows.resumed >= (2 * SLICE_ROWS if case == "kill -9" else 0)
    assert outcomes_of(store, stored) == expected
    require_no_secret(store, options, done.report)
    if store.is_object_store and done.report.slices.computed:  # a kill may leave none
        assert done.report.write_in == "tasks", "an actor would wait for the store"
    with without_ray():
        local = execute(without, DATE, monkeypatch)
    assert local.predictions.equals(done.predictions)
    assert local.quarantine == done.quarantine
    if case != "kill -9":  # how many slices are left by then, is chance
        assert local.slices == done.slices
        assert local.figures == done.figures
        assert local.manifest == done.manifest


@pytest.mark.ray
def test_a_model_that_fails_every_row_gives_the_same_error_with_and_without_ray(
    ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_images(tmp_path / "images", 8, seed=31, num_bad=0)
    source = {"uri": str(tmp_path / "images"), "format": "images"}
    jobs = [
        write_job(
            tmp_path / f"{name}.yaml",
            source,
            str(tmp_path / name),
            model={"factory": "models:colours", "labels": ["a"]},
        )
        for name in ("out", "without")
    ]
    with pytest.raises(SystematicFailure) as by_ray:
        execute(jobs[0], DATE, monkeypatch)
    with without_ray(), pytest.raises(SystematicFailure) as by_loop:
        execute(jobs[1], DATE, monkeypatch)
    assert str(by_loop.value) == str(by_ray.value)


@pytest.mark.ray
@pytest.mark.slow  # a worker starts for nearly every call
@pytest.mark.usefixtures("ray_address")
def test_results_of_tasks_are_in_the_order_of_the_calls(tmp_path: Path) -> None:
    last = 2 * (os.cpu_count() or 1)  # it is started only when another has ended
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def wait(number: int) -> int:
        """The first and the last call wait for each other."""
        if number in (0, last):
            pipe.open("rb" if number else "wb").close()
        return number

    assert run_tasks(wait, [(number,) for number in range(last + 1)]) == [*range(last + 1)]
