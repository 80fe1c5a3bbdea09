"""Name the features of a row in the error of a model that takes another number of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa

from pipeline.core.causes import SystematicFailure
from pipeline.core.errors import JobError
from pipeline.job.source import Source
from pipeline.sources.feature_names import say_which_features, vectors_of


@contextlib.contextmanager
def features_told(source: Source, fields: pa.Schema) -> Iterator[None]:
    """Say in errors about the width of a vector which numbers it has, and how many fit.

    Args:
        fields: The columns of the input, as a plan has them.
    """
    try:
        yield
    except JobError as error:
        message = str(error)
        told = say_which_features(message, vectors_of(source, fields))
        if told == message:
            raise
        if isinstance(error, SystematicFailure):
            raise error.with_message(told) from None
        raise JobError(told) from None
