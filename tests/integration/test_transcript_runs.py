"""Clips and images get texts, those of transformers, or a reason, from files to Parquet."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.inputs.clips import RATE_HZ, encoded, spoken, tone
from support.models.feature_writers import images, make_feature_writer
from support.models.generating import NEW_TOKENS
from support.runs.cli import pipeline, write_job
from support.runs.published_rows import read_predictions
from support.servers.forkedcommands import OF_TRANSFORMERS

pytestmark = [pytest.mark.slow, pytest.mark.no_ray(*OF_TRANSFORMERS)]

SAID = ("the cat", "a dog", "rain", "home by the river", "good or bad", "yes", "no", "film")
SILENCE = encoded(np.zeros(8_000, np.float32))
BAD = {
    "cut.wav": (encoded(tone())[:-100], "truncated"),
    "empty.wav": (b"", "empty"),
    "long.wav": (encoded(tone(3.0)), "too_large"),
    "none.wav": (encoded(np.zeros(0, np.float32)), "empty"),
    "page.wav": (b"<html>404</html>", "unidentified"),
}
DATE = ("--date", "2026-11-24", "--json")


def write_files(folder: Path, data: dict[str, bytes]) -> str:
    folder.mkdir()
    for name, each in data.items():
        (folder / name).write_bytes(each)
    return str(folder)


def job_of(folder: Path, source: dict[str, Any], **model: Any) -> str:
    return write_job(
        folder / "job.yaml",
        source,
        str(folder / "out"),
        model={
            "path": str(folder / "model"),
            "generate": {"max_new_tokens": NEW_TOKENS},
            "batch_size": 4,
            **model,
        },
        transform=None,
        gates={"max_error_pct": 50.0},
        report={"samples": 4},
    )


def transcripts(folder: Path, clips: dict[str, bytes]) -> dict[str, str]:
    """Transcripts by transformers, its feature extractor and `generate`, of one clip at a time."""
    import soundfile
    import soxr
    import torch
    import transformers

    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer, found = transformers.AutoTokenizer.from_pretrained(folder), {}
    for name, data in clips.items():
        samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32")
        if rate_hz != RATE_HZ:
            samples = soxr.resample(samples, rate_hz, RATE_HZ)
        given = extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(
                given.input_features, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1
            )
        found[name] = tokenizer.decode(tokens[0], skip_special_tokens=True)
    return found


@pytest.mark.parametrize("kind", ["spoken", "made"])
def test_clips_are_written_down_as_transformers_does_it(kind: str, tmp_path: Path):
    if kind == "spoken":
        if shutil.which("espeak-ng") is None:
            pytest.skip("espeak-ng is not installed")
        clips = {f"{n}.wav": spoken(text) for n, text in enumerate(SAID)}
    else:
        clips = {f"{n}.wav": encoded(tone(0.3 + n / 10, 90 * 2**n)) for n in range(6)}
    clips["silence.wav"] = SILENCE
    path = make_feature_writer(tmp_path / "model", "whisper")
    bad = {name: data for name, (data, _) in BAD.items()}
    source = {"uri": write_files(tmp_path / "clips", {**clips, **bad}), "format": "audio"}
    job = job_of(tmp_path, source)
    planned = pipeline("plan", job, *DATE).json["model"]
    assert planned["task"] == "generate"
    assert planned["tried"].startswith("ok: ")
    assert any("without timestamps" in each["says"] for each in planned["read_from_directory"])
    done = pipeline("run", job, *DATE)
    assert done.code == 0, done.stderr
    rows = read_predictions(str(tmp_path / "out"), "date=2026-11-24").to_pylist()
    found = {row["row_id"].rpartition("/")[2]: row for row in rows}
    assert {name: row["text"] for name, row in found.items()} == transcripts(path, clips)
    assert {row["num_input_tokens"] for row in rows} == {100}
    assert found["silence.wav"]["duration_s"] == 0.5
    failed = pq.read_table(next((tmp_path / "out" / "quarantine").rglob("*.parquet")))
    reasons = dict(zip(failed["row_id"].to_pylist(), failed["reason"].to_pylist(), strict=True))
    assert reasons == {name: reason for name, (_, reason) in BAD.items()}
    [checked] = [gate for gate in done.json["gates"] if gate["name"] == "min_agreement_pct"]
    assert (checked["status"], checked["value"]) == ("pass", 100.0)
    report = pipeline("report", str(tmp_path / "out"), "--json").json
    assert report["written"]["output_tokens"] == sum(row["num_output_tokens"] for row in rows)
    golden = str(tmp_path / "golden.parquet")
    made = pipeline("golden", job, "--rows", "3", "--out", golden, "--json")
    assert made.code == 0, made.stderr
    again = ("--date", "2026-11-25", "--json", "--set", f"gates.golden.uri={golden}")
    judged = pipeline("run", job, *again)
    assert judged.code == 0, judged.stderr
    assert {gate["name"]: gate["status"] for gate in judged.json["gates"]}["golden"] == "pass"


def test_images_get_captions_behind_a_prompt(tmp_path: Path):
    make_feature_writer(tmp_path / "model", "blip")
    files = {f"{n}.png": data for n, data in enumerate(images(7))}
    source = {"uri": write_files(tmp_path / "images", files | {"cut.png": files["0.png"][:60]})}
    job = job_of(tmp_path, {**source, "format": "images"}, prompt="the cat")
    done = pipeline("run", job, *DATE)
    assert done.code == 0, done.stderr
    found = read_predictions(str(tmp_path / "out"), "date=2026-11-24")
    assert sorted(found["row_id"].to_pylist()) == sorted(files)
    assert found["text"].null_count == 0
    assert {"width_px", "height_px", "num_input_tokens"} <= {*found.column_names}
    assert len({*found["text"].to_pylist()}) > 2
    assert pipeline("run", job, *DATE).json["status"] == "nothing_to_do"
