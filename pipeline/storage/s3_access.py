"""Endpoint and credentials of a store on S3, for libraries of tables, which do not use fsspec."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.core.errors import JobError
from pipeline.storage.store import Store


@dataclass(frozen=True)
class S3Access:
    """What s3fs would use for a store."""

    endpoint_url: str
    region: str | None
    is_anonymous: bool
    key: str | None = field(repr=False)
    secret: str | None = field(repr=False)
    token: str | None = field(repr=False)


def table_access(store: Store, setting: str) -> S3Access | None:
    """Return the access to a store that holds a lake table; None for local disk.

    Args:
        setting: The setting that needs it, such as `source.format: delta`, for messages.

    Raises:
        JobError: The store is neither local disk nor S3.
    """
    if not store.is_object_store:
        return None
    if not store.uri.startswith("s3://"):
        protocol = store.uri.partition("://")[0]
        raise JobError(f"{setting}: the table can be on local disk or s3://, not {protocol}://")
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
    keys = given.get("key"), given.get("secret"), given.get("token")
    if not (given.get("key") or given.get("anon")):
        credentials = session.get_credentials()
        if credentials is not None:
            frozen = credentials.get_frozen_credentials()
            keys = frozen.access_key, frozen.secret_key, frozen.token
    key, secret, token = keys
    return S3Access(
        resolved.endpoint_url,
        resolved.region_name,
        bool(given.get("anon")),
        key=key,
        secret=secret,
        token=token,
    )
