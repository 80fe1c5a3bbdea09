"""The examples do what they say: the numbers of a model of one's own, and their jobs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import toy_package
import yaml
from safetensors.torch import load_file
from support.inputs.photos import build_images
from support.models.snapshots import make_snapshot
from support.runs.checkout import PYTHONPATH, ROOT
from support.runs.cli import Result, environment, pipeline

from pipeline.commit.published.read import read_predictions
from pipeline.models.zoo import efficientnet_lite0
from pipeline.preprocessing.images.transform import TransformSpec

pytestmark = pytest.mark.early

EXAMPLES = ROOT / "examples"
FOLDER = EXAMPLES / "custom_model"
DETECTION = EXAMPLES / "detection"
NUM_ROWS, NUM_BAD = 24, 2


def module_of(example: str) -> ModuleType:
    """An example's module, imported without touching sys.path."""
    return module_in(EXAMPLES / example, example)


def module_in(folder: Path, name: str) -> ModuleType:
    """A module of a folder, imported without touching sys.path."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def custom_model() -> ModuleType:
    return module_of("custom_model")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The output of the example's job over a few photos, and what the command said."""
    folder = tmp_path_factory.mktemp("examples")
    build_images(folder / "images", NUM_ROWS, seed=5, num_bad=NUM_BAD)
    result = pipeline(
        *("run", str(FOLDER / "job.yaml"), "--allow-import", "custom_model", "--json"),
        *("--set", f"source.uri={folder / 'images'}", "--set", f"sink.uri={folder / 'out'}"),
        env={"PYTHONPATH": str(FOLDER), "PIPELINE_ALLOW_IMPORT": ""},
    )
    return folder / "out", result


def test_every_class_is_in_exactly_one_group(custom_model: ModuleType) -> None:
    labels = efficientnet_lite0().labels or ()
    groups = [custom_model.group_of(class_id, name) for class_id, name in enumerate(labels)]
    assert set(groups) == set(custom_model.GROUPS)
    assert set(labels) >= custom_model._VEHICLES | custom_model._NOT_FOOD
    merged = custom_model.coarse_groups().groups
    assert sorted(class_id for ids in merged for class_id in ids) == list(range(len(labels)))


def test_the_probability_of_a_group_is_the_sum_of_its_classes(custom_model: ModuleType) -> None:
    model = custom_model.coarse_groups().eval()
    images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = torch.softmax(model(images), dim=1)
        classes = torch.softmax(model.classifier(images), dim=1)
    expected = torch.stack([classes[:, ids].sum(dim=1) for ids in model.groups], dim=1)
    torch.testing.assert_close(found, expected)


def test_the_job_file_fits_the_model(custom_model: ModuleType) -> None:
    job = yaml.safe_load((FOLDER / "job.yaml").read_text())
    assert job["model"]["labels"] == list(custom_model.GROUPS)
    card = efficientnet_lite0()
    assert card.transform is not None
    for name, value in TransformSpec.from_dict(job["transform"]).to_dict().items():
        assert value == pytest.approx(card.transform.to_dict()[name], abs=1e-6), name


def test_the_pinned_weights_are_those_of_the_package(custom_model: ModuleType) -> None:
    path = efficientnet_lite0().weights_path
    assert path is not None
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == custom_model.WEIGHTS_SHA256


def test_the_job_tells_cats_food_and_vehicles_apart(published: tuple[Path, Result]) -> None:
    output, result = published
    assert result.code == 0, result.stderr
    assert result.json["rows"]["predicted"] == NUM_ROWS - NUM_BAD
    table = read_predictions(str(output), columns=["row_id", "label"])
    rows = zip(table["row_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    found = {row_id.split("/")[1].split("-")[0]: label for row_id, label in rows}
    assert (found["chelsea"], found["coffee"], found["flower"]) == ("cat", "food", "other")


def test_the_transform_evens_contrast_and_keeps_the_whole_image() -> None:
    module = module_of("custom_transform")
    transform = module.even_letterbox(224, limit=4.0)
    dark = torch.arange(40).repeat(300, 20)[None].repeat(3, 1, 1).to(torch.uint8)  # 300 x 800 px
    found = transform(dark)
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, 224, 224))
    assert (found[:, :70] == 114).all()
    assert (found[:, 154:] == 114).all()
    inside = found[:, 70:154]
    assert int(inside.max()) > 100, "brighter than any of its pixels were"
    assert torch.equal(inside[0], inside[2]), "gray stays gray"
    same = module.EvenContrast(1.0)(dark)
    assert (same.float() - dark.float()).abs().max() <= 256 / 2
    plain = torch.full((3, 50, 224), 77, dtype=torch.uint8)
    assert torch.equal(module.Letterbox(224, 9)(plain)[:, 87:137], plain)


@pytest.mark.slow
def test_the_job_with_a_transform_of_its_own_runs(tmp_path: Path) -> None:
    folder = EXAMPLES / "custom_transform"
    lines = [line for line in (folder / "job.yaml").read_text().splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith("#")]) <= 15
    build_images(tmp_path / "images", NUM_ROWS, seed=5, num_bad=NUM_BAD)
    result = pipeline(
        *("run", str(folder / "job.yaml"), "--allow-import", "custom_transform", "--json"),
        *("--set", f"source.uri={tmp_path / 'images'}", "--set", f"sink.uri={tmp_path / 'out'}"),
        env={"PYTHONPATH": str(folder), "PIPELINE_ALLOW_IMPORT": ""},
    )
    assert result.code == 0, result.stderr
    assert result.json["rows"]["predicted"] == NUM_ROWS - NUM_BAD
    table = read_predictions(str(tmp_path / "out"), columns=["row_id", "label"])
    rows = zip(table["row_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    found = {row_id.split("/")[1].split("-")[0]: label for row_id, label in rows}
    assert found["chelsea"] in {"Egyptian Mau", "tabby", "tiger cat"}


@pytest.mark.slow
def test_a_source_of_its_own_reads_texts_from_csv(tmp_path: Path) -> None:
    folder = EXAMPLES / "text_source"
    points = {"pipeline.sources": {"csv_texts": "csv_texts:FORMAT"}}
    site = toy_package.install(tmp_path / "site", points, "csv_texts")
    make_snapshot(tmp_path / "model", "bert", pooling="mean", normalize=True)
    places = {"source.uri": folder / "reviews.csv", "model.path": tmp_path / "model"}
    settings = [f"{name}={place}" for name, place in places.items()]
    done = pipeline(
        *("run", str(folder / "job.yaml"), "--json", "--set", f"sink.uri={tmp_path / 'out'}"),
        *(word for setting in settings for word in ("--set", setting)),
        env={"PYTHONPATH": os.pathsep.join([PYTHONPATH, str(folder), str(site)])},
    )
    assert done.code == 0, done.stderr
    assert done.json["rows"] == {**done.json["rows"], "predicted": 4, "quarantined": 1}
    ids = read_predictions(str(tmp_path / "out"), columns=["row_id"])["row_id"].to_pylist()
    assert ids == [f"reviews.csv#{line}" for line in range(4)]


def test_a_factory_that_was_not_allowed_is_refused() -> None:
    env = {"PYTHONPATH": str(FOLDER), "PIPELINE_ALLOW_IMPORT": ""}
    result = pipeline("plan", str(FOLDER / "job.yaml"), env=env)
    assert (result.code, "--allow-import custom_model" in result.stderr) == (2, True)


@pytest.mark.slow
def test_two_photos_are_alike_as_their_vectors_are(tmp_path: Path) -> None:
    folder, photos = EXAMPLES / "two_inputs", tmp_path / "images"
    build_images(photos, NUM_ROWS, seed=5, num_bad=1)
    program = [sys.executable, str(folder / "two_inputs.py"), str(photos), str(tmp_path / "pairs")]
    subprocess.run(program, check=True, env=os.environ | {"PYTHONPATH": PYTHONPATH})
    places = {"uri": tmp_path / "pairs", "uri_roots": f"[{photos}]", "uri_base": photos}
    settings = [f"source.{name}={value}" for name, value in places.items()]
    done = pipeline(
        *("run", str(folder / "job.yaml"), "--allow-import", "two_inputs", "--json"),
        *(word for setting in settings for word in ("--set", setting)),
        *("--set", f"sink.uri={tmp_path / 'out'}", "--set", "gates.max_error_pct=20"),
        env={"PYTHONPATH": str(folder), "PIPELINE_ALLOW_IMPORT": ""},
    )
    assert done.code == 0, done.stderr
    lines = [line for line in (folder / "job.yaml").read_text().splitlines() if line]
    assert sum(not line.startswith("#") for line in lines) <= 15
    scores = read_predictions(str(tmp_path / "out"), columns=["score"])["score"].to_pylist()
    assert len(scores) == done.json["rows"]["predicted"] >= NUM_ROWS - 3
    assert -1 <= min(scores) < max(scores) <= 1


@pytest.mark.slow
def test_a_table_of_everything_goes_the_whole_way_in_fifteen_lines(tmp_path: Path) -> None:
    """Journey 5: a hive dataset, categories, nulls, dates and decimals, by one job file."""
    folder = EXAMPLES / "tabular"
    job = (folder / "job.yaml").read_text()
    lines = [line for line in job.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 15
    place, made = str(tmp_path / "tabular"), [sys.executable, str(folder / "make_customers.py")]
    subprocess.run([*made, place], check=True, timeout=120, cwd=ROOT)
    (tmp_path / "job.yaml").write_text(job.replace("demo-output/tabular", place))
    result = pipeline(
        *("run", str(tmp_path / "job.yaml"), "--allow-import", "churn", "--json"),
        *("--set", f"sink.uri={tmp_path / 'out'}"),
        env={"PYTHONPATH": str(folder)},
    )
    assert result.code == 0, result.stderr
    assert json.loads((tmp_path / "tabular" / "countries.json").read_text()) == COUNTRIES
    expected = _churn(folder, tmp_path / "tabular")
    table = read_predictions(str(tmp_path / "out"))
    found = {
        row["row_id"]: row["score"] if row["label"] == "leaves" else 1 - row["score"]
        for row in table.to_pylist()
    }
    assert found == pytest.approx(expected, abs=1e-5)
    assert result.json["rows"]["quarantined"] == 4000 - len(expected) > 0
    assert set(table["country"].to_pylist()) == set(COUNTRIES)


COUNTRIES = ["de", "es", "fr", "it"]


def _churn(folder: Path, data: Path) -> dict[str, float]:
    """What the example's network says of the vectors that the example makes itself, by row id."""
    sys.path.insert(0, str(folder))
    try:
        import make_customers
    finally:
        sys.path.remove(str(folder))
    model = make_customers.Churn()
    model.load_state_dict(load_file(data / "churn.safetensors"))
    found = {}
    for path, rows in make_customers.all_vectors(data).items():
        with torch.inference_mode():
            scores = torch.softmax(model.eval()(torch.from_numpy(rows)), dim=1)[:, 1].tolist()
        is_there = ~np.isnan(rows).any(axis=1)
        found |= {f"{path}#{row}": scores[row] for row in np.flatnonzero(is_there).tolist()}
    return found


def from_package(package: str, file: str, target: str) -> Path:
    """A file of a package, as the example takes it, kept below `build/`."""
    path = ROOT / "build" / target
    program = [sys.executable, str(EXAMPLES / "from_package.py"), package, file, str(path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        pytest.skip(f"the package cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    return path


@pytest.fixture(scope="module")
def detector() -> Path:
    """The model of the example of detection, kept below `build/`."""
    return from_package("nudenet==3.4.2", "nudenet/320n.onnx", "nudenet/320n.onnx")


@pytest.mark.no_ray
@pytest.mark.slow
def test_the_detector_finds_a_face_and_its_box_is_drawn(detector: Path, tmp_path: Path) -> None:
    build_images(tmp_path / "images", NUM_ROWS, seed=5, num_bad=NUM_BAD)
    places = {"source.uri": "images", "sink.uri": "out"}
    options = [f"{field}={tmp_path / place}" for field, place in places.items()]
    arguments = [word for option in options for word in ("--set", option)]
    done = pipeline(
        *("run", str(DETECTION / "job.yaml"), "--allow-import", "yolo_head", "--json"),
        *("--set", f"model.path={detector}", *arguments),
        env={"PYTHONPATH": str(DETECTION), "PIPELINE_ALLOW_IMPORT": ""},
    )
    assert done.code == 0, done.stderr
    assert done.json["rows"]["predicted"] == NUM_ROWS - NUM_BAD
    rows = read_predictions(str(tmp_path / "out")).to_pylist()
    labels = {row["row_id"]: [each["label"] for each in row["detections"]] for row in rows}
    faces = [row_id for row_id, found in labels.items() if "FACE_FEMALE" in found]
    assert any("astronaut" in row_id for row_id in faces), labels
    program = [sys.executable, str(DETECTION / "draw.py"), str(tmp_path / "out")]
    drawn = subprocess.run(
        [*program, str(tmp_path / "drawn")], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(drawn) == sum(map(bool, labels.values()))
    assert all(Path(path).stat().st_size for path in drawn)


@pytest.mark.parametrize(
    "job",
    [*("detection/job", "image_search/job", "ocr/job"),
     *("sklearn_columns/job", "sklearn_columns/boosted")],
)  # fmt: skip
def test_a_job_to_copy_has_at_most_fifteen_lines(job: str) -> None:
    lines = (EXAMPLES / f"{job}.yaml").read_text().splitlines()
    assert len([line for line in lines if line and not line.startswith("#")]) <= 15


@pytest.mark.no_ray
@pytest.mark.slow
def test_the_text_of_an_image_is_read(tmp_path: Path) -> None:
    folder = EXAMPLES / "ocr"
    wheel = "rapidocr_onnxruntime==1.4.4"
    inside = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
    model = from_package(wheel, inside, "ocr/recogniser.onnx")
    lines = module_in(folder, "make_lines")
    lines.write(tmp_path / "lines")
    done = pipeline(
        *("run", str(folder / "job.yaml"), "--allow-import", "ctc", "--json"),
        *("--set", f"source.uri={tmp_path / 'lines'}", "--set", f"sink.uri={tmp_path / 'out'}"),
        *("--set", f"model.path={model}", "--set", f"model.postprocess_args.model={model}"),
        env={"PYTHONPATH": str(folder), "PIPELINE_ALLOW_IMPORT": ""},
    )
    assert done.code == 0, done.stderr
    rows = read_predictions(str(tmp_path / "out")).sort_by("row_id").to_pylist()
    assert [row["text"] for row in rows] == [*lines.LINES]
    assert min(row["score"] for row in rows) > 0.9


@pytest.mark.slow
def test_photos_are_found_by_words(tmp_path: Path) -> None:
    """With the weights of a tiny CLIP, so that what is found means nothing."""
    folder, model = EXAMPLES / "image_search", tmp_path / "clip"
    make_snapshot(model, "clip")
    build_images(tmp_path / "images", NUM_ROWS, seed=5, num_bad=NUM_BAD)
    out = tmp_path / "out"
    done = pipeline(
        *("run", str(folder / "job.yaml"), "--json", "--set", f"sink.uri={out}"),
        *("--set", f"source.uri={tmp_path / 'images'}", "--set", f"model.path={model}"),
    )
    assert done.code == 0, done.stderr
    assert done.json["rows"]["predicted"] == NUM_ROWS - NUM_BAD
    found = subprocess.run(
        [sys.executable, str(folder / "search.py"), str(out), str(model), "a cat", "two dogs"],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    lines = [line.split("\t") for line in found.stdout.splitlines()]
    assert [words for words, _, _ in lines] == ["a cat"] * 3 + ["two dogs"] * 3
    ids = {*read_predictions(str(out), columns=["row_id"])["row_id"].to_pylist()}
    assert {row_id for _, _, row_id in lines} <= ids
    cosines = [float(cosine) for _, cosine, _ in lines[:3]]
    assert cosines == sorted(cosines, reverse=True)


@pytest.mark.slow
def test_xgboost_predicts_the_numbers_of_a_table(tmp_path: Path) -> None:
    folder = EXAMPLES / "sklearn_columns"
    for program in ("train.py", "train_boosted.py"):
        subprocess.run([sys.executable, folder / program, tmp_path], check=True, timeout=120)
    job = (
        (folder / "boosted.yaml").read_text().replace("demo-output/sklearn_columns", str(tmp_path))
    )
    (tmp_path / "job.yaml").write_text(job)
    done = pipeline(
        "run", str(tmp_path / "job.yaml"), "--json", "--set", f"sink.uri={tmp_path}/out"
    )
    assert done.code == 0, done.stderr
    train = module_in(folder, "train")
    customers = train.make_customers()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        model = module_in(folder, "train_boosted").train(customers)
    scores = model.predict_proba(customers[train.NUMBERS].to_numpy(np.float32))[:, 1]
    expected = dict(zip(customers.customer_id, scores.tolist(), strict=True))
    found = {
        row["customer_id"]: row["score"] if row["label"] == "leaves" else 1 - row["score"]
        for row in read_predictions(str(tmp_path / "out")).to_pylist()
    }
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_index_names_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("[!.]*"):
        assert path.name == "README.md" or f"]({path.name}" in text, path.name


@pytest.mark.slow
def test_a_pipeline_of_scikit_learn_predicts_its_columns_also_after_a_kill(tmp_path: Path) -> None:
    folder, place = EXAMPLES / "sklearn_columns", tmp_path / "sklearn_columns"
    job = (folder / "job.yaml").read_text()
    subprocess.run([sys.executable, folder / "train.py", place], check=True, timeout=120, cwd=ROOT)
    (tmp_path / "job.yaml").write_text(job.replace("demo-output/sklearn_columns", str(place)))
    command = (
        *("run", str(tmp_path / "job.yaml"), "--json", "--set", "run.slice_rows=500"),
        *("--set", f"sink.uri={tmp_path / 'out'}"),
    )
    killed = pipeline(*command, env={"PIPELINE_FAILPOINT": "slice_done:kill:1"})
    assert killed.code not in (0, 2), killed.stderr
    result = pipeline(*command)
    assert result.code == 0, result.stderr
    assert result.json["rows"]["resumed"] > 0
    assert pipeline(*command).json["status"] == "nothing_to_do"
    train = module_in(folder, "train")
    customers = train.make_customers()
    expected = dict(
        zip(customers.customer_id, train.train(customers).predict(customers), strict=True)
    )
    table = read_predictions(str(tmp_path / "out"))
    found = {row["customer_id"]: row["label"] for row in table.to_pylist()}
    assert len(found) == len(expected)
    assert np.mean([found[key] == label for key, label in expected.items()]) > 0.999
