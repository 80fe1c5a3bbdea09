"""`pipeline chaos`: what is copied, spoilt, injected and compared, and the command itself."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from support.inputs.encoded import base_image, encode
from support.inputs.jsonl_shards import lines, read_all, source_of
from support.inputs.tars import Entry, pack
from support.runs.cli import pipeline, write_job

from pipeline.commands.chaos.compare import (
    Difference,
    Published,
    compare_published,
    not_quarantined,
)
from pipeline.commands.chaos.fault_plan import (
    Injected,
    StoreChaos,
    StoreFault,
    ask_for_faults,
    read_injected,
)
from pipeline.commands.chaos.kills import Killed, choose_kills
from pipeline.commands.chaos.processes import FinishedRun
from pipeline.commands.chaos.sample import Sample, spoil_images, take_sample
from pipeline.commands.chaos.table import fault_rows, in_all
from pipeline.commands.demo.photos import build_images, build_parquet
from pipeline.core import backoff
from pipeline.core.backoff import retries_taken
from pipeline.core.environment import STORE_WRAPPER
from pipeline.core.errors import JobError
from pipeline.core.schema import CLASSIFY_FIELDS, QUARANTINE_SCHEMA, prediction_schema
from pipeline.job.source import Source
from pipeline.models.agreement import AgreementLimits
from pipeline.models.outputs import OutputSpec
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.images.decode import DecodeLimits, Undecodable, decode_image
from pipeline.sources.inputs import list_inputs
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.store import Store

MARK = "TEST_CHAOS_OF"
LIMITS = AgreementLimits(max_score_diff=0.001, min_cosine=0.999, max_relative_error=0.01)
PASSED = pa.field("camera", pa.string())
INJECTION = "pipeline.commands.chaos.fault_injection:inject_faults"
FORMATS = ("images", "parquet", "webdataset")


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def jpeg(seed: int) -> bytes:
    return encode(base_image(seed), "JPEG")


def build(kind: str, folder: Path) -> Source:
    """Inputs of 60 rows in several shards."""
    if kind == "images":
        build_images(folder, 60, seed=3, num_bad=0)
        return Source(uri=str(folder), format="images")
    if kind == "parquet":
        build_parquet(folder, 60, seed=3, num_shards=6, num_bad=0, row_group_rows=4)
        return Source(uri=str(folder), format="parquet", id_column="id", pass_through=("camera",))
    folder.mkdir()
    if kind == "jsonl":
        build_images(folder / "photos", 60, seed=3, num_bad=0)
        names = sorted(str(path.relative_to(folder)) for path in (folder / "photos").rglob("*.*"))
        for shard in range(6):
            rows = [{"link": name, "camera": "c"} for name in names[shard::6]]
            (folder / f"{shard}.jsonl").write_bytes(lines(*rows))
        return source_of(folder, uri_column="link", pass_through=("camera",))
    for shard in range(6):
        entries = []
        for row in range(10):
            entries += [Entry(f"{shard}-{row}.jpg", jpeg(row)), Entry(f"{shard}-{row}.cls", b"7")]
        (folder / f"{shard}.tar").write_bytes(pack(entries))
    return Source(uri=str(folder), format="webdataset", pass_through=("cls",))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_seed_says_what_is_copied_and_nothing_else_is_written(kind: str, tmp_path: Path) -> None:
    source = build(kind, tmp_path / "in")
    before = checksums(tmp_path / "in")
    taken = {name: take_sample(source, 24, 1, tmp_path / name) for name in ("a", "b")}
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b")
    assert checksums(tmp_path / "in") == before
    assert taken["a"].spoilt == taken["b"].spoilt
    assert taken["a"].changes == {"uri": str(tmp_path / "a"), "storage_options": {}}


def copied(sample: Sample) -> list[Path]:
    found = [path for path in sample.folder.rglob("*") if path.is_file()]
    return [path for path in found if "chaos-" not in path.name]


@pytest.mark.parametrize(
    ("kind", "number", "spoilt"),
    [("images", 24, 5), ("parquet", 3, 3), ("webdataset", 4, 3), ("jsonl", 4, 6)],
)
def test_as_many_files_are_copied_whole_as_have_the_rows(
    kind: str, number: int, spoilt: int, tmp_path: Path
) -> None:
    sample = take_sample(build(kind, tmp_path / "in"), 24, 1, tmp_path / "copy")
    for path in copied(sample):
        source = tmp_path / "in" / path.relative_to(sample.folder)
        assert source.read_bytes().startswith(path.read_bytes())
        assert kind == "jsonl" or path.stat().st_size == source.stat().st_size
    assert sample.num_shards == len(copied(sample)) == number
    assert len(sample.spoilt) == spoilt


@pytest.mark.parametrize("kind", ["webdataset", "jsonl"])
def test_exactly_the_spoilt_rows_and_shards_cannot_be_read(kind: str, tmp_path: Path) -> None:
    source = build(kind, tmp_path / "in")
    sample = take_sample(source, 24, 1, tmp_path / "copy")
    read = read_all(source.model_copy(update=sample.changes))
    failed = read.filter(read.column("error").is_valid()).column("row_id").to_pylist()
    assert sorted(failed) == sorted(sample.spoilt)
    assert read.num_rows >= 24 + len(failed)


def test_exactly_the_spoilt_parquet_shards_come_first_and_cannot_be_read(tmp_path: Path) -> None:
    source = build("parquet", tmp_path / "in")
    sample = take_sample(source, 24, 1, tmp_path / "copy")
    extents = list_inputs(source.model_copy(update=sample.changes), max_extent_rows=100).extents
    assert [each.path for each in extents if each.reason] == sorted(sample.spoilt)
    assert all(each.reason for each in extents[: len(sample.spoilt)])


def test_rows_that_name_images_name_those_of_the_source(tmp_path: Path) -> None:
    source = build("jsonl", tmp_path / "in")
    sample = take_sample(source, 24, 1, tmp_path / "copy")
    assert sample.changes["uri_base"] == str(tmp_path / "in")
    assert sample.changes["uri_roots"] == [str(tmp_path / "in")]


def test_a_key_that_leads_out_of_the_folder_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no '\.\.'"):
        Sample(tmp_path / "copy").place("../escaped.jpg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_no_spoilt_image_can_be_decoded(kind: str) -> None:
    spoilt = spoil_images([encode(base_image(seed), kind) for seed in range(3)], 20, seed=4)
    assert Counter(how for how, _, _ in spoilt).keys() >= {"truncated", "zeros", "flipped", "empty"}
    for _, _, data in spoilt:
        with pytest.raises(Undecodable):
            decode_image(data, DecodeLimits(2**30, 10**9))


def test_a_seed_says_which_requests_fail() -> None:
    paths = [f"out/_control/all/staging/*/{number:06d}-*.parquet" for number in range(200)]

    def faults(seed: int, operation: str) -> list[list[Injected]]:
        return [StoreChaos("/scratch", seed).decide(operation, path) for path in paths]

    assert faults(1, "put") == faults(1, "put") != faults(2, "put")
    kinds = {each.fault for found in faults(1, "put") for each in found}
    assert kinds == set(StoreFault)
    assert StoreFault.LOSE not in {each.fault for found in faults(1, "read") for each in found}


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is disturbed, in this process."""
    monkeypatch.setattr(backoff, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr("time.sleep", lambda _: None)
    (tmp_path / "scratch").mkdir()
    for name, value in ask_for_faults(tmp_path / "scratch", 1).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "scratch"


def test_what_a_disturbed_store_does_is_tried_again_and_nothing_is_lost(scratch: Path) -> None:
    store, before = Store(str(scratch / "out")), retries_taken()
    names = [f"staging/{number:06d}.bin" for number in range(150)]
    for name in names:
        store.put(name, name.encode())
        assert store.create_once(f"log/{name}", b"token", "token") in (
            CreateOutcome.CREATED,
            CreateOutcome.MINE,
        )
        store.copy(name, f"copies/{name}")
        with store.open(name) as handle:
            assert handle.read() == name.encode()
    assert store.read_many(names) == {name: name.encode() for name in names}
    assert [file.path for file in store.list_files("copies")] == [f"copies/{n}" for n in names]
    store.delete(names)
    assert store.list_files("staging") == []
    injected = read_injected(scratch)
    assert {each.fault for each in injected} == set(StoreFault)
    failed = [each for each in injected if each.fault is not StoreFault.SLOW]
    assert 0 < retries_taken() - before <= len(failed)


def test_nothing_outside_the_scratch_folder_can_be_written(scratch: Path, tmp_path: Path) -> None:
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "a").write_bytes(b"1")
    store = Store(str(tmp_path / "users"))
    acts: list[Callable[[], object]] = [
        lambda: store.put("b", b"2"),
        lambda: store.create_once("b", b"token", "token"),
        lambda: store.copy("a", "b"),
        lambda: store.delete(["a"]),
    ]
    for act in acts:
        with pytest.raises(JobError, match=f"{STORE_WRAPPER} is set.*{scratch}"):
            act()
    assert store.read_bytes("a") == b"1"
    assert [file.path for file in store.list_files()] == ["a"]
    assert checksums(tmp_path / "users").keys() == {"a"}


def test_chaos_without_its_scratch_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for named in (f"{INJECTION}:{tmp_path}", str(tmp_path), "pipeline.commands.chaos:nothing:", ""):
        monkeypatch.setenv(STORE_WRAPPER, named)
        with pytest.raises(JobError, match=f"{STORE_WRAPPER}.*unset it"):
            Store(str(tmp_path)).list_files()


def test_a_job_of_ones_own_is_refused_while_chaos_is_asked_for(tmp_path: Path) -> None:
    build_images(tmp_path / "in", 20, seed=1, num_bad=0)
    source = {"uri": str(tmp_path / "in"), "format": "images"}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"))
    (tmp_path / "scratch").mkdir()
    result = pipeline("run", job, env=ask_for_faults(tmp_path / "scratch", 1))
    assert result.code == 2
    assert f"{tmp_path / 'out'}: {STORE_WRAPPER} is set" in result.stderr
    assert not (tmp_path / "out").exists()


def test_kills_are_seeded_in_order_and_before_the_end() -> None:
    for seed in range(50):
        kills = choose_kills(25, seed)
        assert kills == choose_kills(25, seed)
        assert [kill.victim for kill in kills] == ["actor", "worker", "driver"]
        moments = [kill.after_slices for kill in kills]
        assert moments == sorted(moments)
        assert all(0 < moment < 25 for moment in moments)
    assert len({tuple(choose_kills(25, seed)) for seed in range(50)}) > 25


def published(num_rows: int = 6, **changes: Any) -> Published:
    """Rows 0, 1, ... predicted, and rows x, y quarantined."""
    rows = [
        {"row_id": f"r{n}", "uri": "u", "camera": "c", "label": "cat", "label_id": 0, "score": 0.5,
         "top_k": [{"label": "cat", "label_id": 0, "score": 0.5}]}
        for n in range(num_rows)
    ]  # fmt: skip
    bad = [{"row_id": name, "uri": "u", "reason": "empty"} for name in ("x", "y")]
    for name, value in changes.items():
        rows[1][name] = value
    return Published(
        pa.Table.from_pylist(rows, prediction_schema([PASSED], CLASSIFY_FIELDS)),
        pa.Table.from_pylist(bad, QUARANTINE_SCHEMA),
    )


def compare(found: Published) -> Difference:
    return compare_published(
        published(),
        found,
        ["camera"],
        LIMITS,
        make_task(TaskSpec("classify", labels=("cat", "dog"))),
    )


def test_equal_results_are_equal_in_any_order_and_within_rounding() -> None:
    found = published(score=0.5002)
    shuffled = found.predictions.take([3, 1, 0, 5, 4, 2])
    assert compare(Published(shuffled, found.quarantine)) == Difference()


@pytest.mark.parametrize(
    "change",
    [
        {"score": 0.6},
        {"label": "dog", "label_id": 1},
        {"camera": "d"},
        {"uri": "v"},
        {"score": None},
    ],
)
def test_a_changed_value_is_seen(change: dict[str, Any]) -> None:
    assert compare(published(**change)) == Difference(changed=["r1"])


def test_rows_that_are_lost_doubled_or_moved_are_seen() -> None:
    found = published()
    predictions, quarantine = found.predictions, found.quarantine
    assert compare(Published(predictions.slice(1), quarantine)) == Difference(lost=["r0"])
    assert compare(Published(predictions, quarantine.slice(1))) == Difference(lost=["x"])
    twice = pa.concat_tables([predictions, predictions.slice(2, 1)])
    assert compare(Published(twice, quarantine)) == Difference(doubled=["r2"])
    both = pa.concat_tables([quarantine, quarantine.slice(0, 1)])
    assert compare(Published(predictions, both)) == Difference(doubled=["x"])
    row = {"row_id": "r0", "uri": "u", "reason": "native_crash"}
    moved = pa.concat_tables([quarantine, pa.Table.from_pylist([row], QUARANTINE_SCHEMA)])
    assert compare(Published(predictions.slice(1), moved)) == Difference(changed=["r0"])


@pytest.mark.parametrize(
    ("name", "kind", "near", "far"),
    [
        ("embedding", pa.list_(pa.float32(), 2), [0.6, 0.8001], [0.8, 0.6]),
        ("value", pa.float32(), 2.001, 2.1),
        ("grid", pa.list_(pa.list_(pa.float32(), 1), 2), [[0.6], [0.8001]], [[0.6], [0.9]]),
        ("note", pa.string(), None, "other"),
    ],
)
def test_rounding_is_no_change_for_any_task(name: str, kind: Any, near: Any, far: Any) -> None:
    schema = pa.schema([("row_id", pa.string()), ("uri", pa.string()), (name, kind)])
    first = {"embedding": [0.6, 0.8], "value": 2.0, "grid": [[0.6], [0.8]], "note": None}[name]

    def rows(value: Any) -> Published:
        predictions = [{"row_id": n, "uri": "u", name: first} for n in "abc"]
        predictions[1][name] = value
        table = pa.Table.from_pylist(predictions, schema)
        return Published(table, QUARANTINE_SCHEMA.empty_table())

    outputs = (OutputSpec("grid", (2, 1)),) if name == "grid" else ()
    kind_of_task = {"embedding": "embed", "value": "regress"}.get(name, "raw")
    task = make_task(TaskSpec(kind_of_task, outputs=outputs))
    compare = partial(compare_published, rows(first), limits=LIMITS, task=task)
    assert compare(rows(near), []) == Difference()
    assert compare(rows(far), []) == Difference(changed=["b"])
    assert (compare(rows(near), [name]) == Difference()) == (near == first)


def test_spoilt_rows_count_only_if_they_are_quarantined_once() -> None:
    found = published()
    assert not_quarantined(["x", "r0", "y", "nowhere"], found) == ["r0", "nowhere"]
    twice = pa.concat_tables([found.quarantine, found.quarantine])
    assert not_quarantined(["x"], Published(found.predictions, twice)) == ["x"]


def test_the_table_says_what_was_injected_and_what_was_not() -> None:
    killed = FinishedRun(-9, {}, 9.0, 0, [Killed("actor", "ray::MapWorker(X)", 3)])
    killed_at = FinishedRun(-9, {}, 8.0, 12, dies_at="after_log")
    runs = [killed, killed_at, FinishedRun(0, {}, 7.0, 25)]
    slow = Injected(StoreFault.SLOW, "put", "a", 0.4)
    rows = fault_rows(runs, [slow, slow, Injected(StoreFault.LOSE, "put", "b")], 5, 5)
    assert {row["fault"]: (row["injected"], row["survived_by"]) for row in rows} == {
        "actor: kill -9": (1, "started again"),
        "worker: kill -9": (0, "the run was over before"),
        "driver: kill -9": (1, "run again: 12 slices kept, 8.0 s"),
        "driver: kill -9 while publishing (after_log)": (1, "run again: 25 slices kept, 7.0 s"),
        "store: refused (503)": (0, "not met"),
        "store: slow": (2, "waited 0.8 s"),
        "store: broken off": (0, "not met"),
        "store: answer lost": (1, "recognised, or tried again"),
        "inputs: spoilt": (5, "quarantined, 5 of 5"),
    }
    last = in_all(rows, Difference(lost=["r0"]), 3, None)
    assert (last["injected"], last["lost"], last["doubled"], last["changed"]) == (11, 1, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*FORMATS, "jsonl"])
def test_nothing_is_lost_and_nothing_of_the_users_is_touched(kind: str, tmp_path: Path) -> None:
    source = build(kind, tmp_path / "in").model_dump(exclude_defaults=True, mode="json")
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"), resources=None)
    before = checksums(tmp_path)
    result = pipeline("chaos", job, "--rows", "40", "--json", env={MARK: str(tmp_path)})
    assert result.code == 0, result.stderr + result.stdout
    found = result.json
    assert (found["status"], found["lost"], found["doubled"], found["changed"]) == ("ok", 0, 0, 0)
    injected = {row["fault"]: row["injected"] for row in found["faults"]}
    for fault in ("actor: kill -9", "driver: kill -9", "store: slow", "inputs: spoilt"):
        assert injected[fault] > 0, injected
    assert injected["together"] > 10
    assert checksums(tmp_path) == before
    assert not (tmp_path / "out").exists()
    assert [p for p in psutil.process_iter(["environ"]) if is_of(p, tmp_path)] == []


def is_of(process: psutil.Process, folder: Path) -> bool:
    """Tell whether a process was started, by whomever, in the command of this test."""
    return (process.info["environ"] or {}).get(MARK) == str(folder)


@pytest.mark.slow
def test_a_job_that_cannot_run_at_all_says_so_with_its_own_exit_code(tmp_path: Path) -> None:
    build_images(tmp_path / "in", 24, seed=1, num_bad=0)
    source = {"uri": str(tmp_path / "in"), "format": "images"}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"), model={"name": "nothing"})
    result = pipeline("chaos", job, "--json", env={"TMPDIR": str(tmp_path)})
    assert result.code == 2
    assert "the job over the sample, undisturbed: " in result.json["error"]
