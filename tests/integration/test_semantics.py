"""Only changes are computed: outputs of an area change only with the number of the area.

Digests of the outputs over a fixed corpus stand beside the numbers. A digest that changes while its
number stays would let a run mix predictions of two meanings. If the change is meant, raise the
number in `semantics.py` and write the new pair below; otherwise the code is at fault.
"""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyiceberg.types import LongType
from support.inputs.clips import encoded
from support.inputs.delta_tables import DeltaTable
from support.inputs.iceberg_tables import TABLE, catalog_at, delete_rows, without_catalog
from support.models.tiny_tokenizer import text_settings
from support.runs.checkout import SUPPORT
from support.runs.jobs import job_of

from pipeline.core.arrays import images_to_arrow
from pipeline.core.failures import RowError, failure_columns
from pipeline.core.node_cache import key_of
from pipeline.core.registry import INPUTS, SOURCES, built_in, load
from pipeline.core.schema import OFFSETS, TEXT, TEXT_PAIR, WORD_IDS
from pipeline.core.semantics import SEMANTICS, semantics_of
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.job.source import Source
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.planning.plan import Plan, make_plan
from pipeline.preprocessing.audio.audio_input import extracted
from pipeline.preprocessing.audio.audio_settings import NORMALISED, AudioSettings
from pipeline.preprocessing.audio.decode_clip import decode_clip, resampled
from pipeline.preprocessing.images.decode_image import DecodeLimits, decode_image
from pipeline.preprocessing.images.geometry import geometry
from pipeline.preprocessing.images.resizing import resize_and_crop
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import InputSettings, Limits
from pipeline.preprocessing.texts.text_input import TextInput
from pipeline.preprocessing.texts.text_settings import TextSettings
from pipeline.sources.listing.inputs import list_inputs
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.sources.units import UncountedPlan, Unit
from pipeline.storage.store import Store

CORPUS = SUPPORT / "inputs" / "corpus"
LIMITS = DecodeLimits(max_image_bytes=1_000_000, max_image_px=1_000_000)

EXPECTED: dict[str, tuple[int, str]] = {
    "images": (2, "dc0a7c2e1d3083b1"),
    "audio": (2, "fd6260b6215c1f50"),
    "parquet": (4, "134b53b699ffee4d"),
    "delta": (1, "ab1e64550ae7eaaf"),
    "iceberg": (1, "7692660c86d79a70"),
    "jsonl": (5, "cb2d2d3ec086bb51"),
    "csv": (4, "7267be12d8f69e0f"),
    "webdataset": (3, "874d533d7fb8d54f"),
    "fetch": (1, "3584629b6e59e3ef"),
    "decode": (2, "b7d60bbe4671c339"),
    "transform": (2, "c2e105ba690c3d38"),
    "waveform": (3, "0a9534cfb0a6d087"),
    "features": (1, "cdbf2bc807461cc4"),
    "tokenize": (1, "651f78b1514241b8"),
    "predict": (5, "f2b55628300c39bc"),
}
"""Area -> its version, and the digest of what that version makes of the corpus."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    with tarfile.open(CORPUS / "images.tar") as tar:
        tar.extractall(folder, filter="data")
    return folder


def read(uri: Path, **fields: Any) -> list[dict[str, Any]]:
    """List, plan and read all rows; without what depends on where the corpus lies."""
    model: dict[str, Any] = {"factory": "models:colours", "labels": models.LABELS}
    sections: dict[str, Any] = {"transform": models.TRANSFORM}
    if "features" in fields or fields["format"] == "audio":
        model = {"factory": "models:sums", "task": "embed", "embedding_dim": 2}
        sections = {"audio": {"sample_rate_hz": 8_000}} if fields["format"] == "audio" else {}
    job = job_of(model, {"uri": str(uri), **fields}, **sections)
    inputs = list_inputs(job.source, max_extent_rows=8)
    spec = resolve_model(job, ["models"])
    plan = make_plan(job, inputs, spec, batch_size=4)
    store, fields = Store(plan.source_root), plan.fields
    reader = Reader(store, job.source, plan.pass_through, fields, table=plan.table)
    return [plain(row, plan.source_root) for row in rows_of(reader, plan)]


def rows_of(reader: Reader, plan: Plan) -> Iterator[dict[str, Any]]:
    for unit in plan.units:
        starts = frozenset() if unit.cut else frozenset(key.start for key in unit.slices())
        for _, _, table in read_slices(reader, unit, starts):
            yield from table.to_pylist()


def plain(row: dict[str, Any], root: str) -> dict[str, Any]:
    """Leave out messages, which may be worded anew, and make the rest JSON-ready."""
    del row["message"]
    row["uri"] = row["uri"].replace(root, "").replace("file://", "")
    return {name: as_json(value) for name, value in row.items()}


def as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return value.isoformat() if isinstance(value, dt.date) else value


def decoded(images: Path) -> list[Any]:
    results = []
    for path in sorted(images.iterdir()):
        try:
            pixels = decode_image(path.read_bytes(), LIMITS)
        except RowError as error:
            results.append([path.name, error.reason.value])
        else:
            results.append([path.name, list(pixels.shape), as_json(pixels.numpy().tobytes())])
    return results


def made_image(height_px: int, width_px: int) -> torch.Tensor:
    """uint8 (3, H, W) by integer arithmetic alone, the same everywhere."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    planes = [(7 * x + 3 * y) % 256, (x * y) % 256, (5 * x + 11 * y * y) % 256]
    return torch.from_numpy(np.stack(planes).astype(np.uint8))


def made_clip(format_name: str, rate_hz: int) -> bytes:
    """16-bit samples of two channels by integer arithmetic alone, the same everywhere."""
    time = np.arange(4 * rate_hz // 10)
    both = np.column_stack([(37 * time) % 20_000 - 10_000, (53 * time) % 16_000 - 8_000])
    return encoded(both.astype(np.int16), format_name, rate_hz)


def sounds(folder: Path) -> list[Any]:
    for name, format_name in (("b.wav", "WAV"), ("a.flac", "FLAC")):
        (folder / name).write_bytes(made_clip(format_name, 8_000))
    (folder / "c.mp3").write_bytes(b"")
    return read(folder, format="audio")


def waveforms() -> list[Any]:
    """To three digits: soxr and the decoder's floats may differ in the last ones."""
    clips: list[Any] = []
    for extractor, options in (("", {}), (NORMALISED, {"do_normalize": True})):
        settings = AudioSettings(16_000, 1.0, extractor, options)
        for format_name, rate_hz in (("WAV", 16_000), ("FLAC", 16_000), ("WAV", 44_100)):
            clip = decode_clip(made_clip(format_name, rate_hz), 10**6, 1.0)
            samples = extracted(settings, resampled(clip, 16_000))[1_000:5_000:50]
            clips.append([clip.duration_s, *(round(float(sample), 2) for sample in samples)])
    return clips


def transformed() -> list[Any]:
    results = []
    for interpolation in ("bilinear", "bicubic"):
        for height_px, width_px in ((61, 83), (200, 90), (24, 24), (7, 40)):
            spec = TransformSpec(24, 28, interpolation, (0.5,) * 3, (0.5,) * 3)
            results.append(whole_of(spec, height_px, width_px))
    for resize, interpolation, more in (
        ("stretch", "nearest", {}),
        ("stretch", "nearest-exact", {"resize_px": (30, 40)}),
        ("pad", "bilinear", {"pad_value": (1, 2, 3)}),
        ("shortest", "bicubic", {"resize_px": (30, 40), "crop_start": "floor"}),
        ("none", None, {"pad_value": 9}),
        ("pad", "bilinear", {"channels": "gray", "mean": (0.5,), "std": (0.5,)}),
    ):
        fields = {"resize_px": None, "mean": (0.5,) * 3, "std": (0.5,) * 3, **more}
        spec = TransformSpec((24, 33), interpolation=interpolation, resize=resize, **fields)
        for height_px, width_px in ((61, 83), (200, 90), (7, 40)):
            results.append(whole_of(spec, height_px, width_px))
            results.append([round(value, 9) for value in geometry(spec, width_px, height_px)])
    return results


def whole_of(spec: TransformSpec, height_px: int, width_px: int) -> str:
    pixels = resize_and_crop(made_image(height_px, width_px), spec)
    return as_json(pixels.contiguous().numpy().tobytes())


def tokenised(folder: Path) -> list[Any]:
    texts = [
        "",
        "The cat sat.",
        "a dog ran fast and slow on the blue mat",
        "\u00e9t\u00e9 42",
        "x" * 50,
    ]
    tables = []
    for more in ({}, {"prefix": "one: "}, {"has_offsets": True}, {"has_pair": True}):
        columns: dict[str, Any] = {TEXT: pa.array(texts, pa.large_string())}
        if "has_pair" in more:
            columns[TEXT_PAIR] = pa.array(texts[::-1], pa.large_string())
        rows = pa.table({**columns, **failure_columns([None] * len(texts))})
        prepared = TextInput(text_settings(folder, 8, **more)).prepare(rows, {}, Limits(1, 1))
        tables.append(
            prepared.drop_columns([*columns] if "has_offsets" in more else []).to_pylist()
        )
    return tables


TASKS: dict[str, dict[str, Any]] = {
    "classify": {"factory": "models:colours", "labels": models.LABELS, "top_k": 3},
    "embed": {
        "factory": "models:colours", "task": "embed", "embedding_dim": len(models.LABELS),
        "l2_norm": True,
    },
    "half": {
        "factory": "models:colours", "task": "embed", "embedding_dim": len(models.LABELS),
        "embedding_type": "float16",
    },
    "multilabel": {
        "factory": "models:colours", "task": "multilabel", "labels": models.LABELS,
        "min_score": 0.3,
    },
    "probabilities": {
        "factory": "support.runs.predicting:likely", "labels": models.LABELS,
        "scores": "probabilities",
    },
    "score": {"factory": "models:redness", "task": "score"},
    "zero_shot": {
        "factory": "models:colours", "task": "zero_shot", "prompts": models.LABELS, "top_k": 2,
    },
    "regress": {
        "factory": "models:colours", "task": "regress", "targets": list(models.LABELS)
    },
    "raw": {
        "factory": "models:channels", "task": "raw",
        "outputs": [{"name": "means", "shape": [3]}, {"name": "grid", "shape": [2, 3]}],
    },
    "postprocess": {
        "factory": "models:channels", "task": "raw", "outputs": [{"name": "means", "shape": [3]}],
        "postprocess": "models:brightest",
    },
}  # fmt: skip


def predicted() -> list[Any]:
    """Two decimals: processors differ in the last bits of a float."""
    results = []
    for name, section in TASKS.items():
        job = job_of(
            section,
            transform={**models.TRANSFORM, "mean": [0.4, 0.5, 0.3], "std": [0.2, 0.3, 0.25]},
        )
        spec = resolve_model(job, ["models", "support"])
        predictor = TorchEngine(PredictorConfig(spec, 4, 0, 1, pa.schema([])))
        rows = predictor.predict(model_input(10), {})
        # What the input publishes is of area `transform`.
        rows = rows.drop_columns([field.name for field in spec.input.published_fields()])
        results.append([name, rounded(rows.to_pylist())])
    return [*results, ["tokens", rounded(entities())]]


def entities() -> list[Any]:
    """What each way of aggregation makes of five tokens, of two words, with scores made by hand."""
    text = "Ada L\u00f6we \U0001f600"
    offsets = [0, 0, 0, 3, 4, 6, 6, 8, 9, 10, 0, 0]
    rows = pa.table({TEXT: [text], OFFSETS: [offsets], WORD_IDS: [[-1, 0, 1, 1, 2, -1]]})
    labels = ("O", "B-PER", "I-PER", "B-LOC", "MISC")
    logits = torch.tensor([[[(7 * token + 5 * label + token * label) % 11 / 4 for label in range(5)]
                            for token in range(6)]])  # fmt: skip
    results = []
    for aggregation in ("none", "simple", "first", "average", "max"):
        task = make_task(TaskSpec("tokens", labels, aggregation=aggregation))
        arrays = {name: values.numpy() for name, values in task.reduce(logits, 1).items()}
        columns = task.columns(arrays, np.ones(1, bool), rows)
        results.append([aggregation, columns["entities"].to_pylist()])
    return results


def model_input(num_rows: int) -> pa.Table:
    side_px = models.SIZE_PX
    pixels = [made_image(side_px + row, side_px + 2 * row) for row in range(num_rows)]
    images = np.stack([image[:, :side_px, :side_px].permute(1, 2, 0).numpy() for image in pixels])
    ids = [f"row-{index}" for index in range(num_rows)]
    columns = {"row_id": ids, "uri": ids, "image": images_to_arrow(images)}
    return pa.table({**columns, **failure_columns([None] * num_rows)})


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 2) + 0.0
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def fetched(images: Path, folder: Path) -> list[dict[str, Any]]:
    names = ["grey.jpg", "nothing.jpg", "../grey.jpg", "/etc/hostname", None, "http://localhost/x"]
    pq.write_table(pa.table({"where": pa.array(names)}), folder / "uris.parquet")
    allowed = {"uri_base": str(images), "uri_roots": [str(images)]}
    rows = read(folder, format="parquet", uri_column="where", **allowed)
    return [{**row, "uri": (row["uri"] or "").replace(str(images), "")} for row in rows]


def json_lines(folder: Path) -> list[list[dict[str, Any]]]:
    """Texts, features and images in lines of all kinds; plain and compressed."""
    data = (CORPUS / "rows.jsonl").read_bytes()
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    (folder / "a.jsonl").write_bytes(data)
    common = {"uri": str(folder), "format": "jsonl", "pass_through": ("n", "more")}
    jobs = [
        Source(**common, text_column="text", id_column="id", max_text_bytes=40),
        Source(**common, text_column="text", text_pair_column="id", casts={"n": "string"}),
        Source(**common, features=("n", "v"), null_features="zero"),
        Source(**common, image_encoding="base64"),
    ]
    return [read_source(source) for source in jobs]


def delta_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of a table with deleted rows, renamed and added columns, and values of its own."""
    rows = pq.read_table(CORPUS / "rows.parquet", columns=["id", "image"])
    rows = rows.cast(pa.schema([("id", pa.string()), ("image", pa.binary())]))
    table = DeltaTable(folder, "name", partition_by=["day"])
    columns: dict[str, Any] = {"id": pa.string(), "image": pa.binary(), "day": pa.date32()}
    table.commit(columns, {"a b.parquet": rows}, given={"day": "2026-11-24"})
    table.commit(columns, {"b.parquet": rows.slice(1)}, given={"day": None})
    table.commit(columns, deleted={"a b.parquet": [0, 2]})
    named = {"key": (pa.string(), 1), "image": (pa.binary(), 2), "day": (pa.date32(), 3)}
    table.commit({**named, "new": pa.int64()})
    return read(folder, format="delta", pass_through=["key", "day", "new"])


def iceberg_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of a table with deleted rows, renamed and added columns, and files without ids."""
    rows = pq.read_table(CORPUS / "rows.parquet", columns=["id", "image"])
    rows = rows.cast(pa.schema([("id", pa.string()), ("image", pa.binary())]))
    catalog = catalog_at(folder / "metadata")
    table = catalog.create_table(TABLE, schema=rows.schema, location=str(folder))
    pq.write_table(rows, folder / "a b.parquet")
    table.add_files([str(folder / "a b.parquet")])
    delete_rows(table, {str(folder / "a b.parquet"): [0, 2]})
    with table.update_schema() as update:
        update.rename_column("id", "key")
        update.add_column("new", LongType())
    return read(without_catalog(table), format="iceberg", pass_through=["key", "new"])


def csv_records(folder: Path) -> list[list[dict[str, Any]]]:
    """Texts, features and images in records of all kinds; plain, compressed, with options."""
    data = (CORPUS / "rows.csv").read_bytes()
    (folder / "b.csv.gz").write_bytes(gzip.compress(data, mtime=0))
    (folder / "a.csv").write_bytes(data)
    common = {"uri": str(folder), "format": "csv", "pass_through": ("n", "flag")}
    jobs = [
        Source(**common, text_column="text", id_column="id", max_text_bytes=40),
        Source(**common, text_column="text", text_pair_column="id", casts={"n": "string"}),
        Source(**common, features=("n",), null_features="zero", options={"nulls": ["NULL"]}),
        Source(**common, image_encoding="base64"),
        Source(
            **{**common, "pass_through": ("n",), "casts": {"n": "int64"}},
            text_column="text",
            options={"delimiter": ",", "quote": "'", "escape": "\\"},
        ),
    ]
    return [read_source(source) for source in jobs]


def read_source(source: Source) -> list[dict[str, Any]]:
    inputs = list_inputs(source, max_extent_rows=8)
    reader = Reader(Store(inputs.root), source, inputs.pass_through, inputs.fields)
    unit = Unit(0, inputs.extents, (), UncountedPlan(4, 2**20))
    tables = [table for _, _, table in read_slices(reader, unit, frozenset())]
    return [plain(row, inputs.root) for table in tables for row in table.to_pylist()]


FEATURES = {"format": "parquet", "features": ["a", "b", "c"]}
AREAS: dict[str, Callable[[Path, Path], Any]] = {
    "images": lambda images, folder: read(images, format="images"),
    "parquet": lambda images, folder: read(
        CORPUS / "rows.parquet",
        format="parquet",
        id_column="id",
        pass_through=["taken_at", "camera", "width"],
    ),
    "delta": lambda images, folder: delta_rows(folder),
    "iceberg": lambda images, folder: iceberg_rows(folder),
    "audio": lambda images, folder: sounds(folder),
    "jsonl": lambda images, folder: json_lines(folder),
    "csv": lambda images, folder: csv_records(folder),
    "webdataset": lambda images, folder: read(CORPUS / "images.tar", format="webdataset"),
    "fetch": fetched,
    "decode": lambda images, folder: decoded(images),
    "transform": lambda images, folder: transformed(),
    "waveform": lambda images, folder: waveforms(),
    "features": lambda images, folder: [
        read(CORPUS / "rows.parquet", **FEATURES, null_features=policy)
        for policy in ("quarantine", "zero")
    ],
    "tokenize": lambda images, folder: tokenised(folder),
    "predict": lambda images, folder: predicted(),
}


@pytest.mark.parametrize("area", SEMANTICS)
def test_outputs_change_only_with_the_number_of_their_area(area: str, images: Path, tmp_path: Path):
    outputs = json.dumps(AREAS[area](images, tmp_path), sort_keys=True)
    digest = hashlib.sha256(outputs.encode()).hexdigest()[:16]
    assert (SEMANTICS[area], digest) == EXPECTED.get(area)


def test_every_area_is_characterised():
    assert set(AREAS) == set(EXPECTED) == set(SEMANTICS)


def numbers(name: str, input_name: str, has_uris: bool) -> dict[str, int]:
    transform = TransformSpec(8, 8, "bilinear", (0.0,) * 3, (1.0,) * 3)
    text = TextSettings("tokenizer.json", "0" * 64, 8)
    seen = load(INPUTS, input_name).of(InputSettings(transform, text)).semantics
    return semantics_of({name: SEMANTICS[name], **seen}, has_uris=has_uris)


@pytest.mark.parametrize("area", [*SEMANTICS])
def test_a_number_makes_only_jobs_of_its_area_stale(area: str, monkeypatch: pytest.MonkeyPatch):
    jobs = {
        (name, input_name, has_uris): numbers(name, input_name, has_uris)
        for name in built_in(SOURCES)
        for input_name in ("image", "features")
        for has_uris in (True, False)
    }
    monkeypatch.setitem(SEMANTICS, area, SEMANTICS[area] + 1)  # type: ignore[arg-type]
    for job, before in jobs.items():
        now = numbers(*job)
        assert (now != before) == (area in before)


def test_the_node_cache_is_keyed_by_what_a_prediction_means(monkeypatch: pytest.MonkeyPatch):
    before = key_of(["a model"])
    assert key_of(["a model"]) == before
    monkeypatch.setitem(SEMANTICS, "predict", SEMANTICS["predict"] + 1)  # type: ignore[arg-type]
    assert key_of(["a model"]) != before
