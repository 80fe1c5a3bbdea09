"""Which column makes which number of a feature vector, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from pipeline.core.printable import clean_message
from pipeline.core.schema import is_feature, widths_of
from pipeline.job.features import FeatureColumn, FeatureEntry, column_of
from pipeline.job.source import Source
from pipeline.sources.features.vectors import categories_of
from pipeline.sources.input_columns import fields_of_part

_SHOWN, _MAX_CHARS = 8, 40


class Vector(NamedTuple):
    """The feature vector of a row, or of one of several inputs."""

    size: int
    """F, and the texts beside it."""
    names: tuple[str, ...]
    """In order, `age`, `plan=basic`, `seen (weekday)`; a list of numbers is one, `vec[0..7]`."""

    def describe(self) -> str:
        """Return `12 features (age, income, plan=basic, ...)`, made short."""
        size = "1 feature" if self.size == 1 else f"{self.size:,} features"
        return f"{size} ({self.first_names()})"

    def first_names(self) -> str:
        """Return the first names, `age, income, plan=basic, ...`."""
        names = [clean_message(name)[:_MAX_CHARS] for name in self.names[:_SHOWN]]
        return ", ".join([*names, *(["..."] if len(self.names) > _SHOWN else [])])


def vectors_of(source: Source, fields: pa.Schema) -> Mapping[str, Vector]:
    """Return the feature vectors by the name of the input, '' of the only one.

    Args:
        source: The job's section, with its categories.
        fields: The columns of all inputs, as a plan has them; {} if no shard could be read.
    """
    vectors = {
        name: _vector(part.features, fields_of_part(name, source, fields))
        for name, part in source.parts.items()
        if part.features
    }
    return {name: vector for name, vector in vectors.items() if vector is not None}


def _vector(features: Sequence[FeatureEntry], fields: pa.Schema) -> Vector | None:
    if not any(map(is_feature, fields.names)):
        return None
    widths = widths_of(fields) or (0,) * len(features)
    size, names = 0, []
    for entry, width in zip(features, widths, strict=True):
        for name, num in _names(entry, width):
            names.append(name)
            size += num
    return Vector(size, tuple(names))


def _names(entry: FeatureEntry, width: int) -> Iterator[tuple[str, int]]:
    """Yield what the numbers of an entry are called, and how many have that name."""
    name = column_of(entry)
    if isinstance(entry, FeatureColumn) and entry.is_category:
        if entry.encoding == "index":
            yield f"{name} (index)", 1
            return
        yield from ((f"{name}={value or repr(value)}", 1) for value in categories_of(entry))
        if entry.unknown == "own":
            yield f"{name} (other)", 1
    elif isinstance(entry, FeatureColumn) and (entry.part or entry.is_text):
        yield f"{name} ({entry.read_as})", 1
    elif width:
        yield f"{name}[0..{width - 1}]", width
    else:
        yield name, 1
