"""The dataset card: `README.md` beside `predictions/`, written after each publication.

It describes the partition that was published last. It follows from the manifest alone, so that a
later run, retry or rollback can write the card that a killed run has not written.
"""

from __future__ import annotations

import logging
import re

import pyarrow as pa
import yaml

from pipeline.commit.layout import CARD, Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.parts.part_file import open_part
from pipeline.commit.tables import published_table
from pipeline.core.errors import InfraError, JobError
from pipeline.core.output_folders import PREDICTIONS
from pipeline.core.printable import printable
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

_LABELS_SHOWN = 5
_MARK = re.compile(rb"<!-- pipeline card: (\S+) version (\d+) of (\S+) -->\n?\Z")
"""The last line of each card. A README.md without it is not a card, and is kept."""
_READERS = """\
```python
root = {root!r}
```

One whole version, also while it is replaced by a newer one:

```python
import pipeline
rows = pipeline.open_output(root).predictions().to_pandas()
```

Plain readers of the folder, while nothing is published:

```python
import pyarrow.dataset as ds
rows = ds.dataset(f"{{root}}/{predictions}", partitioning="hive").to_table()
```

```python
import duckdb
rows = duckdb.read_parquet(f"{{root}}/{files}", hive_partitioning=True)
```

```python
import polars as pl
rows = pl.scan_parquet(f"{{root}}/{files}", hive_partitioning=True).collect()
```

```python
from pyspark.sql import SparkSession
rows = SparkSession.builder.getOrCreate().read.parquet(f"{{root}}/{predictions}")
```

```python
import daft
rows = daft.read_parquet(f"{{root}}/{files}", hive_partitioning=True)
```

```python
from datasets import load_dataset
rows = load_dataset("parquet", data_files=f"{{root}}/{files}", split="train")
```
"""

_TABLE_READER = """\
All partitions, each in one whole version, by the {title}:

```python
{code}
```"""


def write_card(store: Store, layout: Layout, manifest: Manifest) -> None:
    """Write the card of a current version, unless there is a card of a later one.

    A `README.md` that is not a card stays as it is. A card that cannot be written costs a warning,
    not the version.
    """
    if not manifest.card:
        return
    try:
        if (known := _known(store)) is None or known > manifest.created_at:
            return
        data = card_text(store, layout, manifest).encode()
        if known != manifest.created_at or store.read_bytes(CARD) != data:
            store.put(CARD, data)
    except (JobError, InfraError, OSError, pa.ArrowException) as error:
        log.warning("%s was not written: %s", store.url(CARD), error)


def _known(store: Store) -> str | None:
    """Return when the version of the card was published; '' if there is no card.

    None: the file is not a card.
    """
    try:
        mark = _MARK.search(store.read_bytes(CARD))
    except FileNotFoundError:
        return ""
    return mark[3].decode() if mark else None


def card_text(store: Store, layout: Layout, manifest: Manifest) -> str:
    """Return the card of a version: Markdown with the metadata header of the Hugging Face Hub.

    Raises:
        FileNotFoundError: A part of the version is missing.
    """
    wanted, files = manifest.card, _files(layout, manifest)
    head = {"configs": [{"config_name": "default", "data_files": files}]}
    head |= {"license": wanted["license"]} if wanted.get("license") else {}
    pieces = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# Predictions of {_code(str(manifest.model.get('name')))}",
        "This folder was written by batch inference. The card describes the partition that was "
        "published last; `pipeline inspect` lists all.",
        _table(_facts(manifest)),
        "## Columns of predictions",
        _table([("column", "type"), *_columns(store, manifest)]),
        "`quarantine/` has the rows without a prediction, each with its reason.",
        "## Read it",
        _READERS.format(
            root=store.url("").rstrip("/"), files=files, predictions=PREDICTIONS
        ).rstrip(),
    ]
    if (table := published_table(store, manifest)) is not None:
        pieces.append(_TABLE_READER.format(title=table.title, code=table.reader))
    if source := [wanted[name] for name in ("input", "source") if wanted.get(name)]:
        pieces += ["## Source", *source]
    if wanted.get("license"):
        pieces += ["## Licence", wanted["license"]]
    mark = f"{layout.name} version {manifest.number} of {manifest.created_at}"
    return "\n\n".join([*pieces, f"<!-- pipeline card: {mark} -->\n"])


def _files(layout: Layout, manifest: Manifest) -> str:
    """Return the glob of the parts; it leaves out a Delta log, whose checkpoints are Parquet."""
    if layout.partition is None:
        return f"{PREDICTIONS}/*.parquet"
    below = "**/" if manifest.partition_columns else ""
    return f"{PREDICTIONS}/{layout.partition.partition('=')[0]}=*/{below}*.parquet"


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    model, labels = manifest.model, manifest.distribution.get("labels") or {}
    common = sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))[:_LABELS_SHOWN]
    task = model.get("task")
    facts = {
        "partition": _code(manifest.partition),
        "version": str(manifest.number),
        "published": manifest.created_at,
        "rows": f"{manifest.num_rows:,}",
        "predictions": f"{manifest.num_predicted:,}",
        "in quarantine": f"{manifest.num_quarantined:,}",
        "most common labels": ", ".join(f"{_code(name)} {count:,}" for name, count in common),
        "task": str(task.get("kind", "")) if isinstance(task, dict) else "",
        "runtime and precision": f"{model.get('runtime')}, {model.get('precision')}",
        "SHA-256 of the weights": model.get("weights_sha256") or "",
        "run": manifest.run_id,
    }
    return [("what", "value"), *((name, value) for name, value in facts.items() if value)]


def _columns(store: Store, manifest: Manifest) -> list[tuple[str, str]]:
    fields = pa.schema([])
    if manifest.parts:
        with open_part(store, manifest.parts[0].path) as part:
            fields = part.schema_arrow
    types = {field.name: str(field.type) for field in fields} | manifest.partition_columns
    return [(_code(name), _code(type_name)) for name, type_name in types.items()]


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([lines[0], "|---|---|", *lines[1:]])


def _code(text: str) -> str:
    """Return text for a table cell, without effect of Markdown or HTML marks."""
    return "`{}`".format(printable(text).replace("`", "'").replace("|", r"\|"))
