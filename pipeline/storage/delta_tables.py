"""Delta tables as the library `deltalake` opens them: its options for a store, and its errors."""

from __future__ import annotations

import re
from typing import Any

from pipeline.core.backoff import TransientError
from pipeline.core.errors import InfraError, JobError
from pipeline.core.printable import clean_message
from pipeline.storage.errors import redact, secret_values
from pipeline.storage.s3_access import table_access
from pipeline.storage.store import Store

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Colours around the arrow that separates the causes of an error."""


def delta_library(setting: str) -> Any:
    """Return the library.

    Args:
        setting: The setting that needs it, for messages.

    Raises:
        JobError: The extra is missing.
    """
    try:
        import deltalake
        import deltalake.exceptions
    except ImportError as error:
        raise JobError(
            f"{setting} needs the extra: pip install 'batch-inference-pipeline[delta]'"
        ) from error
    return deltalake


def delta_error(store: Store, url: str, verb: str, error: Exception) -> InfraError:
    """Describe an error of the library, the cause first, without secrets.

    Errors of the object store are OSErrors, and may be transient.
    """
    text = _COLOUR.sub("", redact(str(error), secret_values(store.storage_options)))
    *around, cause = (clean_message(piece).strip() for piece in text.split("\u21b3"))
    if around:
        cause = f"{cause} ({': '.join(around)})"
    as_ours = TransientError if isinstance(error, OSError) else InfraError
    return as_ours(f"cannot {verb} the Delta table {url}: {cause}")


def library_options(store: Store, setting: str) -> dict[str, str]:
    """Return the options of the library for a store, with the credentials that s3fs finds.

    Raises:
        JobError: The library cannot reach this kind of store.
    """
    access = table_access(store, setting)
    if access is None:
        return {}
    is_aws = ".amazonaws.com" in access.endpoint_url
    options = {
        "aws_region": access.region,
        "aws_endpoint_url": None if is_aws else access.endpoint_url,
        "aws_access_key_id": access.key,
        "aws_secret_access_key": access.secret,
        "aws_session_token": access.token,
        "aws_skip_signature": "true" if access.is_anonymous else None,
        "aws_allow_http": "true" if access.endpoint_url.startswith("http://") else None,
        "aws_conditional_put": "etag",
    }
    return {name: value for name, value in options.items() if value}
