"""The section `source` of a job, with what other files say of its columns."""

from __future__ import annotations

from pipeline.job.job import Job
from pipeline.job.source import Source
from pipeline.models.directories.onnx.choice import SUFFIX
from pipeline.models.directories.opening import open_facts
from pipeline.models.resolving.column_choice import match_columns
from pipeline.sources.features.category_files import with_categories


def settled_source(job: Job) -> Source:
    """Return a job's source with the categories that files list, and its columns as they are taken.

    A model that takes each column by its name says which are texts, which numbers need float64, and
    the order, whatever that of the job is.

    Raises:
        JobError: A file of categories is not there, or holds no list of values; the model is
            refused; or it takes columns of other names.
    """
    source, path = with_categories(job.source), job.model.path
    if not source.is_table or path is None or not path.endswith(SUFFIX):
        return source
    _, facts = open_facts(path, job.model.storage_options, source.input_name)
    if not facts.columns:
        return source
    features = match_columns(source.features, facts.columns, path.rpartition("/")[2])
    return source.model_copy(update={"features": features})
