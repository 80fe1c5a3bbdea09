"""What was published comes out again; if it does not, the row and what differs are named."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from models import Colours
from PIL import Image
from safetensors.torch import save_file
from support.inputs.encoded import encode
from support.runs.cli import pipeline as command
from support.runs.cli import write_job

import pipeline
from pipeline.commands.demo.photos import build_images, build_parquet
from pipeline.core.errors import JobError
from pipeline.operations.reproduce import Reproduced

NUM_ROWS, NUM_BAD = 24, 2
NUM_GOOD = NUM_ROWS - NUM_BAD
DAY = "date=2026-11-24"


@dataclass(frozen=True)
class Night:
    """A partition that was published, and where all that it depends on lies."""

    folder: Path

    @property
    def out(self) -> str:
        return str(self.folder / "out")

    @property
    def weights(self) -> Path:
        return self.folder / "colours.safetensors"

    @property
    def log(self) -> Path:
        return self.folder / "out" / "_control" / DAY / "log" / "0000000001.json"

    def manifest(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.log.read_text())
        return document

    def reproduce(self, **given: Any) -> Reproduced:
        return pipeline.reproduce(self.out, allow_import=["models"], **given)


def published(folder: Path, build: Callable[[Path], Any], source: Any, **sink: Any) -> Night:
    night = Night(folder)
    build(folder / "in")
    save_file(Colours().state_dict(), night.weights)
    job = write_job(
        folder / "job.yaml",
        {"uri": str(folder / "in"), **source},
        night.out,
        model={"factory": "models:colours", "labels": ["a", "b", "c", "d", "e"],
               "weights": str(night.weights)},
        sink=sink,
    )  # fmt: skip
    done = command("run", job, "--date", "2026-11-24", "--json")
    assert done.code == 0, done.stderr
    Path(job).unlink()
    return night


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    return published(
        tmp_path_factory.mktemp("night"),
        lambda folder: build_images(folder, NUM_ROWS, seed=6, num_bad=NUM_BAD),
        {"format": "images"},
    )


@contextlib.contextmanager
def put_back(*paths: Path) -> Iterator[None]:
    """Give files back their bytes and times when the body has changed them."""
    kept = [(path, path.read_bytes(), path.stat()) for path in paths]
    try:
        yield
    finally:
        for path, data, stat in kept:
            path.write_bytes(data)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def change_a_score(night: Night) -> tuple[str, Path]:
    """Change one published score; return its row and its part."""
    path = night.folder / "out" / night.manifest()["parts"][0]["path"]
    rows = pq.read_table(path)
    scores = rows.column("score").to_pylist()
    scores[3] += 0.01
    at = rows.column_names.index("score")
    pq.write_table(rows.set_column(at, rows.field(at), pa.array(scores, pa.float32())), path)
    return rows.column("row_id")[3].as_py(), path


@pytest.mark.one_ray
class TestNight:
    def test_it_comes_out(self, night: Night) -> None:
        found = night.reproduce()
        assert found.comes_out
        assert (found.num_sampled, found.differing, found.changed) == (NUM_GOOD, (), {})
        assert found.num_inputs_changed == 0
        few = command("reproduce", night.out, "--sample", "5", "--json")
        assert (few.code, few.json["num_sampled"], few.json["comes_out"]) == (0, 5, True)

    def test_other_weights_are_named(self, night: Night) -> None:
        with put_back(night.weights):
            state = Colours().state_dict()
            state["head.bias"] = torch.tensor([0.0, 9.0, 0, 0, 0])
            save_file(state, night.weights)
            found = night.reproduce()
            assert not found.comes_out
            assert {*found.changed} == {"weights"}
            assert found.differing
            assert all({*row.causes} == {"weights"} for row in found.differing)
            again = command("reproduce", night.out)
        assert again.code == 1
        assert found.differing[0].row_id in again.stdout
        assert "weights" in again.stdout

    def test_other_weights_that_change_no_row_are_named_too(self, night: Night) -> None:
        with put_back(night.weights):
            save_file(Colours().state_dict(), night.weights, metadata={"saved": "again"})
            found = night.reproduce()
        assert (found.differing, {*found.changed}, found.comes_out) == ((), {"weights"}, False)

    def test_a_photo_with_other_pixels_is_named(self, night: Night) -> None:
        row = pipeline.open_output(night.out).latest.predictions().head(1).to_pylist()[0]
        with put_back(Path(row["uri"])):
            other = "white" if row["label"] == "a" else "black"
            Path(row["uri"]).write_bytes(encode(Image.new("RGB", (40, 40), other), "PNG"))
            found = night.reproduce()
        [differing] = found.differing
        assert (differing.row_id, {*differing.causes}) == (row["row_id"], {"input"})
        assert row["uri"] in differing.causes["input"]

    def test_a_photo_that_is_gone_or_broken_is_named(self, night: Night) -> None:
        first, second = pipeline.open_output(night.out).latest.predictions().head(2).to_pylist()
        with put_back(Path(first["uri"]), Path(second["uri"])):
            Path(first["uri"]).unlink()
            Path(second["uri"]).write_bytes(b"no photo")
            found = night.reproduce()
        said = {row.row_id: row.difference for row in found.differing}
        assert said.keys() == {first["row_id"], second["row_id"]}
        assert said[first["row_id"]] == "it is not in the input any more"
        assert said[second["row_id"]].startswith("fails now: ")
        assert all({*row.causes} == {"input"} for row in found.differing)

    def test_a_photo_that_was_only_touched_comes_out(self, night: Night) -> None:
        row = pipeline.open_output(night.out).latest.predictions().head(1).to_pylist()[0]
        with put_back(Path(row["uri"])):
            os.utime(row["uri"])
            found = night.reproduce()
        assert (found.comes_out, found.num_inputs_changed) == (True, 1)

    def test_a_published_value_is_named_by_the_bytes_of_its_part(self, night: Night) -> None:
        part = night.folder / "out" / night.manifest()["parts"][0]["path"]
        with put_back(part):
            row_id, _ = change_a_score(night)
            found = night.reproduce()
        [differing] = found.differing
        assert (differing.row_id, {*differing.causes}) == (row_id, {"published value"})
        assert "SHA-256" in differing.causes["published value"]

    @pytest.mark.parametrize("library", [None, "torch"])
    def test_a_published_value_is_named_if_the_manifest_was_changed_as_well(
        self, night: Night, library: str | None
    ) -> None:
        part = night.folder / "out" / night.manifest()["parts"][0]["path"]
        with put_back(part, night.log):
            row_id, path = change_a_score(night)
            manifest = night.manifest()
            data = path.read_bytes()
            manifest["parts"][0] |= {
                "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)
            }  # fmt: skip
            if library:
                manifest["versions"][library] = "0.1"
            night.log.write_text(json.dumps(manifest))
            found = night.reproduce()
        [differing] = found.differing
        assert differing.row_id == row_id
        cause, what = next(iter(differing.causes.items()))
        assert cause == ("library" if library else "published value")
        assert what.startswith("torch 0.1 -> ") == bool(library)

    def test_a_version_that_does_not_say_how_is_refused(self, night: Night) -> None:
        with put_back(night.log):
            night.log.write_text(json.dumps({**night.manifest(), "sections": {}}))
            with pytest.raises(JobError, match="version 1 does not say how it was predicted"):
                night.reproduce()


@pytest.mark.slow
@pytest.mark.one_ray
def test_rows_of_shards_in_folders_of_labels_come_out(tmp_path: Path) -> None:
    night = published(
        tmp_path,
        lambda folder: build_parquet(folder, NUM_ROWS, seed=4, num_shards=3, num_bad=NUM_BAD),
        {"format": "parquet", "id_column": "id", "pass_through": ["camera"]},
        partition="date=${date}",
        partition_columns=["label"],
    )
    found = night.reproduce(sample=10)
    assert (found.comes_out, found.num_sampled) == (True, 10)
    assert found.summary == f"10 of 10 sampled rows of {DAY} version 1 come out"
