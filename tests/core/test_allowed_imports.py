"""A name below an allowed prefix that is not there is a mistake of the job, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.models.model_cases import resolve

from pipeline.core.errors import JobError
from pipeline.core.user_code import source_digest

GONE = ("models.os:system", "models.os.path:join", "models.colours.__class__:mro")
"""`models` is a module and no package."""


@pytest.mark.parametrize("target", GONE)
@pytest.mark.parametrize("field", ["model.factory", "model.postprocess", "transform.factory"])
def test_a_module_that_is_not_there_is_named_with_its_field(field: str, target: str):
    section, _, key = field.partition(".")
    fields: dict[str, Any] = {}
    if key == "postprocess":
        outputs = [{"name": "means", "shape": [3]}]
        fields = {"task": "raw", "labels": None, "outputs": outputs}
    model = {} if section == "transform" else {**fields, key: target}
    transform = {"factory": target, "mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(JobError) as caught:
        resolve(**model, transform=transform if section == "transform" else None)
    assert str(caught.value).startswith(f"{field} = {target!r}: ")
    assert target.partition(":")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_package_that_fails_to_import_is_told_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "failing_package"
    package.mkdir()
    (package / "__init__.py").write_text("\nraise RuntimeError('half installed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(JobError, match=r"RuntimeError: half installed \(__init__.py line 2\)$"):
        source_digest("model.postprocess", "failing_package.step:Step")
