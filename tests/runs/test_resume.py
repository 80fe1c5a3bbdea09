"""What is published already: of the same job, or of one that pins what this one leaves open."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.runs.published import DAY, Rows, make_manifest, make_plan

from pipeline.commit.layout import Layout
from pipeline.runs.resume import is_published, next_step


@pytest.mark.parametrize(
    ("runtime", "precision", "is_same"),
    [("eager", "fp32", True), ("onnxruntime", "fp32", False), ("eager", "bf16", False)],
)
def test_what_a_twin_published_is_the_same_only_in_eager_fp32(
    runtime: str, precision: str, is_same: bool
):
    plan = make_plan(Rows())
    model = {**plan.model, "runtime": runtime, "precision": precision}
    manifest = make_manifest(Layout(DAY), replace(plan, model=model), 1, "r", (), ())
    twin = replace(plan, fingerprint="other", twin=plan.fingerprint)
    assert is_published(manifest, plan, ())
    assert is_published(manifest, twin, ()) == is_same
    assert not is_published(manifest, replace(twin, twin=""), ())
    assert not is_published(manifest, twin, ("label",))


def test_what_a_run_would_do_names_the_version_and_what_is_staged():
    manifest = make_manifest(Layout(DAY), make_plan(Rows()), 3, "r", (), ())
    assert next_step(None, has_staged=False) == "publish the first version"
    assert next_step(manifest, has_staged=True) == "resume, then replace version 3"
