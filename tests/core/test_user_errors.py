"""The user's own exception comes first: type, message, and the place in the user's code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from ray.exceptions import RayTaskError

import pipeline
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.user_code import describe_user_error, import_callable, user_frame
from pipeline.execution.tasks import ray_errors
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec

LINE = "net3_of_test.py line"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module of the user's; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        sys.modules.pop("net3_of_test", None)
        (tmp_path / "net3_of_test.py").write_text(text)
        return "net3_of_test"

    return write


def caught(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except Exception as error:  # noqa: BLE001  # that is what is wanted
        return error
    raise AssertionError("nothing was raised")


def test_the_last_frame_of_the_user_is_named_not_that_of_a_library(module):
    name = module("import json\n\ndef run():\n    return json.loads('{')\n")
    error = caught(import_callable("model.factory", f"{name}:run"))
    assert isinstance(error, json.JSONDecodeError)
    assert describe_user_error(error).startswith("JSONDecodeError: Expecting property name")
    assert describe_user_error(error).endswith(f"({LINE} 4)")


def test_frames_of_the_package_and_of_libraries_are_not_the_users():
    ours = "/opt/venv/lib/python3.11/site-packages/pipeline/execution/stages.py"
    shipped = "/var/ray/session/py_modules/_ray_pkg_1/pipeline/execution/stages.py"
    torch = "/opt/venv/lib/python3.11/site-packages/torch/nn/module.py"
    assert (
        user_frame([(ours, 1), (torch, 2), (shipped, 3), ("/usr/lib/python3.12/json.py", 4)]) == ""
    )
    assert user_frame([("/home/me/net.py", 7), (torch, 2)]) == "net.py line 7"
    assert user_frame([(str(Path(pipeline.__file__).parent / "models" / "spec.py"), 7)]) == ""
    assert user_frame([("/home/me/pipeline/models/spec.py", 7)]) == "spec.py line 7"


def test_an_installed_package_is_the_users_if_the_job_names_it():
    package = "/opt/venv/lib/python3.11/site-packages/mymodels/nets.py"
    torch = "/opt/venv/lib/python3.11/site-packages/torch/nn/module.py"
    assert user_frame([(package, 5), (torch, 2)], "mymodels.zoo") == "nets.py line 5"


def test_what_cannot_be_parsed_has_its_own_line(module):
    name = module("x = 1\ny = = 2\n")
    with pytest.raises(JobError, match=rf"SyntaxError: .* \({LINE} 2\)"):
        import_callable("model.factory", f"{name}:run")


def test_a_module_that_raises_at_import_is_told_with_its_line(module):
    name = module("\nraise RuntimeError('no licence')\n")
    with pytest.raises(JobError, match=rf"RuntimeError: no licence \({LINE} 2\)"):
        import_callable("model.factory", f"{name}:run")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return {'b': [1.0, 2.0]}", r"column a is not in what the call returned \(b\)"),
        ("return [1.0, 2.0]", r"column a is not in what the call returned \(list\)"),
        ("return {'a': ['x', 'y']}", r"column a is to be float: "),
        ("return {'a': [1.0]}", r"column a has 1 values for 2 rows"),
    ],
)
def test_what_a_postprocess_returns_is_checked(module, body: str, words: str):
    name = module(
        "import pyarrow as pa\n\nclass Post:\n    schema = pa.schema([('a', pa.float32())])\n"
        f"    def __call__(self, outputs):\n        {body}\n\ndef post():\n    return Post()\n"
    )
    task = make_task(TaskSpec("raw", postprocess=f"{name}:post"))
    with pytest.raises(JobError, match=words):
        task.columns({}, np.ones(2, bool), pa.table({}))


def test_of_a_remote_exception_the_cause_and_its_place_are_told_and_no_traceback():
    text = (
        "\x1b[36mray::f()\x1b[39m (pid=7, ip=10.0.0.1)\n"
        '  File "/opt/venv/lib/python3.11/site-packages/ray/data/op.py", line 879, in _map\n'
        '  File "/home/me/net3.py", line 27, in forward\n'
        '  File "/opt/venv/lib/python3.11/site-packages/torch/nn/module.py", line 3, in call\n'
        "KeyError: 'nope'"
    )
    error = RayTaskError("f", text, KeyError("nope"), "ray::f()", 7, "10.0.0.1")
    with pytest.raises(PipelineError) as raised, ray_errors():
        raise error.as_instanceof_cause()
    assert type(raised.value) is PipelineError
    assert str(raised.value) == "KeyError: 'nope' (net3.py line 27); --debug shows all"
    assert "ray/data/op.py" in str(raised.value.__cause__), "--debug shows it"
    ours = RayTaskError("f", text, InfraError("the store is down"), "ray::f()", 7, "10.0.0.1")
    with pytest.raises(InfraError, match=r"^the store is down$") as raised_ours, ray_errors():
        raise ours.as_instanceof_cause()
    assert "ray/data/op.py" in str(raised_ours.value.__cause__)


def test_texts_of_exceptions_become_one_short_line():
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError("not even this")

    assert describe_user_error(Silent()) == "Silent"
    assert describe_user_error(ValueError("a\n  b\x1b[31mc" + "x" * 1000)).startswith(
        "ValueError: a bcxxx"
    )
    assert len(describe_user_error(ValueError("x" * 1000))) < 400
