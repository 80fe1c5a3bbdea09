"""Iceberg tables as the library `pyiceberg` opens them: catalogs, its options for a store, errors.

Table metadata may name Python classes that the library would import and call (`py-io-impl`). The
library reads it and creates the class in one step, so its import is restricted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.core.backoff import TransientError
from pipeline.core.errors import InfraError, InputMissing, JobError, PipelineError
from pipeline.core.printable import clean_message
from pipeline.job.iceberg_catalog import IcebergCatalog
from pipeline.storage.errors import redact, secret_values
from pipeline.storage.s3_access import table_access
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import StaticTable

_FILE_IOS = ("pyiceberg.io.pyarrow.PyArrowFileIO", "pyiceberg.io.fsspec.FsspecFileIO")
_CODE_OF_TABLES = "write.py-location-provider.impl"


def iceberg_library(setting: str) -> None:
    """Make the library ready to use; it loads no class that a table names.

    Args:
        setting: The setting that needs it, for messages.

    Raises:
        JobError: The extra is missing, or the version of the library is not known here.
    """
    try:
        import pyiceberg
        import pyiceberg.io
    except ImportError as error:
        raise JobError(
            f"{setting} needs the extra: pip install 'batch-inference-pipeline[iceberg]'"
        ) from error
    original = getattr(pyiceberg.io, "_import_file_io", None)
    if original is None:
        raise JobError(
            f"{setting}: pyiceberg {pyiceberg.__version__} is not supported; install 0.12"
        )
    if getattr(original, "is_restricted", False):
        return

    def restricted(io_impl: str, properties: Mapping[str, Any]) -> Any:
        if io_impl not in _FILE_IOS:
            raise JobError(
                f"the catalog or the table names the code {clean_message(io_impl)} (py-io-impl), "
                "which is not run; remove this property"
            )
        return original(io_impl, properties)

    restricted.is_restricted = True  # type: ignore[attr-defined]
    pyiceberg.io._import_file_io = restricted


def open_catalog(catalog: str | IcebergCatalog, store: Store, setting: str) -> Catalog:
    """Open a catalog whose tables have their files in a store.

    Args:
        catalog: The name of one that pyiceberg is configured for, or a description.
        store: Where the files are; its options are the library's, too.
        setting: The setting that needs it, for messages.

    Raises:
        JobError: It is not configured, or an option is wrong.
        InfraError: It cannot be reached.
    """
    iceberg_library(setting)
    from pyiceberg.catalog import load_catalog

    if isinstance(catalog, str):
        name, properties = catalog, file_properties(store, setting) if store.storage_options else {}
    else:
        name, fields = catalog.name, catalog.model_dump(exclude_none=True, exclude={"name"})
        properties = {**file_properties(store, setting), **fields}
    with iceberg_errors(store, f"cannot open the Iceberg catalog {name}", wrong=ValueError):
        return load_catalog(name, **properties)


def file_properties(store: Store, setting: str) -> dict[str, str]:
    """Return the options with which the library reads and writes files of a store."""
    access = table_access(store, setting)
    if access is None:
        return {}
    options = {
        "s3.endpoint": access.endpoint_url,
        "s3.region": access.region,
        "s3.access-key-id": access.key,
        "s3.secret-access-key": access.secret,
        "s3.session-token": access.token,
        "s3.anonymous": "true" if access.is_anonymous else None,
    }
    return {name: value for name, value in options.items() if value}


def open_static_table(store: Store, path: str, setting: str) -> StaticTable:
    """Open a table by one of its metadata files, without a catalog."""
    iceberg_library(setting)
    from pyiceberg.table import StaticTable

    with iceberg_errors(store, f"cannot read {store.url(path)}"):
        return StaticTable.from_metadata(store.url(path), file_properties(store, setting))


def refuse_code(properties: Mapping[str, str], table: str) -> None:
    """Refuse a table that names code which writing to it would run.

    Raises:
        JobError: It does.
    """
    if _CODE_OF_TABLES in properties:
        raise JobError(f"{table}: its property {_CODE_OF_TABLES} names code, which is not run")


@contextmanager
def iceberg_errors(
    store: Store, what: str, *, wrong: type[Exception] | tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn errors of the library in the body into ours: one line, without secrets.

    Args:
        what: Start of the message, such as `cannot read the Iceberg table db.rows`.
        wrong: The exceptions that mean that the job is wrong.
    """
    from pyiceberg import exceptions as errors
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        message = f"{what}: {clean_message(redact(text, secret_values(store.storage_options)))}"
        if isinstance(error, errors.NoSuchTableError | errors.NoSuchNamespaceError):
            raise InputMissing(f"{message}; run again when it is there") from error
        if isinstance(error, wrong):
            raise JobError(message) from error
        away = (OSError, errors.ServiceUnavailableError, errors.ServerError)
        # OperationalError: a database is locked, or another process has just created its tables.
        transient = (*away, OperationalError)
        as_ours = TransientError if isinstance(error, transient) else InfraError
        raise as_ours(message) from error
