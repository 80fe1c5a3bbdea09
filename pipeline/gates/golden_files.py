"""Read the golden rows of a job: a Parquet file, or a folder of images or clips by label.

The columns of the file are those of the input (`image`, `features`, `text`, `text_pair`; or each
column that `source.features` names), the task's, and perhaps `row_id`.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.errors import JobError
from pipeline.core.failures import Failure
from pipeline.core.schema import LABEL, ROW_ID, file_name_of, is_feature
from pipeline.gates.golden import GoldenRows
from pipeline.job.gates import Gates, Golden
from pipeline.models.agreement import AgreementLimits
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.sources.columns.input_reader import Place
from pipeline.sources.input_columns import columns_of
from pipeline.sources.rows import Reader, make_rows
from pipeline.storage.store import Store, read_file

MAX_ROWS = 1024
MAX_BYTES = 32 * 2**20
"""Limited because every actor gets the rows when it is made."""
_FIELD = "gates.golden.uri"


def read_golden(
    gates: Gates, task: TaskSpec, reader: Reader, *, is_accepted: bool
) -> GoldenRows | None:
    """Read the golden rows of a job; None if it has none.

    Args:
        reader: The reader of the job's rows, which fixes their columns.
        is_accepted: Differences are accepted: rows are compared, and nothing is refused.

    Raises:
        JobError: There are no golden rows, or they are not as the task needs them.
    """
    golden = gates.golden
    if golden is None or golden.mode == "off":
        return None
    columns = [file_name_of(name) for name in reader.fields.names]
    if golden.uri.endswith(".parquet"):
        table = _read_file(golden)
    elif len(columns) == 1 and pa.types.is_large_binary(reader.fields.types[0]):
        table = _read_folder(golden, task, columns[0])
    else:
        needed = " and ".join(columns)
        raise JobError(f"{_FIELD} = {golden.uri}: rows of {needed} need a .parquet file")
    if not 0 < table.num_rows <= MAX_ROWS:
        raise JobError(
            f"{_FIELD} = {golden.uri}: has {table.num_rows} rows, must be 1 to {MAX_ROWS}"
        )
    if table.nbytes > MAX_BYTES:
        size = f"{table.nbytes / 2**20:.0f} MiB, must be at most {MAX_BYTES // 2**20}"
        raise JobError(f"{_FIELD} = {golden.uri}: has {size}")
    table = _with_vectors(table, reader, golden.uri)
    for name in (*columns, *make_task(task).golden_columns()):
        if name not in table.column_names or table.column(name).null_count:
            problem = "a null in" if name in table.column_names else "no"
            raise JobError(f"{_FIELD} = {golden.uri}: has {problem} column {name!r}")
    return GoldenRows(
        rows=_as_rows(table, reader, golden.uri),
        expected=_as_expected(table, task, golden.uri),
        limits=AgreementLimits.of(gates),
        max_score_diff=golden.max_score_diff,
        refuses=golden.mode == "fail" and not is_accepted,
    )


def _with_vectors(table: pa.Table, reader: Reader, uri: str) -> pa.Table:
    """Add the vectors of features, and their texts, if the file has the single columns instead.

    Raises:
        JobError: A row has no valid features.
    """
    names = reader.source.input_columns.names
    wanted = {name: file_name_of(name) for name in reader.fields.names if is_feature(name)}
    missing = {name: column for name, column in wanted.items() if column not in table.column_names}
    if not missing or not {*names} <= {*table.column_names}:
        return table
    columns = columns_of(reader.source)
    for name in names:
        if trouble := columns.trouble(name, table.schema.field(name).type):
            column_type = table.schema.field(name).type
            raise JobError(f"{_FIELD} = {uri}: column {name!r} is {column_type}, {trouble}")
    failures: list[Failure | None] = [None] * table.num_rows
    vectors = columns.read(table, failures, Place("", uri))
    for row, failure in enumerate(failures):
        if failure is not None:
            raise JobError(f"{_FIELD} = {uri}: row {row}: {failure.message}")
    for name, shown in missing.items():
        table = table.append_column(shown, vectors.columns[name])
    return table


def _as_rows(table: pa.Table, reader: Reader, uri: str) -> pa.Table:
    inputs: dict[str, pa.Array] = {}
    for field, column_type in zip(reader.fields.names, reader.fields.types, strict=True):
        name = file_name_of(field)
        try:
            inputs[field] = pc.cast(table.column(name), column_type).combine_chunks()
        except pa.ArrowInvalid as error:
            raise JobError(
                f"{_FIELD} = {uri}: column {name!r} must be {column_type}: {error}"
            ) from None
        except pa.ArrowNotImplementedError:
            raise JobError(f"{_FIELD} = {uri}: column {name!r} must be {column_type}") from None
    ids = [f"#{row}" for row in range(table.num_rows)]
    if ROW_ID in table.column_names:
        ids = [str(value) for value in table.column(ROW_ID).to_pylist()]
    return make_rows(reader, ids, ids, inputs, [None] * table.num_rows)


def _as_expected(table: pa.Table, task: TaskSpec, uri: str) -> pa.Table:
    try:
        return make_task(task).parse_golden(table)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        columns = ", ".join(make_task(task).golden_columns())
        raise JobError(
            f"{_FIELD} = {uri}: columns {columns} do not match task {task.kind!r}: {error}"
        ) from None


def _read_file(golden: Golden) -> pa.Table:
    data = read_file(golden.uri, golden.storage_options, _FIELD)
    try:
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except pa.ArrowInvalid as error:
        raise JobError(f"{_FIELD} = {golden.uri}: not a Parquet file: {error}") from None


def _read_folder(golden: Golden, task: TaskSpec, column: str) -> pa.Table:
    """Read `<label>/<file>`; the bytes of the files become `column`."""
    if not make_task(task).has_golden_folders:
        raise JobError(f"{_FIELD} = {golden.uri}: task {task.kind!r} needs a .parquet file")
    store = Store(golden.uri, golden.storage_options)
    paths = [file.path for file in store.list_files() if "/." not in f"/{file.path}"]
    loose = [path for path in paths if "/" not in path]
    if loose or not 0 < len(paths) <= MAX_ROWS:
        problem = f"{loose[0]} lies in no folder" if loose else f"there are {len(paths)} files"
        raise JobError(
            f"{_FIELD} = {golden.uri}: {problem}; write <label>/<file>, 1 to {MAX_ROWS} files"
        )
    files = store.read_many(paths)
    for value in files.values():
        if isinstance(value, Exception):
            raise value
    labels = [path.split("/")[0] for path in paths]
    values = [files[path] for path in paths]
    return pa.table({ROW_ID: paths, column: pa.array(values, pa.large_binary()), LABEL: labels})
