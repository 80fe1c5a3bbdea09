"""Settle the columns of a source by the files of categories and the inputs of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.job.features import FeatureColumn, FeatureEntry, column_of
from pipeline.job.job import Job
from pipeline.job.source import Source
from pipeline.models.directories.files import ONNX_SUFFIX
from pipeline.models.directories.opening import open_facts
from pipeline.preprocessing.model_input import TensorColumn
from pipeline.sources.features.encodings import with_categories


def settled_source(job: Job) -> Source:
    """Return a job's source with the categories of its files, and columns as the model takes them.

    A model that takes each column by its name decides which are texts, which numbers need float64,
    and the order, whatever the order in the job.

    Raises:
        JobError: A file of categories is missing, or has no list of values; the model is refused;
            or its columns have other names.
    """
    source, path = with_categories(job.source), job.model.path
    if not source.is_table or path is None or not path.endswith(ONNX_SUFFIX):
        return source
    _, facts = open_facts(path, job.model.storage_options, source.input_name)
    if not facts.columns:
        return source
    features = match_columns(source.features, facts.columns, path.rpartition("/")[2])
    return source.model_copy(update={"features": features})


def match_columns(
    features: Sequence[FeatureEntry], columns: Sequence[TensorColumn], model_name: str
) -> tuple[FeatureEntry, ...]:
    """Return the features in the order of the model's inputs, each as the model takes it.

    Args:
        features: The features of the job, in any order.
        columns: The inputs of the model.
        model_name: For messages.

    Raises:
        JobError: The names differ, or the model takes a text where the job makes numbers; the
            message has both lists.
    """
    names = [column_of(entry) for entry in features]
    wanted = [column.name for column in columns]
    if Counter(names) != Counter(wanted):
        missing = [name for name in wanted if name not in names]
        others = [name for name in names if name not in wanted]
        twice = [name for name, number in Counter(names).items() if number > 1]
        why = (
            f"missing: {_listed(missing)}" if missing else "",
            f"not among its inputs: {_listed(others)}" if others else "",
            f"named twice: {_listed(twice)}" if twice else "",
        )
        raise JobError(
            f"source.features: {model_name} takes {_listed(wanted)}, each by its name; the job has "
            f"{_listed(names)}: {'; '.join(filter(None, why))}"
        )
    by_name = dict(zip(names, features, strict=True))
    return tuple(_as_taken(by_name[column.name], column, model_name) for column in columns)


def _as_taken(entry: FeatureEntry, column: TensorColumn, model_name: str) -> FeatureEntry:
    is_plain = isinstance(entry, str) or not (entry.is_category or entry.read_as)
    if column.is_text:
        if not is_plain and not (isinstance(entry, FeatureColumn) and entry.is_text):
            raise JobError(
                f"source.features: {model_name} takes {column.name!r} as text, and the job makes "
                f"numbers of it: name the column alone, {column.name}"
            )
        return _read_as(entry, "text")
    if isinstance(entry, FeatureColumn) and entry.is_text:
        raise JobError(
            f"source.features: {model_name} takes {column.name!r} as {column.dtype}, and the job "
            "has read_as: text"
        )
    return _read_as(entry, "float64") if is_plain and column.is_wide else entry


def _read_as(entry: FeatureEntry, how: str) -> FeatureColumn:
    fields = {} if isinstance(entry, str) else entry.model_dump(exclude_unset=True)
    return FeatureColumn.model_validate({**fields, "column": column_of(entry), "read_as": how})


def _listed(names: Sequence[str]) -> str:
    return clean_message(", ".join(names) or "none", 400)
