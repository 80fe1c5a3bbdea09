"""The shape of the package: who may import whom, what no file may do, and how long one may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from package_source import FILES, NAMES, PACKAGE, imported, own_imports, trees

# A file imports only from lines above its own; a new file takes the highest line that it can.
LAYERS = (
    "__init__ archive chaos_kills data_in_driver deadline documents errors executor_wait"
    " fork_worker int96 job_output job_section jpeg_skeleton lane mnn_model native_exit printable"
    " processor pulse ray_token read_ahead report_sections semantics skipped stay streams ticks"
    " tied trial user_code watchdog",
    "address allocation arrow_types command_group failpoints fork_server globs imports"
    " input_order interrupt job_source job_yaml private ray_environment retry schema screen"
    " store_faults stored verdict",
    "artefacts attempts causes chaos_corrupt dedupe extents features foreign_model forked_workers"
    " health hive image_formats in_flight job_api job_gates job_substitution layout listing"
    " local_disk object_protocols photos progress ray_folder render state_dict stats"
    " storage_errors tar task terminal transform weights_file",
    "agreement chaos_runs child cluster_login columns decode exact_pixels first_rows histograms"
    " job job_log limits object_store pass_through ray_tasks remote_index results small_ray"
    " torchvision_models whole",
    "chaos_compare cluster disturbed forecast golden isolate job_paths job_problems jpeg_groups"
    " made nearby_code submit",
    "bottleneck chaos_table guard job_file machine_checks performance preprocess storage",
    "delta_store lease manifest own_tensors report row_ids rows single_file sink uri_policy",
    "delta_columns estimate found_parts golden_files image_stream nights parquet_inputs parts"
    " past_runs tally tar_stream web weights",
    "compact delta drift fetch inputs model night_gates parquet_shard",
    "apart chaos_sample choose gates parquet_stream publish quantise regroup resolve runtimes"
    " stored_report units zoo",
    "device merge plan source upkeep",
    "inspect plan_file predictor provenance read_guard receipt sampling tiling",
    "datasource record requeue stages verify",
    "chaos context one_row replan trial_run",
    "arguments match outcome prepare run_watch trials",
    "confirm doctor make_golden preview readmit trial_layouts",
    "auto finish",
    "run tune",
    "demo rerun",
    "cli",
    "main",
    "__main__",
)
# What the data flow through; what two of them share lies below.
STAGES = ("source", "preprocess", "predictor", "sink")
OUTSIDE = {"tests", "jobs", "examples", "conftest", "models", "badfiles"}

PROGRAMS = ("__main__", "fork_server", "fork_worker", "stay", "tied")
# What actors and writers import; readers get the job's section of the source, which needs pydantic.
IN_WORKERS = ("stages", "sink", "predictor", "preprocess")

MAX_LINES = 400
# Longer than they should be; these numbers may only become smaller.
LONG_FILES: dict[str, int] = {}

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


def misdeeds(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in FORBIDDEN_CALLS:
            yield f"line {node.lineno}: {name}() {FORBIDDEN_CALLS[name]}"
        if name == "torch.load" and options.get("weights_only") != "True":
            yield f"line {node.lineno}: torch.load() without weights_only=True runs code"
        if options.get("shell", "False") != "False":
            yield f"line {node.lineno}: shell= starts a shell"


def test_every_file_has_a_layer_and_every_layer_is_made_of_files():
    placed = [name for layer in LAYERS for name in layer.split()]
    assert len(set(placed)) == len(placed)
    assert sorted(placed) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_file_imports_only_from_layers_below(name: str):
    height = {member: index for index, layer in enumerate(LAYERS) for member in layer.split()}
    height = {other: height.get(other, 0) for other in NAMES} | {name: height.get(name, 99)}
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    wrong = {other for other in own_imports(tree) if height[other] >= height[name]}
    assert not wrong, f"{name} imports {', '.join(sorted(wrong))}, not below it"


def test_stages_do_not_know_each_other():
    for name, tree in trees():
        if name in STAGES:
            assert own_imports(tree).isdisjoint(set(STAGES) - {name}), name


def test_nothing_outside_the_package_is_imported_by_it():
    for name, tree in trees():
        tops = {full.split(".")[0] for full in imported(tree)}
        assert tops.isdisjoint(OUTSIDE), name
        assert "" not in tops, f"{name}: no relative imports, this test does not follow them"


@pytest.mark.parametrize("name", NAMES)
def test_no_file_runs_what_it_reads_or_prints(name: str):
    assert list(misdeeds(ast.parse((PACKAGE / f"{name}.py").read_text()))) == []


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
def test_the_guard_sees_a_misdeed(code: str):
    assert list(misdeeds(ast.parse(code)))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pipeline.plan", {"plan"}),
        ("from pipeline.plan import Plan", {"plan"}),
        ("from pipeline import plan, run", {"plan", "run"}),
        ("def f():\n    from pipeline.run import run_job", {"run"}),
        ("if TYPE_CHECKING:\n    from pipeline.run import run_job", set()),
        (
            "if typing.TYPE_CHECKING:\n    import pipeline.run\nelse:\n    import pipeline.job",
            {"job"},
        ),
        ("import pipelines.plan", set()),
    ],
)
def test_the_guard_sees_an_import(code: str, found: set[str]):
    assert own_imports(ast.parse(code)) == found


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PROGRAMS])
def test_nothing_happens_at_import(name: str):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    allowed = (ast.Import, ast.ImportFrom, *functions, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in tree.body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        assert isinstance(node, allowed) or is_text or is_types, f"{name} line {node.lineno}"


def test_workers_do_not_wait_for_what_only_the_driver_needs():
    program = "; ".join(f"import pipeline.{name}" for name in IN_WORKERS)
    program += "; import sys; print({'pydantic', 'typer', 'pandas', 'ray.data'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_says_what_it_is_for_and_is_not_too_long(path: Path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert text.isascii()
    assert len(text.splitlines()) <= LONG_FILES.get(path.stem, MAX_LINES)


def test_no_exception_for_a_file_that_needs_none():
    for name in LONG_FILES:
        lines = len((PACKAGE / f"{name}.py").read_text().splitlines())
        assert lines > MAX_LINES, f"{name} is short now: take it off the list"
