"""Compare a few predictions with those of a directory's own library; refuse the run if they differ.

Both are made in one confined child process: the library's row by row, ours by eager fp32 over a
padded batch. The result is kept per node, by the digest of the files and the versions of the
libraries.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.node_cache import cached_folder, key_of
from pipeline.core.printable import clean_message
from pipeline.core.schema import (
    AUDIO,
    EMBEDDING,
    ERROR,
    HEIGHT_PX,
    IMAGE,
    MESSAGE,
    TEXT,
    TEXT_PAIR,
    TOP_K,
    WIDTH_PX,
)
from pipeline.inference.engines import open_engine
from pipeline.job.job import Job
from pipeline.models.agreement import SAME
from pipeline.models.directories import probes
from pipeline.models.directories.facts import DirectoryFacts
from pipeline.models.directories.files import make_view
from pipeline.models.directories.library_predictions import (
    image_probes,
    library_predictions,
    text_probes,
)
from pipeline.models.directories.onnx_predictions import onnx_predictions
from pipeline.models.directories.opening import KEPT_WITH, OF_TRANSFORMERS
from pipeline.models.directories.snapshot import lend, local, local_bytes
from pipeline.models.directories.text.tokens import output_tokenizer
from pipeline.models.resolving.input import image_misfit
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.model_input import Limits
from pipeline.preprocessing.texts.text_input import TextInput
from pipeline.process.confined import ConfinedError, confined

_VERSION = 6
"""Version of the comparison; raise it if more is compared."""
_FILE = "held_to.txt"
_COMPARE = "pipeline.inference.library_check:compare"
_MOST_BYTES = 4 << 30
"""Weights of larger models are not loaded twice beside a run."""
_LIBRARIES = {"sentence_transformers": ("sentence_transformers",), "timm": ("timm",)}
_IMPORTS = ("pandas", "transformers.pipelines", "pipeline.inference.engines.torch_engine")
"""Modules that a comparison needs beside those of reading the facts."""
_LIMITS = Limits(1 << 30, 1 << 30)
_COLUMN_TYPES = {
    **dict.fromkeys((TEXT, TEXT_PAIR), pa.large_string()),
    **dict.fromkeys((AUDIO, IMAGE), pa.large_binary()),
}
_BATCH_TOKENS = 2_048
"""Longer texts are in batches of their own; the others pad each other."""
_MODEL: Mapping[str, Mapping[str, Any]] = {
    # The library's own limit differs by family, such as the number of queries.
    "detect": {"min_score": 0.05, "max_detections": 10},
    "multilabel": {"min_score": 0.0},
    "zero_shot": {"prompts": ("a dog", "rain in the city", "films")},
}
"""Task -> fields of the model section of the job that is compared."""
_NEW_TOKENS = 8
_WAY_OUT = "return the model from model.factory, which is taken as it is"


Results = Sequence[Mapping[str, Any] | None]
"""Per row, columns as they are published, or as golden rows have them; None: the library fails."""


class _Held(NamedTuple):
    """How models with an input are compared, unless they write."""

    column: str
    """Column of its rows in transit; see `_COLUMN_TYPES`."""
    noun: str
    """The name of a probe in messages."""
    probes: Callable[[Path, ModelSpec], dict[str, Sequence[Any]]]
    """Directory and model -> values of the columns of its rows."""
    tasks: tuple[str, ...]
    """Tasks that the library may do, too."""


_INPUTS: Mapping[str, _Held] = {
    "audio": _Held(
        AUDIO,
        "clip",
        lambda *_: {AUDIO: probes.wav_files()},
        ("classify", "multilabel", "embed", "transcribe"),
    ),
    "image": _Held(
        IMAGE,
        "image",
        lambda _, spec: {IMAGE: image_probes(spec)},
        ("classify", "multilabel", "regress", "embed", "detect", "zero_shot"),
    ),
    "text": _Held(
        TEXT,
        "text",
        text_probes,
        (
            *("classify", "multilabel", "regress", "score", "tokens", "zero_shot"),
            *("embed", "sparse", "multi_vector"),
        ),
    ),
}
"""Registered name of an input -> how its models are compared."""


def hold_to_library(spec: ModelSpec) -> str:
    """Compare a directory's predictions of probes with those of its library; keep what agrees.

    The directory's own settings count, not those that a job puts in their place.

    Returns:
        The comparison in words, such as `transformers 5.24.0 on 8 texts`; '': the library does
        not do the task.

    Raises:
        JobError: A prediction differs; names the probe and both values.
    """
    directory, facts = spec.directory, spec.facts
    held = _INPUTS.get(spec.input.name)
    if directory is None or facts is None or facts.quantised:
        return ""
    if held is None or not _has_library(facts):
        return ""
    if spec.task.generation is None and spec.task.kind not in held.tasks:
        return ""
    if spec.input.name == "image":
        transform = facts.transform
        if transform is None or image_misfit(facts.images, transform):
            return ""  # the job decides the pixels
    if local_bytes(directory) > _MOST_BYTES:
        return f"{_library(spec)} in its preprocessing alone: the weights have more than 4 GiB"
    has_pair = _has_pair(spec)
    source = {"format": "parquet", f"{spec.input.name}_column": held.column}
    if has_pair:
        source["text_pair_column"] = TEXT_PAIR

    def write(folder: Path) -> None:
        (folder / _FILE).write_text(_compared(spec, source))

    facts_of_it = ["held", _VERSION, directory.sha256, spec.task.kind, spec.input.name, has_pair]
    return (cached_folder(key_of(facts_of_it, KEPT_WITH), write) / _FILE).read_text()


def _compared(spec: ModelSpec, source: Mapping[str, Any]) -> str:
    assert spec.directory is not None, "it is a directory"
    job = Job.model_validate(
        {
            "source": {"uri": "probes", **source},
            "audio": _short_clips(spec),
            "model": {"path": spec.directory.uri, "task": spec.task.kind, **_section(spec)},
            "sink": {"uri": "predictions"},
        }
    )
    columns = [value for key, value in source.items() if key.endswith("_column")]
    plain = resolve_model(job).fitted(pa.schema([(name, _COLUMN_TYPES[name]) for name in columns]))
    return compare_confined(plain)


def compare_confined(spec: ModelSpec) -> str:
    """Compare both predictions in a confined process; see `hold_to_library`."""
    directory, facts = spec.directory, spec.facts
    assert directory is not None, "it is a directory"
    assert facts is not None, "likewise"
    path = local(directory)
    if isinstance(spec.input, TextInput) and facts.text:
        text = replace(spec.input.text, tokenizer_uri=str(path / facts.text.tokenizer))
        spec = replace(spec, input=replace(spec.input, text=text))
    try:
        held: str = confined(
            _COMPARE,
            str(path),
            spec,
            reads=[path.parent],
            imports=(*OF_TRANSFORMERS, *_IMPORTS, *_LIBRARIES.get(facts.format_name, ())),
            memory_bytes=(8 << 30) + 4 * local_bytes(directory),
        )
    except ConfinedError as error:
        raise JobError(
            f"model.path = {directory.uri}: its library does not run it: {error}"
        ) from None
    return held


def _short_clips(spec: ModelSpec) -> Mapping[str, Any]:
    """Return the fields of the audio section: windows are the library's, so no clip has several."""
    audio = spec.facts.audio if spec.facts else None
    return {"max_s": audio.window_s} if audio and audio.window_s else {}


def _section(spec: ModelSpec) -> Mapping[str, Any]:
    """Return the fields of the model section of the job that is compared, beside the task."""
    if spec.task.kind == "regress" and spec.facts and (labels := spec.facts.labels or ())[1:]:
        return {"targets": tuple(f"value_{number}" for number in range(len(labels)))}
    if spec.task.generation is None:
        prompts = _MODEL["zero_shot"] if spec.task.prompts else {}
        return {**_MODEL.get(spec.task.kind, {}), **prompts}
    most = min(_NEW_TOKENS, spec.task.generation.max_new_tokens)
    facts = spec.facts.generation if spec.facts else None
    prompt = {"prompt": facts.image_mark} if facts and facts.image_mark else {}
    return {"generate": {"max_new_tokens": most}, **prompt}


def compare(path: str, spec: ModelSpec) -> str:
    """Compare both predictions, as the confined process; see `hold_to_library`.

    Args:
        path: This node's copy of the directory.
        spec: The directory with its own settings.
    """
    assert spec.facts is not None, "it is a directory"
    assert spec.directory is not None, "likewise"
    lend(spec.directory, Path(path))
    held = _INPUTS[spec.input.name]
    columns = held.probes(Path(path), spec)
    rows, prepared = [*zip(*columns.values(), strict=True)], _prepared(spec, columns)
    with tempfile.TemporaryDirectory() as folder:
        expected = _expected(make_view(Path(path), Path(folder)), spec, rows, prepared)
    if expected is None:
        return ""
    config = PredictorConfig(spec, len(rows), 0, 1, pa.schema([]), batch_tokens=_BATCH_TOKENS)
    actual, task = open_engine(config).predict(prepared, {}), make_task(spec.task)
    errors = actual.select([ERROR, MESSAGE]).to_pylist()
    known = [row for row, columns_of in enumerate(expected) if columns_of is not None]
    places = [row for row in known if errors[row][ERROR] is None]
    library = _library(spec)
    if not places:
        message = errors[known[0]][MESSAGE]
        raise JobError(f"model.path: {library} predicts each probe, and here all fail: {message}")
    theirs = pa.Table.from_pylist([{**(expected[place] or {})} for place in places])
    theirs = _with_length(library, theirs, spec.task)
    if TOP_K not in theirs.column_names:
        theirs = task.parse_golden(theirs)
    differences = task.differences(theirs, actual.take(places), SAME)
    for place, difference in zip(places, differences, strict=True):
        if difference:
            raise JobError(
                f"model.path: {library} predicts something else for probe "
                f"{_shown(rows[place], f'{held.noun} {place + 1}')}: {difference}; {_WAY_OUT}"
            )
    return f"{library} on {len(places)} {'pair' if _has_pair(spec) else held.noun}s"


def _with_length(library: str, theirs: pa.Table, task: TaskSpec) -> pa.Table:
    """Return predictions of the library with vectors as long as the task's."""
    if EMBEDDING not in theirs.column_names:
        return theirs
    vectors, dim = theirs.column(EMBEDDING).to_pylist(), task.embedding_dim
    if len(vectors[0]) != (task.model_dim or dim):
        raise JobError(
            f"model.path: {library} gives vectors of {len(vectors[0])} numbers, and "
            f"{task.model_dim or dim} are made here; {_WAY_OUT}"
        )
    return pa.table({EMBEDDING: [vector[:dim] for vector in vectors]})


def _expected(
    view: Path, spec: ModelSpec, rows: Sequence[Sequence[Any]], prepared: pa.Table
) -> Results | None:
    assert spec.facts is not None, "it is a directory"
    if spec.facts.format_name == "onnx":
        return _rows_of(onnx_predictions(view, spec, rows))
    is_encoded = spec.input.name == "audio" and spec.task.generation is None
    seen = rows if is_encoded or spec.input.name == "text" else _seen(spec, prepared)
    if (generation := spec.task.generation) is None:
        return library_predictions(view, spec.facts, spec.task, seen)
    # The driver imports this file, and no torch.
    from pipeline.models.directories.text.generation_oracle import written_texts
    from pipeline.models.generate.build import text_decoder

    decode = text_decoder(generation, output_tokenizer(view, spec.facts, spec.input))
    values = [value for value, *_ in seen]
    return _rows_of(written_texts(view, spec.facts, generation, values, decode))


def _seen(spec: ModelSpec, prepared: pa.Table) -> list[tuple[Any, ...]]:
    """Return the model's input for each row, in a batch of one, and the size of an image."""
    import torch

    normaliser = spec.input.normaliser(torch.float32)
    [values] = spec.input.arrays(prepared).values()
    tensors = [normaliser(torch.from_numpy(np.array(value))[None])[0] for value in values]
    names = [name for name in (HEIGHT_PX, WIDTH_PX) if name in prepared.column_names]
    return [*zip(tensors, *(prepared.column(name).to_pylist() for name in names), strict=True)]


def _rows_of(table: pa.Table | None) -> Results | None:
    return None if table is None else table.to_pylist()


def _has_library(facts: DirectoryFacts) -> bool:
    """Tell whether a directory's library is installed: of an .onnx file, that of its tokenizer."""
    if facts.format_name != "onnx":
        return True
    return facts.text is not None and find_spec("transformers") is not None


def _shown(row: Sequence[Any], name: str) -> str:
    is_text = all(isinstance(value, str) for value in row)
    return clean_message(" | ".join(map(repr, row)), 80) if is_text else name


def _library(spec: ModelSpec) -> str:
    assert spec.facts is not None, "it is a directory"
    if spec.facts.format_name == "onnx":
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"
    name = spec.facts.format_name.replace("_", "-")
    return f"{name} {version(name)}"


def _has_pair(spec: ModelSpec) -> bool:
    return spec.input.text is not None and spec.input.text.has_pair


def _prepared(spec: ModelSpec, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return the rows as the package prepares them."""
    num_rows = len(next(iter(columns.values())))
    arrays = {name: pa.array(values, _COLUMN_TYPES[name]) for name, values in columns.items()}
    rows = {
        "row_id": [str(row) for row in range(num_rows)],
        "uri": [""] * num_rows,
        **arrays,
        **failure_columns([None] * num_rows),
    }
    return spec.input.prepare(pa.table(rows), {}, _LIMITS)
