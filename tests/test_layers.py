"""The package keeps its shape: who may import whom, what no file may do, how long one may be."""

from __future__ import annotations

import ast
import gc
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from support.runs.package_source import FILES, NAMES, PACKAGE, folders_of, imported, running, trees

# Lowest first: a file imports from its own folder and from those above its own in this list.
FOLDERS = (
    "core",
    "process",
    "job",
    "storage",
    "sources",
    "preprocessing",
    "models",
    "inference",
    "planning",
    "commit",
    "gates",
    "reuse",
    "execution",
    "report",
    "published",
    "runs",
    "operations",
    "commands",
)
HEIGHT = {name: height for height, name in enumerate(FOLDERS)}
# The whole way of the data: it stands between `runs` and `operations`.
HEIGHT |= {"dataflow": HEIGHT["operations"] - 0.5, "__init__": -1, "__main__": len(FOLDERS)}
HEIGHT |= {"errors": HEIGHT["core"] + 0.5}
# What the data flow through; what two of them share lies below.
STAGES = (
    "sources.reader",
    "preprocessing.images.image_rows",
    "inference.engines.torch_engine",
    "commit.staging",
)
OUTSIDE = {"tests", "jobs", "examples", "conftest", "models", "support"}

PROGRAMS = (
    "__main__",
    "process.confined_server",
    "process.parent_death",
    "execution.embedded.forkserver_main",
    "execution.embedded.forkserver_stub",
)
# What actors and writers import; readers get the job's section of the source, which needs pydantic.
IN_WORKERS = (
    "execution.predictor_actor",
    "commit.staging",
    "inference.engines.torch_engine",
    "preprocessing.images.image_rows",
)

IN_DRIVERS = ("operations.plan", "models.resolving.resolve", "inference.library_check")

MAX_LINES = 500

SERVERS = ("aiohttp.web", "http.server", "socketserver", "uvicorn", "wsgiref", "xmlrpc.server")
# A Unix socket, by which the workers of an embedded Ray are forked; metrics, if the job says so.
SERVED = {
    "execution.embedded.forkserver": {"listening.bind", "listening.listen"},
    "report.prometheus": {"start_http_server"},
}

FORBIDDEN_CALLS = {
    "eval": "runs code",
    "exec": "runs code",
    "pickle.load": "runs code",
    "pickle.loads": "runs code",
    "pickle.Unpickler": "runs code",
    "yaml.load": "runs code",
    "yaml.load_all": "runs code",
    "yaml.full_load": "runs code",
    "yaml.unsafe_load": "runs code",
    "torch.jit.load": "runs code",
    "torch.package.PackageImporter": "runs code",
    "os.system": "starts a shell",
    "os.popen": "starts a shell",
    "print": "belongs to the command line",
}

# Words that name nothing; where they stand, they are a field of a document or a library's argument.
NO_NAMES = {"found", "told", "said", "each", "own", "kind"}
WRITTEN = {
    ("commit.manifest", "kind"),
    ("commit.shard_table", "kind"),
    ("job.reading.yaml_reader", "kind"),
    ("models.tasks.base", "kind"),
    ("operations.machine_checks", "found"),
}


@cache
def parsed() -> dict[str, ast.Module]:
    gc.disable()
    nodes = dict(trees())
    gc.freeze()  # they stay to the end, and no collection looks at them
    gc.enable()
    return nodes


@cache
def doing() -> dict[str, list[ast.AST]]:
    """The imports and calls of each file."""
    kinds = (ast.Import, ast.ImportFrom, ast.Call)
    return {
        name: [node for node in running(tree) if isinstance(node, kinds)]
        for name, tree in parsed().items()
    }


@cache
def imports() -> dict[str, set[str]]:
    """Full names of what each file imports."""
    return {name: imported(nodes) for name, nodes in doing().items()}


def room(name: str) -> str:
    """Name the folder of a file: `sources.parquet` of `sources.parquet.batches`."""
    return name if (PACKAGE / Path(*name.split("."))).is_dir() else name.rpartition(".")[0]


def are_apart(one: str, other: str) -> bool:
    """Whether neither folder is in the other; files directly in the package are in none."""
    inside = f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
    return bool(one and other) and not inside


def dotted(node: ast.AST) -> str:
    """`a.b` of a name or of an attribute of a name, "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def misdeeds(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        options = {
            keyword.arg: ast.unparse(keyword.value)
            for keyword in node.keywords
            if keyword.arg in ("weights_only", "shell")
        }
        if name in FORBIDDEN_CALLS:
            yield f"line {node.lineno}: {name}() {FORBIDDEN_CALLS[name]}"
        if name == "torch.load" and options.get("weights_only") != "True":
            yield f"line {node.lineno}: torch.load() without weights_only=True runs code"
        if options.get("shell", "False") != "False":
            yield f"line {node.lineno}: shell= starts a shell"


def test_the_package_has_these_folders_and_every_folder_says_what_it_is_for():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == set(FOLDERS)
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    known = {"__init__.py", "__main__.py", "dataflow.py", "errors.py", "py.typed", "README.md"}
    assert files <= known
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_a_file_imports_only_from_its_folder_and_from_those_above_it():
    wrong = []
    for name, names in imports().items():
        folder = name.split(".")[0]
        others = folders_of(names) - {folder}
        not_above = sorted(other for other in others if HEIGHT[other] >= HEIGHT[folder])
        wrong += [f"{name} imports from {other}, not above {folder}" for other in not_above]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle():
    below: dict[str, set[str]] = {name: set() for name in NAMES}
    for name, names in imports().items():
        for full in names:
            target = full.removeprefix("pipeline.")
            if full.startswith("pipeline.") and target in below and target != name:
                below[name].add(target)
    while ready := {name for name, others in below.items() if not others}:
        below = {name: others - ready for name, others in below.items() if name not in ready}
    assert not below, f"in or above a circle: {', '.join(sorted(below))}"


def test_no_rooms_import_each_other_in_a_circle():
    """A room is a folder of any depth; one and those inside it may know each other."""
    above: dict[str, set[str]] = {room(name): set() for name in NAMES}
    for name, names in imports().items():
        here = room(name)
        for full in names:
            target = full.removeprefix("pipeline.")
            if (
                full.startswith("pipeline.")
                and target in imports()
                and are_apart(here, room(target))
            ):
                above[here].add(room(target))
    while ready := {name for name, others in above.items() if not others}:
        above = {name: others - ready for name, others in above.items() if name not in ready}
    assert not above, f"in or above a circle: {', '.join(sorted(above))}"


def test_stages_do_not_know_each_other():
    for name in STAGES:
        others = {f"pipeline.{other}" for other in STAGES if other != name}
        assert imports()[name].isdisjoint(others), name


def test_the_package_imports_nothing_from_tests_or_examples():
    for name, names in imports().items():
        tops = {full.split(".")[0] for full in names}
        assert tops.isdisjoint(OUTSIDE), name
        assert "" not in tops, f"{name}: no relative imports, this test does not follow them"


def test_no_file_runs_what_it_reads_or_prints():
    seen = [f"{name} {misdeed}" for name, nodes in doing().items() for misdeed in misdeeds(nodes)]
    assert seen == []


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "def f():\n    exec(x)",
        "pickle.load(f)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=flag)",
        "subprocess.run(x, shell=True)",
        "print('x')",
        "x = [print(y) for y in z]",
    ],
)
def test_the_guard_sees_a_forbidden_call(code: str):
    assert list(misdeeds(running(ast.parse(code))))


@pytest.mark.parametrize(
    ("code", "folders"),
    [
        ("import pipeline.planning.plan", {"planning"}),
        ("from pipeline.planning.plan import Plan", {"planning"}),
        ("from pipeline import planning, dataflow", {"planning", "dataflow"}),
        ("def f():\n    from pipeline.dataflow import run_job", {"dataflow"}),
        ("if TYPE_CHECKING:\n    from pipeline.dataflow import run_job", set()),
        (
            "if typing.TYPE_CHECKING:\n    import pipeline.dataflow\n"
            "else:\n    import pipeline.job.job",
            {"job"},
        ),
        ("import pipelines.planning", set()),
    ],
)
def test_the_guard_sees_an_import(code: str, folders: set[str]):
    assert folders_of(imported(running(ast.parse(code)))) == folders


def test_nothing_happens_at_import():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    allowed = (ast.Import, ast.ImportFrom, *functions, ast.ClassDef, ast.Assign, ast.AnnAssign)
    wrong = []
    for name in set(NAMES) - set(PROGRAMS):
        for node in parsed()[name].body:
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            if not (isinstance(node, allowed) or is_text or is_types):
                wrong.append(f"{name} line {node.lineno}")
    assert wrong == []


def test_workers_do_not_import_what_only_the_driver_needs():
    program = "; ".join(f"import pipeline.{name}" for name in IN_WORKERS)
    program += "; import sys; print({'pydantic', 'typer', 'pandas', 'ray.data'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr


def test_a_driver_that_knows_its_model_imports_no_model_library():
    program = "; ".join(f"import pipeline.{name}" for name in IN_DRIVERS)
    program += "; import sys; print({'torch', 'transformers', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr


def test_a_file_says_what_it_is_for_and_is_not_too_long():
    for name, path in zip(NAMES, FILES, strict=True):
        text = path.read_text()
        assert ast.get_docstring(parsed()[name]), f"{name} has no docstring"
        assert text.isascii(), name
        assert len(text.splitlines()) <= MAX_LINES, name


def test_names_say_what_they_are():
    for name, tree in parsed().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                given = dotted(node).rpartition(".")[2]
            elif isinstance(node, ast.arg):
                given = node.arg
            else:
                is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef)
                given = node.name if is_definition else ""
            words = NO_NAMES & {*given.lower().split("_")}
            places = {(name, word) for word in words}
            assert places <= WRITTEN, f"{name}: {given!r}, line {node.lineno}"


def test_the_package_serves_nothing_to_other_machines():
    for name, nodes in doing().items():
        assert not [full for full in imports()[name] if full.startswith(SERVERS)], name
        calls = {dotted(node.func) for node in nodes if isinstance(node, ast.Call)}
        served = {call for call in calls if call.endswith((".listen", ".bind", "_http_server"))}
        served.discard("signature.bind")  # of arguments to a function
        assert served == SERVED.get(name, set()), name
