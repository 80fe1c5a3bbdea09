"""Journeys of new users as they would make them: commands and readers, no workaround (`make long`).

Each test is one journey: a folder of mixed photos; weights of every kind; a week of a scheduler; a
job on a cluster; a long run in a terminal that is interrupted.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pytest
import torch
from models import Colours
from PIL import features
from safetensors.torch import save
from support.inputs.encoded import base_image, encode
from support.runs.cli import Result, pipeline, wait_until, write_job
from support.runs.terminal import Terminal
from support.servers.rayhead import RayHead

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with RayHead() as head:
        yield head


def photo(seed: int, kind: str = "JPEG") -> bytes:
    return encode(base_image(seed), kind)


def said(done: Result) -> str:
    """All that a user reads, with the line breaks of a table undone."""
    return " ".join((done.stdout + done.stderr).split())


@pytest.mark.no_ray
def test_a_folder_of_mixed_photos_ends_in_pandas_duckdb_and_polars(tmp_path: Path):
    """Journey 1."""
    shots = tmp_path / "in" / "br[1]"
    (shots / "_raw").mkdir(parents=True)
    wanted = {f"{seed}.{end}": kind for seed, (end, kind) in enumerate(FORMATS.items())}
    wanted |= {"_DSC0001.JPG": "JPEG", "_raw/_MG_2.png": "PNG", "two words # 50%.png": "PNG"}
    if features.check("avif"):
        wanted["x.avif"] = "AVIF"
    for seed, (name, kind) in enumerate(wanted.items()):
        (shots / name).write_bytes(photo(seed, kind))
    (shots / "linked.png").symlink_to(shots / "1.png")
    not_utf8 = os.path.join(os.fsencode(shots), b"caf\xe9.png")
    Path(os.fsdecode(not_utf8)).write_bytes(photo(9, "PNG"))
    for name in (".DS_Store", "clip.mov", "notes.txt"):
        (shots / name).write_bytes(b"x")
    out = str(tmp_path / "out")
    sink = {"partition": None}
    job = write_job(tmp_path / "job.yaml", {"uri": str(shots), "format": "images"}, out, sink=sink)

    planned = pipeline("plan", job, "--json")
    done = pipeline("run", job)

    assert (planned.code, done.code) == (0, 0), said(planned) + said(done)
    names = {*wanted, "linked.png"}
    assert "1 .mov" in said(done)
    assert "1 .txt" in said(done)
    for place in ("predictions", "reports"):  # nothing is quarantined
        assert f"{out}/{place}" in said(done)
    report = pipeline("report", out, "--json").json
    assert report["rows"]["predicted"] == len(names)
    assert report["skipped"]["files"] == 4  # one name that is no UTF-8
    folder = f"{out}/predictions"
    assert set(pd.read_parquet(folder)["row_id"]) == names
    counted = duckdb.sql(f"select count(*) from '{folder}/*.parquet'").fetchall()
    assert counted == [(len(names),)]
    assert pl.scan_parquet(folder).collect().height == len(names)

    nothing = pipeline(
        "run", job, "--set", f"source.uri={shots}/*.mov", "--set", f"sink.uri={out}2"
    )
    assert nothing.code == 3
    assert ".mov" in said(nothing)
    assert ".jpg" in said(nothing)


def test_weights_of_every_kind_are_loaded_or_refused_with_the_way_out(tmp_path: Path):
    """Journey 6: before Ray starts, by `plan`."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(photo(1, "PNG"))
    module, example = Colours().eval(), torch.zeros(1, 3, 32, 32)
    state = module.state_dict()
    torch.save(state, tmp_path / "state.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "parallel.pth")
    torch.save(module, tmp_path / "whole.pth")
    torch.jit.save(torch.jit.trace(module, example), tmp_path / "script.pt")
    torch.export.save(torch.export.export(module, (example,)), tmp_path / "exported.pt2")
    (tmp_path / "half.safetensors").write_bytes(save(dict(state))[:-20])
    (tmp_path / "sound.safetensors").write_bytes(save(dict(state)))
    (tmp_path / "detector.onnx").write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(64))

    def plan(name: str, *more: str) -> Result:
        source = {"uri": str(tmp_path / "in"), "format": "images"}
        model = {
            "factory": "models:colours",
            "labels": list("abcde"),
            "weights": str(tmp_path / name),
        }
        job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"), model=model)
        return pipeline("plan", job, "--date", "2026-11-24", *more)

    for name in ("state.pth", "parallel.pth", "sound.safetensors"):
        done = plan(name)
        assert done.code == 0, (name, said(done))
    keyed = plan("checkpoint.pth", "--set", "model.weights_key=model")
    assert keyed.code == 0, said(keyed)
    refused = {
        "checkpoint.pth": "model.weights_key",
        "whole.pth": "state_dict()",
        "script.pt": "state_dict()",
        "exported.pt2": "state_dict()",
        "half.safetensors": "cut off",
        "detector.onnx": "a whole model",
    }
    for name, word in refused.items():
        done = plan(name)
        assert done.code == 2, (name, said(done))
        assert word in said(done), (name, said(done))
        assert "Traceback" not in said(done)


@pytest.mark.no_ray
def test_a_week_of_a_scheduler_can_be_told_from_its_exit_codes_and_reports(tmp_path: Path):
    """Journey 9."""
    out = str(tmp_path / "out")
    source = {"uri": str(tmp_path / "in" / "${date}"), "format": "images"}
    job = write_job(tmp_path / "job.yaml", source, out)

    def run_day(day: int, *arguments: str) -> Result:
        return pipeline("run", job, "--date", f"2026-11-{day}", *arguments)

    def arrive(day: int, count: int, *, empty: int = 0) -> None:
        folder = tmp_path / "in" / f"2026-11-{day}"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (folder / f"{index:03d}.png").write_bytes(b"" if index < empty else photo(index, "PNG"))

    arrive(20, 100)
    assert run_day(20).code == 0
    assert "nothing to do" in said(run_day(20)).replace("_", " ")
    missing = run_day(21)
    assert missing.code == 8
    assert "2026-11-21" in said(missing)
    arrive(22, 120, empty=30)
    refused = run_day(22)
    assert refused.code == 3
    assert "empty" in said(refused)
    assert "000.png" in said(refused)
    told = pipeline("inspect", out, "--partition", "date=2026-11-22")
    assert told.code == 2
    assert "refused" in said(told)
    assert "pipeline report" in said(told)
    report = pipeline("report", out, "--partition", "date=2026-11-22", "--json")
    assert report.code == 0
    assert report.json["status"] == "refused"
    accepted = run_day(22, "--accept", "max_error_pct=the camera was off")
    assert accepted.code == 0, said(accepted)
    arrive(20, 102)  # two files come late
    late = run_day(20, "--json")
    assert late.code == 0
    assert late.json["rows"]["total"] == 102
    for day in (20, 22):
        assert pipeline("verify", out, "--partition", f"date=2026-11-{day}").code == 0


def test_a_job_is_submitted_to_a_cluster(tmp_path: Path, head: RayHead):
    """Journey 10."""
    (tmp_path / "in").mkdir()
    for index in range(8):
        (tmp_path / "in" / f"{index}.png").write_bytes(photo(index, "PNG"))
    source = {"uri": str(tmp_path / "in"), "format": "images"}
    out = str(tmp_path / "out")
    job = write_job(tmp_path / "job.yaml", source, out)
    arguments = ("submit", job, "--date", "2026-11-24", "--address", head.url)
    allowed = ("--allow-import", "models")

    relative = pipeline(*arguments, *allowed, "--set", "sink.uri=results", env=head.secret)
    assert relative.code == 2
    assert "sink.uri" in said(relative)
    assert "absolute" in said(relative)
    unknown = pipeline(*arguments, *allowed)
    assert unknown.code in (2, 7)
    assert "RAY_AUTH_TOKEN" in said(unknown)
    done = pipeline(*arguments, *allowed, "--json", "--quiet", env=head.secret)
    assert done.code == 0, said(done)
    assert done.json["status"] == "published"
    assert done.json["rows"]["predicted"] == 8
    assert pipeline("verify", out, "--partition", "date=2026-11-24").code == 0


def test_a_long_run_in_a_terminal_shows_how_far_it_is_and_goes_on_after_an_interrupt(
    tmp_path: Path,
):
    """Journey 11."""
    (tmp_path / "in").mkdir()
    rows = 600
    for index in range(rows):
        (tmp_path / "in" / f"{index:04d}.png").write_bytes(photo(index % 8, "PNG"))
    out = tmp_path / "out"
    job = write_job(
        tmp_path / "job.yaml",
        {"uri": str(tmp_path / "in"), "format": "images"},
        str(out),
        model={"factory": "models:slow_colours", "labels": list("abcde")},
        run={"slice_rows": 64},
    )
    staging = out / "_control"

    terminal = Terminal("run", job, "--date", "2026-11-24")
    process = terminal.process

    def is_shown() -> bool:
        num_staged = len(list(staging.rglob("staging/**/*.parquet")))
        return num_staged >= 2 and "rows/s" in terminal.shown()

    wait_until(is_shown, process)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    text = terminal.shown()
    assert process.returncode == 6, text
    assert "raylet" not in text
    assert "Traceback" not in text

    terminal = Terminal("run", job, "--date", "2026-11-24")
    terminal.process.wait(timeout=600)
    assert terminal.process.returncode == 0, terminal.shown()
    report = pipeline("report", str(out), "--partition", "date=2026-11-24", "--json").json
    assert report["rows"]["total"] == rows
    assert report["rows"]["resumed"] >= 128

    piped = pipeline("run", job, "--date", "2026-11-25")
    assert piped.code == 0
    assert any("in all" in line for line in piped.stdout.splitlines()), piped.stdout
    assert not [line for line in piped.stdout.splitlines() if line != line.rstrip()]
