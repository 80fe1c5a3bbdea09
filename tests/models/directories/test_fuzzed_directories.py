"""Test that directories with changed values in their JSON are read, or refused in one line.

Whatever the files say, the only errors are those of a job (exit 2), or of a single row; nothing of
the libraries' own gets through, a panic of Rust code, which is no Exception, included.
PIPELINE_FUZZ_SEED repeats a seed that failed; what failed once is in test_refused_directories.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from support.inputs.clips import encoded, tone
from support.inputs.damage import changed
from support.inputs.encoded import base_image, png
from support.models.audio_snapshots import make_transcriber
from support.models.feature_writers import LOOK, TILE, make_feature_writer
from support.models.snapshots import make_snapshot, make_timm
from support.runs.jobs import SOURCES, job_of

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.schema import AUDIO, IMAGE, ROW_ID, TEXT, URI
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import load_module
from pipeline.preprocessing.model_input import Limits

NUM_DIRECTORIES = 5_000
SEED = int(os.environ.get("PIPELINE_FUZZ_SEED") or secrets.randbits(32))
LIMITS = Limits(1 << 20, 1 << 20)
ROWS: dict[str, tuple[str, Any]] = {
    "text": (TEXT, "the cat sat"),
    "image": (IMAGE, png(base_image(1))),
    "audio": (AUDIO, encoded(tone())),
}
"""Name of an input -> column and value of a row."""


class Case(NamedTuple):
    """A sound directory, and a job over it."""

    make: Callable[[Path], Path]
    input: str
    model: dict[str, Any] = {}  # noqa: RUF012  # never changed
    transform: dict[str, Any] = {}  # noqa: RUF012


NLI = {"id2label": {0: "entailment", 1: "neutral", 2: "contradiction"}}
PROMPTS = {"task": "zero_shot", "prompts": ["the cat", "a dog"]}
WRITES = {"task": "generate", "generate": {"max_new_tokens": 8}}
ASKS = {**WRITES, "prompt": LOOK}
CHATS = {**WRITES, "messages": [{"role": "user", "content": "<image>the cat"}]}
KINDS: dict[str, Case] = {
    "sentences": Case(
        lambda folder: make_snapshot(
            folder, "bert", pooling=["mean", "max"], dense=8, normalize=True,
            prompts={"query": "query: "}, default_prompt="query", include_prompt=False,
            max_seq_length=32,
        ),
        "text",
    ),
    "texts": Case(lambda folder: make_snapshot(folder, "roberta", "sequence"), "text"),
    "nli": Case(lambda folder: make_snapshot(folder, "bert", "sequence", **NLI), "text", PROMPTS),
    "tokens": Case(lambda folder: make_snapshot(folder, "distilbert", "token"), "text"),
    "images": Case(lambda folder: make_snapshot(folder, "vit", "image", num_labels=3), "image"),
    "towers": Case(lambda folder: make_snapshot(folder, "clip"), "image", PROMPTS),
    "timm": Case(lambda folder: make_timm(folder, "test_vit", 3), "image"),
    "speech": Case(lambda folder: make_feature_writer(folder, "whisper"), "audio", WRITES),
    "frames": Case(lambda folder: make_transcriber(folder, "wav2vec2"), "audio"),
    "captions": Case(lambda folder: make_feature_writer(folder, "donut"), "image", WRITES),
    "looks": Case(lambda folder: make_feature_writer(folder, "llava"), "image", ASKS),
    "tiles": Case(lambda folder: make_feature_writer(folder, "idefics3"), "image", CHATS,
                  TILE.model_dump(exclude_unset=True)),
}  # fmt: skip


def damage(folder: Path, rng: random.Random) -> str:
    """Change one or two values of the directory's JSON files; return what was changed."""
    files = sorted(folder.rglob("*.json"))
    names = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        path = rng.choice(files)
        path.write_text(json.dumps(changed(json.loads(path.read_text()), rng)))
        names.append(f"{path.relative_to(folder)}: {path.read_text()[:3000]}")
    return "; ".join(names)


def refusal(folder: Path, case: Case, what: object) -> str:
    """Return why a directory is refused; '' if it is not."""
    try:
        read_all(folder, case)
    except JobError as error:
        return str(error)
    except BaseException as error:
        raise AssertionError(what) from error
    return ""


def read_all(folder: Path, case: Case) -> None:
    """Do with a directory what `plan` does: resolve, build, and prepare a row."""
    column, row = ROWS[case.input]
    model = {"path": str(folder), **case.model}
    spec = resolve_model(job_of(model, SOURCES[case.input], transform=case.transform))
    spec.output_fields()
    load_module(spec)
    table = pa.table({ROW_ID: ["a"], URI: ["a"], column: [row], **failure_columns([None])})
    spec.input.prepare(table, {}, LIMITS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_changed_values_are_read_or_refused_in_one_line(tmp_path: Path):
    rng, num_refused = random.Random(SEED), 0
    sound = {name: case.make(tmp_path / name) for name, case in KINDS.items()}
    for name, case in KINDS.items():
        read_all(sound[name], case)
    for number in range(NUM_DIRECTORIES):
        name = rng.choice([*KINDS])
        copy = Path(shutil.copytree(sound[name], tmp_path / f"{number}"))
        what = (SEED, number, name, damage(copy, rng))
        message = refusal(copy, KINDS[name], what)
        assert not {"\n", "\x1b"} & {*message}, what
        num_refused += bool(message)
        shutil.rmtree(copy)
    assert NUM_DIRECTORIES / 5 < num_refused < NUM_DIRECTORIES, "most changes matter, some do not"
