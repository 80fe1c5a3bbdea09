"""The documents, and a folder in which their commands run as they do for a reader."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Listener
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import mobilenet_v3_small

from support import HANG_S
from support.inputs.clips import encoded, tone
from support.inputs.photos import build_images, build_parquet
from support.models.audio_snapshots import make_listener
from support.models.feature_writers import make_feature_writer
from support.models.onnx_files import image_model, save
from support.models.raw_snapshots import make_segmenter, make_speakers
from support.models.snapshots import make_snapshot, make_timm
from support.runs.checkout import PYTHONPATH, ROOT
from support.servers.commandserver import CommandServer

FOLDERS = ("", "jobs", "jobs/*", "pipeline", "pipeline/*", "tests", "examples")
OTHERS = (
    *("jobs/lake.md", "jobs/vllm.md", "jobs/reference.md"),
    *(".github/CONTRIBUTING.md", ".github/CHANGELOG.md"),
)
GUIDES = [
    path for folder in FOLDERS for path in sorted(ROOT.glob(f"{folder}/README.md".lstrip("/")))
]
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text("ascii")
    for path in [*GUIDES, *map(ROOT.joinpath, OTHERS)]
}
MARKED = re.compile(r"<!-- (test|slow test: \w+|file: \S+) -->\n```(\w+)\n(.*?)```", re.DOTALL)
"""Blocks of code that a test runs, or writes to a file: mark, language, text."""
NUM_ROWS, NUM_BAD = 24, 2


def marked() -> list[tuple[str, str, str]]:
    """The marked blocks of all documents, the files first, in the order of a reader."""
    blocks = [block for text in DOCUMENTS.values() for block in MARKED.findall(text)]
    return sorted(blocks, key=lambda block: not block[0].startswith("file: "))


def run(folder: Path, text: str, language: str = "sh", path: str = "") -> str:
    """Run commands or a program of a document in a folder; return what it printed."""
    stubs = folder / "bin"  # what is there comes before what is installed
    scripts = f"{stubs}:{Path(sys.executable).parent}"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PIPELINE_"))}
    env |= {"PYTHONPATH": f"{path}:{PYTHONPATH}", "PATH": f"{scripts}:{env['PATH']}"}
    shell = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(
        shell if language == "sh" else [sys.executable, "-c", text],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


CLIENT = """#!{python} -IS
import os, sys
from multiprocessing.connection import Client

with Client({address!r}) as server:
    server.send((sys.argv[1:], os.getcwd(), dict(os.environ)))
    code, stdout, stderr = server.recv()
sys.stdout.write(stdout)
sys.stderr.write(stderr)
sys.exit(code)
"""


@contextmanager
def without_ray(folder: Path, forks: CommandServer) -> Iterator[None]:
    """Let `pipeline` in a folder run in forks, and jobs in a loop."""
    with Listener() as listener:
        program = folder / "bin" / "pipeline"
        program.parent.mkdir()
        program.write_text(CLIENT.format(python=sys.executable, address=listener.address))
        program.chmod(0o755)

        def serve() -> None:
            while True:
                with listener.accept() as caller:
                    arguments, where, environment = caller.recv()
                    if not arguments:
                        return
                    done = forks.run(*arguments, folder=where, environment=environment)
                    caller.send((done.code, done.stdout, done.stderr))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        with Client(listener.address) as last:
            last.send(((), "", {}))
        thread.join()


def make_what_a_reader_has(folder: Path) -> None:
    """Make the files, the inputs and the models that the documents' commands name, all small."""
    for name in ("jobs", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    for mark, _, text in marked():
        if mark.startswith("file: "):
            (folder / mark.removeprefix("file: ")).write_text(text)
    _make_inputs(folder)
    _make_models(folder)


def _make_inputs(folder: Path) -> None:
    demo = folder / "demo-output" / "input"
    for images in (demo / "images", folder / "photos"):
        build_images(images, NUM_ROWS, seed=5, num_bad=NUM_BAD)
    build_parquet(demo / "parquet", NUM_ROWS, seed=5, num_shards=2, num_bad=0)
    (demo / "texts").mkdir()
    texts = {"id": range(NUM_ROWS), "text": [f"the dog {row}" for row in range(NUM_ROWS)]}
    pq.write_table(pa.table(texts), demo / "texts" / "passages.parquet")
    customers = {"customer": [f"c{row}" for row in range(NUM_ROWS)]}
    numbers = {name: [float(row) for row in range(NUM_ROWS)] for name in ("age", "visits", "spent")}
    pq.write_table(pa.table({**customers, **numbers}), folder / "customers.parquet")
    lines = (json.dumps({"id": row, "text": f"the cat {row}"}) for row in range(NUM_ROWS))
    (folder / "passages.jsonl").write_text("\n".join(lines))


def _make_models(folder: Path) -> None:
    churn = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
    save_file(churn.state_dict(), folder / "churn.safetensors")
    torch.save(mobilenet_v3_small(weights=None).state_dict(), folder / "mobilenet_v3_small.pth")
    save_file(mobilenet_v3_small(weights=None).state_dict(), folder / "newer.safetensors")
    (folder / "labels.txt").write_text("".join(f"label {index}\n" for index in range(1000)))
    minilm = folder / "demo-output" / "models" / "all-MiniLM-L6-v2"
    for encoder in (folder / "models" / "encoder", minilm):
        make_snapshot(encoder, "bert", pooling="mean", normalize=True)
    make_snapshot(folder / "demo-output" / "models" / "clip", "clip")


def make_directories(folder: Path) -> None:
    """Make the models and rows that the jobs of examples/model_directories name."""
    models = folder / "models"
    make_snapshot(models / "sentiment", "bert", "sequence", id2label={0: "bad", 1: "good"})
    make_snapshot(models / "reranker", "roberta", "sequence", num_labels=1)
    names = {0: "O", 1: "B-NAME", 2: "I-NAME"}
    make_snapshot(models / "names", "distilbert", "token", id2label=names)
    for name in ("vit", "classifier"):
        make_snapshot(models / name, "vit", "image", num_labels=5)
    make_timm(models / "resnet", "resnet10t", 4, label_names=["cat", "dog", "fox", "owl"])
    make_listener(models / "hubert", "hubert")
    make_feature_writer(models / "whisper", "whisper")
    make_speakers(models / "speakers")
    make_segmenter(models / "segformer")
    save(image_model(), models / "defects.onnx")
    texts = [f"the cat sat on mat {row}" for row in range(NUM_ROWS)]
    lines = (json.dumps({"id": row, "text": text}) for row, text in enumerate(texts))
    (folder / "reviews.jsonl").write_text("\n".join(lines))
    pairs = {"question": ["a dog"] * NUM_ROWS, "passage": texts}
    pq.write_table(pa.table(pairs), folder / "candidates.parquet")
    (folder / "clips").mkdir()
    for row in range(4):
        (folder / "clips" / f"{row}.flac").write_bytes(encoded(tone(0.3, 300 + 50 * row), "FLAC"))
