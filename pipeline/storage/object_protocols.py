"""What is particular to each kind of object store behind fsspec; a new kind is a new row below."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.storage.interface import FileExpired, Page, StoredFile

Fetch = Callable[[int, int], bytes]
"""Reads the bytes [start, end) of one version of one object."""

_PAGE_KEYS = 1000
_COPY_POLL_S = 0.5
_COPY_TIMEOUT_S = 600.0
_CONNECT_TIMEOUT_S = 15.0
_SILENCE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ObjectProtocol:
    """One kind of object store."""

    extra: str
    package: str
    connect: Callable[[Mapping[str, Any]], Any]
    """Make the fsspec file system of these storage options, its own retries off: ours count."""
    list_page: Callable[[Any, str, str, bool, str | None], Page]
    """file system, bucket, prefix, whether to stop at the next `/`, token -> one page, whose paths
    begin with the bucket and whose prefixes do not."""
    open: Callable[[Any, str], tuple[int, Fetch]]
    read_version: Callable[[Any, str, str], Awaitable[bytes]]
    """Reads one version of a whole object; raises FileExpired where there is another one."""
    copy: Callable[[Any, str, str], None]
    version: str
    modified: str
    """Names of these two in what `info` returns."""
    read: Mapping[str, Any] = field(default_factory=dict)
    """Options for reading whole objects."""
    tells_missing_bucket: bool = True
    """Whether each error says if the bucket is missing or only the object."""


def stored_file(path: str, size_bytes: int, version: Any, modified: Any) -> StoredFile:
    """Make a StoredFile of what a store says."""
    text = str(version or "").strip('"')
    if isinstance(modified, dt.datetime):
        return StoredFile(path, size_bytes, text, modified.astimezone(dt.UTC))
    return StoredFile(path, size_bytes, text, None)


def _copy_plainly(fs: Any, source: str, target: str) -> None:
    fs.cp_file(source, target)


def _connect_s3(options: Mapping[str, Any]) -> Any:
    import s3fs

    # Small objects are bound by latency: ten connections (the default) are too few.
    config = {"max_pool_connections": 32, "retries": {"max_attempts": 0}}
    settings = {**options, "config_kwargs": {**config, **options.get("config_kwargs", {})}}
    fs = s3fs.S3FileSystem(**settings, use_listings_cache=False)
    fs.retries = 1
    return fs


def _list_s3(fs: Any, bucket: str, prefix: str, delimited: bool, token: str | None) -> Page:
    more = {"ContinuationToken": token} if token else {}
    more |= {"Delimiter": "/"} if delimited else {}
    answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=_PAGE_KEYS, **more)
    files = [
        stored_file(f"{bucket}/{o['Key']}", o["Size"], o["ETag"], o["LastModified"])
        for o in answer.get("Contents", ())
    ]
    prefixes = [found["Prefix"] for found in answer.get("CommonPrefixes", ())]
    return Page(files, prefixes, answer.get("NextContinuationToken"))


def _open_s3(fs: Any, path: str) -> tuple[int, Fetch]:
    # s3fs asks for each range on condition that the etag is still that of the opening.
    handle = fs.open(path, "rb", cache_type="none")
    if handle.details["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, "a folder", path)

    def fetch(start: int, end: int) -> bytes:
        handle.seek(start)
        data: bytes = handle.read(end - start)
        return data

    return handle.size, fetch


async def _read_s3(fs: Any, path: str, version: str) -> bytes:
    bucket, _, key = path.partition("/")
    try:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, IfMatch=f'"{version}"')
    except OSError as error:
        if _s3_code(error) in ("PreconditionFailed", "412"):
            raise FileExpired(errno.ESTALE, "replaced", path) from error
        raise
    async with answer["Body"] as body:
        data: bytes = await body.read()
        return data


def _s3_code(error: BaseException) -> str:
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _connect_gcs(options: Mapping[str, Any]) -> Any:
    import aiohttp

    # The plain class: the package's default asks by gRPC what kind of bucket it is, which takes a
    # minute to fail where there is only HTTP (an emulator, a private endpoint).
    from gcsfs.core import GCSFileSystem

    fs = GCSFileSystem(**{"consistency": "md5", **options}, use_listings_cache=False)
    once = getattr(GCSFileSystem._request, "__wrapped__", None)
    if once is not None:
        fs._request = types.MethodType(once, fs)
    if "requests_timeout" not in options:
        # The default is five minutes in all, however fast the bytes come.
        fs.requests_timeout = aiohttp.ClientTimeout(
            sock_connect=_CONNECT_TIMEOUT_S, sock_read=_SILENCE_TIMEOUT_S
        )
    return fs


def _list_gcs(fs: Any, bucket: str, prefix: str, delimited: bool, token: str | None) -> Page:
    answer = fs.call(
        "GET",
        "b/{}/o",
        bucket,
        json_out=True,
        prefix=prefix or None,
        delimiter="/" if delimited else None,
        pageToken=token,
        maxResults=_PAGE_KEYS,
        fields="nextPageToken,prefixes,items(name,size,generation,updated)",
    )
    files = [
        stored_file(
            f"{bucket}/{item['name']}",
            int(item["size"]),
            item["generation"],
            dt.datetime.fromisoformat(item["updated"]),
        )
        for item in answer.get("items", ())
    ]
    return Page(files, answer.get("prefixes", []), answer.get("nextPageToken"))


def _open_gcs(fs: Any, path: str) -> tuple[int, Fetch]:
    info = _file_info(fs, path)
    generation = info["generation"]

    def fetch(start: int, end: int) -> bytes:
        try:
            data: bytes = fs.cat_file(path, start=start, end=end, generation=generation)
        except FileNotFoundError as error:
            raise FileExpired(errno.ESTALE, "replaced or deleted", path) from error
        return data

    return info["size"], fetch


async def _read_gcs(fs: Any, path: str, version: str) -> bytes:
    try:
        data: bytes = await fs._cat_file(path, generation=version)
    except FileNotFoundError as error:
        await fs._info(path)  # raises where there is no version at all
        raise FileExpired(errno.ESTALE, "replaced", path) from error
    return data


def _connect_azure(options: Mapping[str, Any]) -> Any:
    from adlfs import AzureBlobFileSystem

    fs = AzureBlobFileSystem(**options, use_listings_cache=False)
    # Its first wait would be 15 s, and adlfs passes no option on to say otherwise.
    fs.service_client._config.retry_policy.total_retries = 0
    return fs


def _list_azure(fs: Any, bucket: str, prefix: str, delimited: bool, token: str | None) -> Page:
    async def fetch() -> tuple[list[Any], str | None]:
        async with fs.service_client.get_container_client(bucket) as container:
            listing = container.walk_blobs if delimited else container.list_blobs
            pages = listing(
                name_starts_with=prefix, include=["metadata"], results_per_page=_PAGE_KEYS
            ).by_page(continuation_token=token)
            async for page in pages:
                return [item async for item in page], pages.continuation_token
        return [], None

    found, next_token = _on_loop(fs, fetch)
    names = [item.name for item in found]
    prefixes = [name for name in names if name.endswith("/") and name != prefix]
    files = [
        stored_file(f"{bucket}/{item.name}", item.size, item.etag, item.last_modified)
        for item in found
        if not _is_folder(item)
    ]
    return Page(files, prefixes if delimited else [], next_token or None)


def _is_folder(item: Any) -> bool:
    """Tell prefixes, and the markers that hierarchical accounts keep for folders."""
    if item.name.endswith("/") and not getattr(item, "size", None):
        return True
    return any(key.lower() == "hdi_isfolder" for key in item.metadata or ())


def _open_azure(fs: Any, path: str) -> tuple[int, Fetch]:
    info = _file_info(fs, path)

    def fetch(start: int, end: int) -> bytes:
        try:
            data: bytes = _on_loop(fs, _read_azure, fs, path, info["etag"], start, end)
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
        await fs._info(path)  # raises where there is no version at all
        raise FileExpired(errno.ESTALE, "replaced", path) from error
    except ResourceNotFoundError as error:
        if getattr(error, "error_code", "") == "ContainerNotFound":
            raise
        raise FileNotFoundError(errno.ENOENT, "no such object", path) from error


def _copy_azure(fs: Any, source: str, target: str) -> None:
    """Copy and wait for the end: until then the target is there, but not whole."""
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
        status = _on_loop(fs, copy)
    except ResourceNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", source) from error
    if status != "success":
        raise OSError(errno.EIO, f"the copy ended as {status}", target)


def _file_info(fs: Any, path: str) -> dict[str, Any]:
    info: dict[str, Any] = fs.info(path)
    if info["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, "a folder", path)
    return info


def run_together(
    fs: Any, functions: Sequence[Callable[[], Awaitable[bytes]]]
) -> list[bytes | Exception]:
    """Run coroutines concurrently on the loop of a file system; errors are among the results."""
    from fsspec.asyn import _run_coros_in_chunks

    async def gather() -> Any:
        return await _run_coros_in_chunks([f() for f in functions], return_exceptions=True)

    found: list[bytes | Exception] = _on_loop(fs, gather)
    return found


def _on_loop(fs: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    from fsspec.asyn import sync

    return sync(fs.loop, function, *arguments)


_S3 = ObjectProtocol(
    extra="s3",
    package="s3fs",
    connect=_connect_s3,
    list_page=_list_s3,
    open=_open_s3,
    read_version=_read_s3,
    copy=_copy_plainly,
    version="ETag",
    modified="LastModified",
    # Otherwise s3fs asks for the size of each object first: twice the requests.
    read={"max_concurrency": 1},
)
_GCS = ObjectProtocol(
    extra="gcs",
    package="gcsfs",
    connect=_connect_gcs,
    list_page=_list_gcs,
    open=_open_gcs,
    read_version=_read_gcs,
    copy=_copy_plainly,
    version="generation",
    modified="mtime",
    tells_missing_bucket=False,
)
_AZURE = ObjectProtocol(
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
OBJECT_PROTOCOLS = {"s3": _S3, "gs": _GCS, "az": _AZURE, "abfs": _AZURE, "abfss": _AZURE}
