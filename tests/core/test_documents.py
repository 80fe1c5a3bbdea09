"""Documents can grow: a reader ignores unknown fields of newer versions, at any depth."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.runs.published import DAY, Rows, publish_rows
from support.runs.reading import plan_job
from support.runs.report_examples import report_of

from pipeline.commit.layout import Layout
from pipeline.commit.lease import Owner
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.plan_store import plan_from_json, plan_to_json
from pipeline.commit.staging import StagedSlice
from pipeline.core.documents import known_fields, sealed, unsealed
from pipeline.report.document import Report
from pipeline.runs.tuning.profile import Profile
from pipeline.runs.tuning.selection import Trial
from pipeline.storage.store import Store


def grown(document: Any) -> Any:
    """Add a field to every object of a document that has fields of ours."""
    if isinstance(document, list):
        return [grown(item) for item in document]
    if not isinstance(document, dict):
        return document
    fields = {key: grown(value) if key in NESTED else value for key, value in document.items()}
    return {**fields, "added_later": {"by": "a newer version"}}


NESTED = ("parts", "quarantine_parts", "ways", "batches", "rows", "stages", "hardware")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    store = Store(str(tmp_path_factory.mktemp("published")))
    publish_rows(store, DAY, Rows())
    current = current_manifest(store, Layout(DAY))
    assert current is not None
    return current


def test_a_manifest_with_added_fields_is_read(manifest: Manifest):
    data = sealed(grown(unsealed(manifest.to_json())))
    assert Manifest.from_json(data, "here") == manifest


def test_a_plan_with_added_fields_is_read(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"x")
    _, plan = plan_job(tmp_path, 4, format="images")
    data = json.dumps(grown(json.loads(plan_to_json(plan)))).encode()
    assert plan_from_json(data, hashlib.sha256(data).hexdigest()) == plan


def test_a_footer_with_added_fields_is_read():
    staged = StagedSlice("run", 3, "name", {"empty": 1}, {"cat": 2})
    assert StagedSlice.from_json(json.dumps(grown(json.loads(staged.to_json())))) == staged


def test_measurements_with_added_fields_are_read():
    profile = Profile((Trial("eager", "fp32"),))
    assert Profile.from_dict(grown(profile.to_dict())) == profile


def test_a_report_with_added_fields_is_read():
    document = report_of().model_dump(mode="json")
    assert (
        Report.model_validate(grown(document), extra="ignore").model_dump(mode="json") == document
    )


def test_an_owner_of_a_lease_with_added_fields_is_read():
    owner = {"run_id": "r", "host": "h", "pid": 1}
    names = Owner.__dataclass_fields__
    assert set(known_fields(Owner, {**owner, "added_later": 1})) == set(owner) & set(names)


def test_what_is_no_object_is_no_document():
    with pytest.raises(TypeError, match="expected an object"):
        known_fields(Trial, ["eager"])  # type: ignore[arg-type]
