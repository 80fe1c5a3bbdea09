"""Code of others: allowed imports, one-line errors with file and line, and its digest.

The distribution is real: a module on the path, and metadata with entry points beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pyarrow as pa
import pytest
import toy_input
import toy_package
import toy_task
import yaml
from ray.exceptions import RayTaskError
from support.models.model_cases import resolve
from support.models.tiny_tokenizer import make_tokenizer
from support.runs.checkout import ROOT
from support.runs.jobs import job_of

import pipeline
from pipeline.core import registry
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.failures import failure_columns
from pipeline.core.registry import SOURCES, TASKS
from pipeline.core.schema import IMAGE, IMAGE_FIELDS, ROW_ID, URI
from pipeline.core.user_code import (
    code_digest,
    describe_user_error,
    extension_errors,
    import_callable,
    module_of,
    source_digest,
    user_frame,
)
from pipeline.execution.stages import Preprocessing
from pipeline.execution.tasks import ray_errors
from pipeline.inference.result_table import to_table
from pipeline.job.job import Job
from pipeline.models.resolving.resolve import require_stage_names
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.operations.plan import plan
from pipeline.runs.builders import make_reader
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.staleness import what_changed
from pipeline.sources.reader import read_slices

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


EXAMPLE = (ROOT / "examples" / "text_source" / "csv_texts.py").read_text()
OPTIONS = RunOptions(allow_import=("models",))


def forget() -> None:
    """Forget `csvkit` as it was installed before, as another process has not seen it."""
    sys.modules.pop("csvkit", None)
    registry.load.cache_clear()
    code_digest.cache_clear()


@pytest.fixture(autouse=True)
def _installed_anew() -> Iterator[None]:
    forget()
    yield
    forget()


def csv_job(folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str]) -> Job:
    """A job over two texts in CSV, read by the example's source with some changes."""
    code = EXAMPLE
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    site = folder / "site-packages"
    if not site.exists():
        toy_package.install(site, {SOURCES: {"csv_texts": "csvkit:FORMAT"}}, "csvkit")
        monkeypatch.syspath_prepend(str(site))
    (site / "csvkit.py").write_text(code)
    if not (folder / "in").exists():
        (folder / "in").mkdir()
        (folder / "in" / "a.csv").write_text("id,body\n1,the red cat\n2\n")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return job_of(
        {"factory": "models:mentions", "labels": models.LABELS},
        {"uri": str(folder / "in"), "format": "csv_texts", "text_column": "body"},
        sink={"uri": str(folder / "out")},
        text={"tokenizer": str(folder / "tokenizer.json"), "max_tokens": 16},
    )


def line_of(folder: Path, words: str) -> int:
    lines = (folder / "site-packages" / "csvkit.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if words in line)


def read_all(job: Job) -> list[dict[str, Any]]:
    plan, _ = prepare(RunContext.of(job, OPTIONS))
    reader = make_reader(job, plan)
    starts = frozenset(key.start for unit in plan.units for key in unit.slices())
    slices = (packed for unit in plan.units for packed in read_slices(reader, unit, starts))
    return [row for _, _, table in slices for row in table.to_pylist()]


def test_the_example_reads_texts_and_fails_a_row_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = read_all(csv_job(tmp_path, monkeypatch))
    cells = [(row["row_id"], row["_text"], row["error"]) for row in rows]
    assert cells == [("a.csv#0", "the red cat", None), ("a.csv#1", None, "null_input")]


def test_an_error_while_an_own_source_checks_its_job_is_one_line_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(JobError) as caught:
        csv_job(tmp_path, monkeypatch, ("source.text_column is None", "{}['text'] is None"))
    at = line_of(tmp_path, "{}['text']")
    assert str(caught.value).startswith(f"source 'csv_texts' (csvkit.py line {at}): KeyError: 'te")


MADE = "yield Rows(make_rows(reader, ids"
BROKEN = [
    (
        "found.columns",
        '{"_text": ["x"] * len(ids)}',
        MADE,
        "texts must be bytes (UTF-8), _text has",
    ),
    ("found.columns", "{}", MADE, "column '_text' is missing, there are none"),
    ("found.columns", '{"_text": [b"x"]}', MADE, "_text has 1 values for 2 row ids"),
    ("[texts[line] for", "[{}['body'] for", "{}['body']", "KeyError: 'body'"),
    ("return Measured(tuple", "return Measured(1 + tuple", "1 + tuple", "TypeError: unsupported"),
]
"""What of the example is changed, the line at fault, and what is said of it."""


@pytest.mark.parametrize(("old", "new", "at", "words"), BROKEN, ids=range(len(BROKEN)))
def test_an_error_of_an_own_source_is_one_line_with_file_and_line(
    old: str, new: str, at: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = csv_job(tmp_path, monkeypatch, (old, new))
    with pytest.raises(JobError) as caught:
        read_all(job)
    where = f"source 'csv_texts' (csvkit.py line {line_of(tmp_path, at)}): "
    assert str(caught.value).startswith(where + words)
    assert str(caught.value).endswith("; --debug shows all")


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray_here")
def test_plan_ends_with_the_error_of_an_own_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It reads the first row in a process of its own."""
    job = csv_job(tmp_path, monkeypatch, ("found.columns", '{"_text": ["x"] * len(ids)}'))
    with pytest.raises(
        JobError, match=r"^source 'csv_texts' \(csvkit.py line \d+\): texts must be"
    ):
        plan(job, allow_import=OPTIONS.allow_import)


def test_changed_code_of_an_own_source_is_another_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = csv_job(tmp_path, monkeypatch)
    before, _ = prepare(RunContext.of(job, OPTIONS))
    again, _ = prepare(RunContext.of(job, OPTIONS))
    assert again.fingerprint == before.fingerprint
    forget()
    job = csv_job(tmp_path, monkeypatch, ("uris * len(ids)", "len(ids) * uris"))
    after, _ = prepare(RunContext.of(job, OPTIONS))
    assert after.fingerprint != before.fingerprint
    change = what_changed(before.fingerprint_parts, after.fingerprint_parts)
    assert change == "the code of source csv_texts"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, r"columns\(\) gives no spread, which fields\(\) declares"),
        ({"spread": pa.array(["x"])}, "ArrowInvalid: Failed to parse"),
    ],
)
def test_columns_that_an_own_task_does_not_declare_are_told(
    columns: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    points = {TASKS: {toy_task.NAME: "toy_task:Spread"}}
    monkeypatch.syspath_prepend(str(toy_package.install(tmp_path / "site", points)))
    monkeypatch.setattr(toy_task.Spread, "columns", lambda *_: columns)
    task = toy_task.Spread(TaskSpec(toy_task.NAME))
    rows = pa.table({ROW_ID: ["a"], URI: ["a"]})
    with pytest.raises(JobError, match=f"^task 'spread'.*: {words}"):
        to_table(task, pa.schema([]), rows, {"spread": np.zeros(1)}, np.ones(1, bool), [None])


def test_an_error_of_an_own_input_is_one_line_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    site = toy_package.install(tmp_path / "site", toy_input.POINTS)
    monkeypatch.syspath_prepend(str(site))
    rows = pa.table(
        {ROW_ID: ["a"], IMAGE: pa.array([None], pa.binary()), **failure_columns([None])}
    )
    prepare = Preprocessing(toy_input.ToyInput(), 1 << 20, 1 << 20, IMAGE_FIELDS)
    with pytest.raises(JobError, match=r"^input 'toy' \(toy_input.py line \d+\): TypeError: "):
        prepare({}, rows)


def test_what_this_distribution_brings_has_no_digest_of_code():
    """Numbers of semantics say what changed of it."""
    assert code_digest(SOURCES, "parquet") == ""
    assert module_of(SOURCES, "parquet") == ""


def test_errors_of_built_in_code_and_of_stores_stay_what_they_are():
    with pytest.raises(KeyError), extension_errors(SOURCES, "parquet"):
        raise KeyError("x")
    with pytest.raises(OSError, match="down"), extension_errors(SOURCES, "csv_texts"):
        raise OSError("down")


def test_the_job_of_the_example_is_short_and_names_what_is_there():
    job = yaml.safe_load((ROOT / "examples" / "text_source" / "job.yaml").read_text())
    assert (ROOT / job["source"]["uri"]).is_file()
    assert (
        f'{job["source"]["format"]} = "csv_texts:FORMAT"'
        in (ROOT / "examples" / "text_source" / "pyproject.toml").read_text()
    )


@pytest.mark.parametrize("stage", ["tokens", "golden", "devices"])
def test_an_input_whose_stage_has_the_name_of_a_figure_is_refused(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(toy_input.ToyInput, "stage_names", (stage,))
    with pytest.raises(JobError, match=f"its stage '{stage}' has the name of a figure"):
        require_stage_names(toy_input.ToyInput())


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
