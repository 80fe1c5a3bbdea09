"""Describe what is published, as a document for `pipeline inspect` and as its page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.layout import Layout, partition_order
from pipeline.commit.manifest import Manifest, Part, list_partitions, locate, require_current
from pipeline.commit.publish import history_numbers
from pipeline.core.errors import JobError
from pipeline.core.schema import LABEL, MESSAGE, ROW_ID, SCORE, URI
from pipeline.published.dataset import PublishedParts
from pipeline.published.originals import OriginalFinder
from pipeline.published.sheets import try_sheet
from pipeline.published.status import Status, survey
from pipeline.report.render import page_html
from pipeline.report.showing.printed import document_html
from pipeline.sources.listing.refused import mark_at
from pipeline.storage.store import Store

DIGEST_CHARS = 12
EXAMPLES = 5
_TOP_LABELS = 10
_COLUMNS_SHOWN = 6
_FIRST = ("labels", "reasons", "predictions", "quarantine")
"""Sections of the page above the pictures, after the counts; ids and hashes come last."""


def choose_partition(
    store: Store, uri_layout: Layout | None, partition: str | None
) -> list[Layout]:
    """Return the partition that is named, or else all partitions of the output.

    Raises:
        JobError: Nothing is published.
    """
    if partition is not None:
        return [Layout.named(partition)]
    if uri_layout is not None and uri_layout.partition:
        return [uri_layout]
    known = list_partitions(store)
    if not known:
        hint = ": it is a lake table; give the sink.uri of a job" if mark_at(store) else ""
        raise JobError(f"{store.url('')}: nothing is published there{hint}")
    return known


def describe_output(
    uri: str, partition: str | None, storage_options: dict[str, Any]
) -> dict[str, Any]:
    """Describe one partition, or list all and describe the newest.

    The newest has the last date or number, whenever it was published: see `partition_order`.

    Args:
        uri: The sink's root, or a partition's folder.
        partition: Its name; None: all partitions.
        storage_options: fsspec options.

    Raises:
        JobError: Nothing is published there.
        InfraError: A part that the current manifest names is missing.
    """
    store, uri_layout = locate(uri, storage_options)
    layouts = choose_partition(store, uri_layout, partition)
    if len(layouts) == 1:
        return _describe_current(store, layouts[0])
    manifests = [require_current(store, layout) for layout in layouts]
    last = max(layouts, key=lambda layout: partition_order(layout.name))
    return {
        "partitions": [
            {"partition": manifest.partition, **(version_facts(manifest) or {})}
            for manifest in manifests
        ],
        "newest": _describe_current(store, last),
    }


def _describe_current(store: Store, layout: Layout) -> dict[str, Any]:
    """Describe the current version; examples of rows are read from its parts."""
    manifest = require_current(store, layout)
    versions = [(layout, manifest)]
    predictions = PublishedParts.of(store, versions, "predictions")
    quarantine = PublishedParts.of(store, versions, "quarantine")
    schema = predictions.schema
    has_labels = LABEL in schema.names
    return {
        "partition": layout.name,
        "version": manifest.number,
        "kind": manifest.kind,
        "restored_from": manifest.restored_from,
        "run_id": manifest.run_id,
        "created_at": manifest.created_at,
        "fingerprint": manifest.fingerprint[:DIGEST_CHARS],
        "rows": {
            "total": manifest.num_rows,
            "predicted": manifest.num_predicted,
            "quarantined": manifest.num_quarantined,
            "unreadable_shards": manifest.num_unreadable_shards,
            **({"left_out": manifest.left_out} if manifest.left_out else {}),
        },
        "parts": [
            _sum_parts("predictions", manifest.parts),
            _sum_parts("quarantine", manifest.quarantine_parts),
        ],
        "model": manifest.model,
        "carried": manifest.carried,
        "gates": list(manifest.gates),
        "skipped": manifest.skipped.get("reasons", []),
        "schema": [{"column": field.name, "type": str(field.type)} for field in schema],
        "labels": _count(predictions, LABEL)[:_TOP_LABELS] if has_labels else [],
        "predictions": _first_rows(predictions, _shown_columns(schema)),
        "reasons": _count(quarantine, "reason"),
        "quarantine": _first_rows(quarantine, [ROW_ID, "reason", MESSAGE]),
        "history": history_numbers(store, layout),
    }


def _shown_columns(schema: pa.Schema) -> list[str]:
    """Return the id with label and score, or else with the first plain columns."""
    if LABEL in schema.names and SCORE in schema.names:
        return [ROW_ID, LABEL, SCORE]
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
    return [ROW_ID, *(name for name in plain if name not in (ROW_ID, URI))][:_COLUMNS_SHOWN]


def _sum_parts(folder: str, parts: Sequence[Part]) -> dict[str, Any]:
    size_bytes = sum(part.size_bytes for part in parts)
    return {"kind": folder, "parts": len(parts), "bytes": size_bytes}


def _count(parts: PublishedParts, column: str) -> list[dict[str, Any]]:
    """Count the values of a text column, most frequent first, with few batches in memory."""
    counts: Counter[str] = Counter()
    for batch in parts.dataset().to_batches(columns=[column], batch_readahead=1):
        for pair in pc.value_counts(batch.column(0)).to_pylist():
            counts[pair["values"]] += pair["counts"]
    return [{column: value, "rows": rows} for value, rows in counts.most_common()]


def _first_rows(parts: PublishedParts, columns: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parts.dataset().head(EXAMPLES, columns=columns).to_pylist()
    return rows


def version_facts(manifest: Manifest | None) -> dict[str, Any] | None:
    """Return number, run, time and rows of a version; None if it is unknown."""
    if manifest is None or not manifest.is_known:
        return None
    return {
        "version": manifest.number,
        "run_id": manifest.run_id,
        "created_at": manifest.created_at,
        "rows": manifest.num_rows,
    }


def inspect_page(
    document: Mapping[str, Any], uri: str, samples: int, storage_options: Mapping[str, Any]
) -> str:
    """Return the document of `inspect` as a page, with rows beside their originals.

    Args:
        document: What `describe_output` returned.
        uri: The output.
        samples: The most rows on the sheet.
        storage_options: fsspec options of the output and of the input.
    """
    options = dict(storage_options)
    store, _ = locate(uri, options)
    newest = document.get("newest", document)
    layout = Layout.named(newest["partition"])
    manifest = require_current(store, layout)
    pieces: list[str] = []
    if "partitions" in document:
        partitions = Status(store.url(""), tuple(survey(store)[::-1])).shown()["partitions"]
        pieces += document_html("", {"the last partition first": partitions})
    first = {**newest["rows"], **{name: newest[name] for name in _FIRST}}
    pieces += document_html(f"{layout.name}, version {newest['version']}", first)
    sheet = try_sheet(OriginalFinder(store, layout, manifest, options), samples)
    others = {name: value for name, value in newest.items() if name not in ("rows", *_FIRST)}
    return page_html(
        store.url("").rstrip("/"), pieces, sheet, document_html("how it was made", others)
    )


def write_page(page: str, path: Path) -> None:
    """Write a page to a local file.

    Raises:
        JobError: It cannot be written.
    """
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise JobError(f"{path}: cannot be written: {error.strerror or error}") from error
