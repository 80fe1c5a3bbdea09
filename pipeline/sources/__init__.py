"""List shards and read their rows: files, Parquet, JSON lines, CSV, WebDataset, URIs.

In: a job's section `source`. Out: shards with sizes and versions, then the rows of units, slice by
slice. Begin with `inputs.py`, which lists, and `reader.py`, which reads.

`REGISTRY` names the source formats, each a `SourceFormat` (source_format.py). To add one, write a
file and a line here, or declare an entry point of the group `pipeline.sources` in a distribution
that is installed on every node.
"""

REGISTRY = {
    "images": "pipeline.sources.formats.media_files:FORMAT",
    "audio": "pipeline.sources.formats.media_files:AUDIO",
    "parquet": "pipeline.sources.formats.parquet:FORMAT",
    "jsonl": "pipeline.sources.formats.jsonl:FORMAT",
    "csv": "pipeline.sources.formats.csv:FORMAT",
    "webdataset": "pipeline.sources.formats.webdataset:FORMAT",
}
"""`source.format` -> where its `SourceFormat` is; imported when a job names it."""
