"""List shards and read their rows: files, Parquet, JSON lines, CSV, WebDataset, URIs.

Input: the section `source` of a job. Output: shards with sizes and versions, then the rows of
units, slice by slice. Begin with `listing/inputs.py` and `reader.py`.

`REGISTRY` names the source formats, each a `SourceFormat` (source_format.py). To add one, write a
file and a line here, or declare an entry point of the group `pipeline.sources` in a distribution
that is installed on every node.
"""

REGISTRY = {
    "images": "pipeline.sources.formats.media_files:FORMAT",
    "audio": "pipeline.sources.formats.media_files:AUDIO",
    "parquet": "pipeline.sources.formats.parquet:FORMAT",
    "delta": "pipeline.sources.formats.delta:FORMAT",
    "iceberg": "pipeline.sources.formats.iceberg:FORMAT",
    "jsonl": "pipeline.sources.formats.jsonl:FORMAT",
    "csv": "pipeline.sources.formats.csv:FORMAT",
    "webdataset": "pipeline.sources.formats.webdataset:FORMAT",
}
"""`source.format` -> the place of its `SourceFormat`, imported when a job names it."""
