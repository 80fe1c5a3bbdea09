"""Azure Blob Storage, through adlfs."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Mapping
from typing import Any

from pipeline.storage.interface import FileExpired, Page
from pipeline.storage.protocols.object_protocol import (
    PAGE_KEYS,
    Fetch,
    ObjectProtocol,
    call,
    file_info,
    on_loop,
    stored_file,
)

log = logging.getLogger(__name__)

_COPY_POLL_S = 0.5
_COPY_TIMEOUT_S = 600.0


def _connect_azure(options: Mapping[str, Any]) -> Any:
    from adlfs import AzureBlobFileSystem

    fs = AzureBlobFileSystem(**options, use_listings_cache=False)
    switch_off_retries(fs.service_client)
    return fs


def switch_off_retries(client: Any) -> None:
    """Switch off the retries of the client, whose first wait is 15 s; adlfs has no option for it.

    Without the private name, both retry: slower, with the same result.
    """
    policy = getattr(getattr(client, "_config", None), "retry_policy", None)
    if policy is not None and hasattr(policy, "total_retries"):
        policy.total_retries = 0
    else:
        log.debug("azure: retries of the client stay on: it has no _config.retry_policy")


def _list_azure(fs: Any, bucket: str, prefix: str, delimited: bool, token: str | None) -> Page:
    """Request one page of a listing; folders of a hierarchical account are not files."""

    async def fetch() -> tuple[list[Any], str | None]:
        async with fs.service_client.get_container_client(bucket) as container:
            listing = container.walk_blobs if delimited else container.list_blobs
            pages = listing(
                name_starts_with=prefix, include=["metadata"], results_per_page=PAGE_KEYS
            ).by_page(continuation_token=token)
            async for page in pages:
                return [item async for item in page], pages.continuation_token
        return [], None

    items, next_token = on_loop(fs, fetch)
    names = [item.name for item in items]
    prefixes = [name for name in names if name.endswith("/") and name != prefix]
    files = [
        stored_file(f"{bucket}/{item.name}", item.size, item.etag, item.last_modified)
        for item in items
        if not _is_folder(item)
    ]
    return Page(files, prefixes if delimited else [], next_token or None)


def _is_folder(item: Any) -> bool:
    """Tell whether an item is a prefix, or the marker of a folder in a hierarchical account."""
    if item.name.endswith("/") and not getattr(item, "size", None):
        return True
    return any(key.lower() == "hdi_isfolder" for key in item.metadata or ())


def _open_azure(fs: Any, path: str) -> tuple[int, Fetch]:
    info = file_info(fs, path)

    def fetch(start: int, end: int) -> bytes:
        try:
            data: bytes = on_loop(fs, _read_azure, fs, path, info["etag"], start, end)
        except FileNotFoundError as error:
            raise FileExpired(errno.ESTALE, "deleted", path) from error
        return data

    return info["size"], fetch


async def _read_azure(
    fs: Any, path: str, version: str, start: int | None = None, end: int | None = None
) -> bytes:
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

    container, _, name = path.partition("/")
    try:
        async with fs.service_client.get_blob_client(container, name) as blob:
            stream = await blob.download_blob(
                offset=start,
                length=None if end is None else end - (start or 0),
                etag=version,
                match_condition=MatchConditions.IfNotModified,
            )
            data: bytes = await stream.readall()
            return data
    except ResourceModifiedError as error:
        await call(fs, "info", path)  # raises if there is no version at all
        raise FileExpired(errno.ESTALE, "replaced", path) from error
    except ResourceNotFoundError as error:
        if getattr(error, "error_code", "") == "ContainerNotFound":
            raise
        raise FileNotFoundError(errno.ENOENT, "no such object", path) from error


def _copy_azure(fs: Any, source: str, target: str) -> None:
    """Copy, and wait for the end: until then the target exists but is incomplete."""
    from azure.core.exceptions import ResourceNotFoundError

    async def copy() -> str:
        client = fs.service_client
        old, new = (client.get_blob_client(*path.split("/", 1)) for path in (source, target))
        status = (await new.start_copy_from_url(old.url))["copy_status"]
        deadline = asyncio.get_running_loop().time() + _COPY_TIMEOUT_S
        while status == "pending" and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_COPY_POLL_S)
            status = (await new.get_blob_properties()).copy.status
        return str(status)

    try:
        status = on_loop(fs, copy)
    except ResourceNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", source) from error
    if status != "success":
        raise OSError(errno.EIO, f"the copy ended as {status}", target)


AZURE = ObjectProtocol(
    extra="azure",
    package="adlfs",
    connect=_connect_azure,
    list_page=_list_azure,
    open=_open_azure,
    read_version=_read_azure,
    copy=_copy_azure,
    version="etag",
    modified="last_modified",
    tells_missing_bucket=False,
)
