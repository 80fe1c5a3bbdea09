"""Jobs of clips of sound: files, columns, URIs and tars; what is no clip costs itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.clips import encoded, tone
from support.inputs.tars import Entry, pack
from support.models.audio_snapshots import LABELS, make_listener
from support.runs.cli import pipeline, write_job
from support.runs.published_rows import read_predictions
from support.servers.forkedcommands import OF_TRANSFORMERS

CLIPS = {
    **{f"{index}.wav": encoded(tone(0.3 + index / 50, 300 + 40 * index)) for index in range(8)},
    "a.flac": encoded(tone(0.3), "FLAC"),
    "b.mp3": encoded(tone(0.3), "MP3"),
    "c.ogg": encoded(tone(0.3), "OGG", subtype="OPUS"),
    "of another rate.wav": encoded(tone(0.3, rate_hz=44_100), rate_hz=44_100),
    "silence.wav": encoded(np.zeros(4_800, np.float32)),
    "a flac.wav": encoded(tone(0.3), "FLAC"),
}
BAD = {
    "cut.wav": (encoded(tone())[:-100], "truncated"),
    "empty.wav": (b"", "empty"),
    "long.wav": (encoded(tone(3.0)), "too_large"),
    "page.mp3": (b"<html>404</html>", "unidentified"),
    "short.wav": (encoded(tone(0.0005)), "model_error"),
}
DATE = ("--date", "2026-11-24", "--json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_listener(tmp_path_factory.mktemp("models") / "wav2vec2", "wav2vec2")


def job_of(folder: Path, name: str, model: Path, source: dict[str, Any], **more: Any) -> str:
    sections = {"model": {"path": str(model)}, "transform": None, "audio": {"max_s": 2.0}}
    gates = {"gates": {"max_error_pct": 50.0}, "report": {"samples": 4}}
    return write_job(
        folder / f"{name}.yaml", source, str(folder / name), **{**sections, **gates, **more}
    )


@pytest.mark.no_ray(*OF_TRANSFORMERS)
@pytest.mark.slow
def test_a_clip_is_one_prediction_wherever_it_lies(model: Path, tmp_path: Path):
    """Files, a column, URIs and the members of a tar give the same labels, scores and lengths."""
    files = tmp_path / "clips"
    files.mkdir()
    for name, data in {**CLIPS, **{name: data for name, (data, _) in BAD.items()}}.items():
        (files / name).write_bytes(data)
    names = sorted(CLIPS)
    data = pa.array([CLIPS[name] for name in names], pa.binary())
    pq.write_table(pa.table({"name": names, "clip": data}), tmp_path / "rows.parquet")
    uris = pa.table({"name": names, "at": [str(files / name) for name in names]})
    pq.write_table(uris, tmp_path / "uris.parquet")
    tar = [Entry(f"{n:02}.{name.rpartition('.')[2]}", CLIPS[name]) for n, name in enumerate(names)]
    (tmp_path / "1.tar").write_bytes(pack(tar))
    sources: dict[str, dict[str, Any]] = {
        "files": {"uri": str(files), "format": "audio"},
        "column": {"uri": str(tmp_path / "rows.parquet"), "format": "parquet",
                   "audio_column": "clip", "id_column": "name"},
        "uris": {"uri": str(tmp_path / "uris.parquet"), "format": "parquet", "uri_column": "at",
                 "input": "audio", "id_column": "name", "uri_roots": [str(files)]},
        "tar": {"uri": str(tmp_path / "1.tar"), "format": "webdataset", "input": "audio"},
    }  # fmt: skip
    found = {}
    for name, source in sources.items():
        job = job_of(tmp_path, name, model, source)
        planned = pipeline("plan", job, *DATE)
        assert planned.json["model"]["tried"].startswith("ok: "), planned.stderr
        done = pipeline("run", job, *DATE)
        assert done.code == 0, done.stderr
        rows = read_predictions(str(tmp_path / name), "date=2026-11-24")
        found[name] = {row["row_id"].rpartition("/")[2]: row for row in rows.to_pylist()}
    read_from = planned.json["model"]["read_from_directory"]
    assert any("16000 Hz, normalised, clips of any length" in each["says"] for each in read_from)
    assert sorted(found["files"]) == names
    for row, name in enumerate(names):
        whole = found["files"][name]
        assert whole["label"] in LABELS
        assert 0.2 < whole["duration_s"] < 0.5
        for other in (found["column"][name], found["uris"][name], found["tar"][f"{row:02}"]):
            assert other["label"] == whole["label"]
            assert other["score"] == pytest.approx(whole["score"], abs=1e-5)
            assert other["duration_s"] == whole["duration_s"]
    report = next((tmp_path / "files" / "reports").rglob("report.html")).read_text()
    assert " s</b>" in report, "a clip has its length below it"
    failed = pq.read_table(next((tmp_path / "files" / "quarantine").rglob("*.parquet")))
    reasons = dict(zip(failed["row_id"].to_pylist(), failed["reason"].to_pylist(), strict=True))
    assert reasons == {name: reason for name, (_, reason) in BAD.items()}


@pytest.mark.no_ray(*OF_TRANSFORMERS)
@pytest.mark.slow
def test_a_folder_of_clips_and_a_model_are_a_job_with_golden_rows(model: Path, tmp_path: Path):
    (tmp_path / "clips").mkdir()
    for name in ("0.wav", "1.wav", "a.flac"):
        (tmp_path / "clips" / name).write_bytes(CLIPS[name])
    out = str(tmp_path / "out")
    done = pipeline(
        *("predict", str(tmp_path / "clips"), "--model", str(model), "--to", out, "--json")
    )
    assert done.code == 0, done.stderr
    assert done.json["rows"]["predicted"] == 3
    golden = str(tmp_path / "golden.parquet")
    made = pipeline("golden", f"{out}/job.yaml", "--out", golden, "--rows", "2", "--json")
    assert made.code == 0, made.stderr
    assert pq.read_schema(golden).field("audio").type == pa.large_binary()
    gates = {"gates": {"golden": {"uri": golden}}}
    source = {"uri": str(tmp_path / "clips"), "format": "audio"}
    judged = pipeline("run", job_of(tmp_path, "judged", model, source, **gates), *DATE)
    assert judged.code == 0, judged.stderr
    results = {each["name"]: each["status"] for each in judged.json["gates"]}
    assert results["golden"] == "pass"
