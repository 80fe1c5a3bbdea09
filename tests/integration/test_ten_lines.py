"""Ten-line jobs for families of models: as written in examples/ and jobs/, on small directories.

Each names a model and rows by paths of its own; both are put there, with random weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.inputs.clips import encoded, tone
from support.inputs.photos import build_images
from support.models.audio_snapshots import make_listener
from support.models.feature_writers import make_feature_writer
from support.models.onnx_files import image_model, save
from support.models.snapshots import make_snapshot, make_timm
from support.runs.checkout import ROOT
from support.runs.cli import pipeline

from pipeline.commit.published.read import read_predictions

EXAMPLES = ROOT / "examples" / "model_directories"
NUM_ROWS, NUM_PHOTOS, NUM_BAD = 12, 6, 1
TEXT_COLUMNS = ["num_tokens", "truncated"]
SIZE_COLUMNS = ["width_px", "height_px"]
WRITTEN_COLUMNS = [
    *("text", "num_input_tokens", "num_output_tokens", "finish_reason", "mean_logprob"),
]
LABEL_COLUMNS = ["label", "label_id", "score", "top_k"]


def _write_texts(path: Path) -> None:
    """Write rows as JSON lines or Parquet; the last is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"the cat sat on mat {row}" for row in range(NUM_ROWS)] + [None]
    ids = [f"r{row}" for row in range(len(texts))]
    if path.suffix == ".jsonl":
        lines = [json.dumps({"id": i, "text": t}) for i, t in zip(ids, texts, strict=True)]
        path.write_text("\n".join(lines))
        return
    columns = {"id": ids, "text": texts, "passage": texts, "question": ["a dog"] * len(texts)}
    pq.write_table(pa.table(columns), path)


def _write_folder_of_texts(path: Path) -> None:
    _write_texts(path / "part-0.parquet")


def _write_photos(path: Path) -> None:
    build_images(path, NUM_PHOTOS, seed=3, num_bad=NUM_BAD)


def _write_clips(path: Path) -> None:
    path.mkdir(parents=True)
    for row in range(NUM_PHOTOS):
        (path / f"{row}.flac").write_bytes(encoded(tone(0.3, 300 + 50 * row), "FLAC"))
    (path / "bad.wav").write_bytes(b"")


def _sentiment(folder: Path) -> None:
    names = {0: "negative", 1: "positive"}
    make_snapshot(folder, "bert", "sequence", id2label=names)


def _encoder(folder: Path) -> None:
    make_snapshot(folder, "bert", pooling="mean", normalize=True, max_seq_length=32)


def _cross_encoder(folder: Path) -> None:
    make_snapshot(folder, "roberta", "sequence", num_labels=1)


def _names(folder: Path) -> None:
    make_snapshot(folder, "distilbert", "token", id2label={0: "O", 1: "B-NAME", 2: "I-NAME"})


def _vit(folder: Path) -> None:
    make_snapshot(folder, "vit", "image", num_labels=5)


def _hubert(folder: Path) -> None:
    make_listener(folder, "hubert")


def _whisper(folder: Path) -> None:
    make_feature_writer(folder, "whisper")


def _resnet(folder: Path) -> None:
    make_timm(folder, "resnet10t", 4, label_names=["cat", "dog", "fox", "owl"])


def _onnx(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(image_model(), path)


TEXTS = (_write_texts, NUM_ROWS)
PHOTOS = (_write_photos, NUM_PHOTOS - NUM_BAD)
CASES = {
    "a BERT classifier": (
        *(EXAMPLES / "classify_texts.yaml", _sentiment, *TEXTS),
        *([*LABEL_COLUMNS, *TEXT_COLUMNS], "2 outputs"),
    ),
    "a sentence-transformers encoder": (
        *(ROOT / "jobs" / "embed_texts.yaml", _encoder, _write_folder_of_texts, NUM_ROWS),
        *(["embedding", *TEXT_COLUMNS], "pooling mean, normalize"),
    ),
    "a cross-encoder": (
        *(EXAMPLES / "score_pairs.yaml", _cross_encoder, *TEXTS),
        *(["question", "passage", "score", *TEXT_COLUMNS], "score"),
    ),
    "a token classifier": (
        *(EXAMPLES / "find_entities.yaml", _names, *TEXTS),
        *(["entities", *TEXT_COLUMNS], "tokens"),
    ),
    "a vision transformer": (
        *(EXAMPLES / "classify_images.yaml", _vit, *PHOTOS),
        *([*LABEL_COLUMNS, *SIZE_COLUMNS], "preprocessor_config.json"),
    ),
    "a CNN of timm": (
        *(EXAMPLES / "classify_images_timm.yaml", _resnet, *PHOTOS),
        *([*LABEL_COLUMNS, *SIZE_COLUMNS], "resnet10t"),
    ),
    "a classifier of sound": (
        *(EXAMPLES / "classify_sound.yaml", _hubert, _write_clips, NUM_PHOTOS),
        *([*LABEL_COLUMNS, "duration_s"], "16000 Hz, clips of any length"),
    ),
    "a model that writes down what is said": (
        *(EXAMPLES / "transcribe.yaml", _whisper, _write_clips, NUM_PHOTOS),
        *([*WRITTEN_COLUMNS, "duration_s"], "without timestamps"),
    ),
    "an .onnx file": (
        *(EXAMPLES / "classify_images_onnx.yaml", _onnx, *PHOTOS),
        *([*LABEL_COLUMNS, *SIZE_COLUMNS], "tasks take 'logits'"),
    ),
    "a classifier of photos": (
        *(ROOT / "jobs" / "classify_directory.yaml", _vit, *PHOTOS),
        *([*LABEL_COLUMNS, *SIZE_COLUMNS], "preprocessor_config.json"),
    ),
}
"""What the model is -> job file, how model and rows are made, rows predicted, columns, said."""
SLOW = {*CASES} - {"an .onnx file"}
"""Each takes the way of another case; the plans of nearly all are made in the usual run."""
PLANS = [
    pytest.param(kind, marks=[pytest.mark.slow] * (kind == "a model that writes down what is said"))
    for kind in CASES
]
WHOLE = [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in CASES]


def _placed(kind: str, folder: Path) -> tuple[str, ...]:
    """Put model and rows below a folder, where the job names them; return options that say so."""
    path, model, rows, *_ = CASES[kind]
    job = yaml.safe_load(path.read_text())
    model(folder / job["model"]["path"])
    rows(folder / job["source"]["uri"])
    places = {"source.uri": job["source"]["uri"], "model.path": job["model"]["path"]}
    places["sink.uri"] = job["sink"]["uri"]
    options = [f"{field}={folder / place}" for field, place in places.items()]
    return tuple(word for option in options for word in ("--set", option))


@pytest.mark.parametrize("kind", CASES)
def test_a_job_has_at_most_ten_lines(kind: str):
    lines = CASES[kind][0].read_text().splitlines()
    assert sum(bool(line.partition("#")[0].strip()) for line in lines) <= 10


def test_every_example_is_a_case():
    assert {case[0] for case in CASES.values()} >= set(EXAMPLES.glob("*.yaml"))


@pytest.mark.no_ray
@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_says_what_was_read_from_the_directory(kind: str, tmp_path: Path):
    path, *_, said = CASES[kind]
    plan = pipeline("plan", str(path), *_placed(kind, tmp_path), "--no-try")
    assert plan.code == 0, plan.stderr
    assert said in plan.stdout


@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.parametrize("kind", CASES)
def test_a_plan_predicts_a_row(kind: str, tmp_path: Path):
    plan = pipeline("plan", str(CASES[kind][0]), *_placed(kind, tmp_path))
    assert plan.code == 0, plan.stderr
    assert "ok: 1 row" in plan.stdout


@pytest.mark.no_ray
@pytest.mark.parametrize("kind", WHOLE)
def test_a_run_publishes_the_columns_of_the_task(kind: str, tmp_path: Path):
    path, _, _, num_predicted, columns, _ = CASES[kind]
    places = _placed(kind, tmp_path)
    few = ("--set", "gates.max_error_pct=50", "--set", "resources.max_actors=1")
    done = pipeline("run", str(path), *places, *few, "--json")
    assert done.code == 0, done.stderr
    assert done.json["rows"]["predicted"] == num_predicted
    assert done.json["rows"]["quarantined"] == 1
    output = places[-1].partition("=")[2]
    table = read_predictions(output)
    assert table.column_names == ["row_id", "uri", *columns]
    assert all(table.column(name).null_count == 0 for name in columns)
