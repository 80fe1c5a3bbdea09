"""Google Cloud Storage, through gcsfs."""

from __future__ import annotations

import datetime as dt
import errno
import types
from collections.abc import Mapping
from typing import Any

from pipeline.storage.interface import FileExpired, Page
from pipeline.storage.protocols.object_protocol import (
    PAGE_KEYS,
    Fetch,
    ObjectProtocol,
    call,
    copy_plainly,
    file_info,
    stored_file,
)

_CONNECT_TIMEOUT_S = 15.0
_SILENCE_TIMEOUT_S = 60.0


def _connect_gcs(options: Mapping[str, Any]) -> Any:
    import aiohttp

    # The plain class: the package's default asks by gRPC what kind of bucket it is, which takes a
    # minute to fail if there is only HTTP (an emulator, a private endpoint).
    from gcsfs.core import GCSFileSystem

    fs = GCSFileSystem(**{"consistency": "md5", **options}, use_listings_cache=False)
    # The request without its retries: ours are counted. Without these private names both retry.
    once = getattr(getattr(GCSFileSystem, "_request", None), "__wrapped__", None)
    if once is not None:
        fs._request = types.MethodType(once, fs)
    if "requests_timeout" not in options:
        # The default is five minutes in total, however fast the bytes come.
        fs.requests_timeout = aiohttp.ClientTimeout(
            sock_connect=_CONNECT_TIMEOUT_S, sock_read=_SILENCE_TIMEOUT_S
        )
    return fs


def _list_gcs(fs: Any, bucket: str, prefix: str, delimited: bool, token: str | None) -> Page:
    """Request one page of a listing, with generations as versions."""
    return _page(fs, bucket, prefix, delimiter="/" if delimited else None, pageToken=token)


def _list_gcs_after(fs: Any, bucket: str, prefix: str, key: str) -> Page:
    # An offset is inclusive: the smallest key after another has a zero byte appended.
    page = _page(fs, bucket, prefix, startOffset=f"{key}\0")
    while page.next_token and not page.files:  # the API allows empty pages
        page = _page(fs, bucket, prefix, startOffset=f"{key}\0", pageToken=page.next_token)
    last = page.files[-1].path.removeprefix(f"{bucket}/") if page.next_token else None
    return Page(page.files, next_token=last)


def _page(fs: Any, bucket: str, prefix: str, **more: str | None) -> Page:
    answer = fs.call(
        "GET",
        "b/{}/o",
        bucket,
        json_out=True,
        prefix=prefix or None,
        **more,
        maxResults=PAGE_KEYS,
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
    info = file_info(fs, path)
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
        data: bytes = await call(fs, "cat_file", path, generation=version)
    except FileNotFoundError as error:
        await call(fs, "info", path)  # raises if there is no version at all
        raise FileExpired(errno.ESTALE, "replaced", path) from error
    return data


GCS = ObjectProtocol(
    extra="gcs",
    package="gcsfs",
    connect=_connect_gcs,
    list_page=_list_gcs,
    list_after=_list_gcs_after,
    open=_open_gcs,
    read_version=_read_gcs,
    copy=copy_plainly,
    version="generation",
    modified="mtime",
    tells_missing_bucket=False,
)
