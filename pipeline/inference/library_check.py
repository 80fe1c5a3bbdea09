"""Hold a model directory to its own library: the same predictions of a few rows, or no run.

Both ways run over the directory's files in one confined child process: the library's own, row by
row, and ours, eager fp32 over a padded batch. What agrees is kept per node, by the digest of the
files and the versions of the libraries.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.core.cache.node_cache import cached_folder, key_of
from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.printable import clean_message
from pipeline.core.schema import AUDIO, ERROR, IMAGE, TEXT, TEXT_PAIR
from pipeline.inference.engines import open_engine
from pipeline.job.job import Job
from pipeline.models.agreement import SAME
from pipeline.models.directories import probes
from pipeline.models.directories.facts import DirectoryFacts
from pipeline.models.directories.opening import KEPT_WITH, OF_TRANSFORMERS
from pipeline.models.directories.snapshot import lend, local, local_bytes
from pipeline.models.directories.text.text_facts import load_tokenizer
from pipeline.models.directories.text.text_oracle import text_predictions
from pipeline.models.directories.text.text_probes import special_tokens
from pipeline.models.directories.text.writing.writing_oracle import written_texts
from pipeline.models.directories.view import make_view
from pipeline.models.onnx_module import OnnxModule
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig, load_module
from pipeline.models.tasks import make_task, task_class
from pipeline.preprocessing.model_input import Limits
from pipeline.preprocessing.texts.text_input import TextInput
from pipeline.process.confined import ConfinedError, confined

_VERSION = 2
"""Of what is compared; raise it if more is."""
_FILE = "held_to.txt"
_COMPARE = "pipeline.inference.library_check:compare"
_MOST_BYTES = 4 << 30
"""Weights of larger models are not loaded twice beside a run."""
_LIBRARIES = {"sentence_transformers": ("sentence_transformers",), "timm": ("timm",)}
_LIMITS = Limits(1 << 30, 1 << 30)
_SOURCES: Mapping[str, Mapping[str, Any]] = {
    "audio": {"format": "parquet", "audio_column": AUDIO},
    "image": {"format": "parquet", "image_column": IMAGE},
    "text": {"format": "parquet", "text_column": TEXT},
}
"""Registered name of an input -> the job's source of probes."""
_HELD = {"audio": (), "image": (), "text": ("classify", "embed")}
"""Registered name of an input -> tasks to which its library has a way, beside `generate`."""
_COLUMN_TYPES = {
    **dict.fromkeys((TEXT, TEXT_PAIR), pa.large_string()),
    **dict.fromkeys((AUDIO, IMAGE), pa.large_binary()),
}
_WRITTEN, _NEW_TOKENS = (0, 1, 4, 5), 8
"""Texts that are continued: without special tokens, which stay text here, and short ones."""


def hold_to_library(spec: ModelSpec) -> str:
    """Compare what a model directory's library and we predict for probes; known results are kept.

    The directory's own settings count, not those that a job puts in their place.

    Returns:
        What was held, such as `transformers 5.24.0 on 8 texts`; '': the library has no way of its
        own to the task, or the weights are too large.

    Raises:
        JobError: A prediction differs; names the probe and both values.
    """
    directory, facts = spec.directory, spec.facts
    source = _SOURCES.get(spec.input.name)
    if directory is None or facts is None or source is None or not _has_library(facts):
        return ""
    is_held = spec.task.generation is not None or spec.task.kind in _HELD[spec.input.name]
    if not is_held or local_bytes(directory) > _MOST_BYTES:
        return ""
    if spec.input.name == "image" and facts.transform is None:
        return ""  # pixels are the job's
    has_pair = spec.input.text is not None and spec.input.text.has_pair
    if has_pair:
        source = {**source, "text_pair_column": TEXT_PAIR}

    def write(folder: Path) -> None:
        (folder / _FILE).write_text(_compared(spec, source))

    facts_of_it = ["held", _VERSION, directory.sha256, spec.task.kind, spec.input.name, has_pair]
    return (cached_folder(key_of(facts_of_it, KEPT_WITH), write) / _FILE).read_text()


def _compared(spec: ModelSpec, source: Mapping[str, Any]) -> str:
    assert spec.directory is not None, "it is a directory"
    path = local(spec.directory)
    job = Job.model_validate(
        {
            "source": {"uri": "probes", **source},
            "model": {"path": spec.directory.uri, "task": spec.task.kind, **_section(spec)},
            "sink": {"uri": "predictions"},
        }
    )
    columns = [value for key, value in source.items() if key.endswith("_column")]
    plain = resolve_model(job).fitted(pa.schema([(name, _COLUMN_TYPES[name]) for name in columns]))
    facts = plain.facts
    assert facts is not None, "likewise"
    if isinstance(plain.input, TextInput) and facts.text:
        text = replace(plain.input.text, tokenizer_uri=str(path / facts.text.tokenizer))
        plain = replace(plain, input=replace(plain.input, text=text))
    try:
        held: str = confined(
            _COMPARE,
            str(path),
            plain,
            reads=[path.parent],
            imports=(*OF_TRANSFORMERS, *_LIBRARIES.get(facts.format_name, ())),
            memory_bytes=(8 << 30) + 4 * local_bytes(spec.directory),
        )
    except ConfinedError as error:
        raise JobError(
            f"model.path = {spec.directory.uri}: its library does not run it: {error}"
        ) from None
    return held


def _section(spec: ModelSpec) -> dict[str, Any]:
    """Return what a job of a task that writes says of it."""
    if spec.task.generation is None:
        return {}
    most = min(_NEW_TOKENS, spec.task.generation.max_new_tokens)
    facts = spec.facts.generation if spec.facts else None
    prompt = {"prompt": facts.image_mark} if facts and facts.image_mark else {}
    return {"generate": {"max_new_tokens": most}, **prompt}


def compare(path: str, spec: ModelSpec) -> str:
    """Compare both ways, in the confined child process; see `hold_to_library`.

    Args:
        path: This node's copy of the directory.
        spec: Of the directory with its own settings.
    """
    assert spec.facts is not None, "it is a directory"
    assert spec.directory is not None, "likewise"
    lend(spec.directory, Path(path))
    columns = _probes(Path(path), spec)
    rows, prepared = [*zip(*columns.values(), strict=True)], _prepared(spec, columns)
    with tempfile.TemporaryDirectory() as folder:
        expected = _expected(make_view(Path(path), Path(folder)), spec, rows, prepared)
    if expected is None:
        return ""
    config = PredictorConfig(spec, len(rows), 0, 1, pa.schema([]), batch_tokens=1 << 20)
    actual = open_engine(config).predict(prepared, {})
    is_done = [error is None for error in actual.column(ERROR).to_pylist()]
    places = [row for row, done in enumerate(is_done) if done]
    task = make_task(spec.task)
    known = task.parse_golden(expected).take(places)
    differences = task.differences(known, actual.take(places), SAME)
    library = _library(spec)
    for place, difference in zip(places, differences, strict=True):
        if difference:
            raise JobError(
                f"model.path: {library} predicts something else for probe {_shown(rows[place])}: "
                f"{difference}; {_WAY_OUT}"
            )
    what = "pair" if len(columns) > 1 else _NOUNS[spec.input.name]
    return f"{library} on {len(places)} {what}s" if places else ""


_WAY_OUT = "return the model from model.factory, which is taken as it is"
_NOUNS = {"audio": "clip", "image": "image", "text": "text"}


def _expected(
    view: Path, spec: ModelSpec, rows: Sequence[Sequence[Any]], prepared: pa.Table
) -> pa.Table | None:
    """Return what the library predicts for rows; None: it has no way of its own to the task."""
    assert spec.facts is not None, "it is a directory"
    if spec.facts.format_name == "onnx":
        return _predicted_by_onnx(view, spec, rows)
    if (generation := spec.task.generation) is None:
        return text_predictions(view, spec.facts, spec.task.kind, rows)
    if spec.input.name == "text":
        return written_texts(view, spec.facts, generation, [text for (text,) in rows])
    normaliser = spec.input.normaliser(torch.float32)
    [values] = spec.input.arrays(prepared).values()
    tensors = [normaliser(torch.from_numpy(np.array(value))[None])[0] for value in values]
    return written_texts(view, spec.facts, generation, tensors)


def _has_library(facts: DirectoryFacts) -> bool:
    """Tell whether a directory's own library is here: of an .onnx file, that of its tokenizer."""
    if facts.format_name != "onnx":
        return True
    return facts.text is not None and find_spec("transformers") is not None


def _predicted_by_onnx(
    view: Path, spec: ModelSpec, rows: Sequence[Sequence[str]]
) -> pa.Table | None:
    """Return the task's columns of what an .onnx file gives for each row alone."""
    assert spec.facts is not None, "it is a directory"
    if task_class(spec.task.kind).is_per_token:
        return None
    from pipeline.models.directories.onnx.alone import outputs_alone

    outputs = outputs_alone(view, spec.facts, rows)
    if outputs is None:
        return None
    module = load_module(spec)
    assert isinstance(module, OnnxModule), "it is a file"
    if module.pooled is not None:
        outputs = [module.pool(vectors, torch.ones(vectors.shape[:2])) for vectors in outputs]
    task, table = make_task(spec.task), pa.table({"row_id": [*map(str, range(len(rows)))]})
    results = task.reduce(torch.cat(outputs), len(rows))
    arrays = {name: tensor.numpy() for name, tensor in results.items()}
    return pa.table(task.columns(arrays, np.ones(len(rows), np.bool_), table))


def _shown(row: Sequence[Any]) -> str:
    return clean_message(" | ".join(repr(value) for value in row), 80)


def _library(spec: ModelSpec) -> str:
    assert spec.facts is not None, "it is a directory"
    if spec.facts.format_name == "onnx":
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"
    name = {"timm": "timm", "sentence_transformers": "sentence-transformers"}.get(
        spec.facts.format_name, "transformers"
    )
    return f"{name} {version(name)}"


def _probes(path: Path, spec: ModelSpec) -> dict[str, Sequence[Any]]:
    """Return the columns of the input -> values of the probes."""
    if spec.input.name == "image":
        return {IMAGE: probes.images()}
    if spec.input.name == "audio":
        return {AUDIO: probes.wav_files()}
    text = spec.facts.text if spec.facts else None
    assert text is not None, "its rows are texts"
    special = special_tokens(load_tokenizer(path / text.tokenizer))
    if spec.input.text is not None and spec.input.text.has_pair:
        first, second = zip(*probes.pairs(special, text.max_tokens), strict=True)
        return {TEXT: first, TEXT_PAIR: second}
    texts = probes.texts(special, text.max_tokens)
    return {TEXT: texts if spec.task.generation is None else [texts[n] for n in _WRITTEN]}


def _prepared(spec: ModelSpec, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return rows as our preprocessing makes them."""
    num_rows = len(next(iter(columns.values())))
    arrays = {name: pa.array(values, _COLUMN_TYPES[name]) for name, values in columns.items()}
    rows = {
        "row_id": [str(row) for row in range(num_rows)],
        "uri": [""] * num_rows,
        **arrays,
        **failure_columns([None] * num_rows),
    }
    return spec.input.prepare(pa.table(rows), {}, _LIMITS)
