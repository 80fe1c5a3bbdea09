"""Amazon S3 and stores with its protocol, through s3fs."""

from __future__ import annotations

import datetime as dt
import errno
from collections.abc import Mapping
from typing import Any, cast

from pipeline.storage.interface import FileExpired, Page
from pipeline.storage.protocols.object_protocol import (
    PAGE_KEYS,
    Fetch,
    ObjectProtocol,
    call,
    copy_plainly,
    stored_file,
)


def _connect_s3(options: Mapping[str, Any]) -> Any:
    import s3fs

    # Small objects are bound by latency: ten connections (the default) are too few.
    config = {"max_pool_connections": 32, "retries": {"max_attempts": 0}}
    settings = {**options, "config_kwargs": {**config, **options.get("config_kwargs", {})}}
    fs = s3fs.S3FileSystem(**settings, use_listings_cache=False)
    fs.retries = 1
    if fs.session is None:
        fs.session = _session(fs.kwargs)
    return fs


def _session(options: Mapping[str, Any]) -> Any:
    """Return a session that parses times fast: they take botocore half the time of a listing."""
    from aiobotocore.session import AioSession

    try:
        session = AioSession(**options)
    except TypeError:
        return None  # s3fs then makes one, and its error names the wrong option
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=_parse_time)
    return session


def _parse_time(text: Any) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        from botocore.utils import parse_timestamp

        return cast(dt.datetime, parse_timestamp(text))


def _list_s3(fs: Any, bucket: str, prefix: str, delimited: bool, token: str | None) -> Page:
    more = {"ContinuationToken": token} if token else {}
    more |= {"Delimiter": "/"} if delimited else {}
    return _page(fs, bucket, prefix, more)


def _list_s3_after(fs: Any, bucket: str, prefix: str, key: str) -> Page:
    page = _page(fs, bucket, prefix, {"StartAfter": key})
    while page.next_token and not page.files:
        page = _page(fs, bucket, prefix, {"ContinuationToken": page.next_token})
    last = page.files[-1].path.removeprefix(f"{bucket}/") if page.next_token else None
    return Page(page.files, next_token=last)


def _page(fs: Any, bucket: str, prefix: str, more: Mapping[str, str]) -> Page:
    answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=PAGE_KEYS, **more)
    files = [
        stored_file(f"{bucket}/{o['Key']}", o["Size"], o["ETag"], o["LastModified"])
        for o in answer.get("Contents", ())
    ]
    prefixes = [entry["Prefix"] for entry in answer.get("CommonPrefixes", ())]
    return Page(files, prefixes, answer.get("NextContinuationToken"))


def _open_s3(fs: Any, path: str) -> tuple[int, Fetch]:
    # s3fs requests each range on condition that the etag has not changed since the opening.
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
        answer = await call(
            fs, "call_s3", "get_object", Bucket=bucket, Key=key, IfMatch=f'"{version}"'
        )
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


S3 = ObjectProtocol(
    extra="s3",
    package="s3fs",
    connect=_connect_s3,
    list_page=_list_s3,
    list_after=_list_s3_after,
    open=_open_s3,
    read_version=_read_s3,
    copy=copy_plainly,
    version="ETag",
    modified="LastModified",
    # Otherwise s3fs first requests the size of each object: twice the requests.
    read={"max_concurrency": 1},
)
