"""The field `model.generate.schema`: inline or as a path."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from support.models.record_schemas import REVIEW

from pipeline.core.errors import JobError
from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job, read_job

DATE = dt.date(2026, 11, 24)


def document(**generate: Any) -> dict[str, Any]:
    return {
        "source": {"uri": "s3://b/in", "format": "parquet", "text_column": "body"},
        "model": {"path": "s3://b/m", "task": "generate", "generate": generate},
        "sink": {"uri": "s3://b/out"},
    }


@pytest.mark.parametrize("schema", [REVIEW, "s3://b/review.json"])
def test_a_schema_survives_json(schema: Any):
    job = parse_job(document(schema=schema), date=DATE, origin="here")
    assert job.model.generate.schema_ == schema
    sent = json.loads(job.model_dump_json(exclude_unset=True))
    assert sent["model"]["generate"] == {"schema": schema}
    again = parse_job(sent, date=DATE, origin="there")
    assert again == job
    assert [*again.model.generate.model_dump()["schema"]] == [*schema]  # the order counts


def test_the_schema_of_jobs_uses_the_alias():
    properties = Job.model_json_schema()["$defs"]["Generate"]["properties"]
    assert "schema" in properties
    assert "schema_" not in properties


def test_a_relative_path_of_a_schema_is_refused_for_another_machine(tmp_path: Path):
    given = document(schema="s.json", invalid="quarantine")
    assert parse_job(given, date=DATE, origin="here").model.generate.invalid == "quarantine"
    (tmp_path / "job.yaml").write_text(json.dumps(given))
    with pytest.raises(JobError, match=r"model\.generate\.schema = s\.json is relative"):
        read_job(str(tmp_path / "job.yaml"), date=DATE, is_elsewhere=True)
