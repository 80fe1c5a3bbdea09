"""No run is lost: real photos, a real model, a real kill -9; predictions equal a plain loop."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import HANG_S
from support.inputs.photos import build_images, build_parquet
from support.runs.cli import pipeline, start, wait_until, write_job
from support.runs.published_rows import read_part, read_predictions
from support.servers.object_stores import S3Server

from pipeline.commit.layout import CARD, Layout
from pipeline.commit.manifest import current_manifest
from pipeline.commit.plan_store import read_plan
from pipeline.commit.staging import list_staged
from pipeline.execution.embedded.patches import AGENTS, is_usable
from pipeline.inference.hardware_facts import processor_name
from pipeline.models.zoo import efficientnet_lite0
from pipeline.planning.plan import Plan
from pipeline.preprocessing.images.decode_image import DecodeLimits, Undecodable, decode_image
from pipeline.preprocessing.images.resizing import resize_and_crop
from pipeline.storage.store import Store

pytestmark = pytest.mark.early

DATE = "2026-11-24"
PARTITION = f"date={DATE}"
LITE0 = {"name": "efficientnet-lite0"}


def predict_plainly(images: dict[str, bytes]) -> dict[str, tuple[str, float]]:
    """The reference: decode, transform and predict one image after the other, without us or Ray."""
    card = efficientnet_lite0()
    assert card.transform is not None
    assert card.labels is not None
    module = card.build()
    module.load_state_dict(torch.load(card.weights_path, weights_only=True))
    module.eval()
    mean = torch.tensor(card.transform.mean).view(3, 1, 1)
    std = torch.tensor(card.transform.std).view(3, 1, 1)
    predictions = {}
    for name, data in images.items():
        try:
            pixels = decode_image(data, DecodeLimits(2**30, 10**9))
        except Undecodable:
            continue
        x = (resize_and_crop(pixels, card.transform).float() / 255 - mean) / std
        with torch.inference_mode():
            scores = torch.softmax(module(x[None]), dim=1)[0]
        best = int(scores.argmax())
        predictions[name] = (card.labels[best], float(scores[best]))
    return predictions


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def by_id(table: pa.Table) -> dict[str, tuple[str, float]]:
    columns = table.select(["row_id", "label", "score"]).to_pydict()
    return {row_id: (label, score) for row_id, label, score in zip(*columns.values(), strict=True)}


def assert_same_predictions(predictions: dict[str, Any], expected: dict[str, Any]) -> None:
    assert predictions.keys() == expected.keys()
    assert {k: v[0] for k, v in predictions.items()} == {k: v[0] for k, v in expected.items()}
    difference = max(abs(predictions[k][1] - expected[k][1]) for k in expected)
    assert difference <= 1e-5


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_devices_are_named(store: Store, devices: dict[str, int], report: dict[str, Any]) -> None:
    """In every part that is published, in the manifest, and in the report."""
    assert report["model"]["devices"] == devices
    manifest = current_manifest(store, Layout(PARTITION))
    assert manifest is not None
    assert manifest.devices == devices
    for part in manifest.all_parts:
        with store.open(part.path) as handle:
            metadata = pq.read_schema(handle).metadata
        assert json.loads(metadata[b"pipeline.devices"]) == devices
    assert not any(device in json.dumps(manifest.fingerprint_parts) for device in devices)


def assert_published(
    store: Store, expected: dict[str, tuple[str, float]], num_rows: int, report: dict[str, Any]
) -> None:
    """What a run over image files publishes, and says of it."""
    table = read_predictions(store.uri, PARTITION, storage_options=dict(store.storage_options))
    assert_same_predictions(by_id(table), expected)
    assert table["row_id"].to_pylist() == sorted(expected)
    assert report["rows"]["predicted"] == len(expected)
    card = store.read_bytes(CARD).decode().splitlines()
    assert f"| predictions | {len(expected)} |" in card
    assert_devices_are_named(store, {processor_name(): num_rows}, report)


@pytest.mark.slow  # .ci/run has it on two Rays; what it holds, holds after a kill in `make test`
@pytest.mark.any_ray
@pytest.mark.any_ray_short
@pytest.mark.one_ray
def test_predictions_of_loose_images_equal_a_plain_loop(tmp_path: Path) -> None:
    bad = build_images(tmp_path / "images", 24, seed=3, num_bad=3)
    job = write_job(
        tmp_path / "job.yaml",
        {"uri": str(tmp_path / "images"), "format": "images"},
        str(tmp_path / "out"),
        model=LITE0,
        transform=None,
        resources=None,
        run={"slice_rows": 8},
    )
    result = pipeline("run", job, "--date", DATE, "--json")
    assert result.code == 0, result.stderr
    files = read_files(tmp_path / "images")
    expected = predict_plainly(files)
    assert expected.keys() == set(files) - set(bad)
    assert_published(Store(str(tmp_path / "out")), expected, len(files), result.json)
    assert (result.json["decode_in"], result.json["write_in"]) == ("actors", "actors")
    verified = pipeline("verify", str(tmp_path / "out"), "--json")
    assert (verified.code, verified.json["status"]) == (0, "ok"), verified.stderr


def quarantine_of(store: Store, partition: str = PARTITION) -> pa.Table:
    manifest = current_manifest(store, Layout(partition))
    assert manifest is not None
    return pa.concat_tables([read_part(store, part) for part in manifest.quarantine_parts])


class KillCase:
    """One input, one output, one job."""

    num_rows = 40

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(str(folder / "out"))

    def job(self) -> str:
        return write_job(
            self.folder / "job.yaml",
            {"uri": str(self.folder / "images"), "format": "images"},
            self.store.uri,
            model=LITE0,
            transform=None,
            resources=None,
            run={"slice_rows": 4},
        )

    def plan(self) -> Plan | None:
        plans = self.store.list_files(f"_control/{PARTITION}/plan")
        if not plans:
            return None
        return read_plan(self.store, Layout(PARTITION), Path(plans[0].path).stem)

    def staged_rows(self) -> int:
        plan = self.plan()
        if plan is None:
            return 0
        staged = list_staged(self.store, Layout(PARTITION).staging(plan.work))
        return sum(key.num_rows for key in staged)


@pytest.mark.any_ray
@pytest.mark.one_ray
def test_kill_9_and_rerun_equals_a_plain_loop(tmp_path: Path) -> None:
    build_images(tmp_path / "images", KillCase.num_rows, seed=5, num_bad=4)
    case = KillCase(tmp_path)
    job = case.job()
    process = start("run", job, "--date", DATE)
    wait_until(lambda: case.staged_rows() >= 0.3 * case.num_rows, process)
    assert process.poll() is None, process.communicate()
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    # By themselves Ray's agents look for their raylet now and then.
    _, alive = psutil.wait_procs(family, timeout=30 if is_usable(AGENTS) else 120)
    left = [survivor for survivor in alive if survivor.status() != psutil.STATUS_ZOMBIE]
    assert left == [], "nothing that a driver has started outlives it"
    kept = case.staged_rows()
    assert kept > 0

    again = pipeline("run", job, "--date", DATE, "--json")
    assert again.code == 0, again.stderr
    assert again.json["rows"]["resumed"] >= kept
    assert again.json["rows"]["resumed"] + again.json["rows"]["computed"] == case.num_rows
    expected = predict_plainly(read_files(tmp_path / "images"))
    assert_published(case.store, expected, case.num_rows, again.json)
    assert (again.json["decode_in"], again.json["write_in"]) == ("actors", "actors")
    verified = pipeline("verify", case.store.uri, "--json")
    assert verified.code == 0, verified.stderr


@pytest.mark.no_ray
def test_the_same_run_again_loads_no_model_and_changes_nothing(
    tmp_path: Path, model_loads: Path
) -> None:
    build_images(tmp_path / "images", 12, seed=6, num_bad=0)
    source = {"uri": str(tmp_path / "images"), "format": "images"}
    model = {"factory": "models:counting", "labels": ["a", "b", "c", "d", "e"]}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"), model=model)
    assert pipeline("run", job, "--date", DATE).code == 0
    assert list(model_loads.iterdir())
    for path in model_loads.iterdir():
        path.unlink()
    before = checksums(tmp_path / "out" / "predictions")
    again = pipeline("run", job, "--date", DATE, "--json")
    assert (again.code, again.json["status"]) == (0, "nothing_to_do"), again.stderr
    assert not list(model_loads.iterdir())
    assert checksums(tmp_path / "out" / "predictions") == before


@pytest.mark.no_ray
def test_duplicate_ids_keep_the_first_row(tmp_path: Path) -> None:
    build_parquet(tmp_path / "a", 20, seed=10, num_shards=1, num_bad=0)
    (tmp_path / "in").mkdir()
    shard = next((tmp_path / "a").glob("*.parquet"))
    table = pq.read_table(shard)
    pq.write_table(table, tmp_path / "in" / "0.parquet")
    pq.write_table(table.slice(0, 3), tmp_path / "in" / "1.parquet")
    source = {
        "uri": str(tmp_path / "in"),
        "format": "parquet",
        "id_column": "id",
        "pass_through": ["camera"],
    }
    sections = {"gates": {"max_error_pct": 20.0}, "run": {"slice_rows": 5}}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"), **sections)
    result = pipeline("run", job, "--date", DATE, "--json")
    assert result.code == 0, result.stderr
    assert result.json["reasons"] == {"duplicate_id": 3}
    predictions = read_predictions(str(tmp_path / "out"), PARTITION)
    assert predictions["row_id"].to_pylist() == table["id"].to_pylist()
    quarantine = quarantine_of(Store(str(tmp_path / "out")))
    assert quarantine["row_id"].to_pylist() == table["id"].to_pylist()[:3]
    assert quarantine["reason"].to_pylist() == ["duplicate_id"] * 3
    assert pipeline("verify", str(tmp_path / "out")).code == 0


@pytest.mark.no_ray
@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["model.weigths=x"], 2, "model.weigths: unknown key"),
        (["source.uri=nowhere"], 8, "no such file or folder"),
        (["model.factory=models:not_a_module"], 2, "not an nn.Module"),
        (["resources.num_gpus=4096"], 2, "4096"),
        (["sink.uri=/proc/nowhere"], 2, "/proc/nowhere"),
        (["sink.uri=s3://no-such-bucket-here/x"], 2, "no-such-bucket-here"),
        (
            ["model.labels=[a, b]", "gates.max_error_pct=100"],
            2,
            'failed alike: model_error "output is (1, 5), expected (1, 2): the model has 5 outputs'
            ', model.labels 2"; nothing was published',
        ),
    ],
)
def test_an_impossible_job_ends_in_one_line_and_its_exit_code(
    overrides: list[str], code: int, words: str, tmp_path: Path, s3: S3Server
) -> None:
    build_images(tmp_path / "images", 4, seed=11, num_bad=0)
    source = {"uri": str(tmp_path / "images"), "format": "images"}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"), resources=None)
    arguments = [part for override in overrides for part in ("--set", override)]
    env = s3.env if any("s3://" in override for override in overrides) else None
    result = pipeline("run", job, *arguments, "--quiet", env=env)
    assert (result.code, result.stdout) == (code, "")
    assert words in result.stderr
    lines = result.stderr.strip().splitlines()
    # Of a factory without weights a run warns before it starts Ray.
    assert len([line for line in lines if "WARNING model.factory" not in line]) == 1
    assert "Traceback" not in result.stderr


@pytest.mark.no_ray
def test_an_empty_source_is_refused_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    source = {"uri": str(tmp_path / "images"), "format": "images"}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"))
    refused = pipeline("run", job, "--date", DATE)
    assert refused.code == 3, refused.stderr
    allowed = pipeline("run", job, "--date", DATE, "--set", "gates.allow_empty=true")
    assert allowed.code == 0, allowed.stderr
    table = read_predictions(str(tmp_path / "out"), PARTITION)
    assert table.num_rows == 0
    columns = ["label", "label_id", "score", "top_k", "width_px", "height_px"]
    assert table.schema.names == ["row_id", "uri", *columns]


@pytest.mark.no_ray
def test_a_shard_that_cannot_be_opened_counts_as_one_row(tmp_path: Path) -> None:
    build_parquet(tmp_path / "in", 40, seed=12, num_shards=2, num_bad=0)
    (tmp_path / "in" / "broken.parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")
    source = {"uri": str(tmp_path / "in"), "format": "parquet"}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"))
    accepted = ("--accept", "max_error_pct=its camera is broken")
    result = pipeline("run", job, "--date", DATE, "--json", *accepted)
    assert result.code == 0, result.stderr
    assert "1 of 3 shards cannot be opened, " in result.stderr
    assert result.json["unreadable_shards"] == 1
    assert result.json["rows"] | {"resumed": 0} == {
        "total": 41, "predicted": 40, "quarantined": 1, "computed": 41, "resumed": 0,
        "carried": None, "left": 0, "left_out": None, "unopened_shards": None,
    }  # fmt: skip
    quarantine = quarantine_of(Store(str(tmp_path / "out")))
    assert quarantine["row_id"].to_pylist() == ["broken.parquet"]
    assert quarantine["reason"].to_pylist() == ["unreadable_shard"]
    assert pipeline("verify", str(tmp_path / "out")).code == 0


@pytest.mark.slow  # .ci/run has it on two Rays; test_endings stops commands in `make test`
@pytest.mark.any_ray
@pytest.mark.any_ray_short
@pytest.mark.one_ray
def test_sigterm_keeps_finished_slices_and_exits_6(tmp_path: Path) -> None:
    build_images(tmp_path / "images", KillCase.num_rows, seed=13, num_bad=0)
    case = KillCase(tmp_path)
    process = start("run", case.job(), "--date", DATE)
    wait_until(lambda: case.staged_rows() > 0, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 6, stderr
    assert "SIGTERM" in stderr
    again = pipeline("run", case.job(), "--date", DATE, "--json")
    assert again.code == 0, again.stderr
    assert again.json["rows"]["resumed"] > 0
