"""Open the Delta table of a store with the library `deltalake`, and translate its errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pipeline.core.backoff import TransientError, with_retries
from pipeline.core.errors import InfraError, JobError
from pipeline.core.output_folders import PREDICTIONS
from pipeline.core.printable import clean_message
from pipeline.storage.errors import redact, secret_values
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from deltalake import DeltaTable

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Colours around the arrow that separates the causes of an error."""


def open_table(store: Store) -> DeltaTable | None:
    """Open the table; None if there is none.

    Raises:
        InfraError: It cannot be read.
    """
    deltalake = library()
    options = library_options(store)

    def open_once() -> DeltaTable | None:
        try:
            return deltalake.DeltaTable(table_url(store), storage_options=options)  # type: ignore[no-any-return]
        except deltalake.exceptions.TableNotFoundError:
            return None
        except Exception as error:
            raise failed(store, "read", error) from error

    return with_retries(open_once)


def failed(store: Store, verb: str, error: Exception) -> InfraError:
    """Describe an error of the library, the cause first, without secrets.

    Errors of the object store are OSErrors, and may be transient.
    """
    text = _COLOUR.sub("", redact(str(error), secret_values(store.storage_options)))
    *around, cause = (clean_message(piece).strip() for piece in text.split("\u21b3"))
    if around:
        cause = f"{cause} ({': '.join(around)})"
    as_ours = TransientError if isinstance(error, OSError) else InfraError
    return as_ours(f"cannot {verb} the Delta table {table_url(store)}: {cause}")


def table_url(store: Store) -> str:
    """Return the URL of the table."""
    return store.url(PREDICTIONS)


def library() -> Any:
    """Return the library.

    Raises:
        JobError: The extra is missing.
    """
    try:
        import deltalake
        import deltalake.exceptions
    except ImportError as error:
        raise JobError(
            "sink.table: delta needs the extra: pip install 'batch-inference-pipeline[delta]'"
        ) from error
    return deltalake


def library_options(store: Store) -> dict[str, str]:
    """Return the options of the library for a store, with the credentials that s3fs finds.

    Raises:
        JobError: The library cannot reach this kind of store.
    """
    if not store.is_object_store:
        return {}
    if not store.uri.startswith("s3://"):
        protocol = store.uri.partition("://")[0]
        raise JobError(
            f"sink.table: a Delta table can be on local disk or s3://, not {protocol}://"
        )
    from botocore.session import Session  # a part of the extra `s3`

    given = store.storage_options
    client = given.get("client_kwargs", {})
    session = Session(profile=given.get("profile"))
    # Does not connect: it resolves region and endpoint from options, variables and files.
    resolved = session.create_client(
        "s3",
        region_name=client.get("region_name"),
        endpoint_url=given.get("endpoint_url") or client.get("endpoint_url"),
    ).meta
    is_aws = ".amazonaws.com" in resolved.endpoint_url
    options = {
        "aws_region": resolved.region_name,
        "aws_endpoint_url": None if is_aws else resolved.endpoint_url,
        "aws_access_key_id": given.get("key"),
        "aws_secret_access_key": given.get("secret"),
        "aws_session_token": given.get("token"),
        "aws_skip_signature": "true" if given.get("anon") else None,
        "aws_allow_http": "true" if resolved.endpoint_url.startswith("http://") else None,
        "aws_conditional_put": "etag",
    }
    if not (given.get("key") or given.get("anon")):
        credentials = session.get_credentials()
        if credentials is not None:
            frozen = credentials.get_frozen_credentials()
            options["aws_access_key_id"] = frozen.access_key
            options["aws_secret_access_key"] = frozen.secret_key
            options["aws_session_token"] = frozen.token
    return {name: value for name, value in options.items() if value}
