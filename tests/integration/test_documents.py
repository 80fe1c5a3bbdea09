"""Documents are true: their commands, the examples and the notebooks run.

Commands run in one folder that has what a reader has after the demo, with small models.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import torch
import yaml
from nbclient import NotebookClient
from support import HANG_S
from support.runs.checkout import PYTHONPATH, ROOT
from support.runs.documents import (
    DOCUMENTS,
    NUM_BAD,
    NUM_ROWS,
    make_directories,
    make_what_a_reader_has,
    marked,
    run,
    without_ray,
)
from support.servers.commandserver import CommandServer
from support.toys import toy_package

from pipeline import open_output

EXAMPLES = ROOT / "examples"
IN_A_TABLE = {
    match[1]: "\n".join(re.findall(r"`([^`]+)`", match[0].rpartition(" | ")[2]))
    for match in re.finditer(r"^\| \[(\w+)\].*$", DOCUMENTS["examples/README.md"], re.MULTILINE)
}
COMMANDS = {name: text for name, text in IN_A_TABLE.items() if text}
COMMANDS |= {mark.rpartition(" ")[2]: text for mark, _, text in marked() if "slow test" in mark}
"""The commands of examples, as their table has them, and of recipes."""
ON_A_CLUSTER, ON_A_GPU = COMMANDS.pop("cluster"), COMMANDS.pop("gpu")
SHOWN = {
    "a_partition": [
        f"{NUM_ROWS} rows = {NUM_ROWS - NUM_BAD} predicted + {NUM_BAD} quarantined",
        "starting Ray",
    ],
    "what_failed": [f"{NUM_BAD} failed before, 0 now", f"{NUM_BAD} added"],
    "a_week": ["3 partitions, date=2026-11-22 to date=2026-11-24", "no_input"],
    "two_models": ["of 2000 rows in both differ"],
    "nearest_texts": ["unpack a compressed archive"],
}
"""What a notebook is for."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    make_what_a_reader_has(folder)
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    """A folder of a reader; nothing was run in it."""
    return shutil.copytree(template, tmp_path / "reader", symlinks=True)


def do_marked(folder: Path) -> None:
    blocks = [(language, text) for mark, language, text in marked() if mark == "test"]
    assert len(blocks) >= 4
    for language, text in blocks:
        run(folder, text, language)


@pytest.mark.early
def test_the_marked_commands_run_in_order(
    folder: Path, forked_commands: Callable[[], CommandServer]
):
    with without_ray(folder, forked_commands()):
        do_marked(folder)


@pytest.mark.timeout(1800)
@pytest.mark.ray
@pytest.mark.slow
def test_the_marked_commands_run_in_order_with_ray(folder: Path):
    do_marked(folder)


def class_of_photos(rows: list[dict[str, Any]]) -> bool:
    labels = {row["row_id"].split("/")[1].split("-")[0]: row["label"] for row in rows}
    return (labels["chelsea"], labels["coffee"], labels["flower"]) == ("cat", "food", "other")


def faces(rows: list[dict[str, Any]]) -> bool:
    """Whether there is a face in one of the photos that show one."""
    shown = [row["detections"] for row in rows if "astronaut" in row["row_id"]]
    return any(
        detection["label"] == "FACE_FEMALE" for detections in shown for detection in detections
    )


LOOKS: dict[str, Callable[[list[dict[str, Any]]], bool]] = {
    "custom_model": class_of_photos,
    "two_inputs": lambda rows: all(-1 <= row["score"] <= 1 for row in rows),
    "text_source": lambda rows: len(rows) == 4,
    "lake_tables": lambda rows: len(rows) == NUM_ROWS - 3,
    "detection": faces,
    "ocr": lambda rows: min(row["score"] for row in rows) > 0.9,
}
"""What must hold of the predictions of an example."""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_of_an_example_or_a_recipe_run(name: str, folder: Path):
    download, rest = downloads(COMMANDS[name])
    try:
        run(folder, download)
    except AssertionError as error:
        pytest.skip(f"nothing can be downloaded: {error}")
    run(folder, rest, path=as_installed(folder / "examples" / name))
    jobs = re.findall(r"pipeline run (\S+\.yaml)(?!.*sink\.uri)", rest)
    for job in jobs:
        sink = yaml.safe_load((folder / job).read_text())["sink"]["uri"]
        rows = open_output(folder / sink).latest.predictions().to_table().to_pylist()
        assert LOOKS.get(name, bool)(rows)


@pytest.mark.ray
@pytest.mark.slow
def test_the_commands_of_a_cluster_run_as_copied(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for port in (6379, 8265):
        with socket.socket() as taken:
            if taken.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port} is taken")
    home = tempfile.mkdtemp(prefix="home", dir="/tmp")  # paths of sockets have to be short
    monkeypatch.setenv("HOME", home)
    try:
        # Commands of the reader get no variable RAY_*, but for this one.
        run(folder, f"export RAY_TMPDIR={home}\n{ON_A_CLUSTER}")
    finally:
        nodes = [p for p in psutil.process_iter(["environ"]) if belongs_to(p, home)]
        for process in nodes:
            process.kill()
        psutil.wait_procs(nodes, timeout=30)
        shutil.rmtree(home, ignore_errors=True)
    night = open_output(folder / "nightly-output").latest
    assert len(night.predictions()) + len(night.quarantine()) == NUM_ROWS


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_the_commands_of_a_gpu_run_as_copied(folder: Path):
    run(folder, ON_A_GPU)


def belongs_to(process: psutil.Process, home: str) -> bool:
    return (process.info["environ"] or {}).get("HOME") == home


DIRECTORIES = {
    match[1]: re.findall(r"\w+", "".join(re.findall(r"`[^`]+`", match[0].rpartition(" | ")[2])))
    for match in re.finditer(
        r"^\| \[\w+\.yaml\]\((model_directories/\S+)\).*$",
        DOCUMENTS["examples/README.md"],
        re.MULTILINE,
    )
}
"""Jobs over model directories, with the columns that their table names."""


@pytest.mark.ray
@pytest.mark.slow
def test_jobs_over_model_directories_publish_the_columns_of_their_table(folder: Path):
    make_directories(folder)
    jobs = {f"examples/{path}": columns for path, columns in DIRECTORIES.items()}
    jobs["jobs/classify_directory.yaml"] = ["label", "score"]
    where = "PYTHONPATH=examples/postprocess:$PYTHONPATH"
    command = where + " pipeline run {} --allow-import of_library"
    run(folder, "\n".join(map(command.format, jobs)))
    for job, columns in jobs.items():
        sink = yaml.safe_load((folder / job).read_text())["sink"]["uri"]
        table = open_output(folder / sink).latest.predictions().to_table()
        assert set(columns) <= set(table.column_names)
        assert table.num_rows > 0
        assert not any(table[name].null_count for name in columns)


def downloads(commands: str) -> tuple[str, str]:
    """Part commands into those that download and the others."""
    lines = commands.replace("\\\n", " ").splitlines()
    first = [line for line in lines if "from_package.py" in line]
    others = [line for line in lines if line not in first and "pip install" not in line]
    return "\n".join(first), "\n".join(others)


def as_installed(project: Path) -> str:
    """Make the entry points of an example known as pip would; return what goes on the path."""
    if not (project / "pyproject.toml").exists():
        return ""
    points = tomllib.loads((project / "pyproject.toml").read_text())["project"]["entry-points"]
    return f"{toy_package.install(project / 'site', points, project.name)}:{project}"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path):
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_shows_what_it_is_for(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    if name == "nearest_texts":
        run(folder, "pipeline run jobs/embed_texts.yaml")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    notebook = nbformat.read(folder / "examples" / f"{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(folder / "examples")}}
    NotebookClient(notebook, timeout=HANG_S, resources=where).execute(env=dict(os.environ))
    shown = "\n".join(
        str(output.get("text", "") or output.get("data", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert [words for words in SHOWN[name] if words not in shown] == []


def test_the_index_names_every_example():
    text = DOCUMENTS["examples/README.md"]
    for path in EXAMPLES.glob("[!.]*"):
        assert path.name == "README.md" or f"]({path.name}" in text, path.name


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_a_job_to_copy_is_short(path: Path):
    most = 10 if path.parent.name == "model_directories" else 17
    lines = path.read_text().splitlines()
    assert sum(bool(line.partition("#")[0].strip()) for line in lines) <= most
