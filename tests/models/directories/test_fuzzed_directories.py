"""Model directories with one or two changed values in their JSON: read, or refused in one line.

Whatever the files say, the only errors are those of a job (exit 2), or of a single row; nothing of
the libraries' own gets through, a panic of Rust code, which is no Exception, included. The seed is
fixed; `make long` takes other ones, and PIPELINE_FUZZ_SEED repeats one that failed.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import os
import random
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from support.inputs.clips import encoded, tone
from support.inputs.damage import changed
from support.inputs.encoded import base_image, png
from support.models.feature_writers import LOOK, TILE, make_feature_writer
from support.models.snapshots import make_snapshot, make_timm

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.schema import AUDIO, IMAGE, ROW_ID, TEXT, URI
from pipeline.job.reading.loader import parse_job
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import load_module
from pipeline.preprocessing.model_input import Limits

FEW, MANY = 20, 5_000
SEED = int(os.environ.get("PIPELINE_FUZZ_SEED") or secrets.randbits(32))
LIMITS = Limits(1 << 20, 1 << 20)
ROWS: dict[str, tuple[dict[str, str], Any]] = {
    TEXT: ({"format": "jsonl", "text_column": "body"}, "the cat sat"),
    IMAGE: ({"format": "images"}, png(base_image(1))),
    AUDIO: ({"format": "audio"}, encoded(tone())),
}
"""Column of a row -> the job's source, and a row."""


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
        TEXT,
    ),
    "texts": Case(lambda folder: make_snapshot(folder, "roberta", "sequence", num_labels=3), TEXT),
    "nli": Case(lambda folder: make_snapshot(folder, "bert", "sequence", **NLI), TEXT, PROMPTS),
    "tokens": Case(lambda folder: make_snapshot(folder, "distilbert", "token"), TEXT),
    "images": Case(lambda folder: make_snapshot(folder, "vit", "image", num_labels=3), IMAGE),
    "towers": Case(lambda folder: make_snapshot(folder, "clip"), IMAGE, PROMPTS),
    "timm": Case(lambda folder: make_timm(folder, "test_vit", 3), IMAGE),
    "speech": Case(lambda folder: make_feature_writer(folder, "whisper"), AUDIO, WRITES),
    "captions": Case(lambda folder: make_feature_writer(folder, "donut"), IMAGE, WRITES),
    "looks": Case(lambda folder: make_feature_writer(folder, "llava"), IMAGE, ASKS),
    "tiles": Case(lambda folder: make_feature_writer(folder, "idefics3"), IMAGE, CHATS,
                  TILE.model_dump(exclude_unset=True)),
}  # fmt: skip
WRITERS = ("speech", "captions", "looks", "tiles")
"""They take longer, and have the long form to themselves."""
Sound = Callable[[str], Path]
"""Case -> its directory, as it was made."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    root = tmp_path_factory.mktemp("sound")
    return functools.cache(lambda name: KINDS[name].make(root / name))


def damage(folder: Path, rng: random.Random) -> str:
    """Change one or two values of the directory's JSON files; return what was changed."""
    files = sorted(folder.rglob("*.json"))
    names = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        path = rng.choice(files)
        path.write_text(json.dumps(changed(json.loads(path.read_text()), rng)))
        names.append(f"{path.relative_to(folder)}: {path.read_text()[:3000]}")
    return "; ".join(names)


def read_all(folder: Path, case: Case) -> None:
    """Do with a directory what `plan` does: resolve, build, and prepare a row."""
    source, row = ROWS[case.input]
    job = parse_job(
        {
            "source": {"uri": "in", **source},
            "model": {"path": str(folder), **case.model},
            "transform": case.transform,
            "sink": {"uri": "out"},
        },
        date=dt.date(2026, 11, 24),
        origin="test",
    )
    spec = resolve_model(job)
    spec.output_fields()
    load_module(spec)
    table = pa.table({ROW_ID: ["a"], URI: ["a"], case.input: [row], **failure_columns([None])})
    spec.input.prepare(table, {}, LIMITS)


def fuzz(sound: Sound, folder: Path, seed: int, num_cases: int, kinds: Sequence[str]) -> None:
    rng, num_refused = random.Random(seed), 0
    for number in range(num_cases):
        name = rng.choice(kinds)
        copy = folder / f"{number}"
        shutil.copytree(sound(name), copy)
        what = (seed, number, name, damage(copy, rng))
        message = refusal(copy, KINDS[name], what)
        assert not {"\n", "\x1b"} & {*message}, what
        num_refused += bool(message)
        shutil.rmtree(copy)
    assert num_cases / 5 < num_refused < num_cases, "most changes matter, and some do not"


def refusal(folder: Path, case: Case, what: object) -> str:
    """Return why a directory is refused; '' if it is not."""
    try:
        read_all(folder, case)
    except JobError as error:
        return str(error)
    except BaseException as error:
        raise AssertionError(what) from error
    return ""


@pytest.mark.slow
def test_a_sound_directory_of_each_kind_is_read(sound: Sound):
    for name, case in KINDS.items():
        read_all(sound(name), case)


REGRESSIONS = [
    ("sentences", "modules.json", (1, "type"), [], "modules.json names the class []"),
    ("sentences", "modules.json", (1, "type"), {"a": 1}, "modules.json names the class {"),
    ("sentences", "modules.json", (0, "path"), [""], 'path [""] is no folder'),
    ("timm", "config.json", ("pretrained_cfg", "interpolation"), [1], "interpolation is [1]"),
    ("timm", "config.json", ("pretrained_cfg", "crop_pct"), 1e-310, "crop_pct is 1e-310, expected"),
    ("timm", "config.json", ("pretrained_cfg", "mean"), [1e308] * 3, "mean is 1e+308, expected"),
    ("nli", "tokenizer.json", ("post_processor", "special_tokens"), {}, "tokenizer.json"),
    ("towers", "tokenizer.json", ("post_processor", "special_tokens"), {}, "tokenizer.json"),
]
"""What fell: directory, file, place, its new value, and what is said."""


@pytest.mark.parametrize(
    ("name", "file", "at", "new", "words"), REGRESSIONS, ids=range(len(REGRESSIONS))
)
def test_what_once_ended_with_a_bare_error_is_one_line(
    name: str,
    file: str,
    at: tuple[Any, ...],
    new: Any,
    words: str,
    sound: Sound,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
):
    copy = shutil.copytree(sound(name), tmp_path / "copy")
    document = holder = json.loads((copy / file).read_text())
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = new
    (copy / file).write_text(json.dumps(document))
    message = refusal(copy, KINDS[name], (name, file, at, new))
    assert words in message
    assert "panicked" not in capfd.readouterr().err


def test_changed_values_are_read_or_refused_in_one_line(sound: Sound, tmp_path: Path):
    fuzz(sound, tmp_path, 20261127, FEW, [name for name in KINDS if name not in WRITERS])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_changed_values_are_read_or_refused(sound: Sound, tmp_path: Path):
    fuzz(sound, tmp_path, SEED, MANY, [*KINDS])
