"""Promise: garbage collection deletes only what nothing needs, also after it was killed."""

from __future__ import annotations

import json
from pathlib import Path

from support.runs.protocol import KEEP_VERSIONS, run_once
from support.runs.published import (
    DAY,
    Rows,
    age_files,
    make_plan,
    prepare_version,
    snapshot,
    stage_rows,
)

from pipeline.commit.garbage import Garbage, collect_garbage, unneeded_models
from pipeline.commit.layout import Layout
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.publish import rollback
from pipeline.core.output_folders import calibrated_model
from pipeline.published.verify import verify_output
from pipeline.storage.store import Store

LAYOUT = Layout(DAY)


def test_models_that_nothing_names_are_garbage(usual_store: Store):
    assert unneeded_models(usual_store, grace_s=-3600) == []
    named = {"profiles/a.json": "1" * 64, "date=2026-11-24/choice/f.json": "2" * 64}
    for path, sha256 in named.items():
        usual_store.put(f"_control/{path}", json.dumps({"artefact_sha256": sha256}).encode())
    for sha256 in (*named.values(), "3" * 64):
        usual_store.put(calibrated_model(sha256), b"model")
    assert unneeded_models(usual_store, grace_s=3600) == []
    (unneeded,) = unneeded_models(usual_store, grace_s=-3600)
    assert unneeded.path == calibrated_model("3" * 64)


def test_files_younger_than_the_grace_period_stay(tmp_path: Path):
    store = Store(str(tmp_path))
    for edition in (1, 2):
        prepare_version(store, LAYOUT, Rows(edition), edition, "r")
    old, young = (
        snapshot(store, LAYOUT.staging(make_plan(Rows(edition)).work)) for edition in (1, 2)
    )
    store.put(f"{LAYOUT.control}/notes.txt", b"no staging")
    newest, *others = young
    age_files(tmp_path, [*old, *others, f"{LAYOUT.control}/notes.txt"], age_s=86_401)
    age_files(tmp_path, [newest], age_s=3000)
    assert others, "a folder stays while its newest file is young"
    num_bytes = sum((tmp_path / path).stat().st_size for path in old)
    assert collect_garbage(store, LAYOUT, grace_s=3600) == Garbage(len(old), num_bytes)
    assert snapshot(store, f"{LAYOUT.control}/staging") == young
    assert store.exists(f"{LAYOUT.control}/notes.txt")
    assert collect_garbage(store, LAYOUT, grace_s=3600) == Garbage(0, 0)


def test_plans_and_leases_stay_only_if_a_kept_version_or_the_last_run_names_them(tmp_path: Path):
    store = Store(str(tmp_path))
    done = [run_once(store, Rows(edition)) for edition in range(1, 7)]
    interrupted = adopt_plan(store, LAYOUT, make_plan(Rows(7)))
    stage_rows(store, LAYOUT, interrupted, Rows(7), "r")
    adopt_plan(store, LAYOUT, make_plan(Rows(8)))

    def left() -> tuple[set[str], set[str]]:
        folders = LAYOUT.plans, LAYOUT.leases
        plans, leases = ({Path(path).stem for path in snapshot(store, f)} for f in folders)
        return plans, leases

    before = left()
    assert [len(names) for names in before] == [8, 6]
    assert collect_garbage(store, LAYOUT, grace_s=3600) == Garbage(0, 0)
    assert left() == before
    staged = [*snapshot(store, LAYOUT.staging(interrupted.work))]
    age_files(tmp_path, [*set(snapshot(store, "")) - {*staged}], age_s=86_401)
    collect_garbage(store, LAYOUT, grace_s=3600)
    kept = {one.manifest.plan_name for one in done[-1 - KEEP_VERSIONS :]}
    assert left() == (kept | {interrupted.work}, {"0000000006"})
    assert verify_output(store.uri, DAY, {})["status"] == "ok"
    rollback(store, LAYOUT, "back", keep_versions=KEEP_VERSIONS)
    assert run_once(store, Rows(8)).manifest.number == 8
